"""quadric.transport.solve_points: the same as with the cost stored, without it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.transport import entropic_map, solve, solve_points
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.transport import oracle
from tests.transport.problems import EPS, make, masses, optimal, plan_bound, problems, sum_error

KINDS = tuple(oracle.KINDS)
METHODS = ("auto", "sinkhorn", "newton")


def points(n, m, d, kind, seed=0, dtype=np.float64):
    p = make(n, m, d=d, source=kind, seed=seed, dtype=dtype)
    return p, p.args[1], p.args[2]


@given(
    p=problems(max_rows=14, max_columns=20, sources=KINDS, types=(np.float64,), min_log_reg=-1.5),
    method=st.sampled_from(METHODS),
)
def test_the_plan_is_the_optimal_one(backend, p, method):
    _, x, y, kind = p.args
    name = KINDS[kind - 1]
    before = x.tobytes(), y.tobytes()
    r = solve_points(
        x, y, p.reg, a=p.a, b=p.b, cost=name, method=method, tol=1e-11, backend=backend
    )
    assert (x.tobytes(), y.tobytes()) == before
    assert r.converged
    # Exact potentials belong to exact costs: those of the kernel are off by cost_error, and move
    # the marginals of the exact plan by as much relative to reg.
    exact = oracle.costs(x, y, name)
    wrong = sum_error(p, r.f, r.g)
    assert oracle.marginal_error(exact, p.a, p.b, p.reg, r.f, r.g) <= 1e-11 + wrong
    best = optimal(exact, p.a, p.b, p.reg)
    bound = plan_bound(exact, p.a, p.b, p.reg, best, r.f, r.g)
    expected = oracle.plan(exact, best[0], best[1], p.reg)
    target(
        assert_within(r.plan(), expected, bound + 2 * p.entry_error(r.f, r.g) * expected + p.tiny)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3, 64, 1000])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_as_with_the_cost_stored(backend, kind, d, dtype):
    """Duals and plans agree to the errors of both and the roundings of the cost."""
    p, x, y = points(60, 70, d, kind, dtype=dtype)
    cost = oracle.costs(x, y, kind).astype(dtype)
    r = solve_points(x, y, p.reg, a=p.a, b=p.b, cost=kind, backend=backend)
    s = solve(p.a, p.b, cost, p.reg, backend=backend)
    assert r.plan().dtype == dtype
    tol = 1e-5 if dtype == np.float32 else 1e-9
    for one in (r, s):
        error = oracle.marginal_error(wide(cost), p.a, p.b, p.reg, one.f, one.g)
        assert error <= tol + 2 * sum_error(p, one.f, one.g)
    # The dual is 1-Lipschitz in the cost, and below its optimum by the error times a potential.
    size = np.abs(r.f).max() + np.abs(r.g).max() + np.abs(s.f).max() + np.abs(s.g).max()
    wrong = 2 * tol + 2 * sum_error(p, r.f, r.g)
    assert_within(r.dual_value, s.dual_value, float(p.cost_error.max()) + wrong * (size + p.reg))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_scale", [-8, 8])
@pytest.mark.parametrize("log_reg", [-3, 0])
def test_scales(backend, kind, log_scale, log_reg):
    p, x, y = points(40, 30, 2, kind)
    scale = 10.0**log_scale
    largest = float(oracle.costs(x, y, kind).max())
    factor = {"sqeuclidean": scale**2, "cosine": 1.0}.get(kind, scale)
    reg = 10.0**log_reg * largest * factor
    r = solve_points(scale * x, scale * y, reg, a=p.a, b=p.b, cost=kind, backend=backend)
    exact = oracle.costs(scale * x, scale * y, kind)
    size = 16 * EPS * (np.abs(r.f).max() + np.abs(r.g).max() + 4 * largest * factor) / reg
    assert oracle.marginal_error(exact, p.a, p.b, reg, r.f, r.g) <= 1e-9 + size


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_clouds_far_from_zero(backend, kind, dtype):
    """A shift of both clouds changes nothing: integers, so that it is exact."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 64, (k, 3)).astype(dtype) for k in (40, 50))
    reg = 100.0
    r = solve_points(x, y, reg, cost=kind, backend=backend)
    for shift in (1024.0, 65536.0):
        s = solve_points(x + dtype(shift), y + dtype(shift), reg, cost=kind, backend=backend)
        tol = 1e-5 if dtype == np.float32 else 1e-9
        scale = float(oracle.costs(x, y, kind).max())
        # The common mean is rounded once: relative to the shift, and the cost has a slope of 2 c.
        eps = float(np.finfo(dtype).eps)
        slope = 2 * np.sqrt(scale) if kind == "sqeuclidean" else 2
        limit = 2 * tol * scale + 32 * eps * scale + 3 * slope * eps * shift
        assert_within(s.dual_value, r.dual_value, limit)


def test_cosine_takes_any_length(backend):
    p, x, y = points(20, 30, 5, "cosine")
    r = solve_points(x, y, p.reg, cost="cosine", tol=1e-12, backend=backend)
    for factor in (1e-200, 1e-3, 1e200):
        s = solve_points(x * factor, y / factor, p.reg, cost="cosine", tol=1e-12, backend=backend)
        assert_within(s.dual_value, r.dual_value, 1e-11 + 64 * EPS * (1 + p.reg))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_reg", [-4, -2, 1])
