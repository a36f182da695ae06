"""Which weights go: those with the smallest scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def select(
    scores: Sequence[NDArray[np.floating[Any]]],
    pruned: Sequence[NDArray[np.bool_]],
    sparsity: float,
    *,
    together: bool,
) -> list[NDArray[np.bool_]]:
    """Return what is pruned at a sparsity; what was before stays so.

    Parameters
    ----------
    scores : sequence of arrays
        One per layer, shape (groups,).
    pruned : sequence of arrays of bool
        What is pruned already.
    sparsity : float
        Share of the groups, rounded to the nearest count; no less than are pruned already.
    together : bool
        Whether it holds for all layers together rather than for each. Equal scores go in order.
    """
    ranked = [np.where(gone, -np.inf, score) for score, gone in zip(scores, pruned, strict=True)]
    if not together:
        return [_smallest(x, _count(sparsity, g)) for x, g in zip(ranked, pruned, strict=True)]
    everywhere = np.concatenate(pruned)
    chosen = _smallest(np.concatenate(ranked), _count(sparsity, everywhere))
    return np.split(chosen, np.cumsum([len(score) for score in scores])[:-1])


def count_of(sparsity: float, groups: int) -> int:
    """Return how many of the groups a sparsity means."""
    return int(sparsity * groups + 0.5)


def _count(sparsity: float, pruned: NDArray[np.bool_]) -> int:
    return max(count_of(sparsity, len(pruned)), int(pruned.sum()))


def _smallest(scores: NDArray[np.floating[Any]], count: int) -> NDArray[np.bool_]:
    if count == 0:
        return np.zeros(len(scores), np.bool_)
    threshold = np.partition(scores, count - 1)[count - 1]
    chosen: NDArray[np.bool_] = scores < threshold
    ties = np.flatnonzero(scores == threshold)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
