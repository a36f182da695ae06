"""Schedules, and pruning little by little in training."""

import io
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from quadric.adapters.torch.prune import GradualPruner, Masks, Pruner, Schedule
from quadric.adapters.torch.prune.schedule import between
from tests.adapters import surgeon
from tests.adapters.surgeon import mlp, mlp_batches, squared_error


def test_cubic_is_zhu_and_gupta() -> None:
    schedule = Schedule(final=0.9, initial=0.3, begin=10, end=50, every=8)
    n, step = 5, 8
    for t in range(10, 51):
        expected = 0.9 + (0.3 - 0.9) * (1 - (t - 10) / (n * step)) ** 3
        assert schedule.sparsity(t) == pytest.approx(expected, abs=1e-15)
    assert schedule.sparsity(9) == 0
    assert schedule.sparsity(10) == pytest.approx(0.3, abs=1e-15)
    assert schedule.sparsity(50) == schedule.sparsity(1000) == 0.9
    assert [t for t in range(100) if schedule.due(t)] == [10, 18, 26, 34, 42, 50]


def test_other_shapes() -> None:
    linear = Schedule(final=0.8, initial=0.2, end=6, shape="linear")
    assert [linear.sparsity(t) for t in range(0, 7, 2)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    geometric = Schedule(final=0.9375, end=4, shape="geometric")
    assert [geometric.sparsity(t) for t in range(5)] == pytest.approx([0, 0.5, 0.75, 0.875, 0.9375])


@pytest.mark.parametrize("shape", ["cubic", "linear", "geometric"])
def test_ends_are_exact_and_growth_is_steady(shape: str) -> None:
    values = [between(0.1, 0.7, i / 20, shape) for i in range(21)]
    assert values[0] == pytest.approx(0.1, abs=1e-15)
    assert values[-1] == 0.7
    assert all(a < b for a, b in itertools.pairwise(values))


def test_last_step_is_due_off_the_beat() -> None:
    schedule = Schedule(final=0.5, begin=1, end=9, every=5)
    assert [t for t in range(20) if schedule.due(t)] == [1, 6, 9]
    once = Schedule(final=0.5, begin=3, end=3)
    assert [t for t in range(9) if once.due(t)] == [3]
    assert once.sparsity(3) == 0.5


def test_wrong_schedules() -> None:
    good: dict[str, Any] = {"final": 0.5, "end": 10}
    for bad, message in [
        ({"final": 1.0}, "final must be at least 0 and below 1, got 1"),
        ({"initial": -0.1}, "initial must be at least 0"),
        ({"initial": 0.6}, "initial must be at most final 0.5, got 0.6"),
        ({"begin": -1}, "begin must be at least 0"),
        ({"begin": 11}, "end must be at least 11, got 10"),
        ({"every": 0}, "every must be at least 1"),
        ({"shape": "steep"}, "shape must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            Schedule(**{**good, **bad})


class Run:
    """A model in training, pruned along the way."""

    def __init__(self, recomputations: int = 1) -> None:
        self.model, self.batches = mlp(), mlp_batches(30)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.pruner = Pruner(
            self.model, squared_error, self.batches, block_size=16, damping=1e-3, progress=False
        )
        schedule = Schedule(final=0.8, begin=20, end=60, every=10)
        self.gradual = GradualPruner(
            self.pruner, self.optimizer, schedule, recomputations=recomputations
        )

    def train(self, start: int, stop: int) -> list[int]:
        pruned = []
        for step in range(start, stop):
            self.optimizer.zero_grad()
            squared_error(self.model, self.batches[step % 30]).backward()
            self.optimizer.step()
            if self.gradual.step():
                pruned.append(step)
        return pruned

    def weights(self) -> dict[str, nn.Parameter]:
        return {target.name: target.parameter for target in self.pruner.targets}

    def parts(self) -> list[Any]:
        return [self.model, self.optimizer, self.gradual]


@pytest.mark.parametrize("recomputations", [1, 3])
def test_along_a_schedule(recomputations: int) -> None:
    run = Run(recomputations)
    assert run.train(0, 100) == [30, 40, 50, 60]  # at 20 the schedule is still at 0
    report = run.gradual.report
    assert report is run.pruner.report
    whole = report.steps[recomputations - 1 :: recomputations]
    assert [step.training_step for step in whole] == [30, 40, 50, 60]
    cubic = [0.8 * (1 - (1 - i / 4) ** 3) for i in (1, 2, 3, 4)]
    assert [step.target for step in whole] == pytest.approx(cubic)
    assert [round(step.sparsity * 528) for step in whole] == [int(528 * s + 0.5) for s in cubic]
    weights = run.weights()
    zeros = sum(int((p == 0).sum()) for p in weights.values())
    assert zeros == int(528 * 0.8 + 0.5)  # after 40 more training steps with momentum
    assert all(torch.equal(p == 0, ~run.pruner.masks[name]) for name, p in weights.items())
    run.gradual.finish()
    run.train(100, 110)
    assert sum(int((p == 0).sum()) for p in weights.values()) < zeros


def test_training_in_between_helps() -> None:
    gradual = Run()
    gradual.train(0, 600)
    trained = Run()
    trained.gradual.schedule = Schedule(final=0.8, begin=599, end=599)
    trained.train(0, 600)
    assert trained.pruner.masks.sparsity() == gradual.pruner.masks.sparsity()
    losses = [surgeon.mean_loss(run.model, run.batches) for run in (gradual, trained)]
    assert losses[0] < 0.7 * losses[1]


@pytest.mark.parametrize("stop", [5, 31, 45, 80])
def test_resumed_bit_for_bit(stop: int) -> None:
    whole = Run()
    whole.train(0, 100)
    first = Run()
    first.train(0, stop)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first.parts()], file)
    second = Run()
    file.seek(0)
    for part, state in zip(second.parts(), torch.load(file), strict=True):
        part.load_state_dict(state)
    assert second.gradual.step_count == stop
    second.train(stop, 100)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, mask in whole.pruner.masks.items():
        assert torch.equal(second.pruner.masks[name], mask)
    for a, b in zip(whole.gradual.report, second.gradual.report, strict=True):
        assert replace(a, seconds=0.0) == replace(b, seconds=0.0)


def test_a_model_that_is_sparser_already_waits_for_the_schedule() -> None:
    run = Run()
    run.pruner.prune(0.6)
    assert run.train(0, 70) == [40, 50, 60]  # the schedule is at 0.4625, 0.7, 0.7875, 0.8


def test_a_failed_step_is_not_counted() -> None:
    run = Run()
    run.train(0, 30)
    run.batches[4][0][2, 3] = torch.nan
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    with pytest.raises(ValueError, match="loss must be finite, got nan for batch 4"):
        run.gradual.step()
    assert run.gradual.step_count == 30
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    run.batches[4][0][2, 3] = 1.0
    assert run.gradual.step()


def test_wrong_arguments() -> None:
    run = Run()
    state = run.gradual.state_dict()
    schedule = run.gradual.schedule
    for arguments, message in [
        ((run.model, run.optimizer, schedule), "pruner must be a Pruner, got Sequential"),
        ((run.pruner, run.model, schedule), "optimizer must be a torch.optim.Optimizer"),
        ((run.pruner, run.optimizer, 0.5), "schedule must be a Schedule, got float"),
    ]:
        with pytest.raises(TypeError, match=message):
            GradualPruner(*arguments)
    other = Pruner(run.model, squared_error, run.batches, layers=["0", "2"], progress=False)
    gradual = GradualPruner(other, run.optimizer, schedule)
    report = gradual.report
    for bad, message in [
        ({}, "state must be that of a GradualPruner"),
        (state, "state must have the options"),
        ({**state, "report": report.to_dict()}, "the same layers, '4' is only in one"),
        ({**state, "step_count": -1}, "step_count must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            gradual.load_state_dict(bad)
    assert gradual.step_count == 0
    assert gradual.report is report


def test_masks_can_be_shared() -> None:
    """A pruner that goes on where another stopped, with other options."""
    run = Run()
    run.train(0, 100)
    masks = Masks.of_zeros(run.weights())
    fresh = Pruner(run.model, method="magnitude", masks=masks, progress=False)
    fresh.prune(0.9)
    assert masks.sparsity() == int(528 * 0.9 + 0.5) / 528
