"""Optimal transport as a step of scikit-learn; needs the ``sklearn`` extra.

>>> import numpy as np
>>> from quadric.adapters.sklearn import TransportMap
>>> source = np.random.default_rng(0).normal(0.0, 1.0, (300, 2))
>>> target = np.random.default_rng(1).normal(5.0, 2.0, (400, 2))
>>> moved = TransportMap(reg=0.5).fit(source, target=target).transform(source)
>>> bool(np.abs(moved.mean(axis=0) - target.mean(axis=0)).max() < 1e-6)
True
"""

from quadric.adapters.sklearn.transport_map import TransportMap

__all__ = ["TransportMap"]
