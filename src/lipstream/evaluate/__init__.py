"""Quality of a result: similarity to a reference, mouth metrics, side-by-side videos."""
