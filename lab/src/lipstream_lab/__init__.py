"""Benchmarks, the search for layers to prune, and training, beside the product `lipstream`."""
