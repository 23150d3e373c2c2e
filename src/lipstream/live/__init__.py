"""Live: a prepared clip of a face that speaks while the speech is still being spoken."""
