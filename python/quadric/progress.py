"""A progress bar over the digits that an error still has to fall."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """What a solver calls now and then with its iterations, its error and the tolerance."""

    def __init__(self, name: str) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError('progress=True needs tqdm: pip install "quadric[torch]"') from error
        self._bar: Any = tqdm(bar_format="{percentage:3.0f}%|{bar:20}| {elapsed} | {desc}")
        self._name = name
        self._first = 0.0

    def __call__(self, iterations: int, error: float, tol: float) -> None:
        """Show the state of a run."""
        self._bar.set_description_str(f"{iterations} iterations, {self._name} {error:.1e}")
        if 0 < error < math.inf and tol > 0:
            digits = math.log10(error / tol)
            if self._bar.total is None:
                self._first = self._bar.total = max(digits, 0.1)
            self._bar.n = min(max(self._first - digits, self._bar.n), self._first)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


@contextmanager
def bar(show: bool, name: str) -> Iterator[Bar | None]:
    """Yield what to report progress to: None if nothing is to be shown."""
    if not show:
        yield None
        return
    result = Bar(name)
    try:
        yield result
    finally:
        result.close()
