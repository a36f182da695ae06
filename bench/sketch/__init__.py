"""Benchmarks of `quadric.sketch`."""
