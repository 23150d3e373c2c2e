"""Data that comes with lipstream: the small model, the sample and the face networks."""
