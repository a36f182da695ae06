"""The raw kernels that evaluate the plan: its entries, products with it, gradients, candidates."""

import numpy as np
import pytest
from hypothesis import assume, given, target
from hypothesis import strategies as st

from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.transport import oracle
from tests.transport.problems import EPS, SOURCES, kernel, make, problems

states = st.sampled_from(["zero", "near"])


def plan(p, f, g, backend, threads=1):
    out = np.full(p.shape, -7, p.dtype)
    kernel("plan", backend)(*p.args, f, g, p.reg, out, threads)
    return out


def apply_plan(p, f, g, v, backend, threads=1):
    n, m = p.shape
    rows, columns = np.full(n, -7.0), np.full(m, -7.0)
    out = None if v is None else np.full((n, v.shape[1]), -7.0)
    cost = kernel("apply_plan", backend)(*p.args, f, g, p.reg, v, out, rows, columns, threads)
    return out, rows, columns, cost


# ---- the exponential -----------------------------------------------------------------------------


def powers(exponents, backend):
    """Return 2^-exponents: with reg = 1 / log 2, in base 2, nothing else is rounded."""
    out = np.empty_like(exponents)
    n, m = exponents.shape
    kernel("plan", backend)(
        exponents, None, None, 0, np.zeros(n), np.zeros(m), float(np.log2(np.e)), out, 1
    )
    return out


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("reach", [0.5, 1.0, 30.0, "all"])
def test_exponential(backend, dtype, reach):
    """Within 2 ulp from the smallest normal number up to a quarter of the largest.

    A GPU's own float32 exponential is good to 2 ulp before the power of two is put in: 3 ulp.

    reg is 1 / log 2 up to half an ulp, so the oracle is told that reg; what remains is the rounding
    of the scale, of at most one eps of float64 relative to the exponent.
    """
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    low, high = (info.minexp, info.maxexp - 2) if reach == "all" else (-reach, reach)
    x = -rng.uniform(low, high, (64, 2003)).astype(dtype)
    reg = np.longdouble(float(np.log2(np.e)))
    expected = np.exp(-wide(x) / reg)
    ulp = np.spacing(expected.astype(dtype)).astype(float)
    inside = expected >= info.tiny
    slack = np.abs(x).astype(float) * EPS * expected
    ulps = 3 if backend == "cuda" and dtype == np.float32 else 2
    assert_within(powers(x, backend)[inside], expected[inside], (ulps * ulp + slack)[inside])


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_exponential_at_integers(backend, dtype):
    """Powers of two, from the smallest normal number to 1, are met to an ulp or two as well."""
    info = np.finfo(dtype)
    x = np.arange(0, -info.minexp + 1).astype(dtype)[None]
    found = powers(x, backend)[0]
    expected = np.exp2(-x.astype(float))[0]
    assert_within(found[:-1], expected[:-1], (2 * info.eps + x[0] * EPS)[:-1] * expected[:-1])
    assert found[0] == 1


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_underflow(backend, dtype):
    """What is below the smallest normal number is zero, never subnormal."""
    info = np.finfo(dtype)
    x = np.linspace(-info.minexp - 2, -info.minexp + 80, 3000).astype(dtype)[None]
    x = np.concatenate([x, 10.0 ** np.linspace(3, 30, 3000).astype(dtype)[None]])
    x[1, -1] = np.inf
    found = powers(x, backend)
    assert ((found == 0) | (found >= info.tiny)).all()
    assert (found[x > -info.minexp + 0.01] == 0).all()
    assert (found[x < -info.minexp - 0.01] > 0).all()


# ---- bounds --------------------------------------------------------------------------------------


def entry_bound(p, f, g):
    """What underflows is lost; a factor 2, as powers may be scaled after they were looked at."""
    exact = p.plan(f, g)
    return p.entry_error(f, g) * exact + 2 * p.tiny, exact


@given(p=problems(), layout=draws.layouts, state=states)
def test_plan(backend, p, layout, state):
    f, g = p.potentials(state)
    bound, exact = entry_bound(p, f, g)
    assume(exact.max() < float(np.finfo(p.dtype).max) / 4)
    shown = p.relayout(layout)
    found = plan(shown, f, g, backend)
    assert found.dtype == p.dtype
    target(assert_within(found, exact, bound))
    assert (found[np.isinf(p.exact)] == 0).all()


@given(p=problems(), layout=draws.layouts, state=states, k=st.integers(0, 3))
def test_apply_plan(backend, p, layout, state, k):
    """Products and sums of entries of the plan: their errors, and one of each addition.

    The cost of an entry may be got back from its exponent, with roundings of the size of that.
    """
    n, m = p.shape
    f, g = p.potentials(state)
    bound, exact = entry_bound(p, f, g)
    assume(exact.sum() < float(np.finfo(p.dtype).max) / 4)
    v = p.rng.standard_normal((m, k)) if k else None
    out, rows, columns, cost = apply_plan(p.relayout(layout), f, g, v, backend)
    bound = bound + (n + m + 8) * p.eps * exact
    finite = np.where(np.isfinite(p.exact), p.exact, 0)
    back = p.cost_error + 4 * p.eps * (np.abs(f)[:, None] + np.abs(g) + p.size)
    used = [
        assert_within(rows, exact.sum(1), bound.sum(1)),
        assert_within(columns, exact.sum(0), bound.sum(0)),
        assert_within(cost, (exact * finite).sum(), (bound * np.abs(finite) + exact * back).sum()),
    ]
    if k:
        used.append(assert_within(out, exact @ wide(v), bound @ np.abs(wide(v))))
    target(float(max(used)))


