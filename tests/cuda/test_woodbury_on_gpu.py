"""The Woodbury and linalg families on arrays of a GPU, which is an emulated one.

The kernels are those of the CPU, so that results are the same but for what Python does in another
way there: the inverse of a window's small matrix, and sums in another order.
"""

import contextlib
import itertools

import ml_dtypes
import numpy as np
import pytest

from quadric import LinAlgError, linalg, sweep, woodbury
from tests.cuda import emulated
from tests.cuda.test_sweep_on_gpu import same

STORAGES = ("float16", ml_dtypes.bfloat16, "float32", "float64")
LOSSES = {"float32": 1e-5, "float64": 1e-11}


def gradients(m=6, d=40, storage="float32", seed=0):
    return np.random.default_rng(seed).standard_normal((m, d)).astype(storage)


def computing(storage):
    return "float64" if storage == "float64" else "float32"


def vectors(k, d, storage="float32", seed=9):
    shape = (d,) if k is None else (k, d)
    return np.random.default_rng(seed).standard_normal(shape).astype(computing(storage))


@contextlib.contextmanager
def no_waits(gpu):
    """Assert that the host neither waits nor copies what a graph could not hold."""
    before = gpu.waits, gpu.copies
    yield
    assert (gpu.waits, gpu.copies) == before


both = pytest.mark.parametrize("check_finite", [True, False])
storages = pytest.mark.parametrize("storage", STORAGES)


# ---- GradientWindow ------------------------------------------------------------------------------


@storages
@both
@pytest.mark.parametrize("normalize", ["count", "capacity", "sum"])
def test_window(gpu, storage, check_finite, normalize):
    name = np.dtype(storage).name
    here, there = (
        woodbury.GradientWindow(
            30, capacity=4, damping=0.1, dtype=name, normalize=normalize, check_finite=check
        )
        for check in (True, check_finite)
    )
    eps = LOSSES[computing(storage)]
    for seed, g in enumerate(gradients(11, 30, computing(storage))):
        on_gpu = gpu.put(g)
        quiet = contextlib.nullcontext() if check_finite else no_waits(gpu)
        if seed % 3 == 1:
            here.push(g)
            with quiet:
                there.push(on_gpu)
        else:
            expected = here.push_and_solve(g)
            with quiet:
                found = there.push_and_solve(on_gpu)
            same(gpu, found, expected, eps)
        for k in range(1, here.count + 1):
            w = np.linspace(1, 0.5, k)
            quiet = contextlib.nullcontext() if check_finite else no_waits(gpu)
            with quiet:
                found, again = there.combine(list(w)), there.combine(gpu.put(w))
            same(gpu, found, here.combine(w), eps)
            same(gpu, again, here.combine(w), eps)
        for k in (None, 1, 3, 0):
            x = vectors(k, 30, storage)
            quiet = contextlib.nullcontext() if check_finite else no_waits(gpu)
            on_gpu = gpu.put(x)
            with quiet:
                found = there.solve(on_gpu)
            same(gpu, found, here.solve(x), eps)
    assert repr(there) == repr(here)
    here.clear(), there.clear()
    same(gpu, there.solve(gpu.put(x)), here.solve(x))
    g = gradients(1, 30, computing(storage), 3)[0]
    same(gpu, there.push_and_solve(gpu.put(g)), here.push_and_solve(g), eps)


def test_window_goes_on_from_a_state_wherever_gradients_come_from(gpu):
    G = gradients(9, 30)
    whole = woodbury.GradientWindow(30, capacity=4, dtype="bfloat16", damping=0.1)
    window = woodbury.GradientWindow(30, capacity=4, dtype="bfloat16", damping=0.1)
    for i, g in enumerate(G):
        if i in (2, 4, 7):
            state = window.state_dict()
            assert all(type(a) in (int, float, str, np.ndarray) for a in state.values())
            window = woodbury.GradientWindow(30, capacity=4, dtype="bfloat16", damping=9)
            window.load_state_dict(state)
        expected = whole.push_and_solve(g)
        if i < 2 or i >= 7:
            np.testing.assert_allclose(window.push_and_solve(g), expected, rtol=1e-4)
        else:
            same(gpu, window.push_and_solve(gpu.put(g)), expected, 1e-5)
    window.load_state_dict(state)
    same(gpu, window.solve(gpu.put(G[0])), window.solve(gpu.put(G[0])).a)
    window.load_state_dict(state)
    assert isinstance(window.combine([1.0]), np.ndarray)
    window.load_state_dict(state)
    again = window.state_dict()
    for key, a in state.items():
        assert np.array_equal(again[key], a), key


