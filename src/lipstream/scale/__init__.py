"""Work spread over devices and machines: segments of a clip, and many clips."""
