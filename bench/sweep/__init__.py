"""Benchmarks of `quadric.sweep`."""
