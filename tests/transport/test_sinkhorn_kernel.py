"""The raw kernel of one-pass iterations: against one naive iteration from the same potentials."""

import numpy as np
import pytest
from hypothesis import example, given, target
from hypothesis import strategies as st

from tests import strategies as draws
from tests.bounds import assert_within
from tests.transport import oracle
from tests.transport.problems import EPS, SOURCES, kernel, make, problems, rho_of

states = st.sampled_from(["zero", "near", "far"])
thetas = st.sampled_from([1.0, 1.0, 0.999, 0.5, 0.05])


def run(
    args, a, b, reg, f, g, backend, *, theta=(1.0, 1.0), omega=1.0, tol=-1.0, count=1, threads=1
):
    """Iterate a batch; return f, g and errors, the arguments untouched."""
    f, g = (np.array(v, dtype=float, ndmin=2) for v in (f, g))
    a, b = (np.array(v, dtype=float, ndmin=2) for v in (a, b))
    errors, relaxed = np.full((len(f), count), -7.0), np.full(len(f), float(omega))
    kernel("sinkhorn", backend)(
        *args, a, b, reg, *theta, relaxed, tol, count, f, g, errors, threads
    )
    return f, g, errors


def one(p, f, g, backend, **options):
    return [out[0] for out in run(p.batch, p.a, p.b, p.reg, f, g, backend, **options)]


def step_bounds(p, f, g, step, theta, omega):
    """How far f, g and the error may be from those of the naive step.

    A sum of n positive numbers adds n eps to the error of its terms, and loses what is below the
    smallest normal number. A relative error r of a sum moves a potential by reg omega theta r, and
    a potential that is off by d makes entries wrong by d / reg.
    """
    n, m = p.shape
    entries, z = p.entry_error(f, g), oracle.exponents(p.exact, f, g, p.reg)
    shares = np.exp(z - oracle.log_sum(z, 1)[:, None])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lost = np.where(step.first >= p.tiny, m * p.tiny / step.first, 0)
        row = (shares * entries).sum(1) + m * p.eps + lost
        moved = np.abs(step.f - f)
        df = p.reg * omega * theta[0] * (row + 4 * EPS) + 8 * EPS * (
            np.abs(f) + np.abs(step.f) + moved
        )
        weight = np.exp((step.f - f) / p.reg)
        after = p.plan(step.f, g)
        wrong = entries + (df / p.reg + 4 * p.eps + 4 * EPS * moved / p.reg)[:, None]
        column = (
            (after * wrong).sum(0) / step.columns
            + n * p.eps
            + (weight * p.tiny).sum() / step.columns
        )
        column = np.where(column < 0.1, column, np.inf)  # so much underflowed that nothing is said
        dg = p.reg * omega * theta[1] * (column + 4 * EPS)
        dg = dg + 8 * EPS * (np.abs(g) + np.abs(step.g) + np.abs(step.g - g))
        off = (after * wrong).sum(1) + step.rows * (m * p.eps + lost)
        total = step.rows.sum() + step.columns.sum() + p.a.sum() + p.b.sum()
        error = off.sum() + (step.columns * column).sum() + (n + m) * EPS * total
        for t, mass, v, dv in ((theta[0], p.a, step.f, df), (theta[1], p.b, g, 0)):
            rho = rho_of(t, p.reg)
            if t < 1:
                error += (
                    oracle.target(mass, v, rho) * (dv / rho + 4 * EPS * (1 + np.abs(v) / rho))
                ).sum()
    return df, dg, error


