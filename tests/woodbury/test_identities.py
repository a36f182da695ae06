"""woodbury_solve and sherman_morrison, with their determinants."""

import numpy as np
import pytest
from hypothesis import assume, given, target
from hypothesis import strategies as st

import quadric as qd
from quadric.woodbury import sherman_morrison, woodbury_solve
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import inverse, slogdet, solve, wide
from tests.woodbury.problems import EPS


def dense(d, u, c):
    return np.diag(wide(d)) + wide(u) @ wide(c) @ wide(u).T


def solution_error(d, u, c, x, y, eps):
    """Bound y and log |det| of the identity computed in float64 and rounded to `eps`.

    z = S^-1 r with r = C U^T D^-1 x and S = I + C U^T D^-1 U: inner products of n and k terms, and
    an LU factorization of order k with pivoting, whose growth is far below k^2.
    """
    n, k = u.shape
    d, u, c, x = (np.asarray(a, float) for a in (d, u, c, x))
    scaled = np.abs(u).T / np.abs(d)
    s = np.eye(k) + c @ (u.T / d) @ u
    terms = np.eye(k) + np.abs(c) @ scaled @ np.abs(u)
    inverted = np.abs(np.linalg.inv(s))
    z = np.abs(np.linalg.solve(s, c @ (u.T / d) @ x))
    roundings = (n + 8 * k**2 + 8) * EPS
    wrong = inverted @ (np.abs(c) @ scaled @ np.abs(x) + terms @ z)
    y_error = 2 * roundings * (np.abs(u) @ (wrong + z) + np.abs(x)) / np.abs(d)
    log_error = 2 * roundings * ((inverted * terms.T).sum() + np.abs(np.log(np.abs(d))).sum() + k)
    return y_error + eps * np.abs(y.astype(float)), log_error


@st.composite
def systems(draw: st.DrawFn):
    """Draw D (either sign), U, C (any: singular, indefinite, not symmetric) and x."""
    n, k = draw(draws.sizes(50)), draw(st.integers(1, 6))
    dtype = draw(draws.dtypes)
    rng = np.random.default_rng(draw(draws.seeds))
    d = rng.uniform(0.5, 2.0, n) * 10.0 ** draw(st.integers(-2, 2))
    if draw(st.booleans()):
        d *= rng.choice([-1.0, 1.0], n)
    c = rng.standard_normal((k, k))
    kind = draw(st.sampled_from(["any", "definite", "symmetric", "singular"]))
    if kind == "definite":
        c = c @ c.T
    if kind == "symmetric":
        c = c + c.T
    if kind == "singular":
        c[-1] = 0.0
    arrays = d, rng.standard_normal((n, k)), c, rng.standard_normal((draw(st.integers(1, 3)), n))
    return tuple(a.astype(dtype) for a in arrays)


@given(system=systems(), layout=draws.layouts, one=st.booleans())
def test_woodbury_solve(system, layout, one):
    d, u, c, x = system
    a = dense(d, u, c)
    assume(np.linalg.cond(a.astype(float)) < 1e8)
    x = x[:1] if one else x
    shown = [draws.relayout(part, layout) for part in (d[None], u, c, x)]
    before = [draws.whole(part).tobytes() for part in shown]
    result = woodbury_solve(shown[0][0], shown[1], shown[2], shown[3][0] if one else shown[3])
    found = result.x[None] if one else result.x
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    exact = solve(a, x.T).T
    sign, log = slogdet(a)
    used = 0.0
    for y, side, right in zip(found, exact, x, strict=True):
        limit, log_limit = solution_error(d, u, c, right, side, float(np.finfo(x.dtype).eps))
        used = max(used, assert_within(y, side, limit, "solution"))
    target(max(used, assert_within(result.logdet, log, log_limit, "logdet")))
    assert result.sign == sign
    assert isinstance(result.logdet, float)
    assert [draws.whole(part).tobytes() for part in shown] == before


@pytest.mark.parametrize("diagonal", [2.0, -0.5, 3])
def test_a_number_is_a_diagonal(diagonal):
    rng = np.random.default_rng(0)
    u, c, x = rng.standard_normal((9, 2)), rng.standard_normal((2, 2)), rng.standard_normal(9)
    a, b = (woodbury_solve(d, u, c, x) for d in (diagonal, np.full(9, float(diagonal))))
    np.testing.assert_array_equal(a.x, b.x)
    assert (a.logdet, a.sign) == (b.logdet, b.sign)
    sign, log = np.linalg.slogdet(diagonal * np.eye(9) + u @ c @ u.T)
    assert a.sign == sign
    assert_within(a.logdet, log, 1e3 * EPS * max(1.0, abs(log)))


