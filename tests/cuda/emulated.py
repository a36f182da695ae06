"""A GPU for tests where there is none: its memory is the host's, its kernels are those of the CPU.

Arrays of it are no NumPy arrays and refuse to become some, so that a copy to the host that nobody
asked for is an error. New memory is filled with NaN. Kernels get views (pointers with shapes and
strides), as from ``quadric._cuda``, and only of memory that is still held. Waits for the device,
and copies to it that could not be captured in a graph, are counted.
"""

import ctypes
import sys
import weakref
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy.linalg import lapack, solve_triangular

from quadric import backends, cuda_library, device
from quadric.device import View
from quadric.woodbury import inverse_update
from tests.cuda import emulated_router, emulated_sketch, emulated_transport

_CAPTURED = 16_384  # bytes that an upload takes along as arguments of a kernel


class Bfloat16:
    """The dtype of an array, as libraries without NumPy's have their own."""

    name = "bfloat16"

    def __repr__(self) -> str:
        return self.name


BFLOAT16 = Bfloat16()


class Array:
    """An array of the user's on the emulated GPU."""

    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, gpu: "Gpu", a: np.ndarray, device: int, name: str | None = None) -> None:
        self.gpu, self.a, self.device = gpu, a, device
        self.dtype: Any = BFLOAT16 if name == "bfloat16" else a.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape

    @property
    def ndim(self) -> int:
        return self.a.ndim

    @property
    def T(self) -> "Array":
        return Array(self.gpu, self.a.T, self.device, self.dtype.name)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("an array on a GPU was given to NumPy")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device  # kDLCUDA

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("an array on a GPU was asked for its host memory")

    def __getitem__(self, key: Any) -> "Array":
        if not isinstance(key, int | slice | tuple):
            raise IndexError(key)
        part = self.a[key]
        if not isinstance(part, np.ndarray):
            raise IndexError("scalars are not handed out")
        return Array(self.gpu, part, self.device, self.dtype.name)

    def __iter__(self) -> Any:
        raise TypeError("an array on a GPU was iterated over")

    def __eq__(self, other: object) -> Any:
        return Array(self.gpu, self.a == other, self.device)

    def __ne__(self, other: object) -> Any:
        return Array(self.gpu, self.a != other, self.device)

    def __len__(self) -> int:
        return len(self.a)

    def _result(self, a: np.ndarray) -> "Array":
        return self.gpu.put(a, self.device)

    def __add__(self, other: Any) -> "Array":
        return self._result(self.a + _entries(other))

    def __sub__(self, other: Any) -> "Array":
        return self._result(self.a - _entries(other))

    def __truediv__(self, other: Any) -> "Array":
        return self._result(self.a / _entries(other))

    def __and__(self, other: Any) -> "Array":
        return self._result(self.a & _entries(other))

    def all(self) -> bool:
        self.gpu.waits += 1
        return bool(self.a.all())

    def sum(self) -> float:
        self.gpu.waits += 1
        return float(self.a.sum())

    def __repr__(self) -> str:
        return f"emulated.Array({self.dtype}, shape={self.shape}, device={self.device})"


def _entries(x: Any) -> Any:
    return x.a if isinstance(x, Array) else x


