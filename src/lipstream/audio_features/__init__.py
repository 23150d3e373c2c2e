"""From samples to the audio features of each frame: log-mel and the Whisper encoder."""
