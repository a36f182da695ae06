"""The preconditioners in front of other optimizers."""

from typing import Any

import pytest
import torch
from torch import nn

from quadric.adapters.torch.optim import Preconditioner
from tests.adapters.optimizers import Net, backward


def test_preconditioner_before_adamw() -> None:
    model = Net()
    first = Preconditioner(model.parameters(), "mkor", model=model, update_every=5)
    second = torch.optim.AdamW(model.parameters(), 0.01)
    values = []
    for batch in range(80):
        second.zero_grad()
        values.append(float(backward(model, batch)))
        first.step()
        second.step()
    assert sum(values[-10:]) < 0.25 * sum(values[:10])


def test_preconditioner_leaves_the_layout_of_gradients() -> None:
    model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    first = Preconditioner(model.parameters(), "mfac", capacity=2)
    model(torch.randn(2, 3, 4, 4)).square().sum().backward()
    gradient = model.weight.grad
    before = gradient.clone()
    first.step()
    assert model.weight.grad is gradient
    assert not torch.equal(gradient, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "method must be one of 'mfac', 'mkor'; got 'adam'"),
        ({"lr": 1.0}, "method 'mfac' must have options among capacity, damping"),
        ({"method": "mkor", "capacity": 3}, "method 'mkor' must have options among decay, rule"),
    ],
    ids=str,
)
def test_preconditioner_options(options: dict[str, Any], message: str) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises((ValueError, TypeError)) as caught:
        Preconditioner(model.parameters(), **options, model=model)
    assert str(caught.value).startswith(message)