def test_many_rows():
    """More than one slab; the determinant is far outside the range of any type."""
    rng = np.random.default_rng(1)
    n = 300_000
    u = rng.integers(-2, 3, (n, 2)).astype(np.float32)
    x = rng.integers(-8, 9, n).astype(np.float32)
    result = woodbury_solve(4.0, u, np.eye(2, dtype=np.float32), x)
    wide_u = u.astype(float)
    s = np.eye(2) + wide_u.T @ wide_u / 4
    expected = (x - wide_u @ np.linalg.solve(s, wide_u.T @ x / 4)) / 4
    assert_within(result.x, expected, np.finfo(np.float32).eps * (np.abs(expected) + 1e-6))
    log = n * np.log(4.0) + np.linalg.slogdet(s)[1]
    assert_within(result.logdet, log, n * EPS * log)
    assert result.sign == 1.0


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_signs(n):
    """Negative entries of D, of the pivots of S, and row exchanges."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        d = rng.choice([-1.0, 1.0], n)
        u, c = rng.standard_normal((n, 3)), rng.standard_normal((3, 3))
        sign = np.linalg.slogdet(dense(d, u, c).astype(float))[0]
        assert woodbury_solve(d, u, c, np.ones(n)).sign == sign


def test_singular():
    u, x = np.array([[1.0], [0.0]]), np.ones(2)
    with pytest.raises(qd.LinAlgError, match="singular"):
        woodbury_solve(1.0, u, np.array([[-1.0]]), x)
    with pytest.raises(qd.LinAlgError, match="singular"):
        woodbury_solve(1.0, u, np.array([[-1.0 + 1e-16]]), x)
    with pytest.raises(qd.LinAlgError, match="singular"):
        sherman_morrison(np.eye(2), u[:, 0], weight=-1.0)
    work = np.eye(2)
    with pytest.raises(qd.LinAlgError, match="singular"):
        sherman_morrison(work, u[:, 0], weight=-1.0, out=work)
    np.testing.assert_array_equal(work, np.eye(2))


# ---- Sherman and Morrison ------------------------------------------------------------------------


def update_error(j, u, v, weight, exact, eps):
    """Bound J - weight (J u)(v^T J) / ratio in float64, rounded once; and log |ratio|."""
    j, u, v = (np.asarray(a, float) for a in (j, u, v))
    column, row = j @ u, v @ j
    ratio = abs(1 + weight * (v @ column))
    off = (len(u) + 8) * EPS
    column_off, row_off = off * np.abs(j) @ np.abs(u), off * np.abs(v) @ np.abs(j)
    ratio_off = (abs(weight) * (np.abs(v) @ column_off) + off) / ratio
    outer = np.outer(np.abs(column), np.abs(row)) * abs(weight) / ratio
    wrong = np.outer(column_off, np.abs(row)) + np.outer(np.abs(column), row_off)
    wrong = wrong * abs(weight) / ratio + (ratio_off + 8 * EPS) * outer + 4 * EPS * np.abs(j)
    return 2 * wrong + eps * np.abs(exact.astype(float)), 2 * ratio_off + 2 * EPS


@given(
    n=draws.sizes(50),
    dtype=draws.dtypes,
    form=st.sampled_from(["symmetric", "general"]),
    weight=st.sampled_from([1.0, -1.0, 0.25, -3.0, 0.0]),
    layout=draws.layouts,
    in_place=st.booleans(),
    seed=draws.seeds,
)
def test_sherman_morrison(n, dtype, form, weight, layout, in_place, seed):
    """Against the inverse of the changed matrix, and the determinants of both."""
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((2, n)).astype(dtype)
    if form == "symmetric":
        j, v = draws.spd(rng, n, "exponential", 100.0).astype(dtype), u
    else:
        j = (rng.standard_normal((n, n)) + 3 * np.eye(n)).astype(dtype)
    before_a = inverse(j)
    after_a = before_a + wide(weight) * np.outer(wide(u), wide(v))
    ratio = 1 + weight * (v.astype(float) @ j @ u)
    assume(abs(ratio) > 1e-3 and np.linalg.cond(j) < 1e4)
    work = np.ascontiguousarray(j.copy()) if in_place else draws.relayout(j, layout)
    before = draws.whole(work).tobytes(), u.tobytes(), v.tobytes()
    result = sherman_morrison(
        work,
        draws.relayout(u[None], layout)[0],
        None if form == "symmetric" else draws.relayout(v[None], layout)[0],
        weight=weight,
        out=work if in_place else None,
    )
    assert result.inverse.dtype == dtype
    if in_place:
        assert result.inverse is work
    else:
        assert (draws.whole(work).tobytes(), u.tobytes(), v.tobytes()) == before
    if form == "symmetric":
        np.testing.assert_array_equal(result.inverse, result.inverse.T)
    column, row = wide(j) @ u, wide(v) @ j
    exact = j - wide(weight) * np.outer(column, row) / (1 + weight * (v @ column))
    assert_within(exact @ after_a, np.eye(n), 1e-12)  # it is the inverse
    limit, log_limit = update_error(j, u, v, weight, exact, float(np.finfo(dtype).eps))
    target(assert_within(result.inverse, exact, limit))
    (sign, log), (sign_before, log_before) = slogdet(after_a), slogdet(before_a)
    assert_within(result.logdet, log - log_before, log_limit + 64 * EPS)
    assert result.sign == sign * sign_before


def test_update_and_downdate():
    """Adding and taking away is nothing, and so are the two determinants together."""
    rng = np.random.default_rng(2)
    j, u = draws.spd(rng, 12, "flat", 2.0), rng.standard_normal(12)
    there = sherman_morrison(j, u, weight=0.5)
    back = sherman_morrison(there.inverse, u, weight=-0.5)
    assert_within(back.inverse, j, 1e3 * EPS)
    assert_within(there.logdet + back.logdet, 0.0, 1e3 * EPS)
    assert there.sign == back.sign == 1.0


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape) for shape in ((7,), (7, 2), (2, 2), (3, 7))]
    tensors = [torch.from_numpy(a) for a in arrays]
    found = woodbury_solve(*tensors).x
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), woodbury_solve(*arrays).x)
    j = torch.eye(7, dtype=torch.float64)
    result = sherman_morrison(j, tensors[0], out=j)
    assert result.inverse is j
    np.testing.assert_array_equal(j.numpy(), sherman_morrison(np.eye(7), arrays[0]).inverse)