def test_window_state_is_the_same_bit_for_bit(gpu):
    a, b = (woodbury.GradientWindow(30, capacity=4, damping=0.1) for _ in range(2))
    for g in gradients(6, 30):
        a.push(gpu.put(g))
    b.load_state_dict(a.state_dict())
    g = gpu.put(gradients(1, 30, seed=4)[0])
    same(gpu, b.push_and_solve(g), gpu.get(a.push_and_solve(g)))


def test_window_refuses(gpu):
    window = woodbury.GradientWindow(30, capacity=3, damping=0.1)
    bad = gradients(1, 30)[0]
    bad[7] = np.nan
    with pytest.raises(ValueError, match=r"^g must be finite, got nan at index \(7,\)"):
        window.push(gpu.put(bad))
    assert window.count == 0
    window.push(gradients(1, 30)[0])  # what was refused has no place
    window.clear()
    for g in gradients(4, 30):
        window.push(gpu.put(g))
    before = gpu.get(window.combine([1, 2, 3])).copy()
    for method in (window.push, window.push_and_solve):
        with pytest.raises(ValueError, match=r"^g must be finite"):
            method(gpu.put(bad))
        with pytest.raises(ValueError, match=r"^g must be where the window is \(emulated"):
            method(gradients(1, 30)[0])
        with pytest.raises(ValueError, match=r"^g must be where the window is"):
            method(gpu.put(gradients(1, 30)[0], device=1))
    with pytest.raises(ValueError, match=r"^x must be finite"):
        window.solve(gpu.put(bad))
    with pytest.raises(ValueError, match=r"^x must be where the window is"):
        window.solve(gradients(1, 30)[0])
    with pytest.raises(ValueError, match=r"^weights must be finite"):
        window.combine(gpu.put(np.array([np.nan])))
    with pytest.raises(ValueError, match=r"^weights must be where the first gradient is"):
        window.combine(gpu.put(np.ones(1), device=1))
    same(gpu, window.combine([1, 2, 3]), before)
    wide = woodbury.GradientWindow(30, capacity=3, dtype="float64")
    with pytest.raises(ValueError, match=r"^g must have products with the window"):
        wide.push(gpu.put(np.full(30, 1e200)))
    half = woodbury.GradientWindow(30, capacity=3, dtype="float16")
    with pytest.raises(ValueError, match=r"^g must be finite in float16, got 1000000"):
        half.push(gpu.put(np.full(30, 1e6, np.float32)))
    elsewhere = woodbury.GradientWindow(30, backend="numba")
    with pytest.raises(ValueError, match=r"^backend must be cuda for arrays on a GPU"):
        elsewhere.push(gpu.put(gradients(1, 30)[0]))


def test_window_of_a_singular_matrix(gpu):
    g = gradients(1, 30, "float64")[0]
    window = woodbury.GradientWindow(30, capacity=3, dtype="float64", damping=1e-30)
    window.push(gpu.put(g))
    with pytest.raises(LinAlgError, match=r"^damping must be larger"):
        window.push_and_solve(gpu.put(g))
    assert window.count == 1
    assert not np.isnan(gpu.get(window.combine([1.0]))).any()
    quiet = woodbury.GradientWindow(
        30, capacity=3, dtype="float64", damping=1e-30, check_finite=False
    )
    quiet.push(gpu.put(g))
    assert np.isnan(gpu.get(quiet.push_and_solve(gpu.put(g)))).all()


def test_window_forgets_a_gradient_that_nobody_looked_at(gpu):
    for dtype in ("float32", "bfloat16"):
        window, clean = (
            woodbury.GradientWindow(30, capacity=3, dtype=dtype, check_finite=False)
            for _ in range(2)
        )
        G = gradients(6, 30)
        bad = G[0].copy()
        bad[3] = np.nan
        assert np.isnan(gpu.get(window.push_and_solve(gpu.put(bad)))).all()
        clean.push(gpu.put(G[0]))
        for i, g in enumerate(G[1:]):
            found, expected = (gpu.get(w.push_and_solve(gpu.put(g))) for w in (window, clean))
            assert np.isnan(found).all() if i < 2 else np.array_equal(found, expected)


