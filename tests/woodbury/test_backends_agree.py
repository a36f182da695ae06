"""All backends give the same results: to the bit where nothing is rounded, else to a few eps."""

import numpy as np
import pytest

from quadric import backends
from quadric.woodbury import (
    BlockFisher,
    EmpiricalFisher,
    GradientWindow,
    kronecker_precondition,
    natural_gradient,
    rank_k_inverse_update,
)
from tests.bounds import assert_within
from tests.woodbury.problems import STORAGES, computing, gradients

pytestmark = pytest.mark.skipif(len(backends.available()) < 2, reason="there is one backend only")

D, SIZE = 70, 12


def results(backend, g, x, mask, damping):
    """Return what every public function with backends makes of the same arguments."""
    fisher = BlockFisher(D, block_size=SIZE, damping=damping, backend=backend)
    fisher.update(g)
    empirical = EmpiricalFisher(g[:-2], damping=damping, block_size=40, backend=backend)
    empirical.append(g[-2:])
    storage = next(name for name, dtype in STORAGES.items() if dtype == g.dtype)
    window = GradientWindow(D, capacity=5, damping=damping, dtype=storage, backend=backend)
    steps = np.stack([window.push_and_solve(row) for row in g])
    j = np.eye(D, dtype=x.dtype)
    j = rank_k_inverse_update(j, np.stack([x, x[::-1]]), backend=backend)
    pruned = fisher.prune(x, mask)
    return {
        "diagonal": fisher.diagonal(),
        "inverse": fisher.inverse(),
        "solve": fisher.solve(x),
        "scores": fisher.scores(x, 4),
        "prune": pruned.weights,
        "loss": pruned.loss,
        "independent": fisher.prune(x, mask, update="independent").weights,
        "empirical solve": empirical.solve(x),
        "empirical diagonal": empirical.diagonal(),
        "empirical combine": empirical.combine(np.ones(len(g))),
        "element": np.array(empirical.element(3, 5)),
        "window steps": steps,
        "window solve": window.solve(x),
        "rank k": j,
        "kronecker": kronecker_precondition(j, np.outer(x, x[::-1]), j, backend=backend),
        "natural gradient": natural_gradient(g, damping=damping, backend=backend),
    }


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("m", [4, 12, 30])
def test_to_a_few_eps(storage, m):
    """Damping of the size of the gradients makes every condition a small number, below 100."""
    rng = np.random.default_rng(m)
    g = gradients(rng, m, D).astype(STORAGES[storage])
    dtype = computing(g.dtype)
    x, mask = rng.standard_normal(D).astype(dtype), rng.random(D) < 0.5
    mask[::SIZE] = True
    found = {b: results(b, g, x, mask, 1.0) for b in backends.available()}
    first = found.pop(backends.available()[0])
    for other in found.values():
        for name, a in first.items():
            size = np.abs(a).max()
            limit = 100 * (D + m) * np.finfo(a.dtype).eps * size
            if a.dtype == np.float64:  # an element, a loss: from vectors in T
                limit = 100 * (D + m) * np.finfo(dtype).eps * size
            assert a.dtype == other[name].dtype
            assert_within(other[name], a, limit, name)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("m", [4, 64])
def test_to_the_bit(storage, m):
    """Gradients that are powers of two times unit vectors: F is diagonal, every sum is exact."""
    rng = np.random.default_rng(m)
    g = np.zeros((m, 16))
    g[np.arange(m), np.arange(m) % 16] = 2.0 ** rng.integers(-2, 3, m)
    x = (2.0 ** rng.integers(-3, 4, 16)).astype(computing(STORAGES[storage]))
    found = []
    for backend in backends.available():
        fisher = BlockFisher(16, block_size=SIZE, damping=1.0, backend=backend)
        fisher.update(g.astype(STORAGES[storage]))
        mask = np.arange(16) % 2 > 0
        pruned = fisher.prune(x, mask)
        np.testing.assert_array_equal(pruned.weights, np.where(mask, x, 0))  # nothing to adapt
        found.append(pruned.loss)
    for loss in found[1:]:
        np.testing.assert_array_equal(loss, found[0])
    f = 1 + (g**2).sum(axis=0) / m
    lost = np.where(np.arange(16) % 2 > 0, 0, f * x.astype(float) ** 2 / 2)
    np.testing.assert_array_equal(found[0], [lost[:SIZE].sum(), lost[SIZE:].sum()])
