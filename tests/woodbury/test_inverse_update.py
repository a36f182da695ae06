"""rank_one_inverse_update and rank_k_inverse_update: the three rules of MKOR."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.woodbury import rank_k_inverse_update, rank_one_inverse_update
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import Long, inverse, wide
from tests.woodbury import oracle
from tests.woodbury.problems import EPS

RULES = ("exact", "mkor", "published")
every_rule = pytest.mark.parametrize("rule", RULES)
decays = st.sampled_from([0.5, 0.9, 0.95, 0.99])


def inverse_factor(rng, n, dtype, log_cond=2, log_scale=0):
    """Return a symmetric positive definite J."""
    a = 10.0**log_scale * draws.spd(rng, n, "exponential", 10.0**log_cond)
    return a.astype(dtype)


def step_error(rule, j, v, decay, eps):
    """Bound each entry of one step: part(J) + coefficient(s) z z^T with z = M v and s = v.z.

    z is an inner product of n terms, s another one; the rest are a few roundings of each term.
    """
    c, j, v = decay, j.astype(float), v.astype(float)
    m = c * j + (1 - c) * np.eye(len(v)) if rule == "mkor" else j
    part = {"exact": j / c, "mkor": m, "published": c * j}[rule]
    base, slope, weight = {
        "exact": (c, 1 - c, (1 - c) / c),
        "mkor": (1.0, 1.0, 1.0),
        "published": (1.0, c * (1 - c), (1 - c) / c**2),
    }[rule]
    z, off = m @ v, (len(v) + 8) * eps * (np.abs(m) @ np.abs(v))
    pivot = base + slope * (v @ z)
    coefficient, size = weight / pivot, np.abs(z)
    wrong = coefficient * (np.outer(size, off) + np.outer(off, size))
    wrong += coefficient * slope * (np.abs(v) @ off) / pivot * np.outer(size, size)
    return 2 * wrong + 8 * eps * (np.abs(part) + coefficient * np.outer(size, size))


def sequence(rule, j, v, decay):
    """Return what the definition makes of J with the rows of v, the oldest first."""
    j = wide(j)
    for row in v:
        j = oracle.RULES[rule](j, row, decay)
    return j


def sequence_error(rule, j, v, decay, eps):
    """Bound the Frobenius norm of the error of k steps, done one by one or at once.

    With J_t the largest on the way: n-term products, |Z| <= |J_t| |V|, and pivots that are at least
    their `base`; each step passes errors on with a factor of at most (1 + |J_t| |V|^2) / decay.
    """
    c, k = decay, len(v)
    weight = {"exact": 1 - c, "mkor": 1.0, "published": (1 - c) / c**2}[rule]
    size, path = 1.0, wide(j)
    for row in v:
        size = max(size, float(np.linalg.norm(path.astype(float))))
        path = oracle.RULES[rule](path, row, c)
    size = max(size, float(np.linalg.norm(path.astype(float))))
    reach = weight * float(np.linalg.norm(v.astype(float), axis=1).max()) ** 2
    return 8 * k * (j.shape[0] + k + 8) * eps * size * (1 + size * reach) ** 2 / c**k


# ---- one step ------------------------------------------------------------------------------------


@every_rule
@given(
    n=draws.sizes(60),
    dtype=draws.dtypes,
    decay=decays,
    log_cond=st.integers(0, 4),
    log_scale=st.integers(-3, 3),
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_one_step(backend, rule, n, dtype, decay, log_cond, log_scale, layout, seed):
    rng = np.random.default_rng(seed)
    j = inverse_factor(rng, n, dtype, log_cond, log_scale)
    v = (rng.standard_normal((1, n)) * 10.0 ** rng.integers(-2, 2)).astype(dtype)
    shown_j, shown_v = draws.relayout(j, layout), draws.relayout(v, layout)[0]
    before = draws.whole(shown_j).tobytes(), draws.whole(shown_v).tobytes()
    found = rank_one_inverse_update(shown_j, shown_v, decay=decay, rule=rule, backend=backend)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, found.T)
    expected = oracle.RULES[rule](j, v[0], decay)
    eps = float(np.finfo(dtype).eps)
    target(assert_within(found, expected, step_error(rule, j, v[0], decay, eps)))
    assert (draws.whole(shown_j).tobytes(), draws.whole(shown_v).tobytes()) == before


def test_the_rules_by_hand(backend):
    """J = 1 / 2, v = 2, c = 1 / 2: see test_oracle."""
    for rule, expected in (("exact", 1 / 3), ("mkor", 3 / 16), ("published", 1 / 4 + 4 / 3)):
        found = rank_one_inverse_update(
            np.array([[0.5]]), np.array([2.0]), decay=0.5, rule=rule, backend=backend
        )
        assert_within(found, expected, 8 * EPS)


@every_rule
def test_two_hundred_steps(backend, rule):
    """The trajectories of the definitions: a real inverse, the package's blend, and the decay."""
    rng = np.random.default_rng(0)
    j = exact = np.eye(12)
    for _ in range(200):
        v = 0.3 * rng.standard_normal(12)
        j = rank_one_inverse_update(j, v, rule=rule, backend=backend)
        exact = oracle.RULES[rule](exact, v, 0.95)
    # Vectors in all directions keep J well conditioned, so that errors do not pile up.
    size = np.abs(exact).max()
    assert_within(j, exact, 200 * 12 * EPS * size)
    if rule == "published":
        assert size < 1e-2