# ---- EmpiricalFisher, natural_gradient -----------------------------------------------------------


@storages
@both
@pytest.mark.parametrize("block_size", [None, 15, 40])
def test_empirical_fisher(gpu, storage, check_finite, block_size):
    G, more, d = gradients(6, 40, storage), gradients(5, 40, storage, 1), 40
    here = woodbury.EmpiricalFisher(G, damping=0.1, block_size=block_size)
    quiet = contextlib.nullcontext() if check_finite else no_waits(gpu)
    G_there, more_there = gpu.put(G), gpu.put(more)
    X = [vectors(k, d, storage) for k in (None, 1, 3, 0)]
    X_there = [gpu.put(x) for x in X]
    eps = LOSSES[computing(storage)]
    with quiet:
        there = woodbury.EmpiricalFisher(
            G_there, damping=0.1, block_size=block_size, check_finite=check_finite
        )
    for rows in (0, 1, 4):
        if rows:
            here.append(more[rows - 1 : 2 * rows - 2 if rows > 1 else 1])
            with contextlib.nullcontext() if check_finite else no_waits(gpu):
                there.append(more_there[rows - 1 : 2 * rows - 2 if rows > 1 else 1])
        m = here.count
        with contextlib.nullcontext() if check_finite else no_waits(gpu):
            found = [there.solve(x) for x in X_there]
            combined = there.combine(list(range(m)))
            diagonal = there.diagonal()
        for a, x in zip(found, X, strict=True):
            same(gpu, a, here.solve(x), eps)
        same(gpu, combined, here.combine(np.arange(m)), eps)
        same(gpu, there.combine(gpu.put(np.arange(m))), here.combine(np.arange(m)), eps)
        same(gpu, diagonal, here.diagonal(), eps)
        for i, j in ((0, 0), (3, 7), (2, 39)):
            assert abs(there.element(i, j) - here.element(i, j)) <= 10 * eps
    assert repr(there) == repr(here)
    here.damping = there.damping = 0.5
    same(gpu, there.diagonal(), here.diagonal(), eps)


def test_empirical_fisher_of_nearly_dependent_gradients(gpu):
    G = gradients(6, 40)
    G[1] = G[0] * np.float32(1 + 1e-6)
    here = woodbury.EmpiricalFisher(G, damping=1e-9)
    there = woodbury.EmpiricalFisher(gpu.put(G), damping=1e-9)
    same(gpu, there.combine(np.ones(6)), here.combine(np.ones(6)), 1e-5)
    assert there._exact
    more = gradients(2, 40, seed=1)
    here.append(more), there.append(gpu.put(more))
    same(gpu, there.combine(np.ones(8)), here.combine(np.ones(8)), 1e-5)


def test_empirical_fisher_refuses(gpu):
    G = gradients()
    bad = G.copy()
    bad[2, 5] = np.inf
    with pytest.raises(ValueError, match=r"^G must be finite, got inf at index \(2, 5\)"):
        woodbury.EmpiricalFisher(gpu.put(bad))
    with pytest.raises(LinAlgError, match=r"^damping must be larger"):
        woodbury.EmpiricalFisher(gpu.put(np.ones((3, 40))), damping=1e-30)
    with pytest.raises(LinAlgError, match=r"^damping must be larger"):
        woodbury.EmpiricalFisher(gpu.put(np.ones((3, 40))), damping=1e-30, block_size=10)
    for block_size in (None, 10):
        G1 = gpu.put(np.ones((3, 40)))
        fisher = woodbury.EmpiricalFisher(
            G1, damping=1e-30, check_finite=False, block_size=block_size
        )
        assert np.isnan(gpu.get(fisher.combine([1, 2, 4]))).any()
    fisher = woodbury.EmpiricalFisher(gpu.put(G), damping=0.1)
    for x in (G[0], gpu.put(G[0], device=1)):
        with pytest.raises(ValueError, match=r"^x must be where G is"):
            fisher.solve(x)
        with pytest.raises(ValueError, match=r"^g must be where G is"):
            fisher.append(x)
    with pytest.raises(ValueError, match=r"^x must be finite"):
        fisher.solve(gpu.put(bad))
    with pytest.raises(ValueError, match=r"^g must be finite"):
        fisher.append(gpu.put(bad))
    with pytest.raises(ValueError, match=r"^backend must be cuda"):
        woodbury.EmpiricalFisher(gpu.put(G), backend="numba")
    assert fisher.count == 6


