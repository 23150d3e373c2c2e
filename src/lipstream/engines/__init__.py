"""Engines that compute the networks in place of torch, behind the same calls, from graphs in ONNX's format."""
