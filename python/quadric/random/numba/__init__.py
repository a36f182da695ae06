"""Random words without a compiler."""

from quadric.random.numba.philox import philox

__all__ = ["philox"]