@storages
@both
def test_natural_gradient(gpu, storage, check_finite):
    G, x = gradients(4, 40, storage), vectors(None, 40, storage)
    eps = LOSSES[computing(storage)]
    wide = G.astype(float)
    gram = wide @ wide.T
    last = G[-1].astype(computing(storage))
    on_gpu, x_there, last_there, gram_there = map(gpu.put, (G, x, last, gram))
    with contextlib.nullcontext() if check_finite else no_waits(gpu):
        found = [
            woodbury.natural_gradient(on_gpu, g, 0.1, gram=k, check_finite=check_finite)
            for g, k in itertools.product((None, x_there, last_there), (None, gram_there))
        ]
    expected = [
        woodbury.natural_gradient(G, g, 0.1, gram=k)
        for g, k in itertools.product((None, x, last), (None, gram))
    ]
    for a, b in zip(found, expected, strict=True):
        same(gpu, a, b, 100 * eps)
    if G.dtype == last.dtype:
        same(gpu, woodbury.natural_gradient(on_gpu, on_gpu[-1], 0.1), expected[0], eps)
    with pytest.raises(ValueError, match=r"^g must be where G is"):
        woodbury.natural_gradient(on_gpu, x, 0.1)
    with pytest.raises(ValueError, match=r"^gram must be where G is"):
        woodbury.natural_gradient(on_gpu, gram=gram)


# ---- BlockFisher ---------------------------------------------------------------------------------


@storages
@both
@pytest.mark.parametrize("count", [3, 8, 9, 20])
@pytest.mark.parametrize("d", [8, 60])
def test_block_fisher(gpu, storage, check_finite, count, d):
    dtype = computing(storage)
    here = woodbury.BlockFisher(d, block_size=8, damping=0.1)
    there = woodbury.BlockFisher(d, block_size=8, damping=0.1, check_finite=check_finite)
    G = gradients(count, d, storage)
    cuts = [slice(0, 2), slice(2, 5), slice(5, count)]
    parts = [gpu.put(G[cut]) for cut in cuts]
    w, V = vectors(None, d, storage), vectors(3, d, storage)
    mask = np.random.default_rng(2).random(d) < 0.5
    mask[::8] = True
    w_there, V_there, mask_there = gpu.put(w), gpu.put(V), gpu.put(mask)
    with contextlib.nullcontext() if check_finite else no_waits(gpu):
        for part in parts:
            there.update(part)
        found = [
            there.diagonal(),
            there.inverse(),
            there.inverse(1, 1),
            there.solve(w_there),
            there.solve(V_there),
            there.scores(w_there),
            there.scores(w_there, 4),
        ]
        if d > 8:
            found.append(there.inverse(2, 5))
        pruned = [
            there.prune(w_there, mask_there, update=update, whole_blocks="zero")
            for update in ("joint", "independent")
        ]
    for cut in cuts:
        here.update(G[cut])
    expected = [
        here.diagonal(),
        here.inverse(),
        here.inverse(1, 1),
        here.solve(w),
        here.solve(V),
        here.scores(w),
        here.scores(w, 4),
    ]
    if d > 8:
        expected.append(here.inverse(2, 5))
    for a, b in zip(found, expected, strict=True):
        same(gpu, a, b)
    for a, update in zip(pruned, ("joint", "independent"), strict=True):
        b = here.prune(w, mask, update=update)
        same(gpu, a.weights, b.weights, LOSSES[dtype])
        same(gpu, a.mask, b.mask)
        same(gpu, a.loss, b.loss, LOSSES[dtype])
        assert a.sparsity == b.sparsity
        assert repr(a) == repr(b)
    assert (there.count, there.dtype) == (here.count, here.dtype)


