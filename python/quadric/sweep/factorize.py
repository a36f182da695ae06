"""The one factorization that a sweep needs."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError


@dataclass(frozen=True, slots=True)
class FactorAttempt:
    """One try of the Cholesky factorization.

    Attributes
    ----------
    dtype : str
        Precision it ran in.
    damping : float
        Added to the diagonal, relative to its mean.
    pivot : int or None
        Column of H at which it broke down; None if it went through.
    seconds : float
        Time it took.
    """

    dtype: str
    damping: float
    pivot: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class FactorReport:
    """What :func:`factorize` tried.

    Attributes
    ----------
    attempts : tuple of FactorAttempt
        In the order they were made.
    fallback : bool
        True if none went through and the factor is that of ``diag(H)``: round to nearest.
    dead : int
        Number of inputs that were zero on every token.
    """

    attempts: tuple[FactorAttempt, ...]
    fallback: bool
    dead: int


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Upper factor of the damped Hessian in the order of the sweep, ``H[order][:, order] = R R^T``.

    One factor serves every weight matrix that sees the same inputs, in the same memory: a factor
    that was made on a GPU stays there. For a Hessian in CPU memory its arrays are NumPy arrays
    whatever came in, because `R` is a reversed view of the memory that was factored, and not every
    array library has those.

    Attributes
    ----------
    R : array, shape (n, n)
        Upper triangular, zeros below. On a GPU it is an array of the library that the Hessian came
        from, and a copy.
    order : ndarray of int64, shape (n,)
        Column that the sweep treats at each position, the first one first.
    dead : ndarray of bool, shape (n,)
        Inputs with a zero on the diagonal of H; their weights become 0.
    damping : float
        What was added to the diagonal, relative to its mean.
    report : FactorReport
        Every attempt, and whether the factor is a fallback.
    """

    _upper: Data = field(repr=False)
    _there: Data = field(repr=False)  # the order, in the memory of R
    order: np.ndarray = field(repr=False)
    dead: np.ndarray = field(repr=False)
    damping: float
    report: FactorReport

    @property
    def R(self) -> Array:
        """The factor as an array of the user's."""
        upper = self._upper
        return upper.finished() if isinstance(upper, DeviceArray) else upper

    @property
    def n(self) -> int:
        """Number of inputs."""
        return int(self._upper.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of `R`, and of every matrix that it serves."""
        dtype: np.dtype[Any] = self._upper.dtype
        return dtype

    def __repr__(self) -> str:
        fallback = ", fallback=True" if self.report.fallback else ""
        return (
            f"Factor(n={self.n}, dtype={self.dtype}, damping={self.damping:g}, "
            f"dead={self.report.dead}, attempts={len(self.report.attempts)}{fallback})"
        )


def factorize(
    H: Array,
    *,
    damping: float = 0.01,
    order: Any = "natural",
    retries: int = 3,
    overwrite_h: bool = False,
    on_failure: str = "raise",
    backend: str | None = None,
    n_threads: int | None = None,
) -> Factor:
    """Factor a Hessian for the sweeps: one Cholesky factorization, n^3 / 3 flops.

    Parameters
    ----------
    H : array, shape (n, n)
        Symmetric positive semidefinite, float32 or float64.
    damping : float, optional
        Added to the diagonal, relative to its mean over the live inputs.
    order : {"natural", "activation"} or array of int, shape (n,), optional
        Columns in the order they are swept. "activation" takes the largest diagonal first.
    retries : int, optional
        If the factorization breaks down, this many more tries with ten times the damping each, up
        to 1 (from 1e-4 where `damping` is 0); then the same again in float64.
    overwrite_h : bool, optional
        Factor in the memory of `H`, which must be contiguous and writable. The result refers to
        that memory, and `H` is no Hessian any more, also when an error is raised.
    on_failure : {"raise", "round_to_nearest"}, optional
        What to do when every try broke down. "round_to_nearest" returns the factor of ``diag(H)``,
        with which a sweep is plain rounding, and says so in ``report.fallback``.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    Factor

    Raises
    ------
    LinAlgError
        If every try broke down; ``.pivot`` is the column.
    ValueError
        If `H` is not square, not finite, not symmetric or zero, or an option is out of range.
    TypeError
        If `H` is not of type float32 or float64.

    Notes
    -----
    With J the reversal of the order and ``J H J = L L^T``, ``R = J L J`` satisfies ``H = R R^T``,
    and ``R^-1`` is the factor of the inverse that GPTQ [1]_ obtains from two factorizations and an
    inversion. That the second of them often fails is the reason for most "not positive definite"
    errors elsewhere.

    An input that was zero on every token (zero diagonal) gets an independent pivot of 1.

    References
    ----------
    .. [1] Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
       Generative Pre-trained Transformers", 2022, arXiv:2210.17323.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> X = np.random.default_rng(0).standard_normal((100, 3))
    >>> H = X.T @ X / 100
    >>> fac = qd.sweep.factorize(H, damping=0.0, order="activation")
    >>> fac
    Factor(n=3, dtype=float64, damping=0, dead=0, attempts=1)
    >>> np.allclose(fac.R @ fac.R.T, H[np.ix_(fac.order, fac.order)])
    True
    """
    h = checks.square(H, "H", gpu=True)
    n = h.shape[0]
    damping = checks.real(damping, "damping", low=0)
    retries = checks.integer(retries, "retries", low=0)
    checks.choice(on_failure, "on_failure", ("raise", "round_to_nearest"))
    cholesky = backends.resolve("sweep.cholesky", backend, h)
    begun = None if overwrite_h else _begin(h, damping, order)
    threads_used = threads.resolve(n_threads)
    if begun is None:
        defect, original = _looked_at(h, backend, threads_used)
    else:
        defect, original = begun.finish()
    if np.isnan(defect):
        checks.finite(h, "H")
    # The rounding of two products summed in different orders stays far below this.
    if not defect <= np.sqrt(np.finfo(h.dtype).eps):
        raise ValueError(f"H must be symmetric, got a relative defect of {defect:.2g}")

    diagonal = original.astype(np.float64)
    dead = diagonal == 0
    n_dead = int(np.count_nonzero(dead))
    if n_dead == n:
        raise ValueError("H must have a nonzero diagonal, got zeros only: no input was ever active")
    mean = float(diagonal.sum() / (n - n_dead))
    if mean < 0:
        raise ValueError(f"H must be positive semidefinite, got a mean diagonal of {mean:.3g}")
    attempts: list[FactorAttempt] = []
    if begun is None:
        perm = permutation(order, original)
        A = _own_memory(h) if overwrite_h else arrays.empty(h, (n, n), h.dtype)
        there = arrays.beside(perm, h)
        gather = backends.resolve("sweep.gather", backend, h)
        gather(A if overwrite_h else h, there, A, threads_used)
        if n_dead:  # where products underflowed, a zero diagonal may have neighbours
            arrays.clear(A, n - 1 - np.flatnonzero(dead[perm]), rows=True)
    else:
        A, there, perm = begun.A, begun.order, begun.columns
        pivot = None if begun.position < 0 else int(perm[begun.position])
        attempts.append(FactorAttempt(A.dtype.name, damping, pivot, begun.seconds))

    def attempt(A: Data, relative: float) -> bool:
        start = time.perf_counter()
        damped = np.where(dead, 1.0, diagonal + relative * mean)[perm]
        position = cholesky(A, arrays.beside(damped, A), threads_used)
        pivot = None if position < 0 else int(perm[position])
        seconds = time.perf_counter() - start
        attempts.append(FactorAttempt(A.dtype.name, relative, pivot, seconds))
        return pivot is None

    def climb() -> bool:
        steps = _ladder(damping, retries)
        with threads.blas_limit(1):  # the kernels call BLAS from threads of their own
            if any(attempt(A, step) for step in steps[len(attempts) :]):
                return True
            if A.dtype == np.float32:
                wide = A.astype(np.float64)
                if any(attempt(wide, step) for step in steps):
                    arrays.assign(A, wide)
                    return True
        return False

    fallback = False
    done = begun is not None and begun.position < 0
    if not (done or climb()):
        last = attempts[-1]
        if on_failure == "raise":
            raise LinAlgError(
                f"H is not positive definite: pivot at column {last.pivot} after {len(attempts)} "
                f"attempts, the last in {last.dtype} with damping {last.damping:g}",
                pivot=last.pivot,
            )
        fallback = True
        damped = np.where(dead, 1.0, diagonal + damping * mean)[perm[::-1]]
        roots = np.sqrt(np.where(damped > 0, damped, mean or 1.0))
        A.fill(0)
        arrays.assign(arrays.diagonal(A), arrays.beside(roots, A))

    return Factor(
        A[::-1, ::-1].T,
        there,
        order=perm,
        dead=dead,
        damping=damping if fallback else attempts[-1].damping,
        report=FactorReport(tuple(attempts), fallback, n_dead),
    )


class _Begun:
    """A first try on a GPU, which begins before anything is known of the Hessian.

    Attributes
    ----------
    A : DeviceArray
        The factor, or what another try can start from.
    order : DeviceArray
    columns : ndarray
        The same on the host; from here on known once it has finished.
    position : int
        Where in the sweep the factorization broke down, or -1.
    seconds : float
    """

    columns: np.ndarray
    position: int
    seconds: float

    def __init__(self, h: DeviceArray, damping: float, activation: bool) -> None:
        self._start = time.perf_counter()
        space, n = h.space, len(h)
        A = space.empty((1, n, n), h.dtype)
        # The diagonal, the defect, the pivot and the order: one copy to the host.
        self._found = found = space.empty((1, 2 * n + 2), np.float64)
        order = found[:, n + 2 :].as_bits(np.int64)
        defect, pivot = found[0, n : n + 1], found[0, n + 1 : n + 2].as_bits(np.int64)
        space.run(
            device.sweep().factorize_batch,
            *(h.reshape(1, n, n), damping, activation, None),
            *(A, order, None, found[:, :n], None, defect, pivot),
        )
        self.A, self.order = A[0], order[0]

    def finish(self) -> tuple[float, np.ndarray]:
        """Wait, and return what :func:`_looked_at` does."""
        n = len(self.A)
        found = self._found.host()[0]
        bits = found[n + 1 :].view(np.int64)
        self.position, self.columns = int(bits[0]), bits[1:]
        self.seconds = time.perf_counter() - self._start
        return float(found[n]), found[:n]


def _begin(h: Data, damping: float, order: Any) -> _Begun | None:
    """Factor a Hessian on a GPU with one wait in all, if its order needs no host."""
    known = isinstance(order, str) and order in ("natural", "activation")
    if not (isinstance(h, DeviceArray) and h.c_contiguous and known):
        return None
    return _Begun(h, damping, order == "activation")


def _looked_at(h: Data, backend: str | None, n_threads: int) -> tuple[float, np.ndarray]:
    """Return the relative defect of the symmetry, and the diagonal; one wait for a GPU."""
    kernel = backends.resolve("sweep.symmetry_defect", backend, h)
    if not isinstance(h, DeviceArray):
        return kernel(h, n_threads), h.diagonal()
    found = h.space.empty(h.shape[0] + 1, np.float64)
    h.space.run(device.sweep().symmetry_defect, h, result=found[:1])
    found[1:].assign(h.diagonal())
    on_host = found.host()
    return float(on_host[0]), on_host[1:]


def permutation(order: Any, diagonal: np.ndarray) -> np.ndarray:
    """Return the columns in the order of the sweep, for an `order` as the user gives it."""
    n = diagonal.shape[0]
    if isinstance(order, str):
        if order == "natural":
            return np.arange(n, dtype=np.int64)
        if order == "activation":
            return np.argsort(-diagonal, kind="stable")
        raise ValueError(
            f"order must be 'natural', 'activation' or an array of indices, got {order!r}"
        )
    a = np.asarray(order) if isinstance(order, list | tuple) else arrays.take(order, "order")
    a = arrays.host(a)
    if a.shape != (n,):
        raise ValueError(f"order must have shape ({n},), got {a.shape}")
    if a.dtype.kind not in "iu":
        raise TypeError(f"order must hold integers, got {a.dtype}")
    if not np.array_equal(np.sort(a), np.arange(n)):
        raise ValueError(f"order must hold each of 0 to {n - 1} once")
    return a.astype(np.int64)


def _own_memory(h: Data) -> Data:
    layout = h if isinstance(h, DeviceArray) else h.flags
    if not isinstance(h, DeviceArray) and not h.flags.writeable:
        raise ValueError("H must be writable with overwrite_h=True, got a read-only array")
    if layout.c_contiguous:
        return h
    if layout.f_contiguous:
        return h.T  # the same matrix, up to the defect that passed
    raise ValueError(f"H must be contiguous with overwrite_h=True, got strides {h.strides}")


def _ladder(damping: float, retries: int) -> list[float]:
    steps = [damping]
    while len(steps) <= retries and steps[-1] < 1:
        steps.append(min(10 * steps[-1], 1.0) if steps[-1] > 0 else 1e-4)
    return steps
