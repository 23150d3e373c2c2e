"""Benchmarks, layer pruning and training for `lipstream`."""