@pytest.mark.parametrize("count", [3, 20])
def test_block_fisher_merges_and_goes_through_a_file(gpu, tmp_path, count):
    G = gradients(count, 60)
    whole = woodbury.BlockFisher(60, block_size=8, damping=0.1)
    whole.update(G), whole.update(G), whole.update(G[:2])
    a, b = (woodbury.BlockFisher(60, block_size=8, damping=0.1) for _ in range(2))
    a.update(gpu.put(G)), b.update(gpu.put(G))
    a.merge(b)
    a.save(tmp_path / "sums.npz")
    for follows in ("update", "solve"):
        loaded = woodbury.BlockFisher.load(tmp_path / "sums.npz")
        if follows == "solve":
            assert type(loaded.solve(gpu.put(G[0]))) is emulated.Array
            with pytest.raises(ValueError, match=r"^G must be where the first gradient is"):
                loaded.update(G[:2])
        loaded.update(gpu.put(G[:2]))
        same(gpu, loaded.diagonal(), whole.diagonal(), 1e-6)
    loaded = woodbury.BlockFisher.load(tmp_path / "sums.npz")
    loaded.update(G[:2])
    np.testing.assert_allclose(loaded.diagonal(), whole.diagonal(), rtol=1e-6)
    for there, other in ((a, loaded), (loaded, a)):
        with pytest.raises(ValueError, match=r"^other must be where the first gradient is"):
            there.merge(other)


def test_block_fisher_refuses(gpu):
    bf = woodbury.BlockFisher(20, block_size=8)
    G = gradients(12, 20)
    bad = G.copy()
    bad[11, 3] = np.nan
    for k in (2, 12):
        with pytest.raises(ValueError, match=rf"^G must be finite, got nan at index \({k - 1}, 3"):
            bf.update(gpu.put(bad[12 - k :]))
    bf.update(gpu.put(G))
    with pytest.raises(ValueError, match=r"^G must be finite"):
        bf.update(gpu.put(bad))
    for other in (G, gpu.put(G, device=1)):
        with pytest.raises(ValueError, match=r"^G must be where the first gradient is"):
            bf.update(other)
        with pytest.raises(ValueError, match=r"^v must be where the first gradient is"):
            bf.solve(other)
    w, mask = G[0], np.ones(20, bool)
    with pytest.raises(ValueError, match=r"^w must be where the first gradient is"):
        bf.prune(w, mask)
    with pytest.raises(ValueError, match=r"^mask must be where w is"):
        bf.prune(gpu.put(w), mask)
    mask[8:16] = False
    with pytest.raises(ValueError, match=r"got none in block 1 \(weights 8 to 15\)"):
        bf.prune(gpu.put(w), gpu.put(mask))
    bf.damping = 1e-300
    bf2 = woodbury.BlockFisher(20, block_size=8, damping=1e-300)
    bf2.update(gpu.put(np.zeros((9, 20), np.float32)))
    bf3 = woodbury.BlockFisher(20, block_size=8, damping=1e-300)
    ones = gpu.put(np.ones((9, 20)))
    bf3.update(ones)
    with pytest.raises(LinAlgError, match=r"^block 0 of the Fisher matrix is not positive"):
        bf3.diagonal()
    quiet = woodbury.BlockFisher(20, block_size=8, damping=1e-300, check_finite=False)
    quiet.update(ones)
    assert np.isnan(gpu.get(quiet.diagonal())).any()
    with pytest.raises(ValueError, match=r"^backend must be cuda"):
        woodbury.BlockFisher(20, backend="numba").update(gpu.put(G))


# ---- Kronecker factors ---------------------------------------------------------------------------


def factor(n, dtype="float32", seed=0):
    X = np.random.default_rng(seed).standard_normal((3 * n, n))
    J = X.T @ X / (3 * n)
    return ((J + J.T) / 2).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["exact", "mkor", "published"])
