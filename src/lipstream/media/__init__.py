"""Read and write video and speech as streams, through PyAV."""
