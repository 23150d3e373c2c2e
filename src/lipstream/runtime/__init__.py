"""What a run computes on: devices, dtypes, threads and memory."""