@pytest.mark.parametrize("norm_bound", [None, 3.0])
@both
def test_rank_one(gpu, dtype, rule, norm_bound, check_finite):
    sizes = (1, 5, 33)
    J = [factor(n, dtype) for n in sizes]
    v = [vectors(None, n, dtype, seed=n) for n in sizes]
    options = {"rule": rule, "norm_bound": norm_bound, "decay": 0.9}
    expected = woodbury.rank_one_inverse_update(J, v, **options)
    J_there, v_there = [gpu.put(j) for j in J], [gpu.put(x) for x in v]
    outs = [gpu.put(np.zeros_like(j)) for j in J]
    options["check_finite"] = check_finite
    with contextlib.nullcontext() if check_finite else no_waits(gpu):
        found = woodbury.rank_one_inverse_update(J_there, v_there, **options)
        into = woodbury.rank_one_inverse_update(J_there, v_there, out=outs, **options)
        one = woodbury.rank_one_inverse_update(J_there[2].T, v_there[2], **options)
        woodbury.rank_one_inverse_update(J_there, v_there, out=J_there, **options)
    eps = LOSSES[dtype]
    assert into is outs
    for results in (found, outs, J_there):
        for a, b in zip(results, expected, strict=True):
            same(gpu, a, b, eps)
            assert np.array_equal(a.a, a.a.T)
    same(gpu, one, expected[2], eps)


@pytest.mark.parametrize("rule", ["exact", "mkor", "published"])
@pytest.mark.parametrize("k", [2, 9])
@both
def test_rank_k(gpu, rule, k, check_finite):
    sizes, counts = (4, 20), (k, 2 * k + 1)
    J = [factor(n, "float64") for n in sizes]
    V = [vectors(m, n, "float64") for m, n in zip(counts, sizes, strict=True)]
    options = {"rule": rule, "decay": 0.8, "check_finite": check_finite, "norm_bound": 5.0}
    expected = woodbury.rank_k_inverse_update(J, V, **options)
    J_there, V_there = [gpu.put(j) for j in J], [gpu.put(x) for x in V]
    with contextlib.nullcontext() if check_finite else no_waits(gpu):
        found = woodbury.rank_k_inverse_update(J_there, V_there, **options)
        woodbury.rank_k_inverse_update(J_there, V_there, out=J_there, **options)
    for a, b, c in zip(found, J_there, expected, strict=True):
        same(gpu, a, c, 1e-11)
        same(gpu, b, c, 1e-11)


def test_factors_that_are_none(gpu):
    good, v = factor(3, "float64"), np.array([1.0, 2.0, 3.0])
    bad = {
        "not finite": np.full((3, 3), np.nan),
        "pivot": -np.eye(3),
        "diagonal": np.array([[1.0, 9.0, 0], [9, 1, 0], [0, 0, 1]]),
        "large": np.diag([1.7e308, 1.0, 1.0]),
    }
    vs = {"diagonal": np.array([1.0, 0.0, 0.0]), "large": np.array([0.0, 1.0, 0.0])}
    for name, j in bad.items():
        x = vs.get(name, v)
        with pytest.raises((LinAlgError, ValueError)) as caught:
            woodbury.rank_one_inverse_update([good, j], [v, x], decay=0.5)
        J, V = [gpu.put(good), gpu.put(j)], [gpu.put(v), gpu.put(x)]
        with pytest.raises(caught.type) as found:
            woodbury.rank_one_inverse_update(J, V, decay=0.5, out=J)
        assert str(found.value) == str(caught.value)
        same(gpu, J[0], good)  # no factor has changed
        woodbury.rank_one_inverse_update(J, V, decay=0.5, out=J, check_finite=False)
        same(gpu, J[0], woodbury.rank_one_inverse_update(good, v, decay=0.5), 1e-14)
        assert np.array_equal(gpu.get(J[1]), j, equal_nan=True)


def test_inverse_updates_refuse(gpu):
    J, v = factor(5), vectors(None, 5)
    update = woodbury.rank_one_inverse_update
    bad = v.copy()
    bad[2] = np.nan
    with pytest.raises(ValueError, match=r"^v must be finite, got nan at index \(2,\)"):
        update(gpu.put(J), gpu.put(bad))
    with pytest.raises(ValueError, match=r"^v must be where J is"):
        update(gpu.put(J), v)
    with pytest.raises(ValueError, match=r"^J\[1\] must be where J\[0\] is"):
        update([gpu.put(J), J], [gpu.put(v), v])
    with pytest.raises(ValueError, match=r"^out must be where J is"):
        update(gpu.put(J), gpu.put(v), out=J.copy())
    whole = gpu.put(np.tile(J, (3, 1)))
    with pytest.raises(ValueError, match=r"^out must be J itself or share no memory"):
        update(whole[:5], gpu.put(v), out=whole[1:6])
    with pytest.raises(ValueError, match=r"^out must hold distinct arrays"):
        update([whole[:5], whole[5:10]], [gpu.put(v)] * 2, out=[whole[10:], whole[10:]])
    with pytest.raises(ValueError, match=r"^backend must be cuda"):
        update(gpu.put(J), gpu.put(v), backend="numba")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rescale", [True, False])
