"""Random numbers with a place: each is a function of a seed, a stream and a running number.

They come from Philox 4x32-10, a counter-based generator. So any part of a sequence is there without
the rest, and it is the same whatever the number of threads and the backend.

==============================  ====================================================================
`words`                         32 random bits
`uniforms`                      float64 numbers in [0, 1)
`normals`                       float64 numbers of the standard normal distribution
`resolve_seed`                  the seed that an argument ``seed=`` stands for
==============================  ====================================================================

>>> import quadric as qd
>>> u = qd.random.uniforms(seed=0, stream=16, first=0, count=1000)
>>> bool((u[900:910] == qd.random.uniforms(0, 16, 900, 10)).all())
True
"""

from quadric.random.philox import normals, resolve_seed, uniforms, words

__all__ = ["normals", "resolve_seed", "uniforms", "words"]
