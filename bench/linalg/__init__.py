"""Benchmarks of `quadric.linalg`."""
