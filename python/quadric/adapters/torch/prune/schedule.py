"""How sparsity grows, from one pruning step to the next."""

from dataclasses import dataclass

from quadric import checks

SHAPES = ("cubic", "linear", "geometric")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Sparsity as a function of the training step.

    "cubic" is Zhu and Gupta's ``final + (initial - final) (1 - x)^3`` with x from 0 at `begin` to 1
    at `end`: fast while weights are plenty, slow towards the end. "linear" adds the same number
    of zeros each time, "geometric" takes the same share of what is left.

    Attributes
    ----------
    final : float
        Sparsity at `end`, in [0, 1).
    end : int
        Step from which on nothing more is pruned.
    begin : int
        First step at which something is.
    every : int
        Steps between prunings; the last one is at `end` in any case.
    initial : float
        Sparsity at `begin`.
    shape : {"cubic", "linear", "geometric"}

    Raises
    ------
    ValueError, TypeError
        If a value is out of range.

    References
    ----------
    Zhu and Gupta, To prune, or not to prune (2017), equation 1.

    Examples
    --------
    >>> from quadric.adapters.torch.prune import Schedule
    >>> schedule = Schedule(final=0.8, end=100, every=25)
    >>> [round(schedule.sparsity(step), 4) for step in range(0, 101, 25)]
    [0.0, 0.4625, 0.7, 0.7875, 0.8]
    """

    final: float
    end: int
    begin: int = 0
    every: int = 1
    initial: float = 0.0
    shape: str = "cubic"

    def __post_init__(self) -> None:
        fraction(self.final, "final")
        checks.integer(self.begin, "begin", low=0)
        checks.integer(self.end, "end", low=self.begin)
        checks.integer(self.every, "every", low=1)
        fraction(self.initial, "initial")
        if self.initial > self.final:
            raise ValueError(f"initial must be at most final {self.final}, got {self.initial}")
        checks.choice(self.shape, "shape", SHAPES)

    def sparsity(self, step: int) -> float:
        """Return the sparsity at a step; 0 before `begin`."""
        if step < self.begin:
            return 0.0
        x = min(1.0, (step - self.begin) / (self.end - self.begin)) if step < self.end else 1.0
        return between(self.initial, self.final, x, self.shape)

    def due(self, step: int) -> bool:
        """Say whether weights are pruned at a step."""
        on_beat = (step - self.begin) % self.every == 0
        return self.begin <= step <= self.end and (on_beat or step == self.end)


def between(start: float, final: float, x: float, shape: str) -> float:
    """Return the sparsity at `x` of the way, from 0 to 1; exactly `final` at 1."""
    if x >= 1:
        return final
    if shape == "cubic":
        return final + (start - final) * (1 - x) ** 3
    if shape == "geometric":
        return float(1 - (1 - start) * ((1 - final) / (1 - start)) ** x)
    return start + (final - start) * x


def fraction(value: float, name: str) -> float:
    """Return a sparsity: a float in [0, 1)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {number:g}")
    return number
