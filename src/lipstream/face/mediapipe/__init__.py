"""mediapipe's face detection and face mesh, run by LiteRT."""
