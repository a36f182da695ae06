"""The repeated blocks of a model, and their inputs while they are worked on one after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from quadric.adapters.torch.capture import version

Batch: TypeAlias = Any
"""What the model is called with: a mapping (keywords), a tuple or list (arguments), or a tensor."""


def run_model(model: nn.Module, batch: Batch) -> Any:
    """Call `model` on a batch, on the device of its parameters and without gradients."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    with torch.no_grad():
        if isinstance(batch, Mapping):
            return model(**{key: move(value) for key, value in batch.items()})
        if isinstance(batch, tuple | list):
            return model(*map(move, batch))
        return model(move(batch))


@dataclass(frozen=True, eq=False)
class Chain:
    """Blocks that the model calls one after the other, the output of one being the next's input."""

    name: str
    blocks: tuple[tuple[str, nn.Module], ...]


Link: TypeAlias = tuple[int | str, Any]
"""An argument of a block, and the entry of the previous block's output that it is given."""


class NotAChain(ValueError):
    """The blocks are not called once each, one after the other."""


def find_chains(
    model: nn.Module, names: str | Sequence[str] | None, layers: Sequence[str]
) -> list[Chain]:
    """Return the chains called `names`; without names, the one whose blocks hold most weights.

    A chain is an nn.ModuleList, or an nn.Sequential whose members have one class; only those that
    hold some of `layers` count. The result is empty where the model has none.

    Raises
    ------
    ValueError
        If a name is not that of such a list.
    """
    modules = dict(model.named_modules())
    if names is not None:
        return [_named(modules, name) for name in ([names] if isinstance(names, str) else names)]

    def weights(name: str) -> int:
        inside = (
            modules[layer] for layer in layers if layer.startswith(f"{name}." if name else "")
        )
        return sum(cast(Tensor, module.weight).numel() for module in inside)

    # A list of one is a last resort: it may be no more than a wrapper. Of equals, the outermost.
    chains = [_named(modules, n) for n, m in modules.items() if _is_list(m) and weights(n) > 0]
    if not chains:
        return []
    return [max(chains, key=lambda chain: (len(chain.blocks) > 1, weights(chain.name)))]