@given(
    p=problems(),
    layout=draws.layouts,
    state=states,
    theta=st.tuples(thetas, thetas),
    omega=st.sampled_from([1.0, 1.0, 1.5, 1.9]),
)
# The row's weight of 2^34 lifts an entry next to the smallest numbers to where sums look sound.
@example(
    p=make(1, 29, source="euclidean", dtype=np.float32, log_reg=-0.71875, mass="uniform", seed=170),
    layout="C",
    state="far",
    theta=(0.5, 1.0),
    omega=1.0,
)
def test_one_iteration(backend, p, layout, state, theta, omega):
    f, g = p.potentials(state)
    shown = p.relayout(layout)
    arrays = [draws.whole(x) for x in shown.args[:3] if x is not None]
    before = [x.tobytes() for x in arrays]
    rho = tuple(rho_of(t, p.reg) for t in theta)
    with np.errstate(over="ignore"):
        step = oracle.iterate(p.exact, p.a, p.b, p.reg, f, g, rho=rho, omega=omega)
        df, dg, de = step_bounds(p, f, g, step, theta, omega)
    found = one(shown, f, g, backend, theta=theta, omega=omega)
    if not step.error < 1e30:
        return  # sums next to overflow: the run may end there, as test_divergence_is_seen has it
    assert np.isfinite(found[0]).all()
    used = assert_within(found[0], step.f, df, "f")
    if np.isfinite(de):
        used = max(used, assert_within(found[2][0], step.error, de, "error"))
    used = max(used, assert_within(found[1], step.g, dg, "g"))
    target(float(used))
    assert [x.tobytes() for x in arrays] == before


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_many_iterations(backend, source, dtype):
    """They end where the longdouble iterations end.

    Each update is a contraction in the largest norm, so errors of single iterations add up at
    worst; and the error that is reported is that of the potentials that come back.
    """
    p = make(30, 41, source=source, dtype=dtype, log_reg=-1.0)
    f, g, errors = one(p, *p.potentials("zero"), backend, tol=1e-12, count=100)
    made = int(np.isfinite(errors).sum())
    expected = (np.zeros(30), np.zeros(41))
    limit = 0.0
    for _ in range(made):
        step = oracle.iterate(p.exact, p.a, p.b, p.reg, *expected)
        df, dg, _ = step_bounds(p, *expected, step, (1.0, 1.0), 1.0)
        limit += float(max(df.max(), dg.max()))
        last, expected = expected, (step.f, step.g)
    stopped = errors[made - 1] <= 1e-12
    assert_within(f, step.f, limit, "f")
    assert_within(g, last[1] if stopped else step.g, limit, "g")
    if stopped:
        true = oracle.marginal_error(p.exact, p.a, p.b, p.reg, f, g)
        # Both sums, of entries that are off by entry_error, and of n + m roundings.
        sums = 2 * (p.plan(f, g) * (p.entry_error(f, g) + (30 + 41) * p.eps)).sum()
        assert_within(errors[made - 1], true, sums, "reported error")


