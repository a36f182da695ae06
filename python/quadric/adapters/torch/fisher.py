"""Gradients of a training loop, gathered into block Fisher matrices."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from quadric import checks
from quadric.adapters.torch.capture import home, runs_on_gpu
from quadric.adapters.torch.files import CONFIG, new_folder, read_json
from quadric.errors import LinAlgError
from quadric.woodbury import BlockFisher

Parameters: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Mapping[str, Tensor]
STORAGE = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class PrunedParameter:
    """What :meth:`FisherCollector.prune` makes of one parameter.

    Attributes
    ----------
    weights : torch.Tensor
        The new weights, in the shape of the parameter; float64 if the gradients are, else float32.
    mask : torch.Tensor of bool
        True where a weight is kept.
    loss : float
        Predicted increase of the loss.
    """

    weights: Tensor
    mask: Tensor
    loss: float


class FisherCollector:
    """Gathers the gradients of a training loop into block Fisher matrices.

    :meth:`collect` after ``backward()`` takes one gradient. Each parameter has a
    :class:`~quadric.woodbury.BlockFisher` of its own over its flattened weights, or all share one
    in which every parameter begins a new block.

    Parameters
    ----------
    params : iterable of parameters, of (name, parameter) pairs, or mapping
        Such as ``model.named_parameters()``. Without names they are "0", "1", and so on.
    block_size : int, optional
        Consecutive weights whose curvature is taken together.
    damping : float, optional
        Lambda of ``F = lambda I + G^T G / m``, absolute.
    joint : bool, optional
        One Fisher matrix for all parameters: quicker for many small ones.
    rows : int, optional
        Gradients that are buffered before they are added.
    dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        Storage type of the gradients; by default that of the parameter.
    masks : mapping of str to torch.Tensor of bool, optional
        True where a weight is kept; gradients count as zero elsewhere.
    orders : mapping of str to sequence of int, optional
        Order of the dimensions in which a parameter is flattened, ``(0, 2, 3, 1)`` to have the
        input channels of a convolution next to each other. By default as they are.
    backend, n_threads : optional
        For :class:`~quadric.woodbury.BlockFisher`.

    Attributes
    ----------
    names : tuple of str
        The parameters.
    missing : dict of str to int
        How many of the gradients were None for a parameter; they count as zero.

    Raises
    ------
    ValueError, TypeError
        If a parameter is not a floating-point tensor, or an option is out of range.

    Notes
    -----
    A gradient scaled by ``torch.amp.GradScaler`` must be unscaled first.

    On a GPU that the CUDA kernels can be used on, a matrix is where its (first) parameter was when
    the collector was made, and :meth:`collect` does not wait: gradients there are not looked at for
    NaN and Inf, but results are. What is on any other device is copied to the CPU, one gradient at
    a time.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch import FisherCollector
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(8, 4)
    >>> fisher = FisherCollector(model.named_parameters(), block_size=8)
    >>> for x in torch.randn(16, 10, 8):
    ...     model.zero_grad()
    ...     model(x).square().mean().backward()
    ...     fisher.collect()
    >>> fisher.count, fisher.scores()["weight"].shape
    (16, torch.Size([32]))
    """

    def __init__(
        self,
        params: Parameters,
        *,
        block_size: int = 50,
        damping: float = 1e-7,
        joint: bool = False,
        rows: int = 16,
        dtype: str | None = None,
        masks: Mapping[str, Tensor] | None = None,
        orders: Mapping[str, Sequence[int]] | None = None,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        named = _named(params)
        checks.integer(block_size, "block_size", low=1)
        checks.integer(rows, "rows", low=1)
        checks.choice(joint, "joint", (True, False))
        checks.choice(dtype, "dtype", (*STORAGE, None))
        _known(masks, named, "masks")
        _known(orders, named, "orders")
        members = [
            _Member.of(name, p, (masks or {}).get(name), (orders or {}).get(name))
            for name, p in named.items()
        ]
        options = {"damping": damping, "backend": backend, "n_threads": n_threads}
        groups = [members] if joint else [[member] for member in members]
        self._parts = [_Part(group, block_size, rows, dtype, options) for group in groups]
        self._rows = rows
        self._waiting = 0  # rows in the buffers
        self._settings = {"block_size": block_size, "joint": joint, "rows": rows, "dtype": dtype}
        self.names = tuple(named)
        self.missing = dict.fromkeys(named, 0)

    @property
    def count(self) -> int:
        """Number of gradients taken."""
        return self._parts[0].fisher.count + self._waiting

    @property
    def damping(self) -> float:
        """Lambda of all the matrices; can be set."""
        damping: float = self._parts[0].fisher.damping
        return damping

    @damping.setter
    def damping(self, value: float) -> None:
        for part in self._parts:
            part.fisher.damping = value

    @property
    def fishers(self) -> tuple[BlockFisher, ...]:
        """The matrices, one per parameter in the order of `names`, or the one of all."""
        self._flush()
        return tuple(part.fisher for part in self._parts)

    def collect(self, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Take one gradient: the ``.grad`` of the parameters, or what is given.

        Parameters
        ----------
        gradients : sequence of torch.Tensor or None, optional
            One per parameter, in their order, as :func:`torch.autograd.grad` returns them.

        Raises
        ------
        ValueError
            If no parameter has a gradient, or one has another shape or is not finite (that is
            found out in the results on a GPU, see the notes). Nothing is taken then.
        """
        members = [member for part in self._parts for member in part.members]
        if gradients is None:
            gradients = [member.parameter.grad for member in members]
        if len(gradients) != len(members):
            raise ValueError(
                f"gradients must be one per parameter, {len(members)}, got {len(gradients)}"
            )
        if all(g is None for g in gradients):
            raise ValueError(
                f"no gradient in any of the {len(members)} parameters, the first is "
                f"{members[0].name!r}: collect() comes after backward() and before zero_grad()"
            )
        left = iter(gradients)
        for part in self._parts:
            row = part.row(self._waiting)
            for member, g in zip(part.members, left, strict=False):
                member.write(g, row)
        for member, g in zip(members, gradients, strict=True):
            self.missing[member.name] += g is None
        self._waiting += 1
        if self._waiting == self._rows:
            self._flush()

    def merge(self, other: "FisherCollector") -> None:
        """Add the gradients of another collector, which keeps them.

        Raises
        ------
        ValueError
            If `other` has other parameters or options.
        """
        if not isinstance(other, FisherCollector):
            raise TypeError(f"other must be a FisherCollector, got {type(other).__name__}")
        if self._identity() != other._identity():
            raise ValueError("other must have the same parameters, block_size, joint and dtype")
        self._flush()
        for mine, its in zip(self._parts, other.fishers, strict=True):
            mine.fisher.merge(its)
        for name, count in other.missing.items():
            self.missing[name] += count

    def diagonal(self) -> dict[str, Tensor]:
        """Return the diagonal of ``F^-1``, in the shapes of the parameters."""
        return self._shaped([part.call("diagonal") for part in self._ready()])

    def solve(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``F^-1`` times a vector that is given, and returned, in the parameters' shapes."""
        if set(vectors) != set(self.names):
            raise ValueError(f"vectors must be of {self.names}, got {tuple(vectors)}")
        parts = self._ready()
        return self._shaped([part.call("solve", part.vector(vectors)) for part in parts])

    def scores(self, group_size: int = 1) -> dict[str, Tensor]:
        """Return the predicted increase of the loss from zeroing each weight, or group, alone.

        Parameters
        ----------
        group_size : int, optional
            Consecutive weights that are zeroed together; it divides `block_size`.

        Returns
        -------
        dict of str to torch.Tensor
            Shape (ceil(weights / group_size),), in the order of flattening.
        """
        found = {}
        for part in self._ready():
            scores = part.call("scores", part.vector(), group_size)
            for member in part.members:
                start = member.start // group_size
                found[member.name] = scores[start : start - (-member.size // group_size)]
        return found

    def prune(
        self, masks: Mapping[str, Tensor], *, update: str = "joint"
    ) -> dict[str, PrunedParameter]:
        """Zero weights, and let the others in their blocks make up for it.

        Nothing is written to the parameters. A block of which nothing is kept is zeroed.

        Parameters
        ----------
        masks : mapping of str to torch.Tensor of bool
            True where a weight is kept, in the shapes of the parameters.
        update : {"joint", "independent"}, optional
            As in :meth:`quadric.woodbury.BlockFisher.prune`.

        Returns
        -------
        dict of str to PrunedParameter
        """
        if set(masks) != set(self.names):
            raise ValueError(f"masks must be of {self.names}, got {tuple(masks)}")
        found = {}
        for part in self._ready():
            mask = torch.ones(part.width, dtype=torch.bool, device=part.place)
            for member in part.members:
                mask[member.slice] = member.flat(_mask(masks[member.name], member)).to(part.place)
            result = part.call("prune", part.vector(), mask, update=update, whole_blocks="zero")
            for member in part.members:
                blocks = slice(
                    member.start // part.block_size, -(-member.slice.stop // part.block_size)
                )
                found[member.name] = PrunedParameter(
                    member.shaped(result.weights[member.slice]),
                    masks[member.name],
                    float(result.loss[blocks].sum()),
                )
        return found

    def save(self, out_dir: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the sums to a folder, which appears whole or not at all.

        Raises
        ------
        OSError
            If `out_dir` exists and is not to be overwritten, or cannot be written.
        """
        fishers = self.fishers
        with new_folder(Path(out_dir), overwrite) as folder:
            for i, fisher in enumerate(fishers):
                fisher.save(folder / f"{i}.npz")
            about = {**self._settings, "shapes": self._identity()[0], "missing": self.missing}
            (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        params: Parameters,
        *,
        masks: Mapping[str, Tensor] | None = None,
        orders: Mapping[str, Sequence[int]] | None = None,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> Self:
        """Read what :meth:`save` wrote, for the same parameters.

        Raises
        ------
        ValueError
            If the folder is damaged, or its parameters have other names or shapes.
        """
        folder = Path(path)
        about = read_json(folder / CONFIG)
        try:
            shapes, missing = about.pop("shapes"), about.pop("missing")
            result = cls(
                params, **about, masks=masks, orders=orders, backend=backend, n_threads=n_threads
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder} was not written by FisherCollector.save") from error
        if shapes != result._identity()[0]:
            raise ValueError(f"params must be those of {folder}: {shapes}")
        for i, part in enumerate(result._parts):
            part.load(folder / f"{i}.npz", backend=backend, n_threads=n_threads)
        result.missing = missing
        return result

    def __repr__(self) -> str:
        weights = sum(member.size for part in self._parts for member in part.members)
        return (
            f"FisherCollector({len(self.names)} parameters, {weights} weights, count={self.count})"
        )

    def _ready(self) -> "list[_Part]":
        if not self.count:
            raise ValueError("no gradients have been collected")
        self._flush()
        return self._parts

    def _flush(self) -> None:
        if self._waiting:
            for part in self._parts:
                part.flush(self._waiting)
            self._waiting = 0

    def _shaped(self, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            member.name: member.shaped(vector[member.slice])
            for part, vector in zip(self._parts, vectors, strict=True)
            for member in part.members
        }

    def _identity(self) -> tuple[Any, ...]:
        """What two collectors must agree in; the first entry is plain enough for JSON."""
        members = [member for part in self._parts for member in part.members]
        shapes = [[m.name, list(m.parameter.shape), list(m.order)] for m in members]
        types = [part.dtype for part in self._parts]
        return shapes, self._settings["block_size"], self._settings["joint"], types


@dataclass(slots=True, eq=False)
class _Member:
    """A parameter, and its place in the vector of a Fisher matrix."""

    name: str
    parameter: Tensor
    order: tuple[int, ...]
    pruned: Tensor | None  # flat
    start: int = 0

    @classmethod
    def of(
        cls, name: str, parameter: Tensor, mask: Tensor | None, order: Sequence[int] | None
    ) -> "_Member":
        dims = tuple(range(parameter.ndim))
        order = dims if order is None else tuple(order)
        if tuple(sorted(order)) != dims:
            raise ValueError(f"orders[{name!r}] must be a permutation of {dims}, got {order}")
        member = cls(name, parameter, order, None)
        if mask is not None and not _mask(mask, member).all():
            member.pruned = ~member.flat(mask)
        return member

    @property
    def size(self) -> int:
        return self.parameter.numel()

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)

    def flat(self, x: Tensor) -> Tensor:
        return flatten(x, self.order)

    def shaped(self, vector: Tensor) -> Tensor:
        return unflatten(vector, self.parameter.shape, self.order)

    def write(self, gradient: Tensor | None, row: Tensor) -> None:
        """Put a gradient into its place in a row, which is free until all have been written."""
        place = row[self.slice]
        if gradient is None:
            place.zero_()
            return
        if gradient.shape != self.parameter.shape:
            raise ValueError(
                f"gradient of {self.name!r} must have its shape {tuple(self.parameter.shape)}, "
                f"got {tuple(gradient.shape)}"
            )
        dense = gradient.detach()
        dense = dense.to_dense() if dense.layout != torch.strided else dense
        shape = [self.parameter.shape[i] for i in self.order]
        place.view(shape).copy_(dense.permute(self.order))
        if self.pruned is not None:
            place.masked_fill_(self.pruned, 0)
        # A sum is finite only if every entry is; the converse fails where the sum overflows.
        if not place.is_cuda and not place.sum().isfinite():
            for where in self.shaped(place.isfinite().logical_not()).nonzero().tolist()[:1]:
                raise ValueError(
                    f"gradient of {self.name!r} must be finite in {str(place.dtype)[6:]}, "
                    f"got {float(dense[tuple(where)]):g} at index {tuple(where)}"
                )


class _Part:
    """Parameters that share a Fisher matrix, each from the start of a block."""

    def __init__(
        self,
        members: Sequence[_Member],
        block_size: int,
        rows: int,
        dtype: str | None,
        options: dict[str, Any],
    ) -> None:
        self.members = members
        self.block_size = block_size
        self.width = 0
        for member in members:
            member.start = -(-self.width // block_size) * block_size
            self.width = member.slice.stop
        self.dtype: torch.dtype = members[0].parameter.dtype
        for member in members:
            self.dtype = torch.promote_types(self.dtype, member.parameter.dtype)
        if dtype is not None:
            self.dtype = getattr(torch, dtype)
        first = members[0].parameter
        self.place = home(first, options["backend"])
        for member in members:
            if member.pruned is not None:
                member.pruned = member.pruned.to(self.place)
        self.rows = rows
        self._unseen: dict[str, Any] = {"check_finite": not runs_on_gpu(first, options["backend"])}
        self.fisher = BlockFisher(self.width, block_size=block_size, **options, **self._unseen)
        self._buffer: Tensor | None = None

    def row(self, i: int) -> Tensor:
        if self._buffer is None:  # zero between parameters
            size = self.rows, self.width
            self._buffer = torch.zeros(size, dtype=self.dtype, device=self.place)
        return self._buffer[i]

    def flush(self, count: int) -> None:
        assert self._buffer is not None
        self.fisher.update(self._buffer[:count])

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the matrix; if it cannot be factored, say whose it is."""
        try:
            result = getattr(self.fisher, method)(*arguments, **options)
            if isinstance(result, np.ndarray):  # of a matrix from a file that has seen no tensor
                result = torch.from_numpy(result).to(self.place)
            found = result.weights if method == "prune" else result
            if found.is_cuda and not found.isfinite().all():
                raise LinAlgError(
                    "NaN or Inf in the result: it was in a gradient or a weight, or damping "
                    f"{self.fisher.damping:g} is too small"
                )
        except LinAlgError as error:
            names = ", ".join(repr(member.name) for member in self.members)
            raise LinAlgError(f"Fisher matrix of {names}: {error}", error.pivot) from error
        return result

    def vector(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the parameters, or what is given in their shapes, as one vector."""
        computing = torch.float64 if self.dtype == torch.float64 else torch.float32
        vector = torch.zeros(self.width, dtype=computing, device=self.place)
        for member in self.members:
            x = member.parameter if tensors is None else tensors[member.name]
            if x.shape != member.parameter.shape:
                raise ValueError(
                    f"vectors[{member.name!r}] must have the parameter's shape "
                    f"{tuple(member.parameter.shape)}, got {tuple(x.shape)}"
                )
            vector[member.slice] = member.flat(x.detach()).to(self.place, computing)
        return vector

    def load(self, path: Path, **options: Any) -> None:
        fisher = BlockFisher.load(path, **options, **self._unseen)
        if (fisher.d, fisher.block_size) != (self.width, self.block_size):
            raise ValueError(f"{path} must be of {self.width} weights, got {fisher.d}")
        self.fisher = fisher


def flatten(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return `x` as a vector, its dimensions in another order."""
    return x.permute(*order).reshape(-1)


def unflatten(vector: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Undo :func:`flatten` for what had that shape."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return vector.reshape([shape[i] for i in order]).permute(back)


def _named(params: Parameters) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, parameter in _pairs(params):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameter {name!r} must be a tensor, got {type(parameter).__name__}")
        if str(parameter.dtype)[6:] not in STORAGE:
            got = str(parameter.dtype)[6:]
            raise TypeError(f"parameter {name!r} must be of {', '.join(STORAGE)}, got {got}")
        if not parameter.numel():
            raise ValueError(f"parameter {name!r} must have weights, got shape {parameter.shape}")
        if name in named:
            raise ValueError(f"params must have different names, got {name!r} twice")
        named[name] = parameter
    if not named:
        raise ValueError("params must hold at least one parameter")
    return named


def _pairs(params: Parameters) -> Iterator[tuple[str, Any]]:
    if isinstance(params, Tensor):
        raise TypeError("params must be an iterable of parameters, got a single tensor")
    for i, entry in enumerate(params.items() if isinstance(params, Mapping) else params):
        name, parameter = entry if isinstance(entry, tuple) else (str(i), entry)
        yield str(name), parameter


def _known(given: Mapping[str, Any] | None, named: Mapping[str, Any], what: str) -> None:
    for name in given or ():
        if name not in named:
            raise ValueError(f"{what} must be of the parameters, got the unknown {name!r}")


def _mask(mask: Tensor, member: _Member) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != member.parameter.shape:
        raise ValueError(
            f"mask of {member.name!r} must be bool of shape {tuple(member.parameter.shape)}, "
            f"got {str(mask.dtype)[6:]} of shape {tuple(mask.shape)}"
        )
    return mask