def _is_list(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    return len({type(child) for child in module}) == 1


def _named(modules: Mapping[str, nn.Module], name: str) -> Chain:
    module = modules.get(name)
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        what = "no module" if module is None else f"a {type(module).__name__}"
        raise ValueError(f"blocks must name an nn.ModuleList or nn.Sequential; {name!r} is {what}")
    prefix = f"{name}." if name else ""
    return Chain(name, tuple((f"{prefix}{key}", child) for key, child in module.named_children()))


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of one call of a block; a key is a position or a keyword."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, name: str, block: nn.Module) -> Any:
        """Call `block`, which must leave its arguments as they are: they are used again."""
        tensors = [v for _, v in self.items() if isinstance(v, Tensor)]
        before = [version(x) for x in tensors]
        with torch.no_grad():
            output = block(*self.args, **self.kwargs)
        if before != [version(x) for x in tensors]:
            raise ValueError(f"block {name!r} changes its input in place and cannot be run twice")
        return output

    def items(self) -> list[tuple[int | str, Any]]:
        return [*enumerate(self.args), *self.kwargs.items()]

    def replace(self, values: Mapping[int | str, Any]) -> "Call":
        args = tuple(values.get(i, value) for i, value in enumerate(self.args))
        return Call(args, {k: values.get(k, value) for k, value in self.kwargs.items()})


@dataclass(frozen=True, eq=False)
class Step:
    """A call whose `links` (argument, entry of the previous output) are still to be filled in."""

    call: Call
    links: tuple[Link, ...]

    @classmethod
    def of(cls, call: Call, links: tuple[Link, ...]) -> "Step":
        return cls(call.replace(dict.fromkeys(key for key, _ in links)), links)

    def after(self, output: Any) -> Call:
        return self.call.replace({key: _entry(output, entry) for key, entry in self.links})

    def repeats(self, other: "Step") -> bool:
        """Say whether the two differ in nothing but what flows through the links."""
        if self.links != other.links:
            return False
        mine, others = dict(self.call.items()), dict(other.call.items())
        return mine.keys() == others.keys() and all(_same(v, others[k]) for k, v in mine.items())


class Stream:
    """Calls of one block after the other, for every batch; holds the inputs of one block.

    Attributes
    ----------
    calls : list of Call
        How the current block is called, one for each batch.
    """

    def __init__(self, calls: list[Call], steps: list[list[Step]]) -> None:
        self.calls = calls
        self._steps = steps  # batch -> what each block after the first is called with
        self._at = 0

    def copy(self) -> "Stream":
        return Stream(list(self.calls), self._steps)

    def advance(self, run: Callable[[int, Call], Any]) -> None:
        """Move to the next block; ``run(batch, call)`` gives the outputs of this one."""
        last = self._at == len(self._steps[0])
        for b, call in enumerate(self.calls):
            if not last:
                self.calls[b] = self._steps[b][self._at].after(run(b, call))
        self._at += 1


def follow(chain: Chain, batches: Sequence[Batch], run: Callable[[Batch], Any]) -> Stream:
    """Run the model on each batch and note how it calls the blocks.

    Where every block gets the same arguments next to what flows through, which the first batch
    shows, the other batches run no further than the first block.

    Raises
    ------
    NotAChain
        If the blocks are not called one after the other.
    """
    calls: list[Call] = []
    steps: list[list[Step]] = []
    links: tuple[Link, ...] | None = None  # those of every block, once they are known to be equal
    for batch in batches:
        notes = _Notes(chain, stop=links is not None)
        with notes.hooks(), suppress(_Stop), torch.no_grad():
            run(batch)
        if notes.first is None or (links is None and len(notes.steps) < len(chain.blocks) - 1):
            missing = chain.blocks[0 if notes.first is None else len(notes.steps) + 1][0]
            raise NotAChain(f"the model does not call block {missing!r}")
        calls.append(notes.first)
        if links is not None:
            steps.append([Step.of(notes.first, links)] * (len(chain.blocks) - 1))
            continue
        steps.append(notes.steps)
        if len(steps) == 1:
            found = notes.steps[0].links if notes.steps else ()
            example = Step.of(notes.first, found)
            if all(step.repeats(example) for step in notes.steps):
                links = found
    return Stream(calls, steps)


class _Stop(Exception):
    pass


class _Notes:
    """How one run of the model calls the blocks of a chain."""

    def __init__(self, chain: Chain, stop: bool) -> None:
        self.chain = chain
        self.stop = stop
        self.first: Call | None = None
        self.steps: list[Step] = []
        self._next = 0
        self._output: Any = None

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for i, (_, block) in enumerate(self.chain.blocks):
            handles.append(block.register_forward_pre_hook(self._before(i), with_kwargs=True))
            handles.append(block.register_forward_hook(self._after))
        try:
            yield
        finally:
            self._output = None
            for handle in handles:
                handle.remove()

    def _before(self, i: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            name = self.chain.blocks[i][0]
            if i != self._next:
                raise NotAChain(f"block {name!r} is not called in turn, or more than once")
            self._next += 1
            call = Call(args, dict(kwargs))
            if i == 0:
                self.first = call
                if self.stop:
                    raise _Stop
                return
            links = tuple(
                (key, entry)
                for key, value in call.items()
                if isinstance(value, Tensor)
                for entry in _entries(self._output)
                if value is _entry(self._output, entry)
            )
            if not links:
                raise NotAChain(f"block {name!r} does not get the output of the block before it")
            self.steps.append(Step.of(call, links))

        return hook

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._output = output


def _entries(output: Any) -> list[Any]:
    """Return the keys of what is in a block's output; None stands for the output itself."""
    if isinstance(output, Mapping):
        return list(output)
    if isinstance(output, tuple | list):
        return list(range(len(output)))
    return [None]


def _entry(output: Any, key: Any) -> Any:
    return output if key is None else output[key]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool | int | float | str):
        return type(a) is type(b) and a == b
    return a is b