class Emulated(device.Library):
    """How the library makes such arrays, and looks into them."""

    def __init__(self, gpu: "Gpu") -> None:
        self.gpu = gpu
        self.waits = False  # with True it is like JAX: no views, and no types of 64 bits

    def device(self, x: Array) -> int:
        return x.device

    def pointer(self, x: Array) -> int:
        return int(x.a.ctypes.data)

    def describe(self, x: Array) -> View:
        strides = tuple(s // x.a.itemsize for s in x.a.strides)
        return View(x.a.ctypes.data, x.a.shape, strides, x.a.dtype.name)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Array:
        if self.waits and np.dtype(dtype).itemsize == 8:
            return self.gpu.new((int(np.prod(shape)) * 8,), np.uint8, device)
        return self.gpu.new(shape, dtype, device)

    def part(self, owner: Array, view: View, device: int) -> Array:
        assert not self.waits
        a = self.gpu.seen(view)
        self.gpu.hold(a, owner.a)
        return Array(self.gpu, a, device, owner.dtype.name)

    def stream(self, device: int) -> int:
        return 7 + device

    def call(self, function: Any, device: int, *owners: Array) -> Array:
        result = function(np, *(self.gpu.get(x) for x in owners))
        name = result.dtype.name
        if self.waits and result.dtype.itemsize == 8:
            result = result.astype({"float64": np.float32, "int64": np.int32}[name])
        return self.gpu.put(result, device)


class Gpu:
    """Memory and kernels of two emulated devices.

    Attributes
    ----------
    waits : int
        How often the host has waited.
    copies : int
        Copies to the device from memory that may be gone when a graph is replayed.
    launched : list of str
        Kernels in the order of their launch.
    """

    def __init__(self) -> None:
        self.library = Emulated(self)
        self.waits = self.copies = 0
        self.launched: list[str] = []
        self._held: dict[int, tuple[int, int]] = {}  # key to first and last address

    # Memory.

    def new(self, shape: tuple[int, ...], dtype: Any, device: int = 0) -> Array:
        dtype = np.dtype(dtype)
        name = "bfloat16" if dtype == np.uint16 else None
        a: np.ndarray = np.empty(shape, dtype)
        if dtype == np.bool_:
            a.fill(True)
        elif a.size:
            a.reshape(-1).view(np.uint8).fill(0xFF)  # NaN
        self.hold(a)
        return Array(self, a, device, name)

    def put(self, a: Any, device: int = 0) -> Array:
        """Return a copy of an array in CPU memory, in the layout it has there."""
        a = np.asarray(a)
        name = "bfloat16" if a.dtype == ml_dtypes.bfloat16 else None
        b = a.copy(order="K").view(np.uint16) if name else a.copy(order="K")
        self.hold(b)
        return Array(self, b, device, name)

    def get(self, x: Array) -> np.ndarray:
        """Return the entries of an array, for a test to look at."""
        assert type(x) is Array, type(x)
        return x.a.view(ml_dtypes.bfloat16) if x.dtype is BFLOAT16 else x.a

    def hold(self, a: np.ndarray, base: np.ndarray | None = None) -> None:
        """Let kernels touch the memory of `a` as long as it lives; a part keeps its `base`."""
        if isinstance(a.base, np.ndarray):
            a = a.base  # which lives as long as any view of it
        low, high = np.lib.array_utils.byte_bounds(a) if a.size else (a.ctypes.data, a.ctypes.data)
        key = id(a)
        self._held[key] = (low, high)
        weakref.finalize(a, self._forget, key, base)

    def _forget(self, key: int, base: Any) -> None:
        self._held.pop(key, None)

    def seen(self, view: View) -> np.ndarray:
        """Return the memory of a view as an array."""
        pointer, shape, strides, name = view
        assert all(type(i) is int for i in (pointer, *shape, *strides)), view
        dtype = np.dtype(name)
        if 0 in shape:
            return np.empty(shape, dtype)
        steps = [(n - 1) * s * dtype.itemsize for n, s in zip(shape, strides, strict=True)]
        low = pointer + sum(min(s, 0) for s in steps)
        high = pointer + sum(max(s, 0) for s in steps) + dtype.itemsize
        held = any(a <= low and high <= b for a, b in self._held.values())
        assert held, f"{view} is not, or no more, memory of the device"
        assert pointer % dtype.itemsize == 0, f"{view} is not aligned"
        buffer = (ctypes.c_char * (high - low)).from_address(low)
        in_bytes = [s * dtype.itemsize for s in strides]
        return np.ndarray(shape, dtype, buffer, pointer - low, in_bytes)

    # Kernels.

    def kernel(self, name: str, function: Any) -> Any:
        def launch(*arguments: Any) -> Any:
            i = next(
                (i for i, x in enumerate(arguments) if hasattr(x, "allocate")), len(arguments) - 1
            )
            *given, where = arguments[: i + 1]
            if not isinstance(where, int):  # arrays of the host come with a number of threads
                assert where.stream == 7 + where.device
                assert where.allocate(1000) % 8 == 0
            self.launched.append(name)
            extra = {"where": where} if hasattr(function, "makes_arrays") else {}
            with np.errstate(all="ignore"):
                result = function(*map(self._operand, given), **extra)
            outs = arguments[i + 1 :]
            if outs:
                self.seen(outs[0])[...] = result
                return None
            if result is not None:
                self.waits += 1
            return result

        launch.__name__ = name
        return launch

    def _operand(self, x: Any) -> Any:
        if isinstance(x, View):
            return self.seen(x)
        if isinstance(x, tuple):
            return tuple(map(self._operand, x))
        assert not isinstance(x, Array | device.DeviceArray), "a kernel takes views"
        return x

    def module(self) -> dict[str, ModuleType]:
        """Return stand-ins for ``quadric._cuda`` and its submodules."""
        root = ModuleType("quadric._cuda")
        root.versions = lambda: (13000, 13000)
        root.device_count = lambda: 2
        root.stream_synchronize = self._synchronize
        modules = {"quadric._cuda": root}
        for family in ("arrays", *dict.fromkeys(name.split(".")[0] for name in backends.TABLE)):
            module = ModuleType(f"quadric._cuda.{family}")
            setattr(root, family, module)
            modules[module.__name__] = module
        for name, row in backends.TABLE.items():
            if "cuda" in row.backends:
                family, function = name.split(".")
                setattr(getattr(root, family), function, self.kernel(name, forwarded(name)))
        for family, functions in (
            ("arrays", _ARRAYS),
            (
                "sweep",
                {
                    "gram": gram,
                    "symmetry_defect_batch": symmetry_defect_batch,
                    "arrange": arrange,
                    "gather_batch": gather_batch,
                    "cholesky_batch": cholesky_batch,
                    "factorize_batch": factorize_batch,
                    "first_not_finite": first_not_finite,
                    "sweep_batch": sweep_batch,
                },
            ),
            ("linalg", {"cholesky": cholesky, "cho_solve": cho_solve, **emulated_sketch.LINALG}),
            ("sketch", emulated_sketch.sketch(forwarded)),
            ("transport", emulated_transport.transport(forwarded) | emulated_router.KERNELS),
            ("woodbury", _WOODBURY),
        ):
            for name, function in functions.items():
                setattr(getattr(root, family), name, self.kernel(f"{family}.{name}", function))
        root.arrays.upload, root.arrays.download = self._upload, self._download
        root.transport.converges = emulated_transport.converges
        return modules

    def _synchronize(self, stream: int) -> None:
        self.waits += 1

    def _upload(self, host: np.ndarray, to: View, where: Any) -> None:
        assert type(host) is np.ndarray
        assert host.flags.c_contiguous
        self.copies += host.nbytes > _CAPTURED
        self.seen(to).reshape(-1)[...] = host.reshape(-1)

    def _download(self, a: View, host: np.ndarray, where: Any) -> None:
        assert device._contiguous(a.shape) == a.strides or host.size <= 1 or 1 in a.shape
        self.waits += 1
        host[...] = self.seen(a)


def install(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Let the library find an emulated GPU, and return it."""
    gpu = Gpu()
    modules = gpu.module()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    real = device._library

    def library(x: Any) -> Any:
        return gpu.library if isinstance(x, Array) else real(x)

    monkeypatch.setattr(device, "_library", library)
    monkeypatch.setattr(cuda_library, "load", lambda: modules["quadric._cuda"])
    monkeypatch.setattr(cuda_library, "why_missing", lambda: None)
    forget()
    return gpu


def forget() -> None:
    """Let the library look anew for what there is."""
    backends.why_missing.cache_clear()
    backends._resolve.cache_clear()


def forwarded(name: str) -> Any:
    """Return the kernel of that name on the CPU, for one thread."""

    def call(*arguments: Any) -> Any:
        backend = next(b for b in backends.ORDER if backends.why_missing(b) is None)
        return backends._resolve(name, backend, None)(*arguments, 1)

    return call


# Where the CUDA function is another one than that of the CPU, or there is none there.


def floats(a: np.ndarray) -> np.ndarray:
    """Return the entries, bfloat16 as numbers."""
    return a.view(ml_dtypes.bfloat16) if a.dtype == np.uint16 else a


def whole_rows(a: np.ndarray) -> np.ndarray:
    assert a.ndim == 2
    assert a.shape[1] < 2 or a.strides[1] == a.itemsize, "rows must be contiguous"
    return a


def gram(X: np.ndarray, weights: np.ndarray | None, H: np.ndarray) -> None:
    forwarded("sweep.gram")(floats(whole_rows(X)).astype(H.dtype), weights, H)


def symmetry_defect_batch(H: np.ndarray, defects: np.ndarray) -> None:
    assert H.flags.c_contiguous
    defects[...] = [forwarded("sweep.symmetry_defect")(h) for h in H]


def arrange(
    H: np.ndarray,
    damping: float,
    activation: bool,
    group: np.ndarray | None,
    order: np.ndarray,
    dead: np.ndarray,
    original: np.ndarray,
    damped: np.ndarray,
    index: np.ndarray | None,
) -> None:
    assert H.flags.c_contiguous
    original[...] = H.diagonal(axis1=1, axis2=2)
    dead[...] = original == 0
    for i, d in enumerate(original):
        order[i] = np.argsort(-d, kind="stable") if activation else np.arange(len(d))
        mean = d.sum() / max(np.count_nonzero(d), 1)
        # Without an active input there is nothing to factor.
        damped[i] = np.where(dead[i], float(d.any()), d + damping * mean)[order[i]]
        if index is not None:
            index[i, order[i]] = group


def gather_batch(H: np.ndarray, order: Any, dead: np.ndarray | None, A: np.ndarray) -> None:
    assert H.flags.c_contiguous
    assert order.shape == H.shape[:2]
    for i, a in enumerate(A):
        forwarded("sweep.gather")(H[i], order[i], a)
        if dead is not None:
            gone = dead[i][order[i][::-1]]
            a[gone] = 0
            a[:, gone] = 0


def factorize_batch(
    H: np.ndarray,
    damping: float,
    activation: bool,
    group: np.ndarray | None,
    A: np.ndarray,
    order: np.ndarray,
    dead: np.ndarray | None,
    original: np.ndarray | None,
    index: np.ndarray | None,
    defects: np.ndarray,
    pivots: np.ndarray,
) -> None:
    shape = order.shape
    dead = np.empty(shape, bool) if dead is None else dead
    original = np.empty(shape) if original is None else original
    damped = np.empty(shape)
    symmetry_defect_batch(H, defects)
    arrange(H, damping, activation, group, order, dead, original, damped, index)
    gather_batch(H, order, dead, A)
    cholesky_batch(A, damped, pivots)


def cholesky_batch(A: np.ndarray, diagonal: np.ndarray, pivot: np.ndarray) -> None:
    for i, (a, d) in enumerate(zip(A, diagonal, strict=True)):
        pivot[i] = forwarded("sweep.cholesky")(a, d)


def first_not_finite(W: np.ndarray, scales: np.ndarray | None) -> tuple[int, int]:
    return first(~np.isfinite(W)), -1 if scales is None else first(~np.isfinite(scales))


def sweep_batch(W: Any, A: Any, order: Any, dead: Any, group: Any, *options: Any) -> None:
    options, outputs = options[:-6], options[-6:]
    kernel = forwarded("sweep.sweep")
    for i in range(len(W)):
        R = None if A is None else A[i][::-1, ::-1].T
        mine = [None if a is None else a[i] for a in outputs]
        if A is None or np.isfinite(A[i]).all():
            kernel(W[i], R, order[i], None if dead is None else dead[i], group, *options, *mine)


def cholesky(A: np.ndarray, shift: float) -> int:
    assert A.flags.c_contiguous
    A[np.diag_indices(len(A))] += shift
    L, failed = lapack.dpotrf(A, lower=1)
    failed = int(failed) if np.isfinite(A.diagonal()).all() else 1
    A[...] = 1.0 if failed else np.tril(L)  # nothing of use, but numbers
    return failed - 1


def cho_solve(L: np.ndarray, B: np.ndarray) -> None:
    assert L.flags.c_contiguous
    assert whole_rows(B).shape[0] == len(L)
    y = solve_triangular(L, B, lower=True, check_finite=False)
    B[...] = solve_triangular(L.T, y, lower=False, check_finite=False)


def copy(source: np.ndarray, to: np.ndarray) -> None:
    assert source.ndim == to.ndim == 2
    assert source.shape == to.shape
    a = source if source.dtype == to.dtype else floats(source)
    (to if source.dtype == to.dtype else floats(to))[...] = a.astype(
        to.dtype if source.dtype == to.dtype else floats(to).dtype
    )


def fill(to: np.ndarray, value: float) -> None:
    assert to.ndim == 2
    floats(to)[...] = value


def first(found: np.ndarray) -> int:
    return int(np.argmax(found)) if found.any() else -1


def symmetrize(A: np.ndarray, scale: float, out: np.ndarray) -> None:
    assert A.flags.c_contiguous
    upper = np.triu(A) * A.dtype.type(scale)
    out[...] = upper + np.triu(upper, 1).T


def add_to_columns(a: np.ndarray, index: np.ndarray | None, scale: float, to: np.ndarray) -> None:
    assert a.dtype == to.dtype
    assert a.ndim == to.ndim == 2
    if index is None:
        to += to.dtype.type(scale) * a
    else:
        to[:, index] += to.dtype.type(scale) * a


def take_columns(a: np.ndarray, index: np.ndarray, to: np.ndarray) -> None:
    to[...] = a[:, index]


def scale_rows(weights: np.ndarray, X: np.ndarray) -> None:
    assert weights.dtype == X.dtype
    X *= weights[:, None]


def clear(index: np.ndarray, rows: bool, X: np.ndarray) -> None:
    assert index.dtype == np.int64
    X[:, index] = 0
    if rows:
        X[index] = 0


def dequantize(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group: np.ndarray, out: np.ndarray
) -> None:
    dtype = scales.dtype
    out[...] = (codes.astype(dtype) - zeros.astype(dtype)[:, group]) * scales[:, group]


def gemm(alpha: float, A: np.ndarray, B: np.ndarray, beta: float, C: np.ndarray) -> None:
    assert A.dtype == B.dtype == C.dtype
    whole_rows(C)
    for operand in (A, B):
        assert operand.size < 2 or operand.itemsize in operand.strides or 1 in operand.shape
    C[...] = C.dtype.type(alpha) * (A @ B) + (C.dtype.type(beta) * C if beta else 0)


def cho_solve_columns(L: np.ndarray, X: np.ndarray) -> None:
    assert L.flags.f_contiguous
    assert X.flags.f_contiguous
    y = solve_triangular(L, X, lower=True, check_finite=False)
    X[...] = solve_triangular(L, y, lower=True, trans=1, check_finite=False)


def first_below(x: np.ndarray, bound: float) -> int:
    assert x.ndim == 2
    return first(~(x >= bound))


def first_difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.ndim == b.ndim == 2
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return first(floats(a) != floats(b))


def divide(by: np.ndarray, x: np.ndarray) -> None:
    assert by.ndim == x.ndim == 2
    assert (by.shape, by.dtype) == (x.shape, x.dtype)
    x /= by


def clear_where(mask: np.ndarray, value: bool, x: np.ndarray) -> None:
    assert mask.dtype == np.bool_
    assert mask.shape == x.shape
    x[mask == value] = 0


def spoil(status: np.ndarray, x: np.ndarray) -> None:
    assert status.dtype == np.int32
    if status.item() != -1:
        x[...] = np.nan


def lost_block(w: np.ndarray, mask: np.ndarray, block_size: int) -> int:
    starts = np.arange(0, len(w), block_size)
    kept = np.logical_or.reduceat(mask, starts)
    return first(~kept & np.logical_or.reduceat(w != 0, starts))


def inverse_steps(
    J: Any,
    V: Any,
    U: Any,
    Y: Any,
    a: float,
    b: float,
    sign: float,
    blended: bool,
    weight: float,
    base: float,
    slope: float,
    alpha: np.ndarray,
    delta: np.ndarray,
    signs: np.ndarray,
    status: np.ndarray,
    report: np.ndarray,
    norms: np.ndarray,
) -> None:
    signs[...] = sign
    norms[...] = 0
    rule = inverse_update._Rule(a, b, sign, blended, weight, base, slope)
    for i, (j, v, u, y) in enumerate(zip(J, V, U, Y, strict=True)):
        report[i] = 0
        status[i] = _steps(rule, j, v.astype(float), u.astype(float), y, report[i])
        alpha[i], delta[i] = a ** len(v), rule.identity(len(v))
        if status[i]:
            y[...], alpha[i], delta[i] = 0, 1, 0


def update_after_steps(*arguments: Any) -> None:
    assert not arguments[-1].any()  # the norms
    forwarded("woodbury.symmetric_update")(*arguments)


def _steps(rule: Any, j: Any, V: Any, U: Any, y: Any, report: Any) -> int:
    k = len(V)
    S, N = U @ V.T, V @ V.T
    R, Q = np.zeros((2, k, k))
    if not np.isfinite(S).all():
        return inverse_update._NOT_FINITE
    for t in range(k):
        c = [R[s] @ S[:, t] + Q[s] @ N[:, t] for s in range(t)]
        past = [rule.sign * rule.a ** (t - 1 - s) * c[s] for s in range(t)]
        r, q = np.zeros((2, k))
        for s in range(t):
            r, q = r + past[s] * R[s], q + past[s] * Q[s]
        r[t] += rule.a**t
        q[t] += rule.identity(t)
        if rule.blended:
            r, q = rule.a * r, rule.a * q
            q[t] += rule.b
        pivot = rule.base + rule.slope * (r @ S[:, t] + q @ N[:, t])
        if not (S[t, t] >= 0 and 0 < pivot < np.inf):
            report[...] = S[t, t], pivot
            return inverse_update._BAD_PIVOT
        R[t], Q[t] = np.sqrt(rule.weight / pivot) * np.array([r, q])
    Y = rule.a ** (np.arange(k - 1, -1, -1.0) / 2)[:, None] * (R @ U + Q @ V)
    diagonal = rule.a**k * j.diagonal().astype(float) + rule.identity(k)
    diagonal += rule.sign * (Y**2).sum(axis=0)
    i = int(np.argmin(diagonal))
    if not diagonal[i] > 0:
        report[...] = i, diagonal[i]
        return inverse_update._BAD_DIAGONAL
    if not diagonal.max() < np.finfo(j.dtype).max:
        return inverse_update._TOO_LARGE
    y[...] = Y
    return 0


def blend(J: Any, norms: np.ndarray, bound: float, share: float) -> None:
    for j, norm in zip(J, norms, strict=True):
        if norm > bound:
            j *= j.dtype.type(share)
            j[np.diag_indices(len(j))] += j.dtype.type(1 - share)


def scale_to_norm(
    full: np.ndarray, grad: np.ndarray, rescale: bool, out: np.ndarray, norms: np.ndarray
) -> None:
    assert full.flags.c_contiguous
    assert grad.flags.c_contiguous
    norms[...] = np.linalg.norm(grad.astype(float)), np.linalg.norm(full.astype(float))
    scale = norms[0] / norms[1] if rescale and norms[1] > 0 else 1.0
    out[...] = full.T * out.dtype.type(scale)


def take_entries(a: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    assert a.ndim == index.ndim == out.ndim == 1
    assert index.dtype == np.int64
    assert index.min(initial=0) >= 0
    out[...] = a[index]


def select(a: np.ndarray, rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    assert a.dtype == out.dtype
    assert rows.dtype == columns.dtype == np.int64
    assert out.shape == (len(rows), len(columns))
    out[...] = a[np.ix_(rows, columns)]


def column_sums(a: np.ndarray, out: np.ndarray) -> None:
    assert out.dtype == np.float64
    assert out.shape == a.shape[1:]
    out[...] = a.sum(axis=0, dtype=np.float64)


def subtract_row(a: np.ndarray, row: np.ndarray, out: np.ndarray) -> None:
    assert row.dtype == np.float64
    assert a.dtype == out.dtype
    out[...] = a - row


def largest(a: np.ndarray, out: np.ndarray) -> None:
    assert a.ndim == 1
    assert out.shape == (1,)
    out[0] = np.abs(a).max(initial=0)


_ARRAYS = {
    "take_entries": take_entries,
    "select": select,
    "column_sums": column_sums,
    "subtract_row": subtract_row,
    "largest": largest,
    "copy": copy,
    "fill": fill,
    "first_not_finite": lambda x: first(~np.isfinite(floats(x).astype(float))),
    "symmetrize": symmetrize,
    "take_columns": take_columns,
    "add_to_columns": add_to_columns,
    "scale_rows": scale_rows,
    "clear": clear,
    "dequantize": dequantize,
    "gemm": gemm,
    "cho_solve_columns": cho_solve_columns,
    "first_below": first_below,
    "first_difference": first_difference,
    "divide": divide,
    "clear_where": clear_where,
    "spoil": spoil,
}
_WOODBURY = {
    "inverse_steps": inverse_steps,
    "update_after_steps": update_after_steps,
    "blend": blend,
    "scale_to_norm": scale_to_norm,
    "lost_block": lost_block,
}
