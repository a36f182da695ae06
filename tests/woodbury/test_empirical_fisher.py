"""EmpiricalFisher: gradients that are all there (M-FAC static)."""

import itertools
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.woodbury import EmpiricalFisher
from tests import strategies as draws
from tests.bounds import assert_within
from tests.woodbury import oracle
from tests.woodbury.problems import (
    EPS,
    KINDS,
    STORAGES,
    Gradients,
    Rows,
    gradients,
    make,
    storages,
)


@st.composite
def problems(draw: st.DrawFn, storage: str | None = None) -> Gradients:
    """Draw gradients, more or fewer than weights, in one block or in several."""
    d = draw(draws.sizes(130))
    m = draw(st.integers(1, 40) | st.sampled_from([1, d if d <= 40 else 40]))
    storage = storage or draw(storages)
    return make(
        m,
        d,
        draw(st.just(d) | st.integers(-(-d // 3), d)),
        storage=storage,
        log_damping=draw(st.integers(-7, -2)),
        kind=draw(st.sampled_from(KINDS)),
        log_scale=draw(st.integers(-1, 1) if storage == "float16" else st.integers(-4, 4)),
        seed=draw(draws.seeds),
    )


def build(g: Gradients, backend, **options):
    options = {"block_size": g.block_size} | options
    return EmpiricalFisher(g.stored, damping=g.damping, backend=backend, **options)


def truth(g: Gradients) -> list[Rows]:
    return [Rows(g.exact[:, at], g.damping, g.dtype) for at in g.at]


F32 = np.dtype(np.float32)


def assert_right(g: Gradients, fisher: EmpiricalFisher, parts: int = 1) -> float:
    """Assert the bounds of every result; return how much of them is used."""
    assert (fisher.d, fisher.count, fisher.damping) == (g.d, g.m, g.damping)
    x, weights = g.vectors(2, g.d), g.rng.standard_normal(g.m)
    weights[g.rng.random(g.m) < 0.3] = 0.0
    solved, combined, diagonal = fisher.solve(x), fisher.combine(weights), fisher.diagonal()
    assert (solved.shape, combined.shape, diagonal.shape) == ((2, g.d), (g.d,), (g.d,))
    assert solved.dtype == combined.dtype == diagonal.dtype == g.dtype
    used = 0.0
    for rows, at in zip(truth(g), g.at, strict=True):
        exact = rows.solve(x[:, at])
        used = max(used, assert_within(solved[:, at], exact, rows.solve_error(x[:, at]), "solve"))
        limit = rows.combine_error(weights, exact_gram=False, parts=parts)
        used = max(used, assert_within(combined[at], rows.combine(weights), limit, "combine"))
        exact = np.diag(rows.inverse)
        limit = rows.element_error(slice(None), slice(None)) + g.eps * np.abs(exact)
        used = max(used, assert_within(diagonal[at], exact, limit, "diagonal"))
        if g.dtype == np.float32:  # as its documentation promises
            used = max(used, assert_within(diagonal[at], exact, 1e-5 * exact, "diagonal"))
        i, j = g.rng.integers(0, at.stop - at.start, 2)
        found = fisher.element(at.start + i, at.start + j)
        assert isinstance(found, float)
        limit = rows.element_error(i, j)
        used = max(used, assert_within(found, rows.inverse[i, j], limit, "element"))
        assert fisher.element(at.start + j, at.start + i) == pytest.approx(found, abs=2 * limit)
    if len(g.at) > 1:
        assert fisher.element(0, g.d - 1) == 0.0
    return used


@given(g=problems(), layout=draws.layouts)
def test_against_the_dense_inverse(backend, g, layout):
    shown = draws.relayout(g.stored, layout)
    before = draws.whole(shown).tobytes()
    fisher = build(Gradients(shown, g.damping, g.block_size, g.rng), backend)
    target(assert_right(g, fisher))
    assert draws.whole(shown).tobytes() == before


@given(g=problems(), splits=st.lists(st.integers(0, 40), max_size=3), one=st.booleans())
def test_appended_is_rebuilt(backend, g, splits, one):
    """In the same bounds, however the gradients came; nothing that was appended is looked at."""
    edges = sorted({1, g.m, *(min(s + 1, g.m) for s in splits)})
    fisher = EmpiricalFisher(
        g.stored[:1].copy(), damping=g.damping, block_size=g.block_size, backend=backend
    )
    for start, stop in itertools.pairwise(edges):
        part = g.stored[start:stop].copy()
        for piece in part if one else [part]:
            fisher.append(piece)
        part.view(np.uint8)[:] = 255
    target(assert_right(g, fisher, parts=2))


@pytest.mark.parametrize(
    ("block_size", "m"),
    [(None, 1), (None, 120), (1, 2), (3, 7), (50, 60), (99, 20), (100, 20), (101, 2), (1000, 2)],
)
def test_block_sizes(backend, block_size, m):
    """From the diagonal alone to one block; more than d is one block as well."""
    g = make(m, 100, min(block_size or 100, 100), log_damping=-3)
    fisher = build(g, backend, block_size=block_size)
    assert fisher.block_size == g.block_size
    assert_right(g, fisher)


@pytest.mark.parametrize(("m", "d"), [(1, 1), (5, 1), (1, 5), (1, 400), (64, 2), (200, 130)])
def test_shapes(backend, m, d):
    g = make(m, d, d, log_damping=-3)
    assert_right(g, build(g, backend))


def test_more_than_one_slab(backend):
    """Products of float32 are added up in float64 from slab to slab; integers show each term."""
    rng = np.random.default_rng(0)
    g = rng.integers(-4, 5, (6, 40_000)).astype(np.float32)
    fisher = EmpiricalFisher(g, damping=1.0, backend=backend)
    x = rng.integers(-4, 5, 40_000).astype(np.float32)
    rows = Rows(g.astype(float), 1.0, F32)
    assert_within(fisher.solve(x), rows.solve(x), rows.solve_error(x)[0])
    a = g.astype(float) @ g.T.astype(float) + 6 * np.eye(6)
    w = np.linalg.solve(np.linalg.cholesky(a), g.astype(float))
    exact = 1 - (w**2).sum(axis=0)
    assert_within(fisher.diagonal(), exact, np.finfo(np.float32).eps * exact)


@pytest.mark.parametrize("built", [1, 2, 3])
def test_gradients_that_float32_cannot_tell_apart(backend, built):
    """Their Gram matrix must be made of float64 products: test_problems has what happens else."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal((1, 20)) + 1e-4 * rng.standard_normal((3, 20))
    g, x = g.astype(np.float32), rng.standard_normal(20).astype(np.float32)
    rows = Rows(g.astype(float), 1e-9, F32)
    fisher = EmpiricalFisher(g[:built], damping=1e-9, backend=backend)
    for row in g[built:]:
        fisher.append(row)
    assert_within(fisher.solve(x), rows.solve(x), rows.solve_error(x)[0] * 8 / rows.roundings)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_weight_that_dominates(backend, storage):
    """1 - |W_i|^2 is 1e-6 there, which products of float32 in the Gram matrix would drown.

    A is a number, so that no pivot of it can tell.
    """
    g = gradients(np.random.default_rng(5), 1, 300)
    g[0, 7] = 1000.0
    g = g.astype(STORAGES[storage])
    fisher, rows = EmpiricalFisher(g, damping=1.0, backend=backend), Rows(g.astype(float), 1.0, F32)
    exact = np.diag(rows.inverse)
    assert_within(fisher.diagonal(), exact, 2 * np.finfo(np.float32).eps * exact)
    assert_within(fisher.element(7, 7), exact[7], 2 * np.finfo(np.float32).eps * exact[7])


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_combine_does_not_subtract(backend, storage):
    """1e-5 of the result where the subtraction in float32 keeps nothing of it.

    It loses 1e-7 |g|^2 / (m damping) of F^-1 g, with 1e8 for that quotient here.
    """
    g = make(8, 500, 500, storage=storage, kind="correlated", log_damping=-7)
    rows = truth(g)[0]
    weights = np.eye(8)[3]
    exact = rows.combine(weights)
    size = np.linalg.norm(exact.astype(float))
    pushed = build(g, backend).combine(weights) - exact
    assert np.linalg.norm(pushed.astype(float)) <= 1e-5 * size

    wide, x = g.stored.astype(np.float32), g.stored[3].astype(np.float32)
    y = rows.solved(rows.g @ rows.g[3]).astype(np.float32)  # nothing lost up to here
    subtracted = (x - wide.T @ y) / np.float32(g.damping) - exact
    assert np.linalg.norm(subtracted.astype(float)) > size / 2


def test_damping_can_be_set_at_any_time(backend):
    g = make(12, 60, 25, log_damping=-2)
    fisher = build(g, backend)
    fisher.solve(g.vectors(60))
    for log_damping in (-6, -1, -4):
        again = make(12, 60, 25, log_damping=log_damping)
        fisher.damping = again.damping
        assert_right(again, fisher)


@pytest.mark.parametrize("log_scale", [-15, 17])
def test_large_and_small_gradients(backend, log_scale):
    """Sums of squares near both ends of the range of float32, and of their quotients."""
    g = make(5, 40, 40, log_damping=-2, log_scale=log_scale)
    fisher, rows, w = build(g, backend), truth(g)[0], np.ones(5)
    exact = np.diag(rows.inverse)
    limit = rows.element_error(slice(None), slice(None)) + g.eps * exact
    assert_within(fisher.diagonal(), exact, limit)
    assert_within(fisher.combine(w), rows.combine(w), rows.combine_error(w, exact_gram=False))


def test_one_vector_is_a_row_of_many(backend):
    g = make(7, 60, 60)
    fisher, x = build(g, backend), g.vectors(3, 60)
    whole = fisher.solve(x)
    bound = truth(g)[0].solve_error(x)
    for i in range(3):
        one = fisher.solve(x[i])
        assert one.shape == (60,)
        assert_within(one, whole[i], 2 * bound[i])
    assert fisher.solve(x[:0]).shape == (0, 60)


@given(layout=draws.layouts, seed=draws.seeds)
def test_layouts_of_vectors_and_appended_gradients(backend, layout, seed):
    g = make(7, 60, 13, seed=seed)
    fisher, x = build(g, backend), g.vectors(3, 60)
    shown = draws.relayout(x, layout)
    before = draws.whole(shown).tobytes()
    np.testing.assert_array_equal(fisher.solve(shown), fisher.solve(x))
    np.testing.assert_array_equal(fisher.solve(shown[1]), fisher.solve(x[1]))
    other = build(g, backend)
    for one, rows in ((fisher, x), (other, shown)):
        one.append(rows)
        one.append(rows[1])
    np.testing.assert_array_equal(fisher.diagonal(), other.diagonal())
    assert draws.whole(shown).tobytes() == before


@pytest.mark.parametrize("storage", STORAGES)
def test_threads_change_nothing(backend, storage):
    g = make(9, 20_000, 7000, storage=storage, log_damping=-3)
    x = g.vectors(20_000)
    one, two = (build(g, backend, n_threads=n) for n in (1, 2))
    for fisher in (one, two):
        fisher.append(g.stored[:2])
    for name, arguments in (("solve", (x,)), ("diagonal", ()), ("combine", (np.ones(11),))):
        np.testing.assert_array_equal(
            getattr(one, name)(*arguments), getattr(two, name)(*arguments), err_msg=name
        )


@pytest.mark.parametrize("storage", STORAGES)
def test_torch_in_torch_out(backend, storage):
    torch = pytest.importorskip("torch")
    g = make(6, 50, 20, storage=storage)
    rows = torch.from_numpy(g.exact).to(getattr(torch, storage)).requires_grad_()
    x = torch.from_numpy(g.vectors(50))
    plain = build(g, backend)
    fisher = EmpiricalFisher(rows, damping=g.damping, block_size=20, backend=backend)
    for a in (plain, fisher):
        a.append((g.stored if a is plain else rows)[2])
    for name, argument in (("solve", (x,)), ("diagonal", ()), ("combine", ([1.0] * 7,))):
        found = getattr(fisher, name)(*argument)
        assert isinstance(found, torch.Tensor), name
        expected = getattr(plain, name)(*(a.numpy() if a is x else a for a in argument))
        np.testing.assert_array_equal(found.numpy(), expected, err_msg=name)


# ---- memory --------------------------------------------------------------------------------------

# Everything is used once on a small problem, so that thread pools and compiled code are there; then
# the process may have half as much memory more as the gradients take. A read-only map of a file
# does not count.
SCRIPT = """
import resource, sys
import numpy as np
from quadric.woodbury import EmpiricalFisher

path, backend, m, d, storage = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]

def work(G):
    fisher = EmpiricalFisher(G, damping=1e-3, backend=backend)
    x = np.ones(fisher.d, np.float32)
    fisher.append(G[0])
    return fisher.solve(x), fisher.diagonal(), fisher.combine(np.ones(m + 1)), fisher.element(0, 1)

G = np.memmap(path, storage, mode="r", shape=(m, d))
work(np.ascontiguousarray(G[:, :100]))
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + G.nbytes // 2, resource.RLIM_INFINITY))
try:
    np.ones(G.nbytes, np.uint8)
except MemoryError:
    pass
else:
    sys.exit("the limit does not hold")
np.savez(sys.argv[6], *work(G))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA and /proc")
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_file_larger_than_memory(backend, tmp_path, storage):
    m, d = 64, 200_000 if storage == "float32" else 400_000
    rng = np.random.default_rng(0)
    piece = rng.standard_normal((m, 10_000)).astype(storage)
    stored = np.tile(piece, d // 10_000)
    path, out = tmp_path / "gradients", tmp_path / "out.npz"
    stored.tofile(path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), backend, str(m), str(d), storage, str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        solved, diagonal, combined, element = (file[f"arr_{i}"] for i in range(4))
    # The pieces repeat, so the Gram matrix is that of one piece times their number.
    exact = np.concatenate([piece, piece[:1]]).astype(float)
    times, lam = d // 10_000, 65 * 1e-3
    inverse = np.linalg.inv(times * exact @ exact.T + lam * np.eye(65))
    eps, cond = np.finfo(np.float32).eps, 1.0  # random gradients: A is near a multiple of I
    assert_within(
        diagonal[:10_000], (1 - ((inverse @ exact) * exact).sum(axis=0)) / 1e-3, 1e3 * eps
    )
    expected = (1 - times * exact.sum(axis=1) @ inverse @ exact) / 1e-3
    assert_within(solved[:10_000], expected, 1e3 * 65 * cond * eps)
    expected = 65 * inverse.sum(axis=0) @ exact
    assert_within(combined[-10_000:], expected, 65 * eps * np.abs(expected).max())
    assert_within(element, -((inverse @ exact)[:, 0] @ exact[:, 1]) / 1e-3, 1e3 * eps)


def test_gradients_are_not_copied(backend):
    """Neither by building nor by anything else, in the memory that Python knows of."""
    g = np.tile(gradients(np.random.default_rng(0), 50, 2000), 100).astype(np.float32)  # 40 MB
    x = np.ones(g.shape[1], np.float32)
    EmpiricalFisher(g[:, :10], backend=backend).diagonal()  # compiled
    tracemalloc.start()
    try:
        fisher = EmpiricalFisher(g, backend=backend)
        fisher.solve(x), fisher.diagonal(), fisher.combine(np.ones(50)), fisher.element(0, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < g.nbytes / 2


def test_the_gradients_are_those_of_the_caller(backend):
    """A change of G after building is a change of what the passes read: it is not hidden."""
    g = make(4, 30, 30, storage="float64", log_damping=-1)
    shown = g.stored.copy()
    fisher = EmpiricalFisher(shown, damping=g.damping, backend=backend)
    w = np.array([1.0, 0, 0, 0])
    before = fisher.combine(w)
    shown *= 2
    after = fisher.combine(w)
    assert_within(after, 2 * before, 8 * EPS * np.abs(before))


def test_oracle_of_blocks(backend):
    """Blocks of F are what BlockFisher and the oracle call blocks."""
    g = make(30, 20, 6, storage="float64", log_damping=-2)
    full = oracle.block_curvature(g.exact, 6, g.damping)
    x = g.vectors(20)
    found = full @ build(g, backend).solve(x)
    cond = np.linalg.cond(full.astype(float))
    assert_within(found, x, 4 * (30 + 20) * EPS * cond * np.linalg.norm(x))
