"""Benchmarks of settings: speed, memory and quality."""
