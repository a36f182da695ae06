"""Prune little by little while a model is trained."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from quadric import checks
from quadric.adapters.torch.prune.pruner import Pruner
from quadric.adapters.torch.prune.report import PruningReport
from quadric.adapters.torch.prune.schedule import Schedule


class GradualPruner:
    """Prunes along a schedule, and keeps pruned weights at zero in between.

    Parameters
    ----------
    pruner : Pruner
    optimizer : torch.optim.Optimizer
        What trains the model; pruned weights and their momentum are zeroed after each of its steps.
    schedule : Schedule
    recomputations : int, optional
        Steps that each pruning is split into, see :meth:`Pruner.prune`.

    Attributes
    ----------
    step_count : int
        Training steps so far.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.prune import GradualPruner, Pruner, Schedule
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(32, 4)
    >>> batches = [(x, x[:, :4].square()) for x in torch.randn(64, 8, 32)]
    >>> def loss(model, batch):
    ...     return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> pruner = Pruner(model, loss, batches, progress=False)
    >>> gradual = GradualPruner(pruner, optimizer, Schedule(final=0.75, end=60, every=20))
    >>> for batch in batches:
    ...     optimizer.zero_grad()
    ...     loss(model, batch).backward()
    ...     optimizer.step()
    ...     if gradual.step():
    ...         print(f"{gradual.report.sparsity:.1%}")
    53.1%
    71.9%
    75.0%
    >>> int(model.weight.count_nonzero())
    32
    >>> gradual.finish()
    """

    def __init__(
        self,
        pruner: Pruner,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        recomputations: int = 1,
    ) -> None:
        if not isinstance(pruner, Pruner):
            raise TypeError(f"pruner must be a Pruner, got {type(pruner).__name__}")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule, got {type(schedule).__name__}")
        self.recomputations = checks.integer(recomputations, "recomputations", low=1)
        self.pruner, self.schedule = pruner, schedule
        self.step_count = 0
        pruner.masks.hold(optimizer)

    @property
    def report(self) -> PruningReport:
        """The pruner's report; its steps know their training step."""
        return self.pruner.report

    def step(self) -> bool:
        """Count a training step, after that of the optimizer, and prune if it is time.

        The first call is step 0. Nothing is pruned while the model is sparser than the schedule.

        Returns
        -------
        bool
            Whether weights were pruned.

        Raises
        ------
        ValueError, LinAlgError
            As :meth:`Pruner.prune`; the step is then not counted.
        """
        now = self.step_count
        sparsity = self.schedule.sparsity(now)
        due = self.schedule.due(now) and sparsity > 0 and sparsity >= self.pruner.masks.sparsity()
        if due:
            self.pruner.prune(sparsity, recomputations=self.recomputations)
            steps = self.report.steps
            for i in range(len(steps) - self.recomputations, len(steps)):
                steps[i] = replace(steps[i], training_step=now)
        self.step_count += 1
        return due

    def finish(self) -> None:
        """Let go of the optimizer; weights that are zero may then grow again."""
        self.pruner.masks.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the masks and the report, to be saved with model and optimizer."""
        return {
            "step_count": self.step_count,
            "masks": self.pruner.masks.state_dict(),
            "report": self.report.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, after model and optimizer have been loaded.

        Raises
        ------
        ValueError
            If it is of other layers or options, or no such state. Nothing is changed then.
        """
        try:
            step_count = checks.integer(state["step_count"], "step_count", low=0)
            masks = dict(state["masks"])
            report = PruningReport.from_dict(state["report"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"state must be that of a GradualPruner: {error!r}") from error
        if report.options != self.report.options:
            raise ValueError(
                f"state must have the options {self.report.options}, got {report.options}"
            )
        self.pruner.masks.load_state_dict(masks)
        self.pruner.report, self.step_count = report, step_count
