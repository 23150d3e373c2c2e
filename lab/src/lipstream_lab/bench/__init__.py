"""Settings against one another: speed, memory, quality."""
