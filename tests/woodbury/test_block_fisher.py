"""BlockFisher: the blocks of oBERT, whatever way the gradients came in."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.woodbury import BlockFisher
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.woodbury import oracle
from tests.woodbury.problems import STORAGES, Gradients, make, masks, problems

REGIMES = {"fewer": 5, "equal": 12, "more": 40}  # gradients for blocks of 12
every_regime = pytest.mark.parametrize("regime", REGIMES)


def build(g: Gradients, backend, parts=1, **options):
    """Return a BlockFisher that has seen the gradients in so many calls, some of them empty."""
    fisher = BlockFisher(
        g.d, block_size=g.block_size, damping=g.damping, backend=backend, **options
    )
    edges = sorted(g.rng.integers(0, g.m + 1, parts - 1))
    for start, stop in zip([0, *edges], [*edges, g.m], strict=True):
        fisher.update(g.stored[start:stop])
    assert (fisher.count, fisher.n_blocks, fisher.dtype) == (g.m, len(g.at), g.dtype)
    return fisher


def small(regime, storage="float32", d=40, **options):
    return make(REGIMES[regime], d, 12, storage=storage, **options)


def state(fisher, path):
    """Return everything that a BlockFisher knows, as it goes to disk."""
    fisher.save(path)
    with np.load(path) as fields:
        return {name: fields[name].tobytes() for name in fields.files}


def assert_inverse(g, fisher, start=0, stop=None):
    """Assert the bounds of the dense inverse and its diagonal; return how much of them is used."""
    found, diagonal = fisher.inverse(start, stop), fisher.diagonal()
    size = g.block_size
    assert found.shape == (len(g.at[start:stop]), size, size)
    assert diagonal.shape == (g.d,)
    assert found.dtype == diagonal.dtype == g.dtype
    np.testing.assert_array_equal(found, np.swapaxes(found, 1, 2))
    used = 0.0
    for block, at in zip(g.blocks, g.at, strict=True):
        bound = block.inverse_error() + g.eps * np.abs(block.inverse)
        exact = np.diag(block.inverse)
        used = max(used, assert_within(diagonal[at], exact, np.diag(bound), "diagonal"))
    for a, block in zip(found, g.blocks[start:stop], strict=True):
        n, bound = block.n, block.inverse_error() + g.eps * np.abs(block.inverse)
        used = max(used, assert_within(a[:n, :n], block.inverse, bound, "inverse"))
        assert not a[n:].any()
        assert not a[:, n:].any()
    return used


def assert_pruned(g, result, w, mask):
    """Assert that each block is the constrained minimum, and that its gradient says so (KKT)."""
    assert result.weights.dtype == g.dtype
    assert not result.weights[~mask].any()
    np.testing.assert_array_equal(result.mask, mask)
    used = 0.0
    for b, (block, at) in enumerate(zip(g.blocks, g.at, strict=True)):
        kept, found = mask[at], result.weights[at]
        exact, cost = oracle.constrained(block.x, g.damping, w[at], kept)
        moved, off = block.prune_error(w[at], kept)
        limit = moved + 2 * g.eps * (np.abs(exact) + np.abs(w[at]))
        used = max(used, assert_within(found, exact, limit, "weight"))
        used = max(used, assert_within(result.loss[b], cost, off + g.eps * cost, "loss"))
        slope = (block.curvature @ (wide(found) - w[at]))[kept]
        steep = np.trace(block.curvature) * np.linalg.norm(limit.astype(float))
        used = max(used, assert_within(slope, 0, steep, "gradient"))
    return used


# ---- against the dense inverse -------------------------------------------------------------------


@every_regime
@given(data=st.data(), layout=draws.layouts, parts=st.integers(1, 4))
def test_inverse(backend, regime, data, layout, parts):
    g = data.draw(problems(regime=regime))
    shown = draws.relayout(g.stored, layout)
    before = draws.whole(shown).tobytes()
    fisher = build(Gradients(shown, g.damping, g.block_size, g.rng), backend, parts)
    target(assert_inverse(g, fisher))
    assert draws.whole(shown).tobytes() == before


@every_regime
@given(data=st.data(), layout=draws.layouts, k=st.none() | st.integers(1, 3))
def test_solve(backend, regime, data, layout, k):
    g = data.draw(problems(regime=regime))
    v = draws.relayout(g.vectors(k or 1, g.d), layout)
    v = v if k else v[0]
    before = draws.whole(v).tobytes()
    found, used = build(g, backend).solve(v), 0.0
    assert (found.shape, found.dtype) == (v.shape, g.dtype)
    for block, at in zip(g.blocks, g.at, strict=True):
        exact = wide(v[..., at]) @ block.inverse
        limit = block.solve_error(v[..., at].astype(float)) + g.eps * np.abs(exact)
        used = max(used, assert_within(found[..., at], exact, limit))
    target(used)
    assert draws.whole(v).tobytes() == before


@every_regime
@given(data=st.data(), group=st.sampled_from((1, 2, 3, 4, 5, 8, 16, 32)))
def test_scores(backend, regime, data, group):
    g = data.draw(problems(regime=regime, group=group))
    w = g.vectors(g.d)
    found, used = build(g, backend).scores(w, group), 0.0
    assert (found.shape, found.dtype) == ((-(-g.d // group),), g.dtype)
    for block, at in zip(g.blocks, g.at, strict=True):
        exact, bound = block.score_error(w[at], group)
        part = found[at.start // group : -(-at.stop // group)]
        used = max(used, assert_within(part, exact, bound + 4 * g.eps * np.abs(exact)))
    target(used)


@every_regime
@given(data=st.data(), share=st.sampled_from((0.1, 0.5, 0.9)), layout=draws.layouts)
def test_joint_prune_is_the_constrained_minimum(backend, regime, data, share, layout):
    g = data.draw(problems(regime=regime))
    w, mask = g.vectors(g.d), masks(g, share)
    w[g.rng.random(g.d) < 0.3] = 0.0  # pruned before, kept or not
    shown = draws.relayout(w[None], layout)[0]
    hidden = np.repeat(mask, 2)[::2]
    before = draws.whole(shown).tobytes(), hidden.tobytes()
    result = build(g, backend).prune(shown, hidden)
    target(assert_pruned(g, result, w, mask))
    assert (draws.whole(shown).tobytes(), hidden.tobytes()) == before


@every_regime
@given(data=st.data(), share=st.sampled_from((0.1, 0.5)))
def test_independent_prune_is_the_reference(backend, regime, data, share):
    """w - F^-1 y with y_q = w_q / [F^-1]_qq: y is off by the error of that diagonal, in T."""
    g = data.draw(problems(regime=regime))
    w, mask = g.vectors(g.d), masks(g, share)
    fisher = build(g, backend)
    result, joint = (fisher.prune(w, mask, update=u) for u in ("independent", "joint"))
    assert result.weights.dtype == g.dtype
    assert not result.weights[~mask].any()
    used = 0.0
    for b, (block, at) in enumerate(zip(g.blocks, g.at, strict=True)):
        kept, found = mask[at], result.weights[at]
        exact = oracle.independent(block.inverse, w[at], kept)
        diagonal = np.diag(block.inverse).astype(float)
        y = np.where(kept, 0, np.abs(w[at]) / diagonal)
        rounding = np.diag(block.inverse_error()) / diagonal + 4 * g.eps
        size = np.abs(block.inverse.astype(float))
        limit = size @ (2 * rounding * y) + block.solve_error(y)
        limit += 4 * g.eps * (np.abs(exact) + np.abs(w[at]) + size @ y)
        used = max(used, assert_within(found, exact, np.where(kept, limit, 0)))
        # The loss is that of the step really taken, and no better than the minimum.
        change = found.astype(float) - w[at]
        loss = oracle.increase(block.x, g.damping, change)
        terms = np.abs(change) @ np.abs(block.curvature).astype(float) @ np.abs(change)
        used = max(used, assert_within(result.loss[b], loss, 8 * (g.m + g.d) * g.eps * terms))
        slack = block.prune_error(w[at], kept)[1] + 8 * (g.m + g.d) * g.eps * terms
        assert joint.loss[b] <= result.loss[b] + slack
    target(used)


@pytest.mark.parametrize("m", [3, 12, 30])
def test_one_pruned_weight_makes_the_updates_equal(backend, m):
    g = make(m, 12, 12, storage="float64", log_damping=-2)
    w, mask = g.vectors(12), np.arange(12) != 5
    fisher = build(g, backend)
    joint, alone = (fisher.prune(w, mask, update=u) for u in ("joint", "independent"))
    (block,) = g.blocks
    limit = 2 * block.prune_error(w, mask)[0] + 8 * g.eps
    assert_within(joint.weights, alone.weights, limit)
    # Both cost the score of that weight.
    score = fisher.scores(w)[5]
    bound = block.score_error(w, 1)[1][5] + block.prune_error(w, mask)[1] + 64 * g.eps * score
    assert_within([joint.loss[0], alone.loss[0]], score, 4 * bound)


# ---- damping, types, ways in ---------------------------------------------------------------------


@every_regime
@pytest.mark.parametrize("log_damping", [-2, -3, -4, -5, -6, -7])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_no_damping_costs_float32_a_digit(backend, regime, log_damping, storage):
    """With factors in float64, results in float32 are rounded once and that is all."""
    g = small(regime, storage, log_damping=log_damping)
    fisher = build(g, backend)
    eps = float(np.finfo(np.float32).eps)
    for block, at in zip(g.blocks, g.at, strict=True):
        exact = np.diag(block.inverse)
        assert_within(fisher.diagonal()[at], exact, eps * exact)


@every_regime
def test_damping_can_be_set_at_any_time(backend, regime):
    g = small(regime)
    fisher = build(g, backend)
    for log_damping in (-1, -6):
        again = make(g.m, g.d, 12, log_damping=log_damping)
        fisher.damping = again.damping
        assert fisher.damping == again.damping
        assert_inverse(again, fisher)


def test_types_mix(backend):
    """float16 and bfloat16 meet in float32, and float64 makes all vectors float64."""
    parts = [make(3, 30, 12, storage=s, seed=i) for i, s in enumerate(STORAGES)]
    for order in ((0, 1), (1, 2), (2, 0), (0, 1, 2), (0, 1, 2, 3), (3, 1)):
        for repeat in (1, 4):  # kept, and folded
            fisher = BlockFisher(30, block_size=12, damping=parts[0].damping, backend=backend)
            for i in order * repeat:
                fisher.update(parts[i].stored)
            exact = np.concatenate([parts[i].exact for i in order * repeat])
            kind = np.float64 if 3 in order else np.float32
            whole = Gradients(exact.astype(kind), parts[0].damping, 12, parts[0].rng)
            assert fisher.dtype == kind
            assert_inverse(whole, fisher)


def test_one_gradient_at_a_time(backend):
    g = make(30, 40, 12)
    fisher = BlockFisher(40, block_size=12, damping=g.damping, backend=backend)
    for row in g.stored:
        fisher.update(row)
    assert fisher.count == 30
    assert_inverse(g, fisher)


@every_regime
def test_no_gradient_that_came_is_looked_at_again(backend, regime):
    """The caller may reuse the memory."""
    g = small(regime)
    buffer = g.stored.copy()
    fisher = BlockFisher(g.d, block_size=12, damping=g.damping, backend=backend)
    fisher.update(buffer)
    buffer[:] = np.nan
    assert_inverse(g, fisher)


@pytest.mark.parametrize("d", [1, 2, 11, 12, 13, 25, 96, 97, 200])
@every_regime
def test_ranges_of_blocks(backend, regime, d):
    """Blocks lie in chunks of 8; a range may begin and end anywhere."""
    g = small(regime, d=d)
    fisher = build(g, backend)
    n = fisher.n_blocks
    whole = fisher.inverse()
    for start, stop in ((0, 0), (0, 1), (n - 1, n), (n // 2, n), (n, n), (0, None), (n // 3, n)):
        np.testing.assert_array_equal(fisher.inverse(start, stop), whole[start:stop])
    assert_inverse(g, fisher, n // 2)


@pytest.mark.parametrize("block_size", [1, 2, 7, 64, 128, 255, 256])
@pytest.mark.parametrize("m", [1, 100])
def test_block_sizes(backend, m, block_size):
    g = make(m, block_size + 1, block_size, log_damping=-3)
    assert_inverse(g, build(g, backend))
    w, mask = g.vectors(g.d), masks(g)
    assert_pruned(g, build(g, backend).prune(w, mask), w, mask)


def test_fewer_weights_than_a_block(backend):
    for d, m in ((1, 1), (1, 60), (7, 3), (7, 60), (49, 49)):
        g = make(m, d, 50)
        assert_inverse(g, build(g, backend))


# ---- merge, save, load ---------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0, 3, 12, 30])
@pytest.mark.parametrize("b", [0, 4, 9, 12, 30])
def test_merge(backend, tmp_path, a, b):
    """Both kept, one of them folded, both; within the bounds of the whole."""
    if not a + b:
        return
    g = make(a + b, 40, 12)
    left, right = (
        BlockFisher(40, block_size=12, damping=damping, backend=backend)
        for damping in (g.damping, 0.5)
    )
    left.update(g.stored[:a])
    right.update(g.stored[a:])
    before = state(right, tmp_path / "right.npz")
    left.merge(right)
    assert left.count == a + b
    assert left.damping == g.damping
    assert_inverse(g, left)
    assert state(right, tmp_path / "right.npz") == before
    # They share nothing: what comes later goes into one of them.
    left.update(g.stored)
    assert right.count == b
    assert state(right, tmp_path / "right.npz") == before


@pytest.mark.parametrize("m", [4, 20])
def test_merge_of_types(backend, m):
    short, long = (
        make(m, 30, 12, storage=s, seed=i) for i, s in enumerate(("bfloat16", "float64"))
    )
    exact = np.concatenate([short.exact, long.exact])
    for first, second in ((short, long), (long, short)):
        fisher, other = build(first, backend), build(second, backend)
        fisher.damping = short.damping
        fisher.merge(other)
        assert fisher.dtype == np.float64
        assert_inverse(Gradients(exact, short.damping, 12, short.rng), fisher)


@every_regime
@pytest.mark.parametrize("storage", STORAGES)
def test_save_and_load(backend, tmp_path, regime, storage):
    """Bit for bit, also when more gradients come afterwards."""
    g = small(regime, storage)
    a = build(g, backend)
    path = tmp_path / "state.npz"
    a.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]
    b = BlockFisher.load(str(path), backend=backend)
    assert (b.d, b.block_size, b.damping, b.count) == (g.d, 12, g.damping, g.m)
    assert b.dtype == a.dtype
    for _ in range(3):
        for name in ("diagonal", "inverse"):
            np.testing.assert_array_equal(getattr(a, name)(), getattr(b, name)())
        for fisher in (a, b):
            fisher.update(g.stored[:4])


def test_save_and_load_of_nothing(backend, tmp_path):
    BlockFisher(7, block_size=3, damping=0.25, backend=backend).save(tmp_path / "empty.npz")
    fisher = BlockFisher.load(tmp_path / "empty.npz", backend=backend)
    assert (fisher.d, fisher.block_size, fisher.damping, fisher.count) == (7, 3, 0.25, 0)
    g = make(5, 7, 3)
    fisher.update(g.stored)
    fisher.damping = g.damping
    assert_inverse(g, fisher)


def test_a_failing_save_leaves_the_old_file(backend, tmp_path, monkeypatch):
    fisher = build(small("more"), backend)
    path = tmp_path / "state.npz"
    fisher.save(path)
    before = path.read_bytes()

    def no_space(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(OSError, match="No space"):
        fisher.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


# ---- pruning -------------------------------------------------------------------------------------


@every_regime
def test_weights_pruned_earlier_stay_out(backend, regime):
    """Zero before and zero after: they cost nothing and take no part in the update."""
    g = small(regime, "float64")
    fisher, w = build(g, backend), g.vectors(40)
    first = masks(g, 0.3)
    once = fisher.prune(w, first)
    second = first & masks(g, 0.3)
    second[[at.start for at in g.at]] = True
    twice = fisher.prune(once.weights, second)
    assert_pruned(g, twice, once.weights, second)
    assert not twice.weights[~first & ~second].any()
    # Nothing more to prune: nothing moves.
    again = fisher.prune(twice.weights, twice.weights != 0)
    np.testing.assert_array_equal(again.weights, twice.weights)
    assert not again.loss.any()


@pytest.mark.parametrize("update", ["joint", "independent"])
@every_regime
def test_whole_blocks(backend, regime, update):
    g = small(regime)
    fisher, w = build(g, backend), g.vectors(40)
    mask = np.ones(40, bool)
    mask[12:24] = False
    with pytest.raises(ValueError, match=r"^mask .*block 1 \(weights 12 to 23\)"):
        fisher.prune(w, mask, update=update)
    result = fisher.prune(w, mask, update=update, whole_blocks="zero")
    np.testing.assert_array_equal(result.weights, np.where(mask, w, 0))
    expected = oracle.increase(g.blocks[1].x, g.damping, w[12:24])
    assert_within(result.loss, [0, expected, 0, 0], [0, 100 * g.eps * expected, 0, 0])
    w[12:24] = 0.0  # not in the way any more
    result = fisher.prune(w, mask, update=update)
    np.testing.assert_array_equal(result.weights, w)
    assert not result.loss.any()
    mask[36:] = False  # the short last block
    with pytest.raises(ValueError, match=r"^mask .*block 3 \(weights 36 to 39\)"):
        fisher.prune(w, mask, update=update)


def test_keeping_and_pruning_everything(backend):
    g = small("more")
    fisher, w = build(g, backend), g.vectors(40)
    kept = fisher.prune(w, np.ones(40, bool))
    np.testing.assert_array_equal(kept.weights, w)
    assert (kept.sparsity, kept.loss.any()) == (0.0, False)
    gone = fisher.prune(w, np.zeros(40, bool), whole_blocks="zero")
    assert (gone.sparsity, gone.weights.any()) == (1.0, False)


def test_the_result_is_the_callers(backend):
    """Nothing in it is a view of the arguments."""
    g = small("more")
    w, mask = g.vectors(40), masks(g)
    result = build(g, backend).prune(w, mask)
    assert not np.shares_memory(result.weights, w)
    assert not np.shares_memory(result.mask, mask)


@given(layout=draws.layouts, seed=draws.seeds)
def test_layouts_of_weights(backend, layout, seed):
    g = small("more", seed=seed)
    fisher, w, mask = build(g, backend), g.vectors(1, 40), masks(g)
    shown = draws.relayout(w, layout)[0]
    before = draws.whole(shown).tobytes()
    for call in (
        lambda w: fisher.scores(w, 4),
        lambda w: fisher.prune(w, mask).weights,
        lambda w: fisher.prune(w, mask[::-1].copy()[::-1], update="independent").weights,
    ):
        np.testing.assert_array_equal(call(shown), call(w[0]))
    assert draws.whole(shown).tobytes() == before


# ---- threads and other arrays --------------------------------------------------------------------


@every_regime
def test_threads_change_nothing(backend, regime):
    g = make(REGIMES[regime], 4000, 12)
    w, mask = g.vectors(4000), masks(g)
    one, two = (build(g, backend, n_threads=n) for n in (1, 2))
    for call in (
        lambda f: f.diagonal(),
        lambda f: f.inverse(3, 50),
        lambda f: f.solve(w),
        lambda f: f.scores(w, 4),
        lambda f: f.prune(w, mask).weights,
        lambda f: f.prune(w, mask, update="independent").loss,
    ):
        np.testing.assert_array_equal(call(one), call(two))


@every_regime
@pytest.mark.parametrize("storage", STORAGES)
def test_torch_in_torch_out(backend, regime, storage):
    torch = pytest.importorskip("torch")
    g = small(regime, storage)
    rows = torch.from_numpy(g.exact).to(getattr(torch, storage)).requires_grad_()
    w, mask = torch.from_numpy(g.vectors(40)).requires_grad_(), torch.from_numpy(masks(g))
    plain = build(g, backend)
    fisher = BlockFisher(40, block_size=12, damping=g.damping, backend=backend)
    fisher.update(rows)
    result = fisher.prune(w, mask)
    pairs = {
        "diagonal": (fisher.diagonal(), plain.diagonal()),
        "inverse": (fisher.inverse(), plain.inverse()),
        "solve": (fisher.solve(w), plain.solve(w.detach().numpy())),
        "scores": (fisher.scores(w, 4), plain.scores(w.detach().numpy(), 4)),
        "prune": (result.weights, plain.prune(w.detach().numpy(), mask.numpy()).weights),
    }
    for name, (found, expected) in pairs.items():
        assert isinstance(found, torch.Tensor), name
        np.testing.assert_array_equal(found.numpy(), expected, err_msg=name)
    assert result.mask.dtype == torch.bool
    assert result.loss.dtype == torch.float64