def test_identical_clouds(backend, kind, log_reg):
    """An annealing schedule that starts from the distance of the clouds must not start from 0."""
    x = np.random.default_rng(0).random((50, 3))
    reg = 10.0**log_reg
    r = solve_points(x, x, reg, cost=kind, backend=backend)
    assert r.converged
    plan = oracle.plan(oracle.costs(x, x, kind), r.f, r.g, reg)
    assert np.abs(plan.sum(0) - 1 / 50).sum() <= 1.1e-9 + 1e-13 / reg
    if log_reg == -4 and kind != "cosine":
        assert (r.plan().argmax(1) == np.arange(50)).all()
        assert r.cost < reg * np.log(50)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_points_that_are_all_the_same(backend, kind):
    x = np.ones((9, 2))
    a, b = masses(np.random.default_rng(0), 9), np.full(9, 1 / 9)
    r = solve_points(x, x, 0.3, a=a, b=b, cost=kind, backend=backend)
    assert_within(r.plan(), np.outer(a, b), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_masses(backend, kind):
    """As without the points that have none."""
    p, x, y = points(12, 15, 3, kind)
    a, b = p.a.copy(), p.b.copy()
    a[[0, 5]] = b[[14]] = 0
    a, b = a / a.sum(), b / b.sum()
    r = solve_points(x, y, p.reg, a=a, b=b, cost=kind, tol=1e-12, backend=backend)
    s = solve_points(
        x[a > 0], y[b > 0], p.reg, a=a[a > 0], b=b[b > 0], cost=kind, tol=1e-12, backend=backend
    )
    assert (r.plan()[[0, 5]] == 0).all()
    assert (r.plan()[:, 14] == 0).all()
    assert_within(r.plan()[a > 0][:, b > 0], s.plan(), 1e-10 * s.plan() + 1e-11)
    assert (r.f[[0, 5]] == -np.inf).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_layouts_and_threads(backend, kind, dtype):
    """Not a bit."""
    p, x, y = points(90, 110, 4, kind, dtype=dtype)
    first = solve_points(x, y, p.reg, cost=kind, n_threads=1, backend=backend)
    for layout in draws.LAYOUTS:
        for threads in (1, 2):
            r = solve_points(
                draws.relayout(x, layout), draws.relayout(y, layout), p.reg, cost=kind,
                n_threads=threads, backend=backend,
            )  # fmt: skip
            np.testing.assert_array_equal(r.f, first.f)
            np.testing.assert_array_equal(r.g, first.g)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_singles(backend, kind):
    pairs = [points(15, 18, 3, kind, seed=k) for k in range(3)]
    x, y = np.stack([q[1] for q in pairs]), np.stack([q[2] for q in pairs])
    reg = pairs[0][0].reg
    r = solve_points(x, y, reg, cost=kind, tol=1e-11, backend=backend)
    assert r.f.shape == (3, 15)
    assert r.plan().shape == (3, 15, 18)
    assert r.converged.all()
    for k in range(3):
        s = solve_points(x[k], y[k], reg, cost=kind, tol=1e-11, backend=backend)
        cost, a, b = oracle.costs(x[k], y[k], kind), np.full(15, 1 / 15), np.full(18, 1 / 18)
        best = optimal(cost, a, b, reg)
        expected = oracle.plan(cost, best[0], best[1], reg)
        for one in (s, r[k]):
            bound = plan_bound(cost, a, b, reg, best, one.f, one.g)
            size = (
                64
                * EPS
                * (1 + np.abs(one.f).max() + np.abs(one.g).max() + 4 * float(cost.max()))
                / reg
            )
            assert_within(one.plan(), expected, bound + size * expected)


def test_torch(backend):
    torch = pytest.importorskip("torch")
    p, x, y = points(10, 12, 3, "sqeuclidean")
    r = solve_points(x, y, p.reg, backend=backend)
    t = solve_points(torch.from_numpy(x), torch.from_numpy(y), p.reg, backend=backend)
    assert isinstance(t.f, torch.Tensor)
    np.testing.assert_array_equal(t.f.numpy(), r.f)


@pytest.mark.parametrize("kind", KINDS)
def test_entropic_map(backend, kind):
    """At the points of the problem it is the barycentric projection; anywhere else, the formula."""
    p, x, y = points(20, 30, 3, kind)
    r = solve_points(x, y, p.reg, cost=kind, tol=1e-12, backend=backend)
    options = {"cost": kind, "backend": backend}
    at = entropic_map(x, y, r.g, p.reg, **options)
    assert_within(at, r.barycentric(y), 1e-10 * np.abs(y).max())
    new = 3 * np.random.default_rng(1).standard_normal((7, 3))
    z = (wide(r.g) - oracle.costs(new, y, kind)) / p.reg
    w = np.exp(z - z.max(1, keepdims=True))
    expected = (w @ y) / w.sum(1, keepdims=True)
    size = 64 * EPS * float(np.abs(z).max() + 100 / p.reg)
    assert_within(entropic_map(new, y, r.g, p.reg, **options), expected, 4 * size * np.abs(y).max())


# ---- memory --------------------------------------------------------------------------------------

# Peak memory of a run of one iteration, less what a small one took: the compiled code and NumPy.
SCRIPT = """
import resource, sys, warnings
import numpy as np
from quadric.transport import solve_points

def run(n, m):
    rng = np.random.default_rng(0)
    x, y = (rng.random((k, 3), dtype=np.float32) for k in (n, m))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"backend": sys.argv[1], "cost": sys.argv[2], "max_iter": 1}
        r = solve_points(x, y, 0.1, **options)
        r.barycentric(y)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

small = run(400, 300)
print(run(20_000, 8_000) - small)
"""


@pytest.mark.parametrize("kind", ["sqeuclidean", "cityblock"])
def test_memory(backend, kind):
    """It is that of the points: 20 000 x 8 000 costs alone would be 640 MB."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend, kind],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    # Some dozen vectors of each side, a tile of costs, and what the allocator keeps.
    assert int(done.stdout) < 64 * 1024, f"{int(done.stdout) / 1024:.0f} MiB"
