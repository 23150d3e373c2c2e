"""Video and speech in and out, streamed, through PyAV alone."""