@pytest.mark.parametrize("source", SOURCES)
def test_stopping(backend, source):
    """At the first error of at most tol; g is left as it was, so that the error is that of f, g."""
    p = make(20, 33, source=source, log_reg=-0.5)
    start = p.potentials("zero")
    _, _, errors = one(p, *start, backend, count=12)
    assert np.isfinite(errors).all()
    assert (np.diff(errors) < 0).all()
    for k in (0, 1, 5, 11):
        f, g, found = one(p, *start, backend, tol=errors[k], count=12)
        np.testing.assert_array_equal(found[: k + 1], errors[: k + 1])
        assert np.isnan(found[k + 1 :]).all()
        f_k, g_k = start
        for _ in range(k + 1):
            g_before = g_k
            f_k, g_k, _ = one(p, f_k, g_k, backend)
        near = 64 * (k + 1) * EPS * p.scale * (1 + p.scale / p.reg)
        assert_within(f, f_k, near)
        assert_within(g, g_before, near)
        if k == 0:
            np.testing.assert_array_equal(g, start[1])


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_pieces_of_a_run(backend, count, dtype):
    """A run is the same in one call and in several, but for roundings of the potentials."""
    p = make(17, 50, dtype=dtype)
    f, g, errors = one(p, *p.potentials("zero"), backend, count=14)
    f_n, g_n = p.potentials("zero")
    pieces = []
    for _ in range(14 // count):
        f_n, g_n, e = one(p, f_n, g_n, backend, count=count)
        pieces.append(e)
    limit = 14 * p.reg * (p.entry_error(f, g).max() + 50 * p.eps)
    assert_within(f_n, f, limit)
    assert_within(g_n, g, limit)
    assert_within(np.concatenate(pieces), errors, 4 * limit / p.reg)


# ---- what does not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (130, 257), (64, 64)])
def test_layouts_and_threads(backend, shape, dtype):
    """Threads change not a bit, and layouts only the order of sums."""
    p = make(*shape, dtype=dtype, forbidden=0.2)
    start = p.potentials("far")
    entries = [p.entry_error(*v).max() for v in (start, p.potentials("near"))]
    limit = 5 * 4 * (sum(entries) + sum(shape) * p.eps)
    default = one(p, *start, backend, count=5)
    for layout in draws.LAYOUTS:
        first = one(p.relayout(layout), *start, backend, count=5)
        assert_within(first[0], default[0], limit * p.reg)
        assert_within(first[1], default[1], limit * p.reg)
        assert_within(first[2], default[2], 4 * limit)
        for threads in (2, 3):
            again = one(p.relayout(layout), *start, backend, count=5, threads=threads)
            for x, y in zip(again, first, strict=True):
                np.testing.assert_array_equal(x, y, err_msg=f"{layout}, {threads} threads")


@pytest.mark.parametrize("source", SOURCES[1:])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_threads_with_points(backend, source, d):
    p = make(70, 300, source=source, dtype=np.float32, d=d)
    first = one(p, *p.potentials("zero"), backend, count=4)
    for threads in (2, 3):
        again = one(p, *p.potentials("zero"), backend, count=4, threads=threads)
        for x, y in zip(again, first, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_equal_singles(backend, source, threads):
    """Each problem stops by itself, has its own omega, and may be anywhere in memory."""
    many = [make(9, 21, source=source, seed=k, log_reg=-0.5) for k in range(5)]
    reg = many[0].reg
    arrays = [
        None if x is None else np.stack([p.args[i] for p in many])
        for i, x in enumerate(many[0].args[:3])
    ]
    a, b = np.stack([p.a for p in many]), np.stack([p.b for p in many])
    omega = np.array([1.0, 1.1, 1.2, 1.0, 1.3])
    f, g, errors = np.zeros((5, 9)), np.zeros((5, 21)), np.zeros((5, 40))
    kernel("sinkhorn", backend)(
        *arrays, many[0].args[3], a, b, reg, 1.0, 1.0, omega, 1e-4, 40, f, g, errors, threads
    )
    made = np.isfinite(errors).sum(1)
    assert len(set(made)) > 1
    for k, p in enumerate(many):
        single = run(
            p.batch,
            p.a,
            p.b,
            reg,
            np.zeros(9),
            np.zeros(21),
            backend,
            omega=omega[k],
            tol=1e-4,
            count=40,
        )
        # But for the order of sums: each update is 1.6-Lipschitz at most, twice an iteration.
        limit = 1.6 ** (2 * made[k]) * (made[k] + 1) * 64 * EPS * (1 + p.scale / reg)
        for x, y, size in zip((f, g, errors), single, (reg, reg, 4.0), strict=True):
            np.testing.assert_array_equal(np.isnan(x[k]), np.isnan(y[0]))
            there = np.isfinite(x[k])
            assert_within(x[k][there], y[0][there], size * limit)


# ---- extremes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("offset", [-1e5, -2000.0, 2000.0, 1e5])
def test_sums_beyond_the_range(backend, dtype, offset):
    """Potentials whose exponentials all under- or overflow: the first sweep is shifted."""
    p = make(6, 40, dtype=dtype, log_reg=0.0)
    start = np.full(6, offset * p.reg), np.zeros(40)
    step = oracle.iterate(p.exact, p.a, p.b, p.reg, *start)
    f, g, errors = one(p, *start, backend)
    # The shift itself is rounded: with |f| as it is.
    limit = p.reg * (p.entry_error(*start).max() + 40 * p.eps)
    assert_within(f, step.f, limit)
    assert_within(g, step.g, 3 * limit)
    assert_within(errors[0], step.error, 3 * 2 * limit / p.reg)


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_columns_that_underflow(backend, dtype):
    """A column that is far from every row gets a log-sum-exp of its own."""
    p = make(20, 30, dtype=dtype, log_reg=0.0)
    g = np.zeros(30)
    g[[0, 7, 29]] = -5000 * p.reg
    step = oracle.iterate(p.exact, p.a, p.b, p.reg, np.zeros(20), g)
    f, new, errors = one(p, np.zeros(20), g, backend)
    limit = p.reg * (p.entry_error(np.zeros(20), g).max() + 50 * p.eps)
    assert_within(f, step.f, limit)
    assert_within(new, step.g, 3 * limit)
    assert_within(errors[0], step.error, 6 * limit / p.reg)


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_small_reg(backend, dtype):
    """reg = 1e-4 of the scale: every entry of the first sweep but the smallest of a row is 0."""
    p = make(40, 40, dtype=dtype, log_reg=-4)
    f, g, errors = one(p, *p.potentials("zero"), backend, count=50)
    assert np.isfinite(errors).all()
    assert np.isfinite(f).all()
    assert np.isfinite(g).all()
    true = oracle.iterate(p.exact, p.a, p.b, p.reg, f, g)
    again = one(p, f, g, backend)
    assert_within(again[2][0], true.error, float(step_bounds(p, f, g, true, (1.0, 1.0), 1.0)[2]))


def test_forbidden_pairs(backend):
    """They are not transported to, whatever the potentials."""
    p = make(9, 9, forbidden=0.9)
    closed = np.isinf(p.exact)
    assert closed.any()
    f, g, _errors = one(p, *p.potentials("zero"), backend, count=300, tol=1e-10)
    assert np.isfinite(f).all()
    assert np.isfinite(g).all()
    assert (p.plan(f, g)[closed] == 0).all()


@pytest.mark.parametrize("side", ["row", "column"])
def test_infeasible(backend, side):
    """A row or column without a pair: infinite error, and no iteration after it."""
    p = make(5, 6)
    cost = p.args[0].copy()
    cost[(2, slice(None)) if side == "row" else (slice(None), 2)] = np.inf
    _f, _g, errors = run(
        (cost[None], None, None, 0), p.a, p.b, p.reg, np.zeros(5), np.zeros(6), backend, count=4
    )
    assert errors[0, 0] == np.inf
    assert np.isnan(errors[0, 1:]).all()


def test_divergence_is_seen(backend):
    """Over-relaxation with a factor above 2 diverges: the run ends with an infinite error."""
    p = make(12, 12, log_reg=-1.5)
    _f, _g, errors = one(p, *p.potentials("zero"), backend, omega=2.9, count=4000)
    at = int(np.argmax(~np.isfinite(errors[0] if errors.ndim > 1 else errors)))
    assert errors[at] == np.inf
    assert np.isnan(errors[at + 1 :]).all()
