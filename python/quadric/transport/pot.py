"""The words of POT, the Python Optimal Transport library, for the solvers of this one."""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from quadric import arrays, checks, device
from quadric.arrays import Array
from quadric.transport.results import TransportResult
from quadric.transport.run import METHODS, run
from quadric.transport.solve import prepare, solve

_METHODS = (
    "sinkhorn",
    "sinkhorn_log",
    "greenkhorn",
    "sinkhorn_stabilized",
    "sinkhorn_epsilon_scaling",
)
_MEANINGLESS = (
    "tau",
    "print_period",
    "epsilon0",
    "numInnerItermax",
)  # here; POT's methods use them


def sinkhorn(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """Return the entropic plan, with the arguments and results of POT's ``ot.sinkhorn``.

    Parameters
    ----------
    a : array or list, shape (n,)
        Masses of the rows; empty is uniform.
    b : array or list, shape (m,) or (m, k)
        Masses of the columns; empty is uniform. With k of them the result is k costs.
    M : array or list, shape (n, m)
        Costs.
    reg : float
        Regularization above 0.
    method : str, optional
        POT's "sinkhorn", "sinkhorn_log", "greenkhorn", "sinkhorn_stabilized" and
        "sinkhorn_epsilon_scaling" have one solution, and here one solver: "auto" of :func:`solve`,
        whose "newton" and "published" are taken too.
    numItermax : int, optional
        Most iterations.
    stopThr : float, optional
        The L1 error of both marginals to reach, which bounds the L2 error of one that POT looks at.
    verbose : bool, optional
        Print the error of each step.
    log : bool, optional
        Return a dictionary as well.
    warn : bool, optional
        Warn if the tolerance was not reached.
    warmstart : pair of array, shape (n,) and (m,), optional
        ``log(u), log(v)`` to start from; with k targets a list of k pairs.
    **kwargs
        Further arguments of :func:`solve`: `backend`, `n_threads`, `normalize`, `omega`,
        `progress`. Those that only POT's methods know are accepted and mean nothing: `tau`,
        `print_period`, `epsilon0`, `numInnerItermax`.

    Returns
    -------
    plan : array, shape (n, m)
        The plan, or the costs ``<M, P>`` of k plans, shape (k,).
    log : dict
        If it was asked for: "u" and "v" (scalings ``exp(f / reg)``, ``exp(g / reg)``), "log_u" and
        "log_v", "warmstart" (the pair of these), "err", "niter", and "result", the
        :class:`TransportResult` or a list of k of them.

    Raises
    ------
    ValueError, TypeError
        As :func:`solve`, and for an unknown method.

    See Also
    --------
    solve : the same with more to set and to get.

    Notes
    -----
    Nothing is differentiated through: ``result.gradients()``, and for torch
    `quadric.adapters.torch.ot_loss`, give gradients without the loop.

    Examples
    --------
    >>> import quadric.transport as ot
    >>> ot.sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1).round(6)
    array([[0.365529, 0.134471],
           [0.134471, 0.365529]])
    """
    kwargs["method"] = method
    results = _solve(a, b, M, reg, numItermax, stopThr, verbose, warn, warmstart, kwargs)
    one = np.ndim(b) < 2
    found = results[0].plan() if one else _costs(results)
    return (found, _log(results, one)) if log else found


def sinkhorn2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = False,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """Return the cost ``<M, P>`` of the entropic plan, as POT's ``ot.sinkhorn2``.

    Parameters
    ----------
    a, b, M, reg, method, numItermax, stopThr, verbose, log, warn, warmstart, **kwargs
        As in :func:`sinkhorn`.

    Returns
    -------
    cost : float or array, shape (k,)
        One for each column of `b`.
    log : dict
        As in :func:`sinkhorn`, if it was asked for.

    Examples
    --------
    >>> import quadric.transport as ot
    >>> round(float(ot.sinkhorn2([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1)), 6)
    0.268941
    """
    kwargs["method"] = method
    results = _solve(a, b, M, reg, numItermax, stopThr, verbose, warn, warmstart, kwargs)
    one = np.ndim(b) < 2
    found = _costs(results)[0] if one else _costs(results)
    return (found, _log(results, one)) if log else found


def plan(a: Array | None, b: Array | None, M: Array, reg: float, **options: Any) -> Array:
    """Return the plan itself, ``solve(a, b, M, reg, **options).plan()``.

    Parameters
    ----------
    a, b, M, reg, **options
        As in :func:`solve`.

    Returns
    -------
    array, shape (n, m)

    Examples
    --------
    >>> import numpy as np
    >>> import quadric.transport as ot
    >>> ot.plan(ot.unif(2), ot.unif(2), np.array([[0.0, 1.0], [1.0, 0.0]]), 0.01).round(6)
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    return solve(a, b, M, reg, **options).plan()


def unif(n: int, type_as: Any = None) -> Any:
    """Return n equal masses of sum 1.

    Parameters
    ----------
    n : int
        How many.
    type_as : array, optional
        An array of the type and dtype to return; NumPy's float64 if it is not given.

    Returns
    -------
    array, shape (n,)

    Examples
    --------
    >>> import quadric.transport as ot
    >>> ot.unif(4)
    array([0.25, 0.25, 0.25, 0.25])
    """
    n = checks.integer(n, "n", low=1)
    if type_as is None:
        return np.full(n, 1 / n)
    dtype = arrays.take(type_as, "type_as").dtype
    return arrays.like(type_as)(np.full(n, 1 / n, dtype))


def dist(x1: Any, x2: Any = None, metric: Any = "sqeuclidean", p: float = 2, w: Any = None) -> Any:
    """Return the matrix of distances between points, as POT's ``ot.dist``.

    Parameters
    ----------
    x1, x2 : array, shape (n, d) and (m, d)
        Points; `x2` is `x1` if it is not given.
    metric : str or callable, optional
        Any that ``scipy.spatial.distance.cdist`` knows.
    p : float, optional
        Exponent of the metric "minkowski".
    w : array, shape (d,), optional
        Weights of the metric, if it has some.

    Returns
    -------
    array, shape (n, m)
        Of the array type and dtype of `x1`.

    See Also
    --------
    solve_points : needs no matrix.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric.transport as ot
    >>> ot.dist(np.array([[0.0], [1.0], [3.0]]))
    array([[0., 1., 9.],
           [1., 0., 4.],
           [9., 4., 0.]])
    """
    x = arrays.to_numpy(x1, "x1")
    y = x if x2 is None else arrays.to_numpy(x2, "x2")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x1 and x2 must be (n, d) and (m, d), got {x.shape} and {y.shape}")
    extra: dict[str, Any] = {}
    if metric == "minkowski":
        extra["p"] = p
    if w is not None:
        extra["w"] = np.asarray(w, np.float64)
    dtype = x.dtype if x.dtype.kind == "f" else np.float64
    return arrays.like(x1)(np.asarray(cdist(x, y, metric, **extra), dtype))


def _solve(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    numItermax: int,
    stopThr: float,
    verbose: bool,
    warn: bool,
    warmstart: Any,
    kwargs: dict[str, Any],
) -> list[TransportResult]:
    """Solve for one column of `b` or for each; called by the functions that users call."""
    M, a, b = _floats(M, "M"), _masses(a, "a"), _masses(b, "b")
    method = kwargs.pop("method")
    if isinstance(method, str):
        method = method.lower()  # as POT does
    checks.choice(method, "method", dict.fromkeys((*_METHODS, *METHODS)))
    options: dict[str, Any] = {
        "method": method if method in ("newton", "published") else "auto",
        "tol": stopThr,
        "max_iter": numItermax,
        "omega": kwargs.pop("omega", "auto"),
        "progress": kwargs.pop("progress", False),
    }
    for name in list(kwargs):
        if name in _MEANINGLESS:
            del kwargs[name]
        elif name not in ("backend", "n_threads", "normalize"):
            raise TypeError(f"sinkhorn got an unexpected keyword argument {name!r}")
    columns = [b] if b is None or b.ndim == 1 else [b[:, k] for k in range(b.shape[1])]
    results = []
    for k, column in enumerate(columns):
        start = _start(warmstart, k if column is not b else None, reg)
        # Two levels between here and the user, one in `run`.
        results.append(
            run(
                prepare(a, column, M, reg, **kwargs),
                **options,
                warm_start=start,
                warn=warn,
                stacklevel=4,
            )
        )
        if verbose:
            _print(results[-1])
    return results


def _floats(x: Any, name: str) -> Any:
    """Return lists and integers as float64, anything else as it is."""
    if isinstance(x, list | tuple):
        return np.asarray(x, np.float64)
    if device.find(x) is not None:
        return x  # of what dtype is for `solve` to say
    values = arrays.to_numpy(x, name)
    return arrays.like(x)(values.astype(np.float64)) if values.dtype.kind in "iub" else x


def _masses(x: Any, name: str) -> Any:
    """Return masses, None for those that POT takes as uniform."""
    x = None if x is None else _floats(x, name)
    return None if x is None or len(x) == 0 else x


def _start(warmstart: Any, k: int | None, reg: float) -> Any:
    """Return potentials from the logarithms of scalings, those of target k if there are many."""
    if warmstart is None:
        return None
    if k is not None and len(warmstart) == 2 and np.ndim(warmstart[0]) == 2:
        warmstart = [_here(w)[:, k] for w in warmstart]
    elif k is not None:
        warmstart = warmstart[k]
    return tuple(reg * _here(w).astype(np.float64) for w in warmstart)


def _here(w: Any) -> np.ndarray:
    there = device.find(w) is not None
    return arrays.host(arrays.take(w, "warmstart")) if there else np.asarray(w)


def _log(results: list[TransportResult], one: bool) -> dict[str, Any]:
    potentials = [r.potentials() for r in results]
    wrap = results[0].problem.wrap
    u, v = (np.stack([p[i][0] for p in potentials], 1) / results[0].reg for i in (0, 1))
    if one:
        u, v = u[:, 0], v[:, 0]
    with np.errstate(over="ignore"):
        log: dict[str, Any] = {"u": wrap(np.exp(u)), "v": wrap(np.exp(v))}
    log |= {"log_u": wrap(u), "log_v": wrap(v), "warmstart": (wrap(u), wrap(v))}
    log["err"] = [float(error) for r in results for error in r.history["error"]]
    log["niter"] = max(r.iterations for r in results)
    log["result"] = results[0] if one else results
    return log


def _costs(results: list[TransportResult]) -> Any:
    problem = results[0].problem
    return problem.wrap(np.array([r.cost for r in results], problem.cost.dtype))


def _print(result: TransportResult) -> None:
    print(f"{'iteration':>9} | {'error':>9} | method")
    for row in result.history:
        print(f"{row['iterations']:9d} | {row['error']:9.2e} | {row['method']}")
