"""Transport without a compiler: Numba for every pass over the pairs."""

from quadric.transport.numba.candidates import candidates
from quadric.transport.numba.capped import capped_columns, capped_dual
from quadric.transport.numba.newton import newton_direction
from quadric.transport.numba.plans import apply_plan, plan, point_gradient
from quadric.transport.numba.sinkhorn import sinkhorn
from quadric.transport.numba.sparse import sparse_sinkhorn

__all__ = [
    "apply_plan",
    "candidates",
    "capped_columns",
    "capped_dual",
    "newton_direction",
    "plan",
    "point_gradient",
    "sinkhorn",
    "sparse_sinkhorn",
]
