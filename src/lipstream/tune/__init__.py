"""Search for the fastest settings that keep a clip's quality above given floors."""
