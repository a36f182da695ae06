"""Runnable demonstrations of quadric on real models."""
