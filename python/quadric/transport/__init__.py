"""Entropic optimal transport: how to move one distribution onto another at the least cost.

The plan P with row sums a and column sums b that minimizes ``<C, P> + reg sum P (log P - 1)``, by
over-relaxed Sinkhorn iterations that read each cost once, and by a sparse Newton method that takes
over where those are slow.

==============================  ====================================================================
`solve`                         for a stored cost matrix, or a batch of them
`solve_points`                  for points; the cost is never stored
`TransportResult`               what both return: the plan, dense, sparse or rounded, its value,
                                its errors, barycentric projection, derivatives
`entropic_map`                  where the potentials of a solved problem send new points
`round_to_marginals`            any plan made exactly feasible
`sinkhorn_divergence`           a distance of point clouds that is 0 for equal ones
`monge_gap`                     how far a map is from an optimal one
`sparsity_constrained`          at most k entries per column
`route`                         tokens to experts of limited capacity
`sinkhorn`, `sinkhorn2`,        the words of the Python Optimal Transport library (POT), for
`plan`, `dist`, `unif`          ``import quadric.transport as ot``
==============================  ====================================================================

>>> import numpy as np
>>> import quadric as qd
>>> rng = np.random.default_rng(0)
>>> x, y = rng.standard_normal((300, 2)), rng.standard_normal((400, 2)) + 3
>>> result = qd.transport.solve_points(x, y, reg=0.05)
>>> result.converged, result.marginal_error < 1e-9
(True, True)
>>> moved = result.barycentric(y)
>>> bool(np.abs(moved.mean(axis=0) - y.mean(axis=0)).max() < 1e-9)
True
"""

from quadric.transport.derivatives import Gradients
from quadric.transport.divergence import SinkhornDivergence, sinkhorn_divergence
from quadric.transport.entropic_map import entropic_map
from quadric.transport.monge import MongeGap, monge_gap
from quadric.transport.pot import dist, plan, sinkhorn, sinkhorn2, unif
from quadric.transport.results import TransportResult
from quadric.transport.rounding import round_to_marginals
from quadric.transport.routing import Routing, route
from quadric.transport.solve import solve
from quadric.transport.solve_points import solve_points
from quadric.transport.sparse import SparsePlan
from quadric.transport.sparsity_constrained import SparsityConstrainedResult, sparsity_constrained

__all__ = [
    "Gradients",
    "MongeGap",
    "Routing",
    "SinkhornDivergence",
    "SparsePlan",
    "SparsityConstrainedResult",
    "TransportResult",
    "dist",
    "entropic_map",
    "monge_gap",
    "plan",
    "round_to_marginals",
    "route",
    "sinkhorn",
    "sinkhorn2",
    "sinkhorn_divergence",
    "solve",
    "solve_points",
    "sparsity_constrained",
    "unif",
]
