"""Small models, and compression done by hand: the slow way that the adapter must agree with."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import quadric as qd
from quadric.adapters.torch import CompressionReport


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, :] == 0, -1e4)
        return self.out(scores.softmax(-1) @ self.value(x))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        x = x + self.attention(self.norm(x), mask)
        return (x + self.down(self.dropout(torch.relu(self.up(x)))),)


class Toy(nn.Module):
    """An embedding, a projection, blocks, a head."""

    def __init__(self, width: int = 16, depth: int = 3, words: int = 40, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(words, width)
        self.project = nn.Linear(width, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, words)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.project(self.embed(input_ids))
        for block in self.blocks:
            x = block(x, mask=attention_mask)[0]
        return self.head(x)


def token_batches(
    count: int = 3, size: int = 4, length: int = 12, words: int = 40, padded: bool = False
) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        batch = {"input_ids": torch.randint(0, words, (size, length), generator=generator)}
        mask = torch.ones(size, length, dtype=torch.long)
        if padded:
            for row in range(size):
                mask[row, length - 2 * row :] = 0
        batches.append({**batch, "attention_mask": mask})
    return batches


def call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def inputs_of(model: nn.Module, name: str, batches: Iterable[Any]) -> list[Tensor]:
    """The inputs of one layer, batch by batch, from a run of the whole model."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            call(model.eval(), batch)
    hook.remove()
    return seen


def compressed_up_to(
    original: nn.Module, compressed: nn.Module, ready: Callable[[str], bool]
) -> nn.Module:
    """A copy of the original with the compressed weights of those layers that are `ready`."""
    mixed = copy.deepcopy(original)
    state = {k: v for k, v in compressed.state_dict().items() if ready(k.rpartition(".")[0])}
    mixed.load_state_dict(state, strict=False)
    return mixed


def factor_by_hand(inputs: list[Tensor], masks: list[Tensor | None], **options: Any) -> Any:
    acc = qd.sweep.HessianAccumulator(inputs[0].shape[-1])
    for x, mask in zip(inputs, masks, strict=True):
        acc.update(x.numpy() if mask is None else x[mask != 0].numpy())
    return qd.sweep.factorize(acc.value(), **options)


def assert_same_matrices(a: CompressionReport, b: CompressionReport) -> None:
    assert a.layers.keys() == b.layers.keys()
    for name, q in a.layers.items():
        for field in ("codes", "scales", "zeros", "group_index", "weights", "mask", "loss"):
            left, right = getattr(q, field, None), getattr(b.layers[name], field, None)
            assert (left is None) == (right is None), (name, field)
            if left is not None:
                np.testing.assert_array_equal(left, right, err_msg=f"{name} {field}")