@given(p=problems(sources=("euclidean", "cityblock")), state=states)
def test_point_gradient(backend, p, state):
    """sum_j P_ij dC_ij / dx_i, nothing where two points meet."""
    _, x, y, kind = p.args
    f, g = p.potentials(state)
    bound, exact = entry_bound(p, f, g)
    assume(exact.sum() < float(np.finfo(p.dtype).max) / 4)
    out = np.full(x.shape, -7.0)
    kernel("point_gradient", backend)(x, y, kind, f, g, p.reg, out, 1)
    apart = wide(x)[:, None] - wide(y)
    if kind == 2:
        lengths = np.where(p.exact > 0, p.exact, 1)[..., None]
        slopes = np.where(p.exact[..., None] > 0, apart / lengths, 0)
    else:
        slopes = np.sign(apart)
    d, m = x.shape[1], p.shape[1]
    bound = bound + (m + d + 8) * p.eps * exact
    target(
        assert_within(
            out, (exact[..., None] * slopes).sum(1), (bound[..., None] * np.abs(slopes)).sum(1)
        )
    )


@pytest.mark.parametrize("kind", ["euclidean", "cityblock"])
def test_gradient_where_points_meet(backend, kind):
    x = np.array([[0.5, -1.0], [2.0, 2.0]])
    out = np.full((2, 2), -7.0)
    kernel("point_gradient", backend)(
        x, x[:1].copy(), oracle.KINDS[kind], np.zeros(2), np.zeros(1), 1.0, out, 1
    )
    assert out[0].tolist() == [0.0, 0.0]
    assert (out[1] > 0).all()


# ---- candidates ----------------------------------------------------------------------------------


def candidates(p, f, g, bits, limit, backend, threads=1):
    return kernel("candidates", backend)(*p.args, p.a, p.b, f, g, p.reg, bits, limit, threads)


@given(p=problems(), layout=draws.layouts, bits=st.sampled_from([2.0, 10.0, 50.0]))
def test_candidates(backend, p, layout, bits):
    """Exactly the entries above the threshold; either way within the error of the exponent."""
    n, m = p.shape
    f, g = p.potentials("near")
    z = oracle.exponents(p.exact, f, g, p.reg) * np.log2(np.e)
    threshold = np.minimum(np.log2(wide(p.a))[:, None], np.log2(wide(p.b))) - bits
    slack = 2 * p.exponent_error(f, g) + 8 * p.eps * (np.abs(threshold) + bits)
    indptr, indices, costs = candidates(p.relayout(layout), f, g, bits, n * m, backend)
    assert indptr.dtype == np.int64
    assert indices.dtype == np.int32
    assert costs.dtype == np.float64
    assert indptr.shape == (n + 1,)
    assert indptr[0] == 0
    assert indptr[-1] == len(indices) == len(costs)
    listed = np.zeros((n, m), bool)
    for i in range(n):
        row = indices[indptr[i] : indptr[i + 1]]
        assert (np.diff(row) > 0).all()
        listed[i, row] = True
        exact, error = p.exact[i, row], (p.cost_error + 4 * p.eps * p.size)[i, row]
        if p.args[3] == 0:
            np.testing.assert_array_equal(costs[indptr[i] : indptr[i + 1]], exact.astype(float))
        else:
            assert_within(costs[indptr[i] : indptr[i + 1]], exact, error)
    assert listed[z >= threshold + slack].all()
    assert not listed[z < threshold - slack].any()


@pytest.mark.parametrize("source", SOURCES)
def test_limit_of_candidates(backend, source):
    p = make(30, 40, source=source)
    f, g = p.potentials("near")
    count = len(candidates(p, f, g, 3.0, 1200, backend)[1])
    assert 0 < count < 1200
    assert candidates(p, f, g, 3.0, count - 1, backend) is None
    assert candidates(p, f, g, 3.0, 0, backend) is None
    assert len(candidates(p, f, g, 3.0, count, backend)[1]) == count


# ---- what does not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (300, 5), (5, 300), (129, 130)])
def test_layouts_and_threads(backend, source, dtype, shape):
    """Threads change not a bit, and layouts only the order of sums."""
    p = make(*shape, source=source, dtype=dtype)
    f, g = p.potentials("near")
    v = p.rng.standard_normal((shape[1], 2))

    def results(shown, threads):
        found = [plan(shown, f, g, backend, threads)]
        found += apply_plan(shown, f, g, v, backend, threads)
        found += apply_plan(shown, f, g, None, backend, threads)[1:]
        found += candidates(shown, f, g, 5.0, shape[0] * shape[1], backend, threads)
        if p.args[3] in (2, 3):
            found.append(np.empty(p.args[1].shape))
            kernel("point_gradient", backend)(*p.args[1:], f, g, p.reg, found[-1], threads)
        return found

    default = results(p, 1)
    size = p.entry_error(f, g).max() + sum(shape) * p.eps
    limit = 8 * float(size) * (1 + p.scale + np.abs(v).max())
    for layout in draws.LAYOUTS if source == "stored" else ("C",):
        first = results(p.relayout(layout), 1)
        for x, y in zip(first, default, strict=True):
            assert_within(x, y, limit)
        for threads in (2, 3):
            for x, y in zip(results(p.relayout(layout), threads), first, strict=True):
                np.testing.assert_array_equal(x, y, err_msg=f"{layout}, {threads} threads")


@pytest.mark.parametrize("d", [500, 2000])
@pytest.mark.parametrize("source", SOURCES[1:])
def test_many_dimensions(backend, source, d):
    p = make(40, 70, source=source, d=d, log_reg=0.0)
    f, g = p.potentials("near")
    bound, exact = entry_bound(p, f, g)
    assert_within(plan(p, f, g, backend), exact, bound)