def test_exact_steps_are_the_inverse_of_the_average(backend):
    rng = np.random.default_rng(1)
    average, j = np.eye(16, dtype=Long), np.eye(16)
    for _ in range(100):
        v = rng.standard_normal(16)
        average = oracle.factor(average, v, 0.9)
        j = rank_one_inverse_update(j, v, decay=0.9, backend=backend)
    cond = np.linalg.cond(average.astype(float))
    assert_within(j, inverse(average), 100 * 16 * EPS * cond * np.abs(j).max())


# ---- k steps -------------------------------------------------------------------------------------


@every_rule
@given(
    n=draws.sizes(40),
    k=st.integers(1, 9),
    dtype=draws.dtypes,
    decay=decays,
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_k_steps_at_once(backend, rule, n, k, dtype, decay, layout, seed):
    """One call with k rows, k calls with one row and the definition agree."""
    rng = np.random.default_rng(seed)
    j, v = inverse_factor(rng, n, dtype, 1), rng.standard_normal((k, n)).astype(dtype) / 2
    shown = draws.relayout(v, layout)
    before = draws.whole(shown).tobytes()
    options = {"decay": decay, "rule": rule, "backend": backend}
    found, steps = rank_k_inverse_update(j, shown, **options), j
    for row in v:
        steps = rank_one_inverse_update(steps, row, **options)
    np.testing.assert_array_equal(found, found.T)
    expected = sequence(rule, j, v, decay)
    limit = sequence_error(rule, j, v, decay, float(np.finfo(dtype).eps))
    target(assert_within(found, expected, limit))
    assert_within(steps, expected, limit)
    assert draws.whole(shown).tobytes() == before


@every_rule
def test_one_row_is_one_step(backend, rule):
    rng = np.random.default_rng(2)
    j, v = inverse_factor(rng, 20, float), rng.standard_normal(20)
    a = rank_one_inverse_update(j, v, rule=rule, backend=backend)
    b = rank_k_inverse_update(j, v[None], rule=rule, backend=backend)
    np.testing.assert_array_equal(a, b)


def test_more_rows_than_columns(backend):
    rng = np.random.default_rng(3)
    j, v = np.eye(5), rng.standard_normal((40, 5))
    found = rank_k_inverse_update(j, v, decay=0.9, backend=backend)
    expected = sequence("exact", j, v, 0.9)
    assert_within(found, expected, sequence_error("exact", j, v, 0.9, EPS))
    # The errors that really occur are those of the average, not of its history.
    assert_within(found, expected, 1e-9 * np.abs(expected).max())


# ---- the stabilizer ------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("blend", [0.0, 0.5, 0.9, 1.0])
def test_stabilizer(backend, rule, dtype, blend):
    """blend J + (1 - blend) I above the bound, J to the last bit below it."""
    rng = np.random.default_rng(4)
    j, v = inverse_factor(rng, 15, dtype), rng.standard_normal(15).astype(dtype)
    options = {"rule": rule, "blend": blend, "backend": backend}
    plain = rank_one_inverse_update(j, v, **options)
    norm = float(np.abs(plain.astype(float)).sum(axis=1).max())
    below = rank_one_inverse_update(j, v, norm_bound=1.001 * norm, **options)
    np.testing.assert_array_equal(below, plain)
    above = rank_one_inverse_update(j, v, norm_bound=0.999 * norm, **options)
    np.testing.assert_array_equal(above, above.T)
    expected = oracle.stabilized(wide(plain), 0.999 * norm, blend)
    assert_within(above, expected, 3 * np.finfo(dtype).eps * (np.abs(plain) + np.eye(15)))


def test_each_factor_has_its_own_norm(backend):
    js = [np.eye(3), 100 * np.eye(4), np.eye(2)]
    vs = [np.zeros(n) for n in (3, 4, 2)]
    found = rank_one_inverse_update(js, vs, decay=0.5, norm_bound=50.0, blend=0.5, backend=backend)
    for j, size in zip(found, (2.0, 200 * 0.5 + 0.5, 2.0), strict=True):
        np.testing.assert_array_equal(j, size * np.eye(len(j)))


def test_it_keeps_a_starved_factor_bounded(backend):
    """Without new directions the exact inverse grows by 1 / decay forever."""
    v = np.eye(6)[0]
    free = bound = np.eye(6)
    for _ in range(300):
        free = rank_one_inverse_update(free, v, backend=backend)
        bound = rank_one_inverse_update(bound, v, norm_bound=10.0, backend=backend)
        assert bound.max() <= 10.0  # 0.9 * 10 / 0.95 + 0.1 is below it
    assert_within(free[1, 1], 0.95**-300, 0.95**-300 * 600 * EPS)
    assert bound[1, 1] > 9.0


# ---- many factors, out, arrays -------------------------------------------------------------------


@every_rule
@given(
    shapes=st.lists(st.tuples(draws.sizes(40), st.integers(1, 5)), min_size=1, max_size=6),
    dtype=draws.dtypes,
    seed=draws.seeds,
    in_place=st.booleans(),
)
def test_many_factors(backend, rule, shapes, dtype, seed, in_place):
    """As one call for each, bit for bit, and in their own memory if asked for."""
    rng = np.random.default_rng(seed)
    js = [inverse_factor(rng, n, dtype, 1) for n, _ in shapes]
    vs = [rng.standard_normal((k, n)).astype(dtype) for n, k in shapes]
    options = {"rule": rule, "backend": backend}
    alone = [rank_k_inverse_update(j, v, **options) for j, v in zip(js, vs, strict=True)]
    before = [a.tobytes() for a in (*js, *vs)]
    if in_place:
        found = rank_k_inverse_update(js, vs, out=js, **options)
        assert found is js
    else:
        found = rank_k_inverse_update(js, vs, **options)
        assert isinstance(found, list)
        assert [a.tobytes() for a in (*js, *vs)] == before
    for a, b in zip(found, alone, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("same", [False, True])
def test_out(backend, order, same):
    rng = np.random.default_rng(5)
    j, v = inverse_factor(rng, 9, float), rng.standard_normal(9)
    expected = rank_one_inverse_update(j, v, backend=backend)
    work = np.array(j, order=order)
    out = work if same else np.full((9, 9), np.nan, order=order)
    found = rank_one_inverse_update(work, v, out=out, backend=backend)
    assert found is out
    np.testing.assert_array_equal(out, expected)
    if not same:
        np.testing.assert_array_equal(work, j)


def test_no_factors(backend):
    assert rank_one_inverse_update([], [], backend=backend) == []


@every_rule
def test_threads_change_nothing(backend, rule):
    rng = np.random.default_rng(6)
    js = [inverse_factor(rng, n, np.float32) for n in (300, 5, 130)]
    vs = [rng.standard_normal((k, len(j))).astype(np.float32) for k, j in enumerate(js, 1)]
    one, two = (
        rank_k_inverse_update(js, vs, rule=rule, backend=backend, n_threads=n) for n in (1, 2)
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_torch_in_torch_out(backend):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    j, v = inverse_factor(rng, 8, np.float32), rng.standard_normal(8).astype(np.float32)
    expected = rank_one_inverse_update(j, v, backend=backend)
    a, b = torch.from_numpy(j.copy()), torch.from_numpy(v)
    found = rank_one_inverse_update(a, b, backend=backend)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert rank_one_inverse_update([a], [b], out=[a], backend=backend)[0] is a
    np.testing.assert_array_equal(a.numpy(), expected)
