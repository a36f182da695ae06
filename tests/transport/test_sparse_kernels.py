"""The raw kernels on a list of entries: iterations, and the direction of Newton's method."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.transport import oracle
from tests.transport.problems import EPS, Problem, kernel, make, problems

INF = float("inf")


def listed(p):
    """Return the pairs of a stored problem that are not forbidden, as the kernels take them."""
    open_ = np.isfinite(p.exact)
    rows, columns = np.nonzero(open_)
    indptr = np.searchsorted(rows, np.arange(p.shape[0] + 1)).astype(np.int64)
    return indptr, columns.astype(np.int32), p.exact[open_].astype(float)


def stored64(p):
    """Return the problem as the list has it: costs and arithmetic in float64."""
    args = (p.args[0].astype(float), None, None, 0)
    return Problem(args, p.exact, p.a, p.b, p.reg, p.rng, p.parameters)


def sparse_sinkhorn(p, f, g, backend, *, omega=1.0, tol=-1.0, count=1, values=True, threads=1):
    entries = listed(p)
    f, g, errors = np.array(f), np.array(g), np.full(count, -7.0)
    out = np.full(len(entries[2]), -7.0) if values else None
    columns = np.full(len(g), -7.0)
    kernel("sparse_sinkhorn", backend)(
        *entries, p.a, p.b, p.reg, omega, tol, count, f, g, errors, out, columns, threads
    )
    return f, g, errors, out, columns


closed = problems(sources=("stored",), types=(np.float64,))


@given(p=closed, state=st.sampled_from(["zero", "near"]), omega=st.sampled_from([1.0, 1.7]))
def test_one_iteration(backend, p, state, omega):
    """As on the dense plan, of which the entries that are not listed are zero."""
    n, m = p.shape
    f, g = p.potentials(state)
    step = oracle.iterate(p.exact, p.a, p.b, p.reg, f, g, omega=omega)
    found = sparse_sinkhorn(p, f, g, backend, omega=omega)
    # Rows that are scaled add the error of their potential to that of the entries.
    entries = p.entry_error(step.f, g).max() + p.entry_error(f, g).max() + (n + 8 * m) * EPS
    moved = np.abs(step.f).max() + np.abs(step.g).max() + np.abs(f).max() + np.abs(g).max()
    limit = omega * p.reg * entries + 8 * EPS * moved
    rounding = 4 * (limit / p.reg + entries) * (step.rows.sum() + step.columns.sum())
    if (step.first < 1e-290).any() or (step.columns < 1e-290).any() or step.error > 1e290:
        return  # test_underflow
    assert_within(found[0], step.f, limit, "f")
    assert_within(found[1], step.g, 3 * limit, "g")
    assert_within(found[2][0], step.error, rounding, "error")


@given(p=closed)
def test_values(backend, p):
    """One iteration with tol = inf: exact rows, g untouched, the plan and its column sums."""
    f, g = p.potentials("near")
    new, same, errors, values, columns = sparse_sinkhorn(p, f, g, backend, tol=INF)
    np.testing.assert_array_equal(same, g)
    exact = p.plan(new, g)
    bound = (p.entry_error(f, g) + p.entry_error(new, g) + sum(p.shape) * EPS) * exact + p.tiny
    at = np.isfinite(p.exact)
    assert_within(values, exact[at], bound[at], "values")
    assert_within(columns, exact.sum(0), bound.sum(0), "columns")
    indptr = listed(p)[0]
    sums = np.array([values[i:j].sum() for i, j in itertools.pairwise(indptr)])
    assert_within(sums, p.a, (4 + 2 * p.shape[1]) * EPS * p.a + bound.sum(1), "rows")
    assert_within(
        errors[0], np.abs(exact.sum(0) - p.b).sum(), 2 * bound.sum() + 4 * sum(p.shape) * EPS
    )


def test_values_belong_to_the_last_iteration(backend):
    p = make(12, 15, forbidden=0.4)
    start = p.potentials("zero")
    f, g, errors, values, columns = sparse_sinkhorn(p, *start, backend, count=6)
    _, g_before, *_ = sparse_sinkhorn(p, *start, backend, count=5)
    at = np.isfinite(p.exact)
    exact = p.plan(f, g_before)
    bound = (2 * p.entry_error(f, g) + 60 * EPS) * exact
    assert_within(values, exact[at], bound[at])
    assert_within(columns, exact.sum(0), bound.sum(0))
    without = sparse_sinkhorn(p, *start, backend, count=6, values=False)
    for x, y in zip((f, g, errors), without, strict=False):
        np.testing.assert_array_equal(x, y)


def test_stopping(backend):
    p = make(12, 15, forbidden=0.4)
    start = p.potentials("zero")
    errors = sparse_sinkhorn(p, *start, backend, count=10)[2]
    assert np.isfinite(errors).all()
    f, g, found, *_ = sparse_sinkhorn(p, *start, backend, count=10, tol=errors[4])
    np.testing.assert_array_equal(found[:5], errors[:5])
    assert np.isnan(found[5:]).all()
    true = oracle.marginal_error(p.exact, p.a, p.b, p.reg, f, g)
    assert_within(errors[4], true, 4 * p.entry_error(f, g).max() + 64 * EPS)


def test_underflow(backend):
    """Rows and columns whose sums are out of range from where one starts."""
    p = make(8, 9, forbidden=0.3)
    for offset in (-3000.0, 3000.0):
        f, g = np.full(8, offset * p.reg), np.zeros(9)
        g[4] = -2000 * p.reg
        step = oracle.iterate(p.exact, p.a, p.b, p.reg, f, g)
        found = sparse_sinkhorn(p, f, g, backend)
        limit = 4 * p.reg * (p.entry_error(f, g).max() + 64 * EPS)
        assert_within(found[0], step.f, limit)
        assert_within(found[1], step.g, limit)


@pytest.mark.parametrize("shape", [(1, 1), (200, 9), (9, 200), (120, 130)])
def test_threads(backend, shape):
    """Not a bit."""
    p = make(*shape, forbidden=0.5)
    first = sparse_sinkhorn(p, *p.potentials("zero"), backend, count=4)
    for threads in (2, 3):
        again = sparse_sinkhorn(p, *p.potentials("zero"), backend, count=4, threads=threads)
        for x, y in zip(again, first, strict=True):
            np.testing.assert_array_equal(x, y)


# ---- Newton --------------------------------------------------------------------------------------


def newton(p, backend, *, shift=1e-3, drop=0.0, tol=1e-10, max_iter=500, threads=1):
    """Return what the kernel makes of the plan that is exact in its rows, and its arguments."""
    _f, _g, _, values, columns = sparse_sinkhorn(p, *p.potentials("near"), backend, tol=INF)
    indptr, indices, _ = listed(p)
    gradient, direction = p.b - columns, np.full(len(p.b), -7.0)
    gradient -= gradient.mean()  # the rows of S sum to a: its null vector is 1
    told = kernel("newton_direction", backend)(
        indptr,
        indices,
        values,
        p.a,
        columns,
        gradient,
        shift,
        drop,
        tol,
        max_iter,
        direction,
        threads,
    )
    dense = np.zeros(p.shape, np.longdouble)
    dense[np.isfinite(p.exact)] = values
    return told, direction, dense, columns, gradient


def kept_entries(dense, kept):
    """Return the matrix with its `kept` largest entries, and the sum of the others."""
    flat = np.sort(dense[dense > 0])[::-1]
    if kept >= len(flat):
        return dense, np.longdouble(0)
    least = flat[kept - 1] if kept else np.inf
    return np.where(dense >= least, dense, 0), flat[kept:].sum()


@given(
    p=problems(sources=("stored",), types=(np.float64,), max_columns=50),
    log_shift=st.sampled_from([-6, -2, 0]),
    drop=st.sampled_from([0.0, 1e-6, 1e-2]),
    log_tol=st.sampled_from([-1, -4, -8]),
)
def test_direction(backend, p, log_shift, drop, log_tol):
    """The equations hold to the tolerance, with the matrix that the dropped entries leave."""
    shift, tol = 10.0**log_shift, 10.0**log_tol
    told, d, dense, columns, gradient = newton(p, backend, shift=shift, drop=drop, tol=tol)
    iterations, kept, dropped, residual, predicted = told
    s, rest = kept_entries(dense, kept)
    assert 0 <= dropped <= drop
    # A GPU adds up 35 bits of what it drops, as whole numbers.
    lost = 2.0**-34 * rest if backend == "cuda" else 0.0
    assert_within(dropped, rest, 4 * dense.size * EPS * max(drop, EPS) + lost)
    if drop == 0:
        assert kept == np.isfinite(p.exact).sum() or rest == 0
    plain = np.diag(wide(columns)) - s.T @ (s / wide(p.a)[:, None])
    matrix = plain + shift * np.diag(wide(columns))
    norm = np.sqrt((wide(gradient) ** 2).sum())
    if norm == 0:
        assert (d == 0).all()
        return
    assert np.isfinite(d).all()
    # Both parts of the matrix are rounded by themselves: a product with S has n + m additions.
    parts = np.diag(columns) + s.T @ (s / p.a[:, None])
    drift = 4 * (iterations + 1) * sum(p.shape) * EPS * (parts @ np.abs(d)).max()
    left = np.sqrt(((gradient - matrix @ d) ** 2).sum())
    if iterations < 500:
        assert left <= tol * norm + drift * np.sqrt(len(d))
    size = np.abs(gradient) @ np.abs(d) + np.abs(d) @ parts @ np.abs(d)
    assert_within(predicted, gradient @ d - d @ plain @ d / 2, 4 * sum(p.shape) * EPS * size)
    assert_within(residual, left / norm, (drift * np.sqrt(len(d)) + EPS * norm) / norm)


def test_iterations_are_limited(backend):
    p = make(60, 70, log_reg=-1.5)
    told, d, *_ = newton(p, backend, shift=1e-6, tol=1e-12, max_iter=3)
    assert told[0] == 3
    assert told[3] > 1e-12
    assert np.isfinite(d).all()


def test_nothing_to_do(backend):
    p = make(6, 7)
    direction = np.full(7, -7.0)
    indptr, indices, _ = listed(p)
    told = kernel("newton_direction", backend)(
        indptr, indices, np.full(42, 1 / 42), np.full(6, 1 / 6), np.full(7, 1 / 7), np.zeros(7),
        0.1, 0.0, 0.1, 100, direction, 1,
    )  # fmt: skip
    assert told[0] == 0
    assert told[4] == 0
    assert (direction == 0).all()


@pytest.mark.parametrize("shape", [(200, 9), (9, 200), (120, 130)])
def test_newton_does_not_depend_on_threads(backend, shape):
    p = make(*shape, forbidden=0.5)
    told, d, *_ = newton(p, backend, drop=1e-4)
    for threads in (2, 3):
        again, other, *_ = newton(p, backend, drop=1e-4, threads=threads)
        assert again == told
        np.testing.assert_array_equal(other, d)
