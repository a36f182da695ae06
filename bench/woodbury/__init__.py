"""Benchmarks of `quadric.woodbury`."""
