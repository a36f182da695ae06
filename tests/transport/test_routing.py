"""Tokens to experts: capacities and loads, assignments, derivatives, bad input."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import quadric as qd
from quadric.transport import route
from tests import strategies as draws
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, POSITIVE, SIZES, assert_refused, shown


def scores_of(seed, tokens, experts, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tokens, experts)).astype(dtype)


# ---- what holds always ---------------------------------------------------------------------------


@given(
    tokens=draws.sizes(130),
    experts=st.integers(1, 9),
    factor=st.sampled_from([0.3, 0.8, 1.0, 1.25, 2.0, 100.0]),
    log_reg=st.integers(-2, 2),
    masked=st.sampled_from(["no", "tokens"]),
    dtype=draws.dtypes,
    seed=draws.seeds,
)
def test_report(backend, tokens, experts, factor, log_reg, masked, dtype, seed):
    """Capacities and loads hold; every view of the routing shows the same one."""
    rng = np.random.default_rng(seed)
    scores = scores_of(seed, tokens, experts, dtype)
    mask = None if masked == "no" else rng.random(tokens) < 0.7
    if mask is not None:
        mask[rng.integers(tokens)] = True
    taking = tokens if mask is None else int(mask.sum())
    capacity = max(int(np.ceil(factor * taking / experts)), 1)
    r = route(scores, capacity, reg=10.0**log_reg, mask=mask, warn=False, backend=backend)
    gates, eps = r.gates(), float(np.finfo(dtype).eps)
    load = min(taking / experts, capacity)
    if taking <= capacity * experts < taking + experts - 1:  # whole tokens
        load = np.rint(gates.sum(0))
        assert load.sum() == taking
        assert load.max() - load.min() <= 1
    assert gates.dtype == r.weights.dtype == dtype
    assert r.tokens.shape == r.weights.shape == (experts, capacity)
    assert r.counts.max() <= capacity
    np.testing.assert_allclose(gates.sum(0, dtype=float), load, rtol=(capacity + 8) * eps)
    sums = gates.sum(1, dtype=float)
    takes_part = np.ones(tokens, bool) if mask is None else mask
    wanted = np.where(r.tight, 1.0, np.minimum(sums, 1)) * takes_part
    found = np.abs(sums - wanted).sum() + np.abs(gates.sum(0, dtype=float) - load).sum()
    assert found / taking == pytest.approx(r.marginal_error, abs=16 * eps)
    assert r.converged == (r.marginal_error <= {np.float32: 1e-5, np.float64: 1e-9}[dtype])
    np.testing.assert_array_equal(r.dropped, takes_part & (sums == 0))

    again = np.zeros_like(gates)
    for j in range(experts):
        there = r.tokens[j] >= 0
        assert there.sum() == r.counts[j]
        assert (np.diff(r.tokens[j][there]) > 0).all()
        again[r.tokens[j][there], j] = r.weights[j][there]
        assert (r.weights[j][~there] == 0).all()
    np.testing.assert_array_equal(again, gates)
    np.testing.assert_array_equal(r.sparse_gates().toarray(), gates)
    chosen, weights = r.experts()
    assert (np.diff(weights, axis=1) <= 0).all()
    again = np.zeros_like(gates)
    for i in range(tokens):
        there = chosen[i] >= 0
        again[i, chosen[i][there]] = weights[i][there]
    np.testing.assert_array_equal(again, gates)


@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("reg", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("tokens", "experts"), [(64, 4), (100, 7), (512, 16)])
def test_no_token_is_dropped(backend, factor, reg, tokens, experts):
    capacity = int(np.ceil(factor * tokens / experts))
    r = route(scores_of(0, tokens, experts), capacity, reg=reg, backend=backend)
    assert r.converged
    assert not r.dropped.any()
    assert r.tight.all()
    np.testing.assert_allclose(r.gates().sum(1), 1, atol=1e-9 * tokens)


# ---- against exact answers -----------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "experts"), [(8, 8), (20, 20), (20, 6), (40, 3)])
def test_one_token_each_is_the_assignment(backend, tokens, experts):
    """Capacity 1: the best matching, and the tokens outside of it are dropped."""
    scores = scores_of(1, tokens, experts)
    r = route(scores, 1, reg=0.5, backend=backend)
    rows, columns = linear_sum_assignment(-scores)
    expected = np.zeros_like(scores)
    expected[rows, columns] = 1
    np.testing.assert_allclose(r.gates(), expected, atol=1e-9)
    assert r.converged
    assert r.dropped.sum() == tokens - experts
    assert repr(r).startswith(f"Routing({tokens} tokens, {experts} experts")


def test_scores_that_differ_much_leave_one_expert_per_token(backend):
    """Small reg, room enough: the linear program, which is an assignment to copies of experts."""
    scores = scores_of(2, 24, 4)
    gates = route(scores, 12, reg=1e-3, backend=backend).gates()
    rows, columns = linear_sum_assignment(-np.repeat(scores, 6, axis=1))
    best = scores[rows, columns // 6].sum()
    assert (gates * scores).sum() == pytest.approx(best, abs=24 * 1e-3)
    assert ((gates > 0).sum(1) == 1).mean() > 0.8


def test_offsets_do_not_matter(backend):
    """A constant added to all scores of a token, or of an expert, changes nothing."""
    scores = scores_of(3, 60, 5)
    rng = np.random.default_rng(0)
    moved = scores + rng.standard_normal((60, 1)) + rng.standard_normal(5)
    one, other = (route(s, 60, backend=backend).gates() for s in (scores, moved))
    np.testing.assert_allclose(one, other, atol=1e-7)


def test_order_does_not_matter(backend):
    scores = scores_of(4, 60, 5)
    p = np.random.default_rng(0).permutation(60)
    one, other = (route(s, 60, backend=backend).gates() for s in (scores, scores[p]))
    np.testing.assert_allclose(one[p], other, atol=1e-7)


def test_loads(backend):
    scores, loads = scores_of(5, 40, 4), np.array([20.0, 12.0, 8.0, 0.0])
    r = route(scores, 30, tokens_per_expert=loads, backend=backend)
    np.testing.assert_allclose(r.gates().sum(0), loads, atol=1e-12)
    assert not r.dropped.any()
    part = route(scores, 30, tokens_per_expert=loads / 2, backend=backend)
    np.testing.assert_allclose(part.gates().sum(0), loads / 2, atol=1e-12)
    assert part.converged
    assert part.gates().sum(1).max() <= 1 + 1e-8
    # Those that are left over would be worth less: none of them beats what was taken.
    assert not part.tight.all()


def test_masks(backend):
    scores = scores_of(6, 50, 5)
    pairs = np.random.default_rng(0).random((50, 5)) < 0.6
    pairs[:3] = False
    r = route(scores, 20, mask=pairs, backend=backend)
    assert r.converged
    assert (r.gates()[~pairs] == 0).all()
    assert not r.dropped.any()
    assert np.isneginf(r.f[:3]).all()
    tokens = pairs.any(1)
    inner = route(scores[tokens], 20, mask=pairs[tokens], backend=backend)
    np.testing.assert_array_equal(r.gates()[tokens], inner.gates())


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_layouts_threads_and_backends(backend, dtype):
    scores = scores_of(7, 200, 12, dtype)
    before = scores.tobytes()
    # The CPU's backends agree to the bit; a GPU divides sums of its own.
    other = "cuda" if backend == "cuda" else "numba"
    expected = route(scores, 20, backend=other, warn=False).gates()
    for layout in draws.LAYOUTS:
        for threads in (1, 2):
            shown_ = draws.relayout(scores, layout)
            r = route(shown_, 20, backend=backend, n_threads=threads, warn=False)
            np.testing.assert_array_equal(r.gates(), expected)
    assert scores.tobytes() == before


def test_array_types_and_warm_start():
    torch = pytest.importorskip("torch")
    scores = scores_of(8, 64, 8)
    r = route(scores, 64)
    assert route(scores, 64, warm_start=r).iterations == 0
    assert route(scores, 64, warm_start=r.f).iterations == 0
    t = route(torch.from_numpy(scores), 64, mask=torch.ones(64, dtype=torch.bool))
    for name in ("tokens", "weights", "counts", "dropped", "tight", "f"):
        assert isinstance(getattr(t, name), torch.Tensor)
        np.testing.assert_array_equal(getattr(t, name).numpy(), getattr(r, name))
    assert isinstance(t.gates(), torch.Tensor)
    assert all(isinstance(x, torch.Tensor) for x in t.experts())


def test_few_iterations_say_so(backend):
    scores = scores_of(9, 100, 10)
    with pytest.warns(qd.ConvergenceWarning, match="marginal error of .* max_iter"):
        r = route(scores, 100, max_iter=1, reg=1e-3, backend=backend)
    assert not r.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        route(scores, 100, max_iter=1, reg=1e-3, warn=False, backend=backend)


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [40, 4])
def test_vjp_is_the_derivative(backend, capacity):
    """With room for all, and with too little, where tokens that keep some of their mass count."""
    scores = scores_of(10, 40, 5)
    rng = np.random.default_rng(0)
    G, direction = rng.standard_normal((2, 40, 5))
    # What competes for the last place must not change: only what was chosen is allowed.
    chosen = route(scores, capacity, reg=2.0, backend=backend).gates() > 0
    if capacity == 40:
        chosen[:] = True
    options = {"reg": 2.0, "mask": chosen, "tol": 1e-13, "backend": backend}
    options["tokens_per_expert"] = np.full(5, 8.0 if capacity == 40 else 3.0)

    def gates(t):
        return route(scores + t * direction, capacity, **options).gates()

    expected = (G * (gates(1e-5) - gates(-1e-5))).sum() / 2e-5
    r = route(scores, capacity, **options)
    assert (r.vjp(G) * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_vjp_with_fixed_potentials(backend):
    """Column by column: the derivative of a projection onto a simplex."""
    scores, reg = scores_of(11, 30, 4), 1.5
    G = np.random.default_rng(1).standard_normal(scores.shape)
    r = route(scores, 10, reg=reg, backend=backend)
    expected = np.zeros_like(scores)
    for j in range(4):
        i = r.tokens[j][r.tokens[j] >= 0]
        expected[i, j] = (G[i, j] - G[i, j].mean()) / reg
    np.testing.assert_allclose(r.vjp(G, potentials="fixed"), expected, atol=1e-12)
    assert np.abs(r.vjp(G).sum(1)).max() < 1e-12
    assert np.abs(r.vjp(G).sum(0)).max() < 1e-12


# ---- bad input -----------------------------------------------------------------------------------

S = scores_of(0, 6, 3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("capacity", x) for x in SIZES),
        *(("reg", x) for x in POSITIVE),
        *(("max_iter", x) for x in SIZES),
        *(("tol", x) for x in (-1.0, NAN, INF, "small")),
        ("method", "auto"),
        ("repair", 2),
        ("warn", None),
        ("warm_start", np.zeros(3)),
        ("warm_start", np.full(6, NAN)),
        ("mask", np.ones(6)),
        ("mask", np.ones(3, bool)),
        ("mask", np.ones((3, 6), bool)),
        ("mask", np.zeros(6, bool)),
        ("mask", np.array([[True, True, False]] * 6)),
        ("tokens_per_expert", np.ones(2)),
        ("tokens_per_expert", np.array([1.0, -1.0, 1.0])),
        ("tokens_per_expert", np.array([1.0, NAN, 1.0])),
        ("tokens_per_expert", np.zeros(3)),
        ("tokens_per_expert", np.array([2.0, 2.0, 2.1])),
        ("tokens_per_expert", np.array([0.0, 0.0, 5.0])),
        ("tokens_per_expert", np.ones(3, int)),
        *EXECUTION,
    ],
    ids=shown,
)
def test_options(option, value):
    good = {"scores": S, "capacity": 4}
    assert_refused(option, lambda: route(**(good | {option: value})), state=S.tobytes)


@pytest.mark.parametrize("kind", [k for k in ARRAYS if k not in ("one entry less",)])
def test_scores(kind):
    spoil, error = ARRAYS[kind]
    bad = spoil(S)
    assert_refused("scores", lambda: route(bad, 4), error)


def test_more_bad_input():
    assert_refused("scores", lambda: route(np.ones((0, 3)), 4), ValueError)
    r = route(S, 6)
    assert_refused("gates", lambda: r.vjp(S.T), ValueError)
    assert_refused("gates", lambda: r.vjp(np.full(S.shape, NAN)), ValueError)
    assert_refused("potentials", lambda: r.vjp(S, potentials="free"), ValueError)
