"""All backends solve the same problem: to a few eps for a kernel, to the tolerance for a run."""

import numpy as np
import pytest

from quadric import backends
from quadric.transport import monge_gap, sinkhorn_divergence, solve, solve_points
from tests import strategies as draws
from tests.bounds import assert_within
from tests.transport.problems import SOURCES, kernel, make, optimal

HERE = [b for b in backends.TABLE["transport.plan"].backends if backends.why_missing(b) is None]
FIRST, *OTHERS = HERE

pytestmark = pytest.mark.skipif(not OTHERS, reason="there is one backend only")


def outputs(p, f, g, backend):
    """Return what every kernel that takes the dense cost makes of the same state."""
    n, m = p.shape
    v = np.random.default_rng(0).standard_normal((m, 2))
    plan, product, rows, columns = (
        np.empty((n, m), p.dtype),
        np.empty((n, 2)),
        np.empty(n),
        np.empty(m),
    )
    kernel("plan", backend)(*p.args, f, g, p.reg, plan, 1)
    cost = kernel("apply_plan", backend)(*p.args, f, g, p.reg, v, product, rows, columns, 1)
    new, after, errors = f[None].copy(), g[None].copy(), np.empty((1, 1))
    kernel("sinkhorn", backend)(
        *p.batch, p.a[None], p.b[None], p.reg, 1.0, 1.0, np.ones(1), 0.0, 1, new, after, errors, 1
    )
    return plan, product, rows, columns, cost, new[0] / p.reg, after[0] / p.reg, errors[0, 0]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (20, 33), (70, 15)])
def test_kernels(source, dtype, shape):
    """Each within its bound of the truth, so within two of each other."""
    p = make(*shape, source=source, dtype=dtype)
    f, g = p.potentials("near")
    relative = 2 * float(p.entry_error(f, g).max()) + 2 * sum(shape) * p.eps
    first = outputs(p, f, g, FIRST)
    sizes = (1.0, 4.0, 1.0, 1.0, p.scale, 1.0, 3.0, 3.0)
    for other in OTHERS:
        for x, y, size in zip(outputs(p, f, g, other), first, sizes, strict=True):
            rounding = 64 * np.finfo(float).eps * np.abs(y).max()  # of potentials in units of reg
            assert_within(x, y, 4 * relative * size + rounding)


@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
def test_runs(method):
    p = make(40, 50, log_reg=-1.5)
    best = optimal(p.exact, p.a, p.b, p.reg)
    x, y = p.rng.random((40, 3)), p.rng.random((50, 3))
    first = solve(p.a, p.b, p.args[0], p.reg, method=method, tol=1e-11, backend=FIRST)
    cloud = solve_points(x, y, 0.05, method=method, tol=1e-11, backend=FIRST)
    for other in OTHERS:
        r = solve(p.a, p.b, p.args[0], p.reg, method=method, tol=1e-11, backend=other)
        # Both are within 2 |error| / curvature of the optimum.
        assert_within(r.f, first.f, 4e-11 / best[2] + 1e-13 * p.scale)
        assert_within(r.dual_value, first.dual_value, 1e-10 * p.scale)
        again = solve_points(x, y, 0.05, method=method, tol=1e-11, backend=other)
        assert_within(again.dual_value, cloud.dual_value, 1e-10)


def test_what_is_built_on_them():
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 2)), rng.random((20, 2))
    values = [
        (
            sinkhorn_divergence(x, y, 0.1, tol=1e-11, backend=name).value,
            monge_gap(x, y, 0.1, tol=1e-11, backend=name).value,
        )
        for name in (FIRST, *OTHERS)
    ]
    for found in values[1:]:
        assert_within(found, values[0], 1e-9)
