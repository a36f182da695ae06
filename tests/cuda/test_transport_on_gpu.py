"""Transport on arrays of a GPU, which is an emulated one: what Python does around kernels.

The kernels are those of the CPU. Solvers may still go another way there, so that potentials agree
as far as the tolerance says.
"""

import pickle
import warnings

import numpy as np
import pytest

from quadric import transport as ot
from quadric.errors import ConvergenceWarning
from quadric.transport import cost as costs
from tests.cuda import emulated_transport

DTYPES = ("float32", "float64")
KINDS = ("sqeuclidean", "euclidean", "cityblock", "cosine")
LOOSE = {"float32": 2e-4, "float64": 1e-6}  # what the default tolerance makes of potentials and P

dtypes = pytest.mark.parametrize("dtype", DTYPES)
kinds = pytest.mark.parametrize("kind", KINDS)


def matrix(n=20, m=30, dtype="float64", seed=0, problems=None):
    shape = (n, m) if problems is None else (problems, n, m)
    return np.random.default_rng(seed).random(shape).astype(dtype)


def points(n=20, d=3, dtype="float64", seed=0, problems=None):
    shape = (n, d) if problems is None else (problems, n, d)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def masses(n=20, seed=5, empty=0, problems=None):
    shape = (n,) if problems is None else (problems, n)
    w = np.random.default_rng(seed).random(shape) + 0.1
    w[..., :empty] = 0
    return w / w.sum(axis=-1, keepdims=True)


def near(gpu, found, expected, eps):
    """Assert that `found` is on the GPU, and is `expected` up to that part of its largest entry."""
    a = gpu.get(found)
    assert (a.shape, a.dtype) == (expected.shape, expected.dtype)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(a[~finite], expected[~finite])
    largest = np.abs(expected[finite]).max(initial=0) or 1
    assert np.abs(a[finite] - expected[finite]).max(initial=0) <= eps * largest


def same_result(gpu, found, expected, dtype):
    eps = LOOSE[dtype]
    assert found.shape == expected.shape
    assert type(found.f) is type(found.g) is type(found.plan())
    for name in ("f", "g"):
        near(gpu, getattr(found, name), getattr(expected, name), 10 * eps)
    near(gpu, found.plan(), expected.plan(), eps)
    for name in ("cost", "value", "dual_value"):
        a, b = getattr(found, name), getattr(expected, name)
        if found.problem.batched:
            near(gpu, a, b, eps)
        else:
            assert abs(a - b) <= eps * max(abs(b), 1)
    converged = found.converged
    assert gpu.get(converged).all() if found.problem.batched else converged
    assert repr(found).split(", ")[1] == repr(expected).split(", ")[1]


@pytest.fixture
def large(monkeypatch):
    """Let no problem be small enough for one block of threads."""
    monkeypatch.setattr(emulated_transport, "SHARED", 0)


# ---- one problem ---------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton", "published"])
@pytest.mark.parametrize("fits", [False, True])
def test_stored(gpu, dtype, method, fits, monkeypatch):
    monkeypatch.setattr(emulated_transport, "SHARED", 2**17 if fits else 0)
    M, a, b = matrix(dtype=dtype), masses(20), masses(30, 6)
    expected = ot.solve(a, b, M, 0.05, method=method)
    for mine, yours in ((a, b), (gpu.put(a), gpu.put(b)), (a, gpu.put(b))):
        found = ot.solve(mine, yours, gpu.put(M), 0.05, method=method)
        same_result(gpu, found, expected, dtype)
    assert found.potentials()[0].dtype == np.float64
    launched = set(gpu.launched)
    assert ("transport.converge" in launched) == (fits and method in ("auto", "sinkhorn"))