@both
def test_kronecker(gpu, dtype, rescale, check_finite):
    left, right, grad = factor(7, dtype), factor(5, dtype, 1), gradients(7, 5, dtype)
    for g in (grad, np.asfortranarray(grad), np.zeros_like(grad)):
        expected = woodbury.kronecker_precondition(left, g, right, rescale=rescale)
        arguments = [gpu.put(a) for a in (left, g, right)]
        with contextlib.nullcontext() if check_finite else no_waits(gpu):
            found = woodbury.kronecker_precondition(
                *arguments, rescale=rescale, check_finite=check_finite
            )
        same(gpu, found, expected, LOSSES[dtype])
    grad[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"^grad must be finite, got nan at index \(2, 3\)"):
        woodbury.kronecker_precondition(gpu.put(left), gpu.put(grad), gpu.put(right))
    with pytest.raises(ValueError, match=r"^J_in must be where grad is"):
        woodbury.kronecker_precondition(gpu.put(left), gpu.put(grad), right)


# ---- identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [None, 0, 3])
def test_woodbury_solve(gpu, dtype, k, monkeypatch):
    monkeypatch.setattr(woodbury.identities, "_SLAB_ON_GPU", 16)
    U, C = gradients(30, 4, dtype), gradients(4, 4, dtype, 1)
    x, d = vectors(k, 30, dtype), np.linspace(-2, 1.9, 30).astype(dtype)
    for diagonal, u in itertools.product((d, 2.0), (U, np.asfortranarray(U))):
        expected = woodbury.woodbury_solve(diagonal, u, C, x)
        on_gpu = diagonal if diagonal is not d else gpu.put(d)
        found = woodbury.woodbury_solve(on_gpu, gpu.put(u), gpu.put(C), gpu.put(x))
        same(gpu, found.x, expected.x, LOSSES[dtype])
        assert abs(found.logdet - expected.logdet) < 1e-9
        assert found.sign == expected.sign
    with pytest.raises(ValueError, match=r"^x must be where U is"):
        woodbury.woodbury_solve(2.0, gpu.put(U), gpu.put(C), x)
    with pytest.raises(ValueError, match=r"^diagonal must be nonzero, got 0 at index 0"):
        woodbury.woodbury_solve(0.0, gpu.put(U), gpu.put(C), gpu.put(x))
    d[3] = 0
    with pytest.raises(ValueError, match=r"^diagonal must be nonzero, got 0 at index 3"):
        woodbury.woodbury_solve(gpu.put(d), gpu.put(U), gpu.put(C), gpu.put(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_sherman_morrison(gpu, dtype, symmetric, monkeypatch):
    monkeypatch.setattr(woodbury.identities, "_SLAB_ON_GPU", 16)
    J, u = factor(9, dtype), vectors(None, 9, dtype)
    v = None if symmetric else vectors(None, 9, dtype, seed=3)
    expected = woodbury.sherman_morrison(J, u, v, weight=0.7)
    v_there = None if symmetric else gpu.put(v)
    for j in (J, np.asfortranarray(J)):
        found = woodbury.sherman_morrison(gpu.put(j), gpu.put(u), v_there, weight=0.7)
        same(gpu, found.inverse, expected.inverse, LOSSES[dtype])
        assert abs(found.logdet - expected.logdet) < 1e-9
    J_there = gpu.put(J)
    assert (
        woodbury.sherman_morrison(J_there, gpu.put(u), v_there, weight=0.7, out=J_there).inverse
        is J_there
    )
    same(gpu, J_there, expected.inverse, LOSSES[dtype])
    with pytest.raises(ValueError, match=r"^u must be where J is"):
        woodbury.sherman_morrison(J_there, u)


# ---- a library like JAX --------------------------------------------------------------------------


def test_a_library_without_streams_views_and_types_of_64_bits(gpu):
    gpu.library.waits = True

    def near(found, expected):
        narrow = {"float64": "float32", "int64": "int32"}.get(expected.dtype.name)
        same(gpu, found, expected.astype(narrow or expected.dtype), 1e-5)

    G, w, J = gradients(5, 40), vectors(None, 40), factor(5)
    mask = np.arange(40) % 3 > 0
    here, there = (woodbury.BlockFisher(40, block_size=8, damping=0.1) for _ in range(2))
    here.update(G), there.update(gpu.put(G))
    near(there.diagonal(), here.diagonal())
    near(there.inverse(1, 3), here.inverse(1, 3))
    a, b = there.prune(gpu.put(w), gpu.put(mask)), here.prune(w, mask)
    near(a.loss, b.loss)
    near(a.weights, b.weights)
    here, there = (woodbury.GradientWindow(40, capacity=3, damping=0.1) for _ in range(2))
    for g in G:
        near(there.push_and_solve(gpu.put(g)), here.push_and_solve(g))
    here, there = (woodbury.EmpiricalFisher(x, damping=0.1) for x in (G, gpu.put(G)))
    near(there.solve(gpu.put(G)), here.solve(G))
    arguments = (J, np.ascontiguousarray(G[:, :5].T), factor(5, seed=1))
    near(
        woodbury.kronecker_precondition(*map(gpu.put, arguments)),
        woodbury.kronecker_precondition(*arguments),
    )
    near(
        woodbury.rank_one_inverse_update(gpu.put(J), gpu.put(w[:5])),
        woodbury.rank_one_inverse_update(J, w[:5]),
    )
    near(linalg.inverse(gpu.put(J)).logdet, linalg.inverse(J).logdet)
    X = gradients(60, 16)
    acc = sweep.HessianAccumulator(16)
    acc.update(gpu.put(X))
    H = X.T @ X / 60
    near(acc.value(), H)
    fac = sweep.factorize(H), sweep.factorize(gpu.put(H))
    q, p = (sweep.quantize(x, f) for x, f in zip((G[:, :16], gpu.put(G[:, :16])), fac, strict=True))
    near(fac[1].R, fac[0].R)
    for name in ("codes", "scales", "zeros", "group_index", "loss"):
        near(getattr(p, name), getattr(q, name))


# ---- linalg --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("name", ["cholesky", "inverse", "solve", "logdet"])
def test_linalg(gpu, dtype, lead, name):
    X = np.random.default_rng(0).standard_normal((*lead, 4, 9))
    A = (X @ np.swapaxes(X, -1, -2)).astype(dtype)
    function = getattr(linalg, name)
    for k in (None, 1, 3):
        sides = [
            vectors(None, 1, dtype)[0] * np.ones((*lead, 4, *([] if k is None else [k])), dtype)
        ]
        sides = sides if name == "solve" else []
        for a in (A, np.asfortranarray(A)):
            expected = function(a, *sides)
            found = function(gpu.put(a), *map(gpu.put, sides))
            same(gpu, found.value, expected.value)
            same(gpu, found.logdet, expected.logdet)
            same(gpu, found.status, expected.status)
            assert repr(found) == repr(expected)
            assert found.ok
            arguments = [gpu.put(a), *map(gpu.put, sides)]
            loud = {"check_finite": False} if sides else {}
            with no_waits(gpu):
                function(*arguments, on_failure="nan", **loud)
    if A.size:
        A[..., 2, 2] = -1
        with pytest.raises(LinAlgError) as expected:
            function(A, *sides)
        with pytest.raises(LinAlgError) as found:
            function(gpu.put(A), *map(gpu.put, sides))
        assert str(found.value) == str(expected.value)
        assert not function(gpu.put(A), *map(gpu.put, sides), on_failure="nan").ok
        with pytest.raises(ValueError, match=r"^backend must be cuda"):
            function(gpu.put(A), *map(gpu.put, sides), backend="numba")
    if sides:
        with pytest.raises(ValueError, match=r"^b must be where A is"):
            function(gpu.put(A), *sides)
