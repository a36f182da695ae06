"""Arrays in the memory of a GPU, whatever library they come from: torch, CuPy or JAX.

Inside the library such an array is a :class:`DeviceArray`: a pointer with a shape, strides and a
NumPy dtype, so that the same code checks and cuts it as a NumPy array. Memory for results and for
the work of a kernel comes from the caller's library, and kernels run on the caller's stream.

JAX has no stream of the caller's and reuses memory in an order of its own, so a call on JAX arrays
waits for its arguments before and for its results after.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np
from array_api_compat import is_cupy_array, is_jax_array, is_torch_array

from quadric import cuda_library

# The types that kernels know; NumPy takes microseconds to spell the name of one.
_NAMES = {
    np.dtype(name): name for name in "float16 uint16 float32 float64 bool uint8 int32 int64".split()
}
_BYTES = np.dtype(np.uint8)


class View(NamedTuple):
    """What a kernel is told of an array; strides count elements."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


_view = partial(tuple.__new__, View)  # of a tuple, in half the time of View(*...)


class Library(Protocol):
    """How arrays of one library are made and looked into."""

    waits: bool
    """Whether calls wait for the GPU, because the library has no stream to launch on."""

    def device(self, x: Any) -> int:
        """Return the number of the GPU that an array is on."""

    def pointer(self, x: Any) -> int:
        """Return where an array begins."""

    def describe(self, x: Any) -> View:
        """Return the view of an array."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        """Return a new array; bytes where the library lacks the dtype."""

    def part(self, owner: Any, view: View, device: int) -> Any:
        """Return a part of an array as an array of its own, without a copy.

        The type of its entries may be another one of the same size.
        """

    def stream(self, device: int) -> int:
        """Return the stream that the caller works on."""

    def call(self, function: Callable[..., Any], device: int, *owners: Any) -> Any:
        """Return ``function(namespace, *owners)`` on that GPU, given the library's array API."""


@dataclass(frozen=True)
class Space:
    """A library, and the number of one of its GPUs."""

    library: Library
    device: int

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> "DeviceArray":
        """Return a new array with any content."""
        shape = (shape,) if isinstance(shape, int) else shape
        dtype = np.dtype(dtype)
        owner = self.library.empty(shape, dtype, self.device)
        pointer = self.library.pointer(owner)
        return DeviceArray(owner, self, pointer, shape, _contiguous(shape), dtype)

    def full(self, shape: int | tuple[int, ...], dtype: Any, value: float) -> "DeviceArray":
        """Return a new array of one value."""
        result = self.empty(shape, dtype)
        result.fill(value)
        return result

    def from_host(self, a: np.ndarray) -> "DeviceArray":
        """Return a copy of a NumPy array, in the order of the stream."""
        result = self.empty(a.shape, a.dtype)
        if a.size:
            self.run(arrays().upload, np.ascontiguousarray(a), result)
        return result

    def run(
        self, kernel: Callable[..., Any], *arguments: Any, result: "DeviceArray | None" = None
    ) -> Any:
        """Call a kernel of ``quadric._cuda`` on arrays of this space; ``where`` is added.

        A value that the kernel would return goes to the one entry of `result` instead, if that is
        given, and nothing waits for it.
        """
        held: list[Any] = []  # temporary memory, free for others once everything is launched

        def allocate(nbytes: int) -> int:
            owner = self.library.empty((nbytes,), _BYTES, self.device)
            held.append(owner)
            return self.library.pointer(owner)

        stream = self.library.stream(self.device)
        where = SimpleNamespace(
            stream=stream, allocate=allocate, device=self.device, new=self.empty
        )
        outputs = () if result is None else (result.view,)
        value = kernel(*map(_viewed, arguments), where, *outputs)
        if self.library.waits:
            _module().stream_synchronize(stream)
        return value

    def apply(self, function: Callable[..., Any], *arrays: "DeviceArray") -> "DeviceArray":
        """Return what the caller's own library computes: ``function(namespace, *arrays)``.

        For what it does as well as any kernel would: transforms of Fourier, functions of entries.
        """
        owners = (a.finished() for a in arrays)
        return wrap(self.library.call(function, self.device, *owners))

    def __repr__(self) -> str:
        return f"{type(self.library).__name__.lower()} on device {self.device}"


