"""The raw kernels of BlockFisher: sums, and what is factored on the fly.

Each is held to the bounds of `Block`, block by block, the short one included.
"""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric import backends
from tests import strategies as draws
from tests.bounds import assert_within
from tests.woodbury import oracle
from tests.woodbury.problems import EPS, STORAGES, bits, make, masks, problems

REGIMES = ("fewer", "equal", "more")


def kernel(name, backend):
    return backends.resolve(f"woodbury.{name}", backend)


def packed(x, size):
    """Return X_b^T X_b in the layout of the kernels: (chunks of 8 blocks, packed triangle, 8)."""
    at = oracle.blocks(x.shape[1], size)
    rows, columns = np.tril_indices(size)
    sums = np.zeros((-(-len(at) // 8), size * (size + 1) // 2, 8))
    for b, block in enumerate(at):
        full = np.zeros((size, size))
        n = block.stop - block.start
        full[:n, :n] = x[:, block].T @ x[:, block]
        sums[b // 8, :, b % 8] = full[rows, columns]
    return sums


def state(g):
    """Return what BlockFisher keeps: the gradients themselves while they are few, else the sums."""
    if g.m <= g.block_size:
        return None, bits(g.stored)
    return packed(g.exact, g.block_size), None


def empty(shape, dtype):
    return np.full(shape, -7, dtype)


def status(g):
    return empty(len(g.at), np.int32)


def inverse(g, group, backend, n_threads=1):
    out, bad = empty((-(-g.d // group), group, group), g.dtype), status(g)
    kernel("block_inverse", backend)(
        *state(g), g.block_size, g.d, g.m, g.damping, group, out, bad, n_threads
    )
    return out, bad


def scores(g, w, group, backend, n_threads=1):
    out, bad = empty(-(-g.d // group), g.dtype), status(g)
    kernel("block_scores", backend)(
        *state(g), g.block_size, g.m, g.damping, w, group, out, bad, n_threads
    )
    return out, bad


def solve(g, v, backend, n_threads=1, in_place=False):
    out, bad = v.copy() if in_place else empty(v.shape, g.dtype), status(g)
    source = out if in_place else v
    kernel("block_solve", backend)(
        *state(g), g.block_size, g.m, g.damping, source, out, bad, n_threads
    )
    return out, bad


def prune(g, w, mask, backend, n_threads=1):
    out, loss, bad = empty(g.d, g.dtype), empty(len(g.at), np.float64), status(g)
    kernel("block_prune", backend)(
        *state(g), g.block_size, g.m, g.damping, w, mask, out, loss, bad, n_threads
    )
    return out, loss, bad


def assert_good(bad):
    np.testing.assert_array_equal(bad, -1)


every_regime = pytest.mark.parametrize("regime", REGIMES)


# ---- sums ----------------------------------------------------------------------------------------


@given(g=problems(max_block=70), layout=st.sampled_from(["C", "padded"]), parts=st.integers(1, 3))
def test_gram_within_the_bound(backend, g, layout, parts):
    """m products are added in float64, each exact in it where the gradients are float32 or less."""
    shown = draws.relayout(g.stored, layout)
    before = draws.whole(shown).tobytes()
    sums = np.zeros_like(packed(g.exact, g.block_size))
    edges = sorted(g.rng.integers(0, g.m + 1, parts - 1))
    for start, stop in zip([0, *edges], [*edges, g.m], strict=True):
        kernel("block_gram", backend)(bits(shown)[start:stop], g.block_size, sums, 1)
    expected, size = packed(g.exact, g.block_size), packed(np.abs(g.exact), g.block_size)
    target(assert_within(sums, expected, (g.m + 8) * EPS * size))
    assert draws.whole(shown).tobytes() == before


@given(m=st.integers(0, 40), d=draws.sizes(300), block_size=st.integers(1, 64), storage=st.data())
def test_integer_sums_are_exact(backend, m, d, block_size, storage):
    name = storage.draw(st.sampled_from(list(STORAGES)))
    x = np.random.default_rng(d).integers(-8, 9, (m, d)).astype(STORAGES[name])
    sums = packed(x[:0].astype(float), block_size)
    kernel("block_gram", backend)(bits(x), block_size, sums, 1)
    kernel("block_gram", backend)(bits(x), block_size, sums, 2)  # it adds
    np.testing.assert_array_equal(sums, 2 * packed(x.astype(float), block_size))


@pytest.mark.parametrize("block_size", [96, 127, 128, 200, 255, 256])
def test_sums_of_large_blocks(backend, block_size):
    x = np.random.default_rng(block_size).integers(-8, 9, (30, 600)).astype(np.float32)
    sums = packed(x[:0], block_size)
    kernel("block_gram", backend)(x, block_size, sums, 2)
    np.testing.assert_array_equal(sums, packed(x.astype(float), block_size))


# ---- inverse, solve, scores, prune ---------------------------------------------------------------


def assert_inverse(g, out, group):
    """Assert the bound for every group, and zeros outside a short last one."""
    used = 0.0
    for block, at in zip(g.blocks, g.at, strict=True):
        bound = block.inverse_error()
        for q in oracle.blocks(block.n, group):
            found = out[(at.start + q.start) // group]
            n = q.stop - q.start
            exact = block.inverse[q, q]
            limit = bound[q, q] + g.eps * np.abs(exact)
            used = max(used, assert_within(found[:n, :n], exact, limit, "inverse"))
            assert not found[n:].any()
            assert not found[:, n:].any()
    np.testing.assert_array_equal(out, np.swapaxes(out, 1, 2))
    return used


@every_regime
@given(data=st.data(), group=st.sampled_from((1, 2, 4, 8)))
def test_inverse(backend, regime, data, group):
    g = data.draw(problems(regime=regime, group=group))
    out, bad = inverse(g, group, backend)
    assert_good(bad)
    target(assert_inverse(g, out, group))


@every_regime
@given(data=st.data())
def test_whole_inverse(backend, regime, data):
    g = data.draw(problems(regime=regime))
    out, bad = inverse(g, g.block_size, backend)
    assert_good(bad)
    target(assert_inverse(g, out, g.block_size))


@every_regime
@given(data=st.data(), k=st.integers(1, 4), in_place=st.booleans())
def test_solve(backend, regime, data, k, in_place):
    g = data.draw(problems(regime=regime))
    v = g.vectors(k, g.d)
    out, bad = solve(g, v, backend, in_place=in_place)
    assert_good(bad)
    used = 0.0
    for block, at in zip(g.blocks, g.at, strict=True):
        exact = v[:, at].astype(np.longdouble) @ block.inverse
        limit = block.solve_error(v[:, at].astype(float)) + g.eps * np.abs(exact)
        used = max(used, assert_within(out[:, at], exact, limit, "solution"))
    target(used)


@every_regime
@given(data=st.data(), group=st.sampled_from((1, 2, 3, 4, 8, 16, 32)))
def test_scores(backend, regime, data, group):
    g = data.draw(problems(regime=regime, group=group))
    w = g.vectors(g.d)
    out, bad = scores(g, w, group, backend)
    assert_good(bad)
    used = 0.0
    for block, at in zip(g.blocks, g.at, strict=True):
        exact, bound = block.score_error(w[at], group)
        found = out[at.start // group : -(-at.stop // group)]
        limit = bound + 4 * g.eps * np.abs(exact)
        used = max(used, assert_within(found, exact, limit, "score"))
    target(used)


@every_regime
@given(data=st.data(), share=st.sampled_from((0.1, 0.5, 0.9)))
def test_prune(backend, regime, data, share):
    g = data.draw(problems(regime=regime))
    w, mask = g.vectors(g.d), masks(g, share)
    w[g.rng.random(g.d) < 0.2] = 0.0  # pruned before
    out, loss, bad = prune(g, w, mask, backend)
    assert_good(bad)
    assert not out[~mask].any()
    used = 0.0
    for b, (block, at) in enumerate(zip(g.blocks, g.at, strict=True)):
        exact, cost = oracle.constrained(block.x, g.damping, w[at], mask[at])
        moved, off = block.prune_error(w[at], mask[at])
        limit = moved + 2 * g.eps * (np.abs(exact) + np.abs(w[at]))
        used = max(used, assert_within(out[at], exact, limit, "weight"))
        used = max(used, assert_within(loss[b], cost, off + g.eps * cost, "loss"))
        if mask[at].all():
            np.testing.assert_array_equal(out[at], w[at])
            assert loss[b] == 0
    target(used)


@every_regime
def test_blocks_of_zeros_are_pruned_for_nothing(backend, regime):
    """Nothing moves where the pruned weights were zero already."""
    m = {"fewer": 3, "equal": 12, "more": 40}[regime]
    g = make(m, 60, 12)
    w, mask = g.vectors(60), masks(g)
    w[~mask] = 0.0
    out, loss, bad = prune(g, w, mask, backend)
    assert_good(bad)
    np.testing.assert_array_equal(out, w)
    assert not loss.any()


@every_regime
def test_whole_blocks(backend, regime):
    """All pruned: zeros, and w^T F w / 2."""
    m = {"fewer": 3, "equal": 12, "more": 40}[regime]
    g = make(m, 40, 12, storage="float64")
    w = g.vectors(40)
    out, loss, bad = prune(g, w, np.zeros(40, bool), backend)
    assert_good(bad)
    assert not out.any()
    expected = [
        oracle.increase(b.x, g.damping, w[at]) for b, at in zip(g.blocks, g.at, strict=True)
    ]
    assert_within(loss, np.array(expected), (m + 20) * EPS * np.array(expected))


# ---- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65])
@every_regime
def test_every_block_size(backend, regime, block_size):
    """More blocks than a vector has lanes, and a last one of a single weight."""
    m = {"fewer": (block_size + 1) // 2, "equal": block_size, "more": 2 * block_size + 1}[regime]
    d = (9 if block_size < 20 else 2) * block_size + 1
    g = make(m, d, block_size, log_damping=-4, seed=block_size)
    w, mask = g.vectors(d), masks(g)
    out, bad = inverse(g, block_size, backend)
    assert_good(bad)
    assert_inverse(g, out, block_size)
    found, loss, bad = prune(g, w, mask, backend)
    assert_good(bad)
    for b, (block, at) in enumerate(zip(g.blocks, g.at, strict=True)):
        exact, cost = oracle.constrained(block.x, g.damping, w[at], mask[at])
        moved, off = block.prune_error(w[at], mask[at])
        assert_within(found[at], exact, moved + 2 * g.eps * (np.abs(exact) + np.abs(w[at])))
        assert_within(loss[b], cost, off + g.eps * cost)


@pytest.mark.parametrize("block_size", [100, 128, 200, 255, 256])
@pytest.mark.parametrize("m", [5, 300])
def test_large_blocks(backend, m, block_size):
    g = make(m, block_size + 3, block_size, log_damping=-3, seed=m)
    out, bad = inverse(g, 1, backend)
    assert_good(bad)
    assert_inverse(g, out, 1)
    v = g.vectors(1, g.d)
    found, bad = solve(g, v, backend)
    assert_good(bad)
    for block, at in zip(g.blocks, g.at, strict=True):
        exact = v[:, at].astype(np.longdouble) @ block.inverse
        limit = block.solve_error(v[:, at].astype(float)) + g.eps * np.abs(exact)
        assert_within(found[:, at], exact, limit)


@pytest.mark.parametrize("m", [1, 4, 25, 49, 50, 51, 80, 1024])
def test_float32_loses_nothing(backend, m):
    """Damping of 1e-7, the default of oBERT, in every regime: no digit of float32 is lost.

    m = 50 is where neither side is the right one in float32 (5 to 20 % off), and the last block,
    of 3 weights, is where the larger side is factored.
    """
    g = make(m, 2 * 50 + 3, 50, storage="float64", log_damping=-7)
    out, bad = inverse(g, 1, backend)
    assert_good(bad)
    for block, at in zip(g.blocks, g.at, strict=True):
        exact = np.diag(block.inverse)
        assert_within(out[at, 0, 0], exact, np.finfo(np.float32).eps * exact)


@pytest.mark.parametrize("log_scale", [-15, 15])
def test_tiny_and_huge_gradients(backend, log_scale):
    """Squares of float32 beyond the range of float32 are ordinary numbers in float64."""
    for m in (4, 30):
        g = make(m, 24, 8, log_damping=-2, log_scale=log_scale)
        w = 10.0**-log_scale * g.vectors(24)
        out, bad = scores(g, w.astype(np.float32), 1, backend)
        assert_good(bad)
        for block, at in zip(g.blocks, g.at, strict=True):
            exact, bound = block.score_error(w.astype(np.float32)[at], 1)
            assert_within(out[at], exact, bound + 4 * g.eps * exact)


# ---- failures and threads ------------------------------------------------------------------------


def test_a_failure_stays_with_its_block(backend):
    """Sums that are not positive definite, NaN or infinite: the pivot is named, others go on."""
    g = make(30, 50, 5, storage="float64", log_damping=-2)
    w, mask, v = g.vectors(50), masks(g), g.vectors(2, 50)
    good = packed(g.exact, 5)
    diagonal = [i * (i + 3) // 2 for i in range(5)]
    bad = good.copy()
    bad[0, diagonal[2], 3] = -1e6
    bad[0, diagonal[4], 7] = np.nan
    bad[1, diagonal[0], 1] = np.inf
    failing = {3: 2, 7: 4, 9: 0}

    def run(sums):
        results = {}
        common = (sums, None, 5)
        for name, tail, shape in (
            ("block_inverse", (50, 30, g.damping, 1), (50, 1, 1)),
            ("block_scores", (30, g.damping, w, 1), (50,)),
            ("block_solve", (30, g.damping, v), (2, 50)),
        ):
            out, status = empty(shape, float), empty(10, np.int32)
            kernel(name, backend)(*common, *tail, out, status, 1)
            results[name] = out.reshape(-1, 50) if name != "block_solve" else out, status
        out, loss, status = empty(50, float), empty(10, float), empty(10, np.int32)
        kernel("block_prune", backend)(
            *common, 30, g.damping, w, np.ones(50, bool) & mask, out, loss, status, 1
        )
        results["block_prune"] = np.stack([out, np.repeat(loss, 5)]), status
        return results

    for name, (out, status) in run(bad).items():
        expected, fine = run(good)[name]
        assert_good(fine)
        if name != "block_prune":  # there a pivot outside the kept set does not count
            assert status.tolist() == [failing.get(b, -1) for b in range(10)], name
        for b in range(10):
            at = slice(5 * b, 5 * b + 5)
            if b in failing and name == "block_prune" and status[b] == -1:
                continue
            if b in failing:
                assert np.isnan(out[:, at]).all(), name
            else:
                np.testing.assert_array_equal(out[:, at], expected[:, at], err_msg=name)


@every_regime
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_threads_change_nothing(backend, regime, storage):
    m = {"fewer": 5, "equal": 12, "more": 40}[regime]
    g = make(m, 5000, 12, storage=storage, log_damping=-3)
    w, mask, v = g.vectors(5000), masks(g), g.vectors(2, 5000)
    calls = {
        "inverse": lambda n: inverse(g, 12, backend, n)[0],
        "diagonal": lambda n: inverse(g, 1, backend, n)[0],
        "scores": lambda n: scores(g, w, 4, backend, n)[0],
        "solve": lambda n: solve(g, v, backend, n)[0],
        "prune": lambda n: np.concatenate(prune(g, w, mask, backend, n)[:2]),
        "gram": lambda n: gram(g, backend, n),
    }
    for name, call in calls.items():
        one = call(1)
        for threads in (2, 3):
            assert call(threads).tobytes() == one.tobytes(), name


def gram(g, backend, n_threads):
    sums = packed(g.exact[:0], g.block_size)
    kernel("block_gram", backend)(bits(g.stored), g.block_size, sums, n_threads)
    return sums
