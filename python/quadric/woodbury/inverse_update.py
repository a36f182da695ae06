"""Inverses of running averages of outer products, kept current (MKOR)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError


def rank_one_inverse_update(
    J: Array | Sequence[Array],
    v: Array | Sequence[Array],
    *,
    decay: float = 0.95,
    rule: str = "exact",
    norm_bound: float | None = None,
    blend: float = 0.9,
    out: Array | Sequence[Array] | None = None,
    check_finite: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Any:
    """Update ``J = L^-1`` where L becomes ``decay L + (1 - decay) v v^T``: 4 n^2 flops.

    Parameters
    ----------
    J : array, shape (n, n), or list of them
        Symmetric positive definite, float32 or float64. A list may hold factors of different sizes
        and one dtype; they are worked on at the same time.
    v : array, shape (n,), or list of them
        Of the dtype of `J`.
    decay : float, optional
        Between 0 and 1, both excluded.
    rule : {"exact", "mkor", "published"}, optional
        See the notes. Only "exact" is the inverse of the average.
    norm_bound : float, optional
        Where the largest absolute row sum of the new J is above this, ``J <- blend J +
        (1 - blend) I`` follows, once. By default it never does.
    blend : float, optional
        Between 0 and 1.
    out : array or list of arrays, optional
        Where the result is to go: contiguous, of the shape and dtype of `J`; may be `J` itself.
    check_finite : bool, optional
        False leaves it to the caller that no argument holds NaN or Inf. On a GPU nothing then waits
        for it and no LinAlgError is raised: a factor that would be named in one stays as it is.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the results.

    Returns
    -------
    array, shape (n, n), or list of them
        `out` where it is given; exactly symmetric if `J` is.

    Raises
    ------
    LinAlgError
        If ``v^T J v`` is negative, a pivot or an entry of the new diagonal is not positive, or an
        entry overflows: a factor is not positive definite (any more). The message names it.
    ValueError
        If a shape does not fit, an entry is not finite, or an option is out of range.
    TypeError
        If a dtype does not fit, or only one of the arguments is a list.
        In all these cases no factor has changed, unless an entry overflows off the diagonal, which
        no positive definite factor can have: then `out` is void.

    See Also
    --------
    rank_k_inverse_update : several steps at once.
    kronecker_precondition : what the factors are for.
    sherman_morrison : any rank-one update, with the determinant.

    Notes
    -----
    With ``c = decay`` and ``u = J v`` the rules are::

        exact      (J - (1 - c) u u^T / (c + (1 - c) v.u)) / c
        mkor       A - a a^T / (1 + v.a),  A = c J + (1 - c) I,  a = A v
        published  c J + (1 - c) / (c^2 (1 + c (1 - c) v.u)) u u^T

    "exact" is Sherman and Morrison's identity. "mkor" is what the package of MKOR [1]_ computes: it
    takes a convex combination of J and I, then adds ``v v^T`` to the inverse of that.
    "published" is line 7 of Algorithm 1 in [1]_ as printed; its plus sign makes it no inverse at
    all (it decays to 0, or explodes where v is long). The last two are there to reproduce runs.

    In directions that no v has, the exact J grows by ``1 / decay`` in each step: without
    `norm_bound` and without new directions it loses all digits after ``log(eps) / log(decay)``
    steps, 310 in float32 at 0.95. A step adds a relative error of a few eps times ``cond(J)``.

    J is read twice and written once, ``3 n^2`` entries in all, however many vectors there are. On
    a GPU the part of a large J above the diagonal is taken to mirror the part below and is not
    read, which makes it ``2 n^2`` entries.

    References
    ----------
    .. [1] Mozaffari, Li, Zhang, Mehri Dehnavi, "MKOR: Momentum-Enabled
       Kronecker-Factor-Based Optimizer Using Rank-1 Updates", 2023, arXiv:2306.01685.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> v = np.array([1.0, 2.0])
    >>> J = qd.woodbury.rank_one_inverse_update(np.eye(2), v, decay=0.5)
    >>> np.allclose(np.linalg.inv(J), 0.5 * np.eye(2) + 0.5 * np.outer(v, v))
    True

    Many factors in one call, in place:

    >>> factors = [np.eye(2), np.eye(3)]
    >>> vectors = [v, np.ones(3)]
    >>> same = qd.woodbury.rank_one_inverse_update(factors, vectors, out=factors)
    >>> same is factors
    True
    """
    options = (decay, rule, norm_bound, blend, out, check_finite, backend, n_threads)
    return _update(J, v, "v", 1, *options)


def rank_k_inverse_update(
    J: Array | Sequence[Array],
    V: Array | Sequence[Array],
    *,
    decay: float = 0.95,
    rule: str = "exact",
    norm_bound: float | None = None,
    blend: float = 0.9,
    out: Array | Sequence[Array] | None = None,
    check_finite: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Any:
    """Do k steps of :func:`rank_one_inverse_update` at once: ``4 k n^2`` flops in matrix products.

    Parameters
    ----------
    J : array, shape (n, n), or list of them
        As there.
    V : array, shape (k, n), or list of them
        One vector in each row, the oldest first; k may differ from factor to factor.
    decay, rule, norm_bound, blend, out, check_finite, backend, n_threads
        As there; the norm is looked at once, after the last step.

    Returns
    -------
    array, shape (n, n), or list of them
        The same as from k steps, up to rounding.

    Raises
    ------
    LinAlgError, ValueError, TypeError
        As there; no factor has changed then.

    Notes
    -----
    k exact steps are ``L <- c^k L + V^T W V`` with weights ``W_ii = (1 - c) c^(k-1-i)``, inverted
    by one Woodbury identity. A step of any rule is ``a J + b I + sign y y^T``, so that k steps are
    ``a^k J + b_k I + sign Y^T Y``; Y follows from ``V J`` by a recursion in the k x k matrices
    ``V J V^T`` and ``V V^T``, which for the exact rule is a Cholesky factorization.

    At most ``log(4) / log(1 / decay)`` exact steps, 27 at 0.95, are done in one pass over J: of
    more than that, ``c^-k J`` and ``Y^T Y`` would cancel to less than a quarter.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> V = np.random.default_rng(0).standard_normal((3, 5))
    >>> J = np.eye(5)
    >>> for v in V:
    ...     J = qd.woodbury.rank_one_inverse_update(J, v)
    >>> np.allclose(qd.woodbury.rank_k_inverse_update(np.eye(5), V), J)
    True
    """
    options = (decay, rule, norm_bound, blend, out, check_finite, backend, n_threads)
    return _update(J, V, "V", 2, *options)


_GROWTH = 4.0  # digits of J that steps done at once may cost
_MOST = 256

# What a kernel says of the steps of a factor; 0 where all is well.
_NOT_FINITE, _BAD_PIVOT, _BAD_DIAGONAL, _TOO_LARGE = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class _Rule:
    """``J <- a J + b I + sign y y^T`` with ``y = z sqrt(weight / (base + slope v.z))``.

    z is J v, or (a J + b I) v if `blended`.
    """

    a: float
    b: float
    sign: float
    blended: bool
    weight: float
    base: float
    slope: float

    def identity(self, t: int) -> float:
        """Return the multiple of I after t steps."""
        return self.b * (1 - self.a**t) / (1 - self.a)

    @property
    def most(self) -> int:
        """Steps to do at once: ``a^k J`` and ``Y^T Y`` may be so much larger than the result."""
        return max(int(np.log(_GROWTH) / np.log(self.a)), 1) if self.a > 1 else _MOST


_RULES: dict[str, Callable[[float], _Rule]] = {
    "exact": lambda c: _Rule(1 / c, 0.0, -1.0, False, (1 - c) / c, c, 1 - c),
    "mkor": lambda c: _Rule(c, 1 - c, -1.0, True, 1.0, 1.0, 1.0),
    "published": lambda c: _Rule(c, 0.0, 1.0, False, (1 - c) / c**2, 1.0, c * (1 - c)),
}


def _update(
    J: Any,
    V: Any,
    v_name: str,
    v_ndim: int,
    decay: float,
    rule: str,
    norm_bound: float | None,
    blend: float,
    out: Any,
    check_finite: bool,
    backend: str | None,
    n_threads: int | None,
) -> Any:
    step = _RULES[checks.choice(rule, "rule", _RULES)](checks.between(decay, "decay", 0, 1))
    bound = np.inf if norm_bound is None else checks.positive(norm_bound, "norm_bound")
    blend = checks.real(blend, "blend", low=0, high=1)
    backends.resolve("woodbury.symmetric_product", backend)
    workers = threads.resolve(n_threads)

    given = _named(J, "J", J)
    js = tuple(_factor(x, name) for name, x in given)
    if len({j.dtype for j in js}) > 1:
        raise TypeError(f"J must be of one dtype, got {' and '.join({j.dtype.name for j in js})}")
    for (name, _), j in zip(given, js, strict=True):
        arrays.together(j, js[0], name, given[0][0])
    vs = tuple(
        _vectors(x, name, j, v_ndim, check_finite)
        for (name, x), j in zip(_named(V, v_name, J), js, strict=True)
    )
    outs = tuple(_like(j) for j in js) if out is None else _outputs(out, J, given, js)
    longest = max((len(v) for v in vs), default=0)
    # Where there are several passes, an error in a later one must leave `out` as it is.
    later = longest > step.most and out is not None
    work = tuple(_like(j) for j in js) if later else outs

    names = tuple(name for name, _ in given)
    on_gpu = bool(js) and isinstance(js[0], DeviceArray)
    update = (_OnGpu if on_gpu else _OnCpu)(step, js, work, names, check_finite, backend, workers)
    with threads.blas_limit(1):
        for start in range(0, longest, step.most):
            active = [i for i, v in enumerate(vs) if start < len(v)]
            v = tuple(vs[i][start : start + step.most] for i in active)
            update.steps(active, v, work if start else js)
    for o, w in zip(outs, work, strict=True):
        if later:
            arrays.assign(o, w)
    if bound < np.inf:
        update.blend(outs, bound, blend)
    if out is not None:
        return out
    results = [arrays.like(x)(o) for (_, x), o in zip(given, outs, strict=True)]
    return results if isinstance(J, list | tuple) else results[0]


class _OnCpu:
    """Steps on all factors at a time, and the norms of what they have made."""

    def __init__(
        self,
        rule: _Rule,
        js: tuple[Data, ...],
        work: tuple[Data, ...],
        names: tuple[str, ...],
        check_finite: bool,
        backend: str | None,
        workers: int,
    ) -> None:
        self.rule, self.js, self.work, self.names = rule, js, work, names
        self.check, self.workers = check_finite, workers
        on = js[0] if js else None
        self.product = backends.resolve("woodbury.symmetric_product", backend, on)
        self.update = backends.resolve("woodbury.symmetric_update", backend, on)
        self.norms: Data = arrays.empty(on, len(js), np.float64)

    def steps(self, active: list[int], v: tuple[Data, ...], source: tuple[Data, ...]) -> None:
        """Do the steps for the vectors `v` of some factors, from `source` to `work`."""
        rule, names = self.rule, [self.names[i] for i in active]
        j = tuple(source[i] for i in active)
        u = tuple(_like(x) for x in v)
        self.product(j, v, u, self.workers)
        # All factors are looked at before the first one is written.
        y = tuple(_steps(rule, *x) for x in zip(j, v, u, names, strict=True))
        alpha = np.array([rule.a ** len(x) for x in v])
        delta = np.array([rule.identity(len(x)) for x in v])
        sign, size = np.full(len(active), rule.sign), np.empty(len(active))
        out = tuple(self.work[i] for i in active)
        self.update(j, alpha, delta, sign, y, out, size, self.workers)
        self.norms[active] = size
        if not np.isfinite(size).all():
            raise _overflow(names[int(np.argmin(np.isfinite(size)))], j[0].dtype)

    def blend(self, outs: tuple[Data, ...], bound: float, blend: float) -> None:
        """Blend the factors whose norm is above the bound with the identity."""
        for o, norm in zip(outs, self.norms, strict=True):
            if norm > bound:
                o *= blend
                o.flat[:: len(o) + 1] += 1 - blend


class _OnGpu(_OnCpu):
    """The same where nothing but an error needs the numbers on the host."""

    def steps(self, active: list[int], v: tuple[Data, ...], source: tuple[Data, ...]) -> None:
        rule, count = self.rule, len(active)
        j = tuple(source[i] for i in active)
        u, y = (tuple(_like(x) for x in v) for _ in range(2))
        space = self.norms.space
        self.product(j, v, u, self.workers)
        alpha, delta, sign = (space.empty(count, np.float64) for _ in range(3))
        status, report = space.empty(count, np.int32), space.empty((count, 2), np.float64)
        numbers = (rule.a, rule.b, rule.sign, rule.blended, rule.weight, rule.base, rule.slope)
        every = count == len(self.js)
        size = self.norms if every else space.empty(count, np.float64)
        kernels = device.woodbury()
        found = alpha, delta, sign, status, report, size
        space.run(kernels.inverse_steps, j, v, u, y, *numbers, *found)
        if self.check:
            self._refuse(status.host(), report, [self.names[i] for i in active], j)
        # Without a look, a factor with a bad status stays as it is.
        out = tuple(self.work[i] for i in active)
        space.run(kernels.update_after_steps, j, alpha, delta, sign, y, out, size)
        for k, i in enumerate(() if every else active):
            arrays.assign(self.norms[i : i + 1], size[k : k + 1])
        if self.check and (bad := size.first_not_finite()) >= 0:
            raise _overflow(self.names[active[bad]], j[0].dtype)

    def _refuse(
        self, status: np.ndarray, report: DeviceArray, names: list[str], js: tuple[Data, ...]
    ) -> None:
        """Raise the error for the first factor that is not what it has to be."""
        if not status.any():
            return
        i = int(np.argmax(status != 0))
        first, second = (float(x) for x in report[i].host())
        name, j = names[i], js[i]
        if status[i] == _NOT_FINITE:
            checks.finite(j, name)
            raise LinAlgError(f"{name} has grown beyond {j.dtype}: its products overflow")
        if status[i] == _BAD_PIVOT:
            raise _bad_pivot(name, first, second)
        if status[i] == _BAD_DIAGONAL:
            raise _bad_diagonal(name, int(first), second)
        raise _too_large(name, j.dtype)

    def blend(self, outs: tuple[Data, ...], bound: float, blend: float) -> None:
        if outs:
            kernel = device.woodbury().blend
            self.norms.space.run(kernel, outs, self.norms, bound, blend)


def _named(value: Any, name: str, J: Any) -> list[tuple[str, Any]]:
    """Return the arrays of an argument with their names in messages."""
    if isinstance(value, list | tuple) != isinstance(J, list | tuple):
        kinds = [type(x).__name__ for x in (J, value)]
        raise TypeError(f"{name} must be a list exactly if J is, got {kinds[1]} with {kinds[0]}")
    if not isinstance(value, list | tuple):
        return [(name, value)]
    if len(value) != len(J):
        raise ValueError(f"{name} must have {len(J)} items as J, got {len(value)}")
    return [(f"{name}[{i}]", x) for i, x in enumerate(value)]


def _factor(x: Any, name: str) -> Data:
    j = checks.square(x, name, gpu=True)
    return j.T if _is_f_contiguous(j) else arrays.contiguous(j)  # it is symmetric


def _is_f_contiguous(a: Data) -> bool:
    return bool(a.f_contiguous if isinstance(a, DeviceArray) else a.flags.f_contiguous)


def _like(a: Data) -> Data:
    return arrays.empty(a, a.shape, a.dtype)


def _vectors(x: Any, name: str, j: Data, ndim: int, check_finite: bool) -> Data:
    a, n = arrays.take(x, name), len(j)
    if a.ndim != ndim or a.shape[-1] != n or a.shape[0] == 0:
        wanted = f"({n},)" if ndim == 1 else f"(k, {n}) with k at least 1"
        raise ValueError(f"{name} must have shape {wanted}, got {a.shape}")
    checks.same_type(a, name, j.dtype, "J")
    arrays.together(a, j, name, "J")
    if check_finite:
        checks.finite(a, name)
    return arrays.contiguous(a.reshape(-1, n))


def _outputs(
    out: Any, J: Any, given: list[tuple[str, Any]], js: tuple[Data, ...]
) -> tuple[Data, ...]:
    outs = []
    for (name, x), (other, _), j in zip(_named(out, "out", J), given, js, strict=True):
        a = arrays.take(x, name)
        a = a.T if _is_f_contiguous(a) else a
        a = checks.output(a, name, j.shape, j.dtype, other, gpu=True)
        arrays.together(a, j, name, other)
        checks.itself_or_apart(a, name, j, other)
        outs.append(a)
    at = [arrays.address(o) for o in outs]
    factor = {arrays.address(j): i for i, j in enumerate(js)}
    if len(set(at)) < len(at) or any(factor.get(a, i) != i for i, a in enumerate(at)):
        raise ValueError("out must hold distinct arrays, each its own factor or none of them")
    return tuple(outs)


def _steps(rule: _Rule, j: np.ndarray, v: np.ndarray, u: np.ndarray, name: str) -> np.ndarray:
    """Return Y, the k steps of `rule` being ``a^k J + b_k I + sign Y^T Y``, for ``u = V J``.

    Its rows are combinations of those of u and v: ``Y = R u + Q v``.
    """
    k = len(v)
    V, U = v.astype(np.float64), u.astype(np.float64)
    R, Q = np.zeros((2, k, k))
    with np.errstate(all="ignore"):
        S, N = U @ V.T, V @ V.T
        if not np.isfinite(S).all():
            checks.finite(j, name)
            raise LinAlgError(f"{name} has grown beyond {j.dtype}: its products overflow")
        for t in range(k):
            # J_t v_t for J_t = a^t J + b_t I + sign sum_s a^(t-1-s) y_s y_s^T
            past = rule.sign * rule.a ** np.arange(t - 1, -1, -1.0)
            past *= R[:t] @ S[:, t] + Q[:t] @ N[:, t]
            r, q = past @ R[:t], past @ Q[:t]
            r[t] += rule.a**t
            q[t] += rule.identity(t)
            if rule.blended:
                r, q = rule.a * r, rule.a * q
                q[t] += rule.b
            pivot = rule.base + rule.slope * (r @ S[:, t] + q @ N[:, t])
            if not (S[t, t] >= 0 and 0 < pivot < np.inf):
                raise _bad_pivot(name, float(S[t, t]), float(pivot))
            factor = np.sqrt(rule.weight / pivot)
            R[t], Q[t] = factor * r, factor * q
        later = rule.a ** (np.arange(k - 1, -1, -1.0) / 2)[:, None]
        Y = (later * R) @ U + (later * Q) @ V
        diagonal = rule.a**k * j.diagonal().astype(np.float64) + rule.identity(k)
        diagonal += rule.sign * np.square(Y).sum(axis=0)
    if not diagonal.min() > 0:
        i = int(np.argmin(diagonal))
        raise _bad_diagonal(name, i, diagonal[i])
    # The diagonal of a positive definite matrix has its largest entry.
    if not diagonal.max() < np.finfo(j.dtype).max:
        raise _too_large(name, j.dtype)
    return Y.astype(j.dtype)


def _bad_pivot(name: str, product: float, pivot: float) -> LinAlgError:
    return LinAlgError(
        f"{name} is not positive definite: v^T J v = {product:.3g}, pivot {pivot:.3g}"
    )


def _bad_diagonal(name: str, i: int, entry: float) -> LinAlgError:
    return LinAlgError(f"{name} is not positive definite: entry {(i, i)} becomes {entry:.3g}")


def _too_large(name: str, dtype: np.dtype[Any]) -> LinAlgError:
    return LinAlgError(
        f"{name} has grown beyond {dtype}: give norm_bound, or vectors in more directions"
    )


def _overflow(name: str, dtype: np.dtype[Any]) -> LinAlgError:
    return LinAlgError(f"{name} has grown beyond {dtype}: an entry overflows")
