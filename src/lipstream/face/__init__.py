"""Faces in frames: find, track, crop, paste back."""
