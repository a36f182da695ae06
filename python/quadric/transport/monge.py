"""How much more a map costs than the best transport to where it leads."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array
from quadric.transport.cost import KINDS, Cost
from quadric.transport.derivatives import Gradients
from quadric.transport.results import TransportResult
from quadric.transport.run import Method
from quadric.transport.solve_points import PointCost, solve_points


@dataclass(frozen=True, slots=True, eq=False)
class MongeGap:
    """What :func:`monge_gap` returns.

    Attributes
    ----------
    value : float
        The gap; of a batch an array, shape (B,).
    displacement : float
        What the map costs, ``sum_i a_i c(x_i, T(x_i))``; of a batch an array, shape (B,).
    transport : TransportResult
        Transport from x to T(x).
    """

    value: Any
    displacement: Any
    transport: TransportResult

    @property
    def converged(self) -> Any:
        """Whether the transport reached the tolerance; of a batch an array, shape (B,)."""
        return self.transport.converged

    def gradients(self) -> Gradients:
        """Return the gradient of `value` in the points x, in their images and in the masses.

        Returns
        -------
        Gradients
            `y` belongs to the images T(x). `M` and `b` are None.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> x = np.random.default_rng(0).standard_normal((20, 2))
        >>> gap = qd.transport.monge_gap(x, x + 3, reg=1e-3)  # a shift is the best map
        >>> bool(np.abs(gap.gradients().y).max() < 1e-6)
        True
        """
        problem, best = self.transport.problem, self.transport.gradients()
        f, g = self.transport.potentials()
        there = problem.a > 0
        a = np.where(there, _costs(problem.cost) - problem.reg, 0.0)
        a[there] -= f[there] + g[there]
        x, y = (
            problem.array((problem.a[:, :, None] * slope).astype(problem.cost.dtype))
            for slope in _slopes(problem.cost)
        )
        return Gradients(None, x - best.x, y - best.y, problem.array(a), None)


def monge_gap(
    x: Array,
    Tx: Array,
    reg: float,
    *,
    a: Array | None = None,
    cost: PointCost = "sqeuclidean",
    method: Method = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    normalize: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> MongeGap:
    """Return ``sum_i a_i c(x_i, T(x_i)) - W(x, T(x))`` of a map T, of which only images are known.

    ``W = min <C, P> + reg sum P log P`` over the plans from x to T(x). A map that sends every
    point where the best transport would has the least gap, which tends to 0 with `reg`.

    Parameters
    ----------
    x, Tx : array, shape (n, d) or (B, n, d)
        Points and their images, float32 or float64.
    reg : float
        Regularization above 0, in units of the cost.
    a : array, shape (n,) or (B, n), optional
        Masses of the points and their images; uniform with sum 1 if not given.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}, optional
        Cost between two points.
    method, tol, max_iter, normalize, backend, n_threads : optional
        As in :func:`solve_points`.

    Returns
    -------
    MongeGap
        The gap, its two terms, and its gradients.

    Warns
    -----
    ConvergenceWarning
        If the transport did not reach the tolerance.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, a mass is negative, or an option has no
        such value.
    TypeError
        If a dtype does not fit.

    See Also
    --------
    quadric.adapters.torch.monge_gap : the same as a loss.

    Notes
    -----
    The definition is that of [1]_, with the entropy ``- sum P log P`` as the regularizer: this
    makes W at most the least cost without regularization, so that no map with masses of sum 1 has
    a gap below 0. W is the dual value, whose error is quadratic in that of the marginals.

    References
    ----------
    .. [1] T. Uscidda, M. Cuturi. The Monge gap: a regularizer to learn all transport maps. ICML
       2023, arXiv:2302.04953.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> x = np.random.default_rng(0).standard_normal((100, 2))
    >>> shift, flip = (qd.transport.monge_gap(x, T, reg=1e-2).value for T in (x + 5, -x))
    >>> shift < 0.1 < flip
    True
    """
    transport = solve_points(
        x,
        _images(Tx, x),
        reg,
        a=a,
        b=a,
        cost=cost,
        method=method,
        tol=tol,
        max_iter=max_iter,
        normalize=normalize,
        backend=backend,
        n_threads=n_threads,
    )
    problem = transport.problem
    displacement = (_costs(problem.cost) * problem.a).sum(axis=1)
    free = problem.outputs(displacement - problem.reg * problem.a.sum(axis=1))
    return MongeGap(free - transport.dual_value, problem.outputs(displacement), transport)


def _images(Tx: Array, x: Array) -> Array:
    """Check what :func:`solve_points` would call y."""
    images, points = arrays.take(Tx, "Tx"), arrays.take(x, "x")
    if images.shape != points.shape:
        raise ValueError(f"Tx must have the shape {points.shape} of x, got {images.shape}")
    checks.same_type(images, "Tx", points.dtype, "x")
    arrays.together(images, points, "Tx", "x")
    checks.finite(arrays.contiguous(images), "Tx")
    return Tx


def _points(cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    assert cost.x is not None
    assert cost.y is not None
    x, y = (arrays.host(p).astype(np.float64) for p in (cost.x, cost.y))
    return x, y


def _costs(cost: Cost) -> np.ndarray:
    """Return what each point pays to get to its own image, shape (B, n)."""
    x, y = _points(cost)
    if cost.kind == KINDS["cosine"]:
        costs: np.ndarray = 1 - (x * y).sum(axis=2)
    elif cost.kind == KINDS["cityblock"]:
        costs = np.abs(x - y).sum(axis=2)
    else:
        costs = np.square(x - y).sum(axis=2)
    return np.sqrt(costs) if cost.kind == KINDS["euclidean"] else costs


def _slopes(cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """Return the derivatives of these costs in x and in y, shape (B, n, d)."""
    x, y = _points(cost)
    if cost.kind == KINDS["cosine"]:
        assert cost.lengths is not None
        along = (x * y).sum(axis=2, keepdims=True)
        of_x, of_y = (length[:, :, None] for length in cost.lengths)
        return (along * x - y) / of_x, (along * y - x) / of_y
    slope = x - y
    if cost.kind == KINDS["sqeuclidean"]:
        slope *= 2
    elif cost.kind == KINDS["cityblock"]:
        slope = np.sign(slope)
    else:
        distance = _costs(cost)[:, :, None]
        slope = np.divide(slope, distance, out=np.zeros_like(slope), where=distance > 0)
    return slope, -slope
