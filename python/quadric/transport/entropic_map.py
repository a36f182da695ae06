"""New points moved by the potentials of a solved problem."""

import math

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import softmax

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array
from quadric.transport.cost import KINDS, Cost
from quadric.transport.solve_points import PointCost

# Costs / reg up to which the digits of a dtype leave a difference between two costs.
_FAR = {np.dtype(np.float32): 1e5, np.dtype(np.float64): 1e9}
_PART = 2**20  # costs of points beyond, that are computed together in float64


def entropic_map(
    x: Array,
    y: Array,
    g: Array,
    reg: float,
    *,
    values: Array | None = None,
    cost: PointCost = "sqeuclidean",
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return where the points `x` are sent by the potentials `g` of the points `y`.

    The points need not be those that the problem was solved for. Each goes to a weighted mean of
    the values of `y`::

        T(x) = sum_j w_j(x) values_j / sum_j w_j(x),    w_j(x) = exp((g_j - c(x, y_j)) / reg)

    Parameters
    ----------
    x : array, shape (n, d)
        Points to be moved, float32 or float64.
    y : array, shape (m, d)
        Points on the other side, of the dtype of `x`.
    g : array of float64, shape (m,)
        Potentials of `y`, in units of the cost; -Inf where there is no mass. They and the values
        may be in another memory than the points. Those of the rows
        (`TransportResult.f`, with the points x of that problem as `y`) give the map back.
    reg : float
        That of the problem, in units of the cost.
    values : array, shape (m, k) or (m,), optional
        What is averaged, float32 or float64; `y` if it is not given.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}, optional
        That of the problem.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    array, shape (n, k) or (n,)
        Of the array type and dtype of `values`. No n x m matrix is stored.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or no point of `y` has mass.
    TypeError
        If a dtype does not fit.

    See Also
    --------
    TransportResult.barycentric : the same at the points that the problem was solved for.

    Notes
    -----
    For the squared Euclidean cost this is the estimator of the optimal map of [1]_, equation (9).
    It needs twice the work of an iteration of Sinkhorn. Points so far away that the digits of their
    dtype would not do are moved in float64.

    References
    ----------
    .. [1] A.-A. Pooladian, J. Niles-Weed. Entropic estimation of optimal transport maps. 2021.
       arXiv:2109.12004

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> x = np.random.default_rng(0).random((200, 2))
    >>> y = x + [3.0, 0.0]
    >>> result = qd.transport.solve_points(x, y, reg=1e-3)
    >>> new = np.array([[0.25, 0.5], [0.5, 0.75]])
    >>> moved = qd.transport.entropic_map(new, y, result.g, reg=1e-3)
    >>> bool(np.abs(moved - new - [3.0, 0.0]).max() < 0.1)
    True
    """
    points, other = checks.matrix(x, "x", gpu=True), checks.matrix(y, "y", gpu=True)
    checks.same_type(other, "y", points.dtype, "x")
    arrays.together(other, points, "y", "x")
    (n, d), m = points.shape, len(other)
    if other.shape[1] != d or d == 0:
        raise ValueError(f"x and y must be points of one dimension, got {d} and {other.shape[1]}")
    potentials = arrays.host(arrays.take(g, "g"))
    if device.find(g) is not None:
        potentials = potentials.astype(np.float64)  # JAX may have nothing wider than float32
    if potentials.shape != (m,):
        raise ValueError(f"g must have shape ({m},), got {potentials.shape}")
    checks.same_type(potentials, "g", np.dtype(np.float64), "the solution")
    if values is None:
        values = y
    V = arrays.host(arrays.take(values, "values"))
    checks.floating(V, "values")
    if V.ndim not in (1, 2) or len(V) != m:
        raise ValueError(f"values must have shape ({m},) or ({m}, k), got {V.shape}")
    for array, name in ((points, "x"), (other, "y"), (V, "values")):
        checks.finite(array, name)
    reg = checks.positive(reg, "reg")
    kind = KINDS[checks.choice(cost, "cost", tuple(KINDS))]
    sinkhorn = backends.resolve("transport.sinkhorn", backend, on=points)
    apply_plan = backends.resolve("transport.apply_plan", backend, on=points)
    home, points, other = points, arrays.host(points), arrays.host(other)
    workers = threads.resolve(n_threads)

    there = potentials > -math.inf
    checks.finite(potentials[there], "g")
    if not there.any():
        raise ValueError("g must be finite for one point at least, got -inf alone")
    if not there.all():
        other, potentials, V = other[there], potentials[there], V[there]
    v = np.ascontiguousarray(V, np.float64).reshape(len(V), math.prod(V.shape[1:]))
    out = np.empty((n, v.shape[1]))
    far = _farthest(points, other, cost) > _FAR[points.dtype] * reg
    for part in np.array_split(np.flatnonzero(far), far.sum() * len(other) // _PART + 1):
        distances = cdist(points[part].astype(np.float64), other.astype(np.float64), cost)
        out[part] = softmax((potentials - distances) / reg, axis=1) @ v
    near = points[~far]
    if n := len(near):
        pairs = Cost.points(arrays.beside(near, home), arrays.beside(other, home), kind)
        f, fixed = np.zeros((1, n)), np.ascontiguousarray(potentials)[None].copy()
        masses = np.ones((1, n)), np.ones((1, len(other)))
        # Half an iteration makes every row of the plan sum to 1, but for rounding.
        state = (f, fixed, np.empty((1, 1)), workers)
        sinkhorn(*pairs.args, *masses, reg, 1.0, 1.0, np.ones(1), math.inf, 1, *state)
        rows, columns, product = np.empty(n), np.empty(len(other)), np.empty((n, v.shape[1]))
        apply_plan(*pairs.single(), f[0], fixed[0], reg, v, product, rows, columns, workers)
        out[~far] = product / rows[:, None]
    return arrays.like(values)(out.astype(V.dtype).reshape(len(out), *V.shape[1:]))


def _farthest(x: np.ndarray, y: np.ndarray, cost: str) -> np.ndarray:
    """Return a bound of the costs of each point of `x` to those of `y`."""
    if cost == "cosine":
        return np.full(len(x), 2.0)
    center = y.mean(axis=0, dtype=np.float64)
    order = 1 if cost == "cityblock" else 2
    with np.errstate(over="ignore"):
        to_x, to_y = (np.linalg.norm(p - center, order, axis=1) for p in (x, y))
        reach: np.ndarray = to_x + to_y.max()
        if cost == "sqeuclidean":
            reach *= reach
    if not np.isfinite(reach).all():
        raise ValueError(f"x and y must be less far apart: their {cost} cost overflows float64")
    return reach