@dtypes
@kinds
def test_points(gpu, dtype, kind):
    x, y = points(20, dtype=dtype), points(30, dtype=dtype, seed=1)
    expected = ot.solve_points(x, y, 0.3, cost=kind)
    found = ot.solve_points(gpu.put(x), gpu.put(y), 0.3, cost=kind)
    same_result(gpu, found, expected, dtype)
    assert found.problem.cost.shape == (1, 20, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_large_clouds_are_centred_on_the_gpu(gpu, kind, monkeypatch, large):
    monkeypatch.setattr(costs, "_LARGE", 0)
    x, y = points(20) + 100, points(30, seed=1) + 100
    expected = ot.solve_points(x, y, 0.3, cost=kind)
    before = len(gpu.launched)
    same_result(gpu, ot.solve_points(gpu.put(x), gpu.put(y), 0.3, cost=kind), expected, "float64")
    assert ("arrays.subtract_row" in gpu.launched[before:]) == (kind == "sqeuclidean")


@dtypes
@pytest.mark.parametrize("layout", ["columns", "steps", "backwards"])
def test_any_layout(gpu, dtype, layout, large):
    whole = matrix(40, 60, dtype)
    cut = {
        "columns": lambda a: a.T,
        "steps": lambda a: a[::2, ::3],
        "backwards": lambda a: a[::-1, ::-1],
    }[layout]
    expected = ot.solve(None, None, cut(whole), 0.05)
    found = ot.solve(None, None, cut(gpu.put(whole)), 0.05)
    same_result(gpu, found, expected, dtype)
    plan = found.plan()
    assert (plan.a.strides[0] < plan.a.strides[1]) == (layout == "columns")


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("problems", [None, 3])
def test_masses_of_zero(gpu, fits, problems, monkeypatch):
    monkeypatch.setattr(emulated_transport, "SHARED", 2**17 if fits else 0)
    M = matrix(problems=problems)
    a, b = masses(20, empty=3, problems=problems), masses(30, 6, 2, problems)
    if problems:
        a[1] = masses(20)  # now they are no longer alike
    for cost in (M, np.asfortranarray(M)):
        expected = ot.solve(a, b, cost, 0.05)
        found = ot.solve(a, b, gpu.put(cost), 0.05)
        same_result(gpu, found, expected, "float64")
    x, y = points(20, problems=problems), points(30, seed=1, problems=problems)
    expected = ot.solve_points(x, y, 0.3, a=a, b=b)
    found = ot.solve_points(gpu.put(x), gpu.put(y), 0.3, a=a, b=b)
    same_result(gpu, found, expected, "float64")
    near(gpu, found.gradients().x, expected.gradients().x, 1e-6)
    near(gpu, found.gradients().y, expected.gradients().y, 1e-6)
    near(gpu, found.barycentric(gpu.put(y)), expected.barycentric(y), 1e-6)


@pytest.mark.parametrize("rho", [1.0, (0.3, np.inf), (5.0, 0.2)])
@pytest.mark.parametrize("fits", [False, True])
def test_unbalanced(gpu, rho, fits, monkeypatch):
    monkeypatch.setattr(emulated_transport, "SHARED", 2**17 if fits else 0)
    M = matrix()
    expected = ot.solve(None, None, M, 0.05, unbalanced=rho)
    found = ot.solve(None, None, gpu.put(M), 0.05, unbalanced=rho)
    same_result(gpu, found, expected, "float64")
    for name in ("a", "b", "M"):
        near(gpu, getattr(found.gradients(), name), getattr(expected.gradients(), name), 1e-5)


def test_forbidden_pairs(gpu, large):
    M = matrix()
    M[4:, 5:9] = np.inf
    M[0, 3] = np.inf
    same_result(
        gpu, ot.solve(None, None, gpu.put(M), 0.05), ot.solve(None, None, M, 0.05), "float64"
    )


@pytest.mark.parametrize("fits", [False, True])
def test_warm_start_and_fixed_factors(gpu, fits, monkeypatch):
    monkeypatch.setattr(emulated_transport, "SHARED", 2**17 if fits else 0)
    M = gpu.put(matrix())
    first = ot.solve(None, None, M, 0.02, method="sinkhorn")
    for start in (first, (first.f, first.g), tuple(gpu.get(p) for p in (first.f, first.g))):
        again = ot.solve(None, None, M, 0.02, method="sinkhorn", warm_start=start)
        assert again.converged
        assert again.iterations <= 12 < first.iterations
    fixed = ot.solve(None, None, M, 0.02, method="sinkhorn", omega=1.2)
    assert fixed.converged


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("max_iter", [1, 2, 30])
def test_few_iterations(gpu, fits, max_iter, monkeypatch):
    monkeypatch.setattr(emulated_transport, "SHARED", 2**17 if fits else 0)
    with pytest.warns(ConvergenceWarning):
        found = ot.solve(None, None, gpu.put(matrix()), 1e-3, max_iter=max_iter)
    assert not found.converged
    assert found.iterations <= max_iter + 1
    assert np.isfinite(found.marginal_error)


def test_normalized(gpu):
    M, a, b = matrix(), 3 * masses(20), masses(30)
    found = ot.solve(gpu.put(a), b, gpu.put(M), 0.05, normalize=True)
    same_result(gpu, found, ot.solve(a, b, M, 0.05, normalize=True), "float64")


# ---- batches -------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_batches(gpu, dtype, fits, method, monkeypatch):
    monkeypatch.setattr(emulated_transport, "SHARED", 2**17 if fits else 0)
    M, a = matrix(dtype=dtype, problems=4), masses(20, problems=4)
    expected = ot.solve(a, None, M, 0.05, method=method)
    found = ot.solve(gpu.put(a), None, gpu.put(M), 0.05, method=method)
    same_result(gpu, found, expected, dtype)
    for k in (0, -1):
        same_result(gpu, found[k], expected[k], dtype)
    np.testing.assert_array_equal(gpu.get(found.iterations).shape, (4,))
    columns = gpu.put(np.ascontiguousarray(M.transpose(0, 2, 1)))
    turned = ot.solve(None, a, columns, 0.05, method=method)
    near(gpu, turned.f, expected.g, 10 * LOOSE[dtype])


@kinds
def test_batches_of_points(gpu, kind):
    x, y = points(20, problems=3), points(30, seed=1, problems=3)
    expected = ot.solve_points(x, y, 0.3, cost=kind)
    found = ot.solve_points(gpu.put(x), gpu.put(y), 0.3, cost=kind)
    same_result(gpu, found, expected, "float64")
    for name in ("x", "y", "a", "b"):
        near(gpu, getattr(found.gradients(), name), getattr(expected.gradients(), name), 1e-5)
    near(gpu, found.barycentric(gpu.put(y)), expected.barycentric(y), 1e-6)
    near(gpu, found.barycentric(gpu.put(y[0])), expected.barycentric(y[0]), 1e-6)


@pytest.mark.parametrize("m", [8, 9])
def test_a_batch_of_small_problems_is_one_launch_and_one_wait(gpu, m):
    M = matrix(8, m, problems=50)
    there = gpu.put(M)
    before, waits, copies = len(gpu.launched), gpu.waits, gpu.copies
    found = ot.solve(None, None, there, 0.1, method="sinkhorn")
    assert gpu.launched[before:] == ["transport.converge"]
    assert (gpu.waits - waits, gpu.copies - copies) == (1, 0)
    same_result(gpu, found, ot.solve(None, None, M, 0.1, method="sinkhorn"), "float64")
    iterations = gpu.get(found.iterations)
    assert (iterations.dtype, iterations.max()) == (np.int64, found.history["iterations"][-1])


def test_what_a_batch_does_not_reach_goes_on(gpu):
    M = matrix(8, 8, problems=5)
    with pytest.warns(ConvergenceWarning, match="in 5 of 5 problems"):
        found = ot.solve(None, None, gpu.put(M), 1e-3, tol=1e-12, max_iter=9, method="sinkhorn")
    assert not gpu.get(found.converged).any()
    assert (gpu.get(found.iterations) <= 10).all()


def test_hard_problems_of_a_batch_are_left_to_newton(gpu):
    M = matrix(6, 6, problems=3)
    found = ot.solve(None, None, gpu.put(M), 1e-4, tol=1e-9)
    assert gpu.get(found.converged).all()
    near(gpu, found.plan(), ot.solve(None, None, M, 1e-4, tol=1e-9).plan(), 1e-5)


# ---- what follows from a result ------------------------------------------------------------------


@pytest.fixture
def pair(gpu, large):
    """A result on the GPU, and the same on the CPU."""
    M, a, b = matrix(), masses(20), masses(30, 6)
    return (
        ot.solve(a, b, gpu.put(M), 0.05, tol=1e-12),
        ot.solve(a, b, M, 0.05, tol=1e-12),
    )


def test_plans(gpu, pair):
    found, expected = pair
    near(gpu, found.rounded_plan(), expected.rounded_plan(), 1e-9)
    assert np.abs(gpu.get(found.rounded_plan()).sum(axis=1) - masses(20)).max() < 1e-15
    for options in ({"drop": 1e-6}, {"k": 3}):
        a, b = (r.sparse_plan(**options) for r in pair)
        assert (a.matrix != 0).nnz == (b.matrix != 0).nnz
        assert abs(a.matrix - b.matrix).max() < 1e-10
        assert a.dropped == pytest.approx(b.dropped, rel=1e-6)
    for V in (matrix(30, 4), matrix(30, 1)[:, 0], matrix(30, 4, "float32"), matrix(4, 30).T):
        near(gpu, found.barycentric(gpu.put(V)), expected.barycentric(V), 1e-6)


def test_turned_plans(gpu, large):
    M = matrix().T
    found, expected = (ot.solve(None, None, c, 0.05) for c in (gpu.put(M), M))
    near(gpu, found.rounded_plan(), expected.rounded_plan(), 1e-6)
    near(gpu, found.gradients().M, expected.gradients().M, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vjp_of_stored_costs(gpu, dtype, large):
    M = matrix(dtype=dtype)
    found, expected = (ot.solve(None, None, c, 0.1) for c in (gpu.put(M), M))
    W, u, v = matrix(seed=3), masses(20), masses(30)
    factors = matrix(20, 2), matrix(30, 2)
    for plan in (W, factors, None):
        there = tuple(map(gpu.put, plan)) if isinstance(plan, tuple) else plan
        there = gpu.put(plan) if isinstance(plan, np.ndarray) else there
        a = found.vjp(plan=there, f=gpu.put(u), g=v)
        b = expected.vjp(plan=plan, f=u, g=v)
        for name in ("M", "a", "b"):
            near(gpu, getattr(a, name), getattr(b, name), 1e-3 if dtype == "float32" else 1e-5)
    near(gpu, found.vjp(plan=gpu.put(W.T).T).M, expected.vjp(plan=W).M, 1e-3)


@kinds
def test_derivatives_in_points(gpu, kind, large):
    x, y = points(), points(30, seed=1)
    found, expected = (
        ot.solve_points(p, q, 0.3, cost=kind, tol=1e-12)
        for p, q in ((gpu.put(x), gpu.put(y)), (x, y))
    )
    W = matrix(seed=3)
    for name in ("x", "y", "a", "b"):
        near(gpu, getattr(found.gradients(), name), getattr(expected.gradients(), name), 1e-8)
        a, b = found.vjp(plan=gpu.put(W)), expected.vjp(plan=W)
        near(gpu, getattr(a, name), getattr(b, name), 1e-7)


@kinds
@pytest.mark.parametrize("problems", [None, 2])
def test_divergence_and_gap(gpu, kind, problems):
    x, y = points(problems=problems), points(seed=1, problems=problems)
    for function in (ot.sinkhorn_divergence, ot.monge_gap):
        expected = function(x, y, 0.5, cost=kind, tol=1e-11)
        found = function(gpu.put(x), gpu.put(y), 0.5, cost=kind, tol=1e-11)
        value = gpu.get(found.value) if problems else found.value
        np.testing.assert_allclose(value, expected.value, rtol=1e-7, atol=1e-12)
        assert np.all(gpu.get(found.converged) if problems else found.converged)
        a, b = found.gradients(), expected.gradients()
        for name in ("x", "y", "a", "b"):
            if getattr(b, name) is not None:
                near(gpu, getattr(a, name), getattr(b, name), 1e-6)


@kinds
@dtypes
def test_entropic_map(gpu, kind, dtype):
    x, y, new = (points(n, dtype=dtype, seed=s) for n, s in ((20, 0), (30, 1), (7, 2)))
    new[0] *= 1e6  # beyond what the digits of the others can tell
    b = masses(30, 6, 3)
    solved, expected = (
        ot.solve_points(p, q, 0.3, b=b, cost=kind) for p, q in ((gpu.put(x), gpu.put(y)), (x, y))
    )
    values = matrix(30, 2)
    for of_y in (None, values, values[:, 0]):
        moved = ot.entropic_map(new, y, expected.g, 0.3, values=of_y, cost=kind)
        there = None if of_y is None else gpu.put(of_y)
        for g in (solved.g, expected.g):
            found = ot.entropic_map(gpu.put(new), gpu.put(y), g, 0.3, values=there, cost=kind)
            near(gpu, found, moved, 1e-2 if dtype == "float32" else 1e-6)


@dtypes
def test_rounding(gpu, dtype):
    P, a, b = matrix(dtype=dtype) / 600, masses(20), masses(30, 6)
    P[3] = 0
    a[0] = 0
    a /= a.sum()
    expected = ot.round_to_marginals(P, a, b)
    near(gpu, ot.round_to_marginals(gpu.put(P), gpu.put(a), b), expected, 1e-6)
    near(gpu, ot.round_to_marginals(gpu.put(P).T, b, a), ot.round_to_marginals(P.T, b, a), 1e-6)
    P[2, 1] = -1
    with pytest.raises(ValueError, match=r"P must not be negative, got -1 at index \(2, 1\)"):
        ot.round_to_marginals(gpu.put(P), a, b)


def test_the_words_of_pot(gpu, large):
    M, a, b = matrix(), masses(20), masses(30, 6)
    P, log = ot.sinkhorn(gpu.put(a), gpu.put(b), gpu.put(M), 0.05, log=True)
    expected, _ = ot.sinkhorn(a, b, M, 0.05, log=True)
    near(gpu, P, expected, 1e-6)
    again, _ = ot.sinkhorn(gpu.put(a), b, gpu.put(M), 0.05, log=True, warmstart=log["warmstart"])
    near(gpu, again, expected, 1e-6)
    many = np.stack([b, b[::-1]], 1)
    near(gpu, ot.sinkhorn2(a, many, gpu.put(M), 0.05), ot.sinkhorn2(a, many, M, 0.05), 1e-6)
    near(gpu, ot.unif(4, gpu.put(M)), ot.unif(4, M), 0)
    with pytest.raises(ValueError, match="x1 must be in CPU memory"):
        ot.dist(gpu.put(M))


def test_results_are_kept(gpu, pair):
    found, _ = pair
    clone = pickle.loads(pickle.dumps(found.problem.cost.array.host()))
    np.testing.assert_array_equal(clone[0], matrix())


def test_arrays_of_a_library_without_float64(gpu, large):
    gpu.library.waits = True
    x, y = points(dtype="float32"), points(30, dtype="float32", seed=1)
    found = ot.solve_points(gpu.put(x), gpu.put(y), 0.3)
    expected = ot.solve_points(x, y, 0.3)
    assert gpu.get(found.f).dtype == np.float32
    assert found.potentials()[0].dtype == np.float64
    np.testing.assert_allclose(gpu.get(found.f), expected.f, atol=1e-3)
    near(gpu, found.plan(), expected.plan(), LOOSE["float32"])
    near(gpu, found.gradients().x, expected.gradients().x, 1e-3)
    moved = ot.entropic_map(gpu.put(x), gpu.put(y), found.g, 0.3)
    near(gpu, moved, ot.entropic_map(x, y, expected.g, 0.3), 1e-3)


# ---- refusals ------------------------------------------------------------------------------------


def test_arrays_in_two_places(gpu):
    x, y = points(), points(30, seed=1)
    with pytest.raises(ValueError, match=r"y must be where x is .*, got one in CPU memory"):
        ot.solve_points(gpu.put(x), y, 0.3)
    with pytest.raises(ValueError, match="y must be where x is"):
        ot.solve_points(gpu.put(x), gpu.put(y, device=1), 0.3)
    with pytest.raises(ValueError, match="Tx must be where x is"):
        ot.monge_gap(gpu.put(x), x, 0.3)
    with pytest.raises(ValueError, match="y must be where x is"):
        ot.entropic_map(x, gpu.put(y), np.zeros(30), 0.3)
    found = ot.solve_points(gpu.put(x), gpu.put(y), 0.3)
    with pytest.raises(ValueError, match="values must be where the cost is"):
        found.barycentric(y)


@pytest.mark.parametrize("layout", ["rows", "columns", "steps"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_none(gpu, layout, value):
    M = matrix()
    M[3, 4] = np.inf
    M[7, 5] = value
    there = {"rows": lambda: gpu.put(M), "columns": lambda: gpu.put(M.T.copy()).T}
    there["steps"] = lambda: gpu.put(np.repeat(M, 2, axis=1))[:, ::2]
    with pytest.raises(ValueError, match=rf"M must hold numbers .* {value} at index \(7, 5\)"):
        ot.solve(None, None, there[layout](), 0.05)
    with pytest.raises(ValueError, match="x must be finite"):
        ot.solve_points(gpu.put(M), gpu.put(M), 0.05)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_none_in_a_batch(gpu, turned, value):
    M = matrix(problems=3)
    M[1, 4, 2] = value
    there = gpu.put(np.ascontiguousarray(M.transpose(0, 2, 1)) if turned else M)
    index = "1, 2, 4" if turned else "1, 4, 2"
    with pytest.raises(ValueError, match=rf"M must hold numbers .* {value} at index \({index}\)"):
        ot.solve(None, None, there, 0.05, tol=1e3)


def test_infeasible(gpu):
    M = matrix(problems=2)
    M[1, 4] = np.inf
    with pytest.raises(ValueError, match="row 4 of problem 1 has mass"):
        ot.solve(None, None, gpu.put(M), 0.05)
    M = matrix()
    M[:, 4] = np.inf
    with pytest.raises(ValueError, match="column 4 has mass"):
        ot.solve(None, None, gpu.put(M), 0.05)


def test_other_refusals(gpu):
    M = matrix()
    with pytest.raises(ValueError, match="backend must be cuda for arrays on a GPU"):
        ot.solve(None, None, gpu.put(M), 0.05, backend="numba")
    with pytest.raises(ValueError, match="a must not be negative"):
        ot.solve(gpu.put(-masses(20)), None, gpu.put(M), 0.05)
    with pytest.raises(TypeError, match="M must be float32 or float64"):
        ot.solve(None, None, gpu.put(M.astype(np.int64)), 0.05)
    x = gpu.put(points(dtype="float32") * np.float32(1e30))
    with pytest.raises(ValueError, match="cost overflows float32"):
        ot.solve_points(x, x, 0.05)
    with pytest.raises(ValueError, match="zero vectors"):
        ot.solve_points(gpu.put(0 * M), gpu.put(M), 0.05, cost="cosine")


def test_infeasible_masses_are_told_at_the_end(gpu, large):
    # A block of rows may send its mass only to a block of columns that wants less.
    M = np.zeros((4, 4))
    M[:2, 1:] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceWarning, match="not forbidden may not be able"):
            ot.solve(None, None, gpu.put(M), 0.5, max_iter=50)