class DeviceArray:
    """An array on a GPU, with the attributes of a NumPy array that the library uses.

    Attributes
    ----------
    owner : array
        The caller's array that the memory belongs to.
    space : Space
    shape : tuple of int
    strides : tuple of int
        In elements, not in bytes as NumPy has them.
    dtype : numpy.dtype
        uint16 is bfloat16, as everywhere inside the library.
    """

    __slots__ = ("dtype", "owner", "pointer", "shape", "space", "strides")

    def __init__(
        self,
        owner: Any,
        space: Space,
        pointer: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.owner, self.space, self.pointer = owner, space, pointer
        self.shape, self.strides, self.dtype = shape, strides, dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def view(self) -> View:
        return _view((self.pointer, self.shape, self.strides, _NAMES[self.dtype]))

    @property
    def T(self) -> "DeviceArray":
        return self._seen(self.pointer, self.shape[::-1], self.strides[::-1])

    @property
    def c_contiguous(self) -> bool:
        return self.size == 0 or all(
            n == 1 or s == expected
            for n, s, expected in zip(
                self.shape, self.strides, _contiguous(self.shape), strict=True
            )
        )

    @property
    def f_contiguous(self) -> bool:
        return self.T.c_contiguous

    __array_ufunc__ = None

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("an array on a GPU has no NumPy functions: host() copies it")

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator["DeviceArray"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> "DeviceArray":
        """Cut with integers and slices of positive or negative steps; nothing is copied.

        None adds an axis of length 1.
        """
        keys = key if isinstance(key, tuple) else (key,)
        pointer, shape, strides = self.pointer, [], []
        axis = 0
        for k in keys:
            if k is None:
                shape.append(1)
                strides.append(0)
                continue
            n, stride = self.shape[axis], self.strides[axis]
            axis += 1
            if isinstance(k, slice):
                picked = range(n)[k]
                shape.append(len(picked))
                strides.append(stride * picked.step)
                start = picked.start if picked else 0
            else:
                start = range(n)[k]
            pointer += start * stride * self.dtype.itemsize
        return self._seen(pointer, (*shape, *self.shape[axis:]), (*strides, *self.strides[axis:]))

    def reshape(self, *shape: Any) -> "DeviceArray":
        """Return the entries in another shape: a view where they are contiguous, else a copy."""
        wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if -1 in wanted:
            known = prod(n for n in wanted if n != -1)
            wanted = tuple(self.size // max(known, 1) if n == -1 else n for n in wanted)
        a = self if self.c_contiguous else self.copy()
        return a._seen(a.pointer, wanted, _contiguous(wanted))

    def transpose(self, *axes: int) -> "DeviceArray":
        """Return a view with the axes in another order."""
        shape, strides = (tuple(of[i] for i in axes) for of in (self.shape, self.strides))
        return self._seen(self.pointer, shape, strides)

    def at(self, *index: np.ndarray) -> "DeviceArray":
        """Return the entries at these places, one index array per axis; a copy of one axis."""
        steps = list(zip(self.shape, self.strides, strict=True))
        first = sum((n - 1) * s for n, s in steps if s < 0)  # where memory begins, seen from here
        span = sum((n - 1) * abs(s) for n, s in steps) + 1
        places: Any = -first
        for i, s in zip(index, self.strides, strict=True):
            places = places + np.asarray(i, np.int64) * s
        places = np.ascontiguousarray(places).reshape(-1)
        memory = self._seen(self.pointer + first * self.dtype.itemsize, (span,), (1,))
        result = self.space.empty(places.shape, self.dtype)
        if places.size:
            self.space.run(arrays().take_entries, memory, places, result)
        return result

    def diagonal(self) -> "DeviceArray":
        """Return the diagonal of a matrix, or of each matrix of a batch, as a view."""
        shape = (*self.shape[:-2], min(self.shape[-2:]))
        return self._seen(self.pointer, shape, (*self.strides[:-2], sum(self.strides[-2:])))

    def as_bits(self, dtype: Any) -> "DeviceArray":
        """Return a view that takes the bits of the entries for another type of the same size."""
        dtype = np.dtype(dtype)
        assert dtype.itemsize == self.dtype.itemsize
        return DeviceArray(self.owner, self.space, self.pointer, self.shape, self.strides, dtype)

    def spread(self, shape: tuple[int, ...]) -> "DeviceArray":
        """Return a view that repeats the entries along axes that are new or of length 1."""
        strides = (0,) * (len(shape) - self.ndim) + tuple(
            0 if n == 1 else s for n, s in zip(self.shape, self.strides, strict=True)
        )
        return self._seen(self.pointer, shape, strides)

    def copy(self) -> "DeviceArray":
        """Return a C-contiguous copy."""
        return self.astype(self.dtype, copy=True)

    def astype(self, dtype: Any, copy: bool = True) -> "DeviceArray":
        """Return the entries as another type, bfloat16 being uint16."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype and not copy:
            return self
        result = self.space.empty(self.shape, dtype)
        result.assign(self)
        return result

    def assign(self, source: "DeviceArray") -> None:
        """Copy the entries of an array of the same shape, converted to this one's type."""
        if not self.size:
            return
        if self.ndim > 2 and not (self.c_contiguous and source.c_contiguous):
            for i in range(len(self)):
                self[i].assign(source[i])
            return
        self.space.run(arrays().copy, flat(source), flat(self))

    def fill(self, value: float) -> None:
        """Set all entries."""
        if self.size:
            self.space.run(arrays().fill, flat(self), float(value))

    def first_not_finite(self) -> int:
        """Return the place of the first entry that is NaN or infinite, -1 without one; waits."""
        if not self.size:
            return -1
        return int(self.space.run(arrays().first_not_finite, flat(self)))

    def host(self) -> np.ndarray:
        """Return a copy as a NumPy array; waits for it."""
        result = np.empty(self.shape, self.dtype)
        if result.size:
            a = self if self.c_contiguous else self.copy()
            self.space.run(arrays().download, a, result)
        return result

    def finished(self) -> Any:
        """Return the entries as an array of the caller's library.

        Types that it lacks (JAX has float64 and int64 only where they are enabled) become those
        of half the size.
        """
        library, view = self.space.library, self.view
        own = library.describe(self.owner)
        if own == view:
            return self.owner
        alike = own.dtype == view.dtype or np.dtype(own.dtype).itemsize == self.dtype.itemsize
        if alike and not library.waits and min(self.strides, default=0) >= 0:
            return library.part(self.owner, view, self.space.device)
        narrow = {"float64": "float32", "int64": "int32"}
        same = self.space.empty(self.shape, self.dtype)
        if library.describe(same.owner).dtype != view.dtype:
            same = self.space.empty(self.shape, narrow[self.dtype.name])
        same.assign(self)
        return same.owner

    def __reduce__(self) -> tuple[Any, ...]:
        return Space.from_host, (self.space, self.host())  # the owner's own copy would be elsewhere

    def _seen(
        self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> "DeviceArray":
        return DeviceArray(self.owner, self.space, pointer, shape, strides, self.dtype)

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}, shape={self.shape}, {self.space!r})"


def find(x: Any) -> Space | None:
    """Return the space of an array that is on a GPU, None for all others."""
    if isinstance(x, np.ndarray):
        return None
    if isinstance(x, DeviceArray):
        return x.space
    library = _library(x)
    if library is None:
        return None
    return Space(library, library.device(x))


def seen(x: Any) -> DeviceArray | None:
    """Return an array on a GPU as the library sees it, without a copy; None for all others."""
    if isinstance(x, DeviceArray):
        return x
    if isinstance(x, np.ndarray) or (library := _library(x)) is None:
        return None
    view, space = library.describe(x), Space(library, library.device(x))
    return DeviceArray(x, space, view.pointer, view.shape, view.strides, np.dtype(view.dtype))


def wrap(x: Any) -> DeviceArray:
    """Return an array that is known to be on a GPU as the library sees it, without a copy."""
    found = seen(x)
    assert found is not None
    return found


def _library(x: Any) -> Library | None:
    if is_torch_array(x):
        return _torch() if x.is_cuda else None
    if is_cupy_array(x):
        return _cupy()
    if is_jax_array(x):
        return _jax() if next(iter(x.devices())).platform in ("gpu", "cuda") else None
    return None


class Torch:
    waits = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _library_of, ("torch",)

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._dtypes = {
            dtype: torch.bfloat16 if name == "uint16" else getattr(torch, name)
            for dtype, name in _NAMES.items()
        }
        self._names = {v: _NAMES[k] for k, v in self._dtypes.items()}
        self._named = {name: dtype for dtype, name in self._names.items()}
        self._devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        # What torch's compiled code asks: without a Stream object it takes a tenth of the time.
        self._stream = getattr(torch._C, "_cuda_getCurrentRawStream", self._current)

    def _current(self, device: int) -> int:
        return int(self._torch.cuda.current_stream(device).cuda_stream)

    def device(self, x: Any) -> int:
        return int(x.device.index)

    def pointer(self, x: Any) -> int:
        return int(x.data_ptr())

    def describe(self, x: Any) -> View:
        name = self._names.get(x.dtype) or str(x.dtype).removeprefix("torch.")
        return View(x.data_ptr(), tuple(x.shape), x.stride(), name)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        return self._torch.empty(shape, dtype=self._dtypes[dtype], device=self._devices[device])

    def part(self, owner: Any, view: View, device: int) -> Any:
        dtype, owner = self._named[view.dtype], owner.detach()
        if owner.dtype != dtype:
            owner = owner.view(dtype)
        offset = (view.pointer - owner.data_ptr()) // owner.element_size()
        return owner.as_strided(view.shape, view.strides, owner.storage_offset() + offset)

    def stream(self, device: int) -> int:
        return int(self._stream(device))

    def call(self, function: Callable[..., Any], device: int, *owners: Any) -> Any:
        import array_api_compat.torch as namespace

        with self._torch.no_grad(), self._torch.cuda.device(device):
            return function(namespace, *owners)


class CuPy:
    waits = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _library_of, ("cupy",)

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy

    def device(self, x: Any) -> int:
        return int(x.device.id)

    def pointer(self, x: Any) -> int:
        return int(x.data.ptr)

    def describe(self, x: Any) -> View:
        strides = tuple(s // x.itemsize for s in x.strides)
        name = "uint16" if x.dtype.name == "bfloat16" else x.dtype.name
        return View(int(x.data.ptr), x.shape, strides, name)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        with self._cupy.cuda.Device(device):
            return self._cupy.empty(shape, dtype)

    def part(self, owner: Any, view: View, device: int) -> Any:
        strides = tuple(s * owner.itemsize for s in view.strides)
        memory = owner.data + (view.pointer - int(owner.data.ptr))
        with self._cupy.cuda.Device(device):
            dtype = owner.dtype if owner.dtype.name == "bfloat16" else np.dtype(view.dtype)
            return self._cupy.ndarray(view.shape, dtype, memory, strides)

    def stream(self, device: int) -> int:
        return int(self._cupy.cuda.get_current_stream(device).ptr)

    def call(self, function: Callable[..., Any], device: int, *owners: Any) -> Any:
        import array_api_compat.cupy as namespace

        with self._cupy.cuda.Device(device):
            return function(namespace, *owners)


class Jax:
    waits = True

    def __reduce__(self) -> tuple[Any, ...]:
        return _library_of, ("jax",)

    def __init__(self) -> None:
        import jax

        self._jax = jax

    def device(self, x: Any) -> int:
        devices = x.devices()
        if len(devices) != 1:
            raise ValueError(f"a JAX array must be on one device, got {len(devices)}")
        return int(next(iter(devices)).local_hardware_id or 0)

    def pointer(self, x: Any) -> int:
        return int(self._jax.block_until_ready(x).unsafe_buffer_pointer())

    def describe(self, x: Any) -> View:
        name = "uint16" if x.dtype.name == "bfloat16" else x.dtype.name
        return View(self.pointer(x), x.shape, _contiguous(x.shape), name)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        place = next(d for d in self._jax.local_devices() if (d.local_hardware_id or 0) == device)
        numpy = self._jax.numpy
        name = "bfloat16" if dtype == np.uint16 else dtype.name
        if dtype.itemsize == 8 and not self._jax.config.jax_enable_x64:
            shape, name = (prod(shape) * 8,), "uint8"
        return numpy.empty(shape, name, device=place)

    def part(self, owner: Any, view: View, device: int) -> Any:
        raise NotImplementedError("JAX arrays have no views")

    def stream(self, device: int) -> int:
        return 0

    def call(self, function: Callable[..., Any], device: int, *owners: Any) -> Any:
        return function(self._jax.numpy, *owners)


_torch = cache(Torch)
_cupy = cache(CuPy)
_jax = cache(Jax)


def _library_of(name: str) -> Library:
    """Return the library of that name, as copies and pickles refer to it."""
    known: dict[str, Callable[[], Library]] = {"torch": _torch, "cupy": _cupy, "jax": _jax}
    return known[name]()


def _module() -> Any:
    return cuda_library.load()


def arrays() -> Any:
    """Return the kernels that do what an array library does."""
    return _module().arrays


def linalg() -> Any:
    """Return the kernels for single matrices that only a GPU needs, beside those of the table."""
    return _module().linalg


def sweep() -> Any:
    """Return the kernels of the sweep, also those for many matrices that only a GPU needs."""
    return _module().sweep


def woodbury() -> Any:
    """Return the kernels of the Woodbury family, also those that only a GPU needs."""
    return _module().woodbury


def sketch() -> Any:
    """Return the kernels of the sketch family, also those that only a GPU needs."""
    return _module().sketch


def transport() -> Any:
    """Return the kernels of the transport family, also those that only a GPU needs."""
    return _module().transport


def _viewed(x: Any) -> Any:
    if isinstance(x, DeviceArray):
        return x.view
    if isinstance(x, tuple) and x and isinstance(x[0], DeviceArray):
        return tuple(a.view for a in x)
    return x


def flat(a: DeviceArray) -> DeviceArray:
    """Return a view with two axes, which is what kernels take that work entry by entry."""
    if a.ndim == 2:
        return a
    if a.ndim < 2:
        return a._seen(a.pointer, (1, a.size), (0, *(a.strides or (1,))))
    if not a.c_contiguous:
        raise ValueError(f"an array of {a.ndim} axes must be contiguous, got strides {a.strides}")
    return a._seen(a.pointer, (1, a.size), (a.size, 1))


@lru_cache(maxsize=1024)
def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(int(n), 1)
    return tuple(reversed(strides))
