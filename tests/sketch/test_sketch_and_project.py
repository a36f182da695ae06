"""quadric.sketch.sketch_and_project: rates of the theory, least squares, what it refuses."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, target
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from quadric import backends
from quadric.errors import ConvergenceWarning, LinAlgError
from quadric.sketch import sketch_and_project
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, INF, NAN, SIZES, assert_refused, shown

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
TOL = {"float32": 1e-4, "float64": 1e-8}
METHODS = ("kaczmarz", "block_kaczmarz", "extended", "gaussian", "sparse_sign")
FORMS = {
    "array": lambda A: A,
    "csr": sp.csr_array,
    "csc": sp.csc_matrix,
    "coo": sp.coo_array,
    "operator": aslinearoperator,
}


@pytest.fixture(
    params=[b for b in backends.TABLE["sketch.kaczmarz"].backends if not backends.why_missing(b)]
)
def backend(request):
    """A backend that has the kernels."""
    return request.param


def matrix(rng, n, d, condition=10.0, rank=None):
    """Return a matrix with singular values from 1 down to 1 / condition."""
    r = min(n, d) if rank is None else rank
    U, V = (np.linalg.qr(rng.standard_normal((size, r)))[0] for size in (n, d))
    return (U * np.geomspace(1, 1 / condition, r)) @ V.T


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sketch_and_project(*args, **options)


# ---- rates ---------------------------------------------------------------------------------------


def squared_errors(A, x, steps, seeds, **options):
    found = [quiet(A, A @ x, max_iter=steps, tol=0.0, seed=s, **options).x for s in range(seeds)]
    return np.array([((y - x) ** 2).sum() for y in found]) / (x @ x)


def test_kaczmarz_rate_is_that_of_the_theory_where_this_is_an_equality(backend):
    """With orthonormal columns E|x - x*|^2 falls by 1 - 1/d in each step, no more and no less."""
    rng = np.random.default_rng(0)
    d, steps, seeds = 6, 12, 400
    A, x = np.linalg.qr(rng.standard_normal((50, d)))[0], rng.standard_normal(d)
    errors = squared_errors(A, x, steps, seeds, method="kaczmarz", backend=backend)
    sigma = errors.std() / np.sqrt(seeds)
    assert_within(errors.mean(), (1 - 1 / d) ** steps, 5 * sigma)
    assert 5 * sigma < 0.4 * (1 - 1 / d) ** steps  # so that a wrong law would be seen


@pytest.mark.parametrize("condition", [2.0, 20.0])
def test_kaczmarz_rate_is_a_bound(backend, condition):
    rng = np.random.default_rng(1)
    A, x = matrix(rng, 60, 8, condition), rng.standard_normal(8)
    A *= rng.lognormal(sigma=1.0, size=(60, 1))  # rows of any length
    rate = 1 - np.linalg.svd(A, compute_uv=False)[-1] ** 2 / (A**2).sum()
    for steps in (20, 100):
        errors = squared_errors(A, x, steps, 60, method="kaczmarz", backend=backend)
        assert errors.mean() <= rate**steps + 5 * errors.std() / np.sqrt(60)


def test_rows_are_taken_as_often_as_their_squared_norm_says(backend):
    """From 0 and with orthogonal rows one step finds the coordinate of its row."""
    weights = np.array([4.0, 0.0, 1.0, 3.0])
    A = np.diag(np.sqrt(weights))
    picks = np.zeros(4)
    for seed in range(600):
        picks += quiet(A, A.sum(axis=1), method="kaczmarz", max_iter=1, seed=seed).x != 0
    expected = 600 * weights / weights.sum()
    assert picks[1] == 0
    assert_within(picks, expected, 5 * np.sqrt(600 * 0.25))


@pytest.mark.parametrize("size", [1, 3])
def test_gaussian_rate_is_that_of_random_subspaces(size):
    """With orthonormal columns the combinations span a uniform subspace: a factor 1 - s/d."""
    rng = np.random.default_rng(2)
    d, steps, seeds = 8, 5, 300
    A, x = np.linalg.qr(rng.standard_normal((20, d)))[0], rng.standard_normal(d)
    errors = squared_errors(A, x, steps, seeds, method="gaussian", block_size=size)
    sigma = errors.std() / np.sqrt(seeds)
    assert_within(errors.mean(), (1 - size / d) ** steps, 5 * sigma)
    assert 5 * sigma < 0.5 * (1 - size / d) ** steps


@pytest.mark.parametrize("method", ["sparse_sign", "block_kaczmarz", "extended"])
def test_larger_blocks_need_fewer_steps(method):
    rng = np.random.default_rng(2)
    A, x = matrix(rng, 120, 24, 3.0), rng.standard_normal(24)
    errors = [
        np.median(squared_errors(A, x, 10, 15, method=method, block_size=s)) for s in (2, 6, 12)
    ]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


@pytest.mark.parametrize("method", ["kaczmarz", "block_kaczmarz", "gaussian", "sparse_sign"])
def test_a_step_is_an_orthogonal_projection(method):
    """It never moves away from a solution: |x1 - x*|^2 = |x0 - x*|^2 - |x1 - x0|^2."""
    rng = np.random.default_rng(3)
    A, x = matrix(rng, 40, 10), rng.standard_normal(10)
    x0 = rng.standard_normal(10)
    moved = quiet(A, A @ x, method=method, x0=x0, max_iter=1).x
    assert np.linalg.norm(moved - x0) > 1e-3
    left = ((moved - x) ** 2).sum() + ((moved - x0) ** 2).sum()
    # Rounding enters by the condition of the Gram matrix of the block, below 1e4 here.
    assert_within(left, ((x0 - x) ** 2).sum(), 1e4 * EPS["float64"] * (x0 @ x0 + x @ x))


def test_a_block_is_solved_exactly():
    rng = np.random.default_rng(4)
    A, x = rng.standard_normal((60, 20)), rng.standard_normal(20)
    r = quiet(A, A @ x, method="block_kaczmarz", block_size=6, max_iter=1)
    assert (np.abs(r.residual) < 1e-12).sum() == 6


def test_relaxation_makes_a_part_of_the_step(backend):
    rng = np.random.default_rng(5)
    A, b = rng.standard_normal((30, 5)), rng.standard_normal(30)
    for method in ("kaczmarz", "block_kaczmarz", "gaussian"):
        whole, part = (
            quiet(A, b, method=method, max_iter=1, relaxation=w, backend=backend).x
            for w in (1.0, 0.5)
        )
        assert_within(part, whole / 2, 1e-14 * np.abs(whole).max())


# ---- solutions -----------------------------------------------------------------------------------


@given(
    n=draws.sizes(70),
    d=draws.sizes(40),
    k=st.sampled_from((0, 1, 3)),
    dtype=draws.dtypes,
    layout=draws.layouts,
    form=st.sampled_from(sorted(FORMS)),
    method=st.sampled_from(METHODS),
    seed=draws.seeds,
)
def test_consistent_systems(n, d, k, dtype, layout, form, method, seed):
    """The residual comes down to tol, and with it the error: x is the solution of least norm."""
    rng = np.random.default_rng(seed)
    A = matrix(rng, n, d, 3.0)
    x = A.T @ rng.standard_normal((n, k) if k else n)  # no part in the null space
    A = draws.relayout(A.astype(dtype), layout)
    b = (A.astype(np.float64) @ x).astype(dtype)
    M = FORMS[form](A)
    before = draws.whole(A).tobytes(), b.tobytes()
    r = sketch_and_project(M, b, method=method, seed=seed)
    assert (draws.whole(A).tobytes(), b.tobytes()) == before
    assert r.converged
    assert r.x.dtype == r.residual.dtype == dtype
    assert r.x.shape == x.shape
    assert r.residual.shape == b.shape
    # Of b, of the given A (its rounding moves the row space as well), and of x itself.
    tol, eps = TOL[np.dtype(dtype).name], EPS[np.dtype(dtype).name]
    condition = 3 * 1.01
    extra = condition if method == "extended" else 1.0  # its other test is on the gradient
    size = np.linalg.norm(b.astype(np.float64))
    frobenius = np.sqrt(min(n, d))
    bound = condition * (extra * frobenius * tol + 20 * frobenius * eps) * size
    target(float(np.linalg.norm(r.x - x) / bound) if size else 0.0)
    assert np.linalg.norm(r.x - x) <= bound
    residual = b.astype(np.float64) - A.astype(np.float64) @ r.x.astype(np.float64)
    assert_within(r.residual, residual, 8 * eps * (size + np.linalg.norm(x)))
    assert_within(
        r.residual_norm,
        np.linalg.norm(residual, axis=0),
        8 * np.sqrt(n * d) * eps * (size + np.linalg.norm(x)),
    )


@given(
    n=draws.sizes(60),
    d=draws.sizes(25),
    deficient=st.booleans(),
    block=st.sampled_from((None, 2, 5)),
    form=st.sampled_from(sorted(FORMS)),
    seed=draws.seeds,
)
def test_extended_finds_least_squares_of_least_norm(n, d, deficient, block, form, seed):
    rng = np.random.default_rng(seed)
    rank = max(min(n, d) // 2, 1) if deficient else min(n, d)
    A, b = matrix(rng, n, d, 3.0, rank), rng.standard_normal(n)
    size = None if block is None else min(block, n)
    r = sketch_and_project(FORMS[form](A), b, method="extended", block_size=size, seed=seed)
    assert r.converged
    # |A^T r| <= tol |A|_F |r| or |r| <= tol |b|, and the least nonzero singular value is 1 / 3.
    bound = 9.1 * np.sqrt(rank) * 1e-8 * np.linalg.norm(b) + 1e-12
    expected = np.linalg.pinv(A, rcond=1e-10) @ b
    target(float(np.abs(r.x - expected).max() / bound))
    assert_within(r.x, expected, bound)


def test_other_methods_say_that_a_system_has_no_solution():
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((50, 4)), rng.standard_normal(50)
    with pytest.warns(ConvergenceWarning, match=r'stopped after .* method="extended"'):
        r = sketch_and_project(A, b, max_iter=100)
    assert not r.converged
    assert r.residual_norm > 0.5 * np.linalg.norm(b)


@pytest.mark.parametrize("method", ["block_kaczmarz", "gaussian", "sparse_sign"])
@pytest.mark.parametrize("full", [False, True])
def test_metric(method, full):
    """From 0 the solution of least B-norm, B^-1 A^T (A B^-1 A^T)^-1 b."""
    rng = np.random.default_rng(1)
    A, b = rng.standard_normal((6, 20)), rng.standard_normal(6)
    B = np.diag(rng.uniform(0.5, 5.0, 20))
    if full:
        B += 0.1 * np.ones((20, 20))
    W = np.linalg.solve(B, A.T)
    expected = W @ np.linalg.solve(A @ W, b)
    metric = B if full else np.diag(B).copy()
    r = sketch_and_project(A, b, method=method, metric=metric, block_size=3, tol=1e-12)
    least = np.linalg.svd(A, compute_uv=False)[-1]
    assert_within(r.x, expected, 10 * 1e-12 * np.linalg.norm(b) / least * 10)
    plain = np.linalg.pinv(A) @ b
    assert np.abs(plain - expected).max() > 1e-3


def test_dependent_rows_in_a_block():
    rng = np.random.default_rng(2)
    A = np.repeat(rng.standard_normal((4, 9)), 5, axis=0)
    x = rng.standard_normal(9)
    r = sketch_and_project(A, A @ x, block_size=20)
    assert r.converged
    assert r.iterations == 1


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_solve(method):
    A = np.random.default_rng(0).standard_normal((12, 4))
    zero = sketch_and_project(A, np.zeros(12), method=method)
    assert zero.converged
    assert zero.iterations == 0
    assert not zero.x.any()
    none = quiet(np.zeros((12, 4)), np.ones(12), method=method, max_iter=40)
    assert none.converged == (method == "extended")  # 0 is its least-squares solution
    assert not none.x.any()
    assert none.residual_norm == pytest.approx(np.sqrt(12))


@pytest.mark.parametrize("method", METHODS)
def test_zero_rows_and_columns(method):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((30, 8))
    A[[0, 7, 29]], A[:, 3] = 0.0, 0.0
    x = rng.standard_normal(8)
    r = sketch_and_project(A, A @ x, method=method)
    assert r.converged
    assert r.x[3] == 0


def test_start_is_kept_where_it_solves_the_system():
    rng = np.random.default_rng(4)
    A, x = rng.standard_normal((5, 9)), rng.standard_normal(9)
    r = sketch_and_project(A, A @ x, x0=x)
    assert r.iterations == 0
    assert np.array_equal(r.x, x)
    # Far from it, the nearest solution rather than the smallest one.
    other = rng.standard_normal(9)
    r = sketch_and_project(A, A @ x, x0=other, block_size=5, tol=1e-12)
    assert_within(r.x, other + np.linalg.pinv(A) @ (A @ (x - other)), 1e-9)


# ---- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method):
    rng = np.random.default_rng(5)
    A, b = rng.standard_normal((40, 12)), rng.standard_normal(40)
    options = {"method": method, "max_iter": 30}
    first = quiet(A, b, **options, seed=3).x
    assert np.array_equal(quiet(A, b, **options, seed=3, n_threads=2).x, first)
    assert not np.array_equal(quiet(A, b, **options, seed=4).x, first)
    fresh = [quiet(A, b, **options, seed=np.random.default_rng(s)).x for s in (0, 0, 1)]
    assert np.array_equal(fresh[0], fresh[1])
    assert not np.array_equal(fresh[0], fresh[2])
    assert not np.array_equal(quiet(A, b, **options, seed=None).x, first)


@given(layout=draws.layouts, k=st.integers(1, 4), d=draws.sizes(33), seed=draws.seeds)
def test_columns_of_b_do_not_meet(layout, k, d, seed):
    """Kaczmarz on many right-hand sides takes the same rows: the bits are those of each alone."""
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((30, d)), rng.standard_normal((30, k))
    options = {"method": "kaczmarz", "max_iter": 60, "tol": 0.0, "seed": seed}
    together = quiet(A, draws.relayout(B, layout), **options).x
    for c in range(k):
        assert np.array_equal(quiet(A, B[:, c].copy(), **options).x, together[:, c])


@given(layout=draws.layouts, dtype=draws.dtypes, d=draws.sizes(40), seed=draws.seeds)
def test_layouts_and_sparse_matrices_agree(layout, dtype, d, seed):
    rng = np.random.default_rng(seed)
    A, b = rng.standard_normal((20, d)).astype(dtype), rng.standard_normal(20).astype(dtype)
    options = {"method": "kaczmarz", "max_iter": 20, "tol": 0.0, "seed": seed}
    plain = quiet(np.ascontiguousarray(A), b, **options).x
    # Sums in another order; 20 projections do not amplify an error, rounding to dtype comes last.
    bound = (20 * 4 * np.sqrt(d) * 2.0**-52 + EPS[np.dtype(dtype).name]) * (
        np.abs(b).max() * np.sqrt(20 * d) / np.sqrt((A**2).sum(axis=1)).min()
    )
    assert_within(quiet(draws.relayout(A, layout), b, **options).x, plain, bound)
    assert_within(quiet(sp.csc_array(A), b, **options).x, plain, bound)


def test_duplicate_entries_are_one():
    A = sp.coo_array(([1.0, 2.0, 1.0, 1.0], ([0, 0, 1, 1], [0, 0, 1, 0])), shape=(2, 2)).tocsr()
    unsorted = sp.csr_array(([1.0, 2.0, 1.0, 1.0], [0, 0, 1, 0], [0, 2, 4]), shape=(2, 2))
    kept = unsorted.data.copy()
    r = sketch_and_project(unsorted, np.array([3.0, 3.0]), method="kaczmarz")
    assert_within(r.x, [1.0, 2.0], 1e-7)
    assert unsorted.nnz == 4
    assert np.array_equal(unsorted.data, kept)
    assert np.array_equal(sketch_and_project(A, np.array([3.0, 3.0]), method="kaczmarz").x, r.x)


# ---- what it says about itself -------------------------------------------------------------------


def test_history():
    rng = np.random.default_rng(6)
    A, b = matrix(rng, 80, 10, 5.0), rng.standard_normal(80)
    r = sketch_and_project(A, b, method="extended")
    h = r.history
    assert h["iterations"][0] == 0
    assert h["iterations"][-1] == r.iterations
    assert (np.diff(h["iterations"]) > 0).all()
    assert (np.diff(h["seconds"]) >= 0).all()
    assert h["residual"][0] == pytest.approx(np.linalg.norm(b))
    assert h["residual"][-1] == pytest.approx(r.residual_norm)
    assert h["gradient"][-1] == pytest.approx(r.gradient_norm)
    assert (r.method, r.block_size) == ("extended", 1)


def test_no_steps_are_only_a_look():
    A, b = np.eye(3), np.arange(3.0)
    r = quiet(A, b, max_iter=0)
    assert (r.iterations, len(r.history)) == (0, 1)
    assert not r.x.any()
    assert np.array_equal(r.residual, b)


def test_atol_is_enough():
    rng = np.random.default_rng(7)
    A = matrix(rng, 50, 5, 4.0)
    b = A @ rng.standard_normal(5)
    goal = 0.01 * np.linalg.norm(b)
    r = sketch_and_project(A, b, method="kaczmarz", tol=0.0, atol=goal)
    assert r.converged
    assert r.residual_norm <= goal


def test_result_is_of_the_callers_array_type():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    A, x = rng.standard_normal((30, 4)), rng.standard_normal(4)
    r = sketch_and_project(torch.from_numpy(A), torch.from_numpy(A @ x))
    assert isinstance(r.x, torch.Tensor)
    assert_within(r.x.numpy(), x, 1e-6)


def test_progress_bar(capsys):
    pytest.importorskip("tqdm")
    A = matrix(np.random.default_rng(9), 40, 6)
    sketch_and_project(A, A.sum(axis=1), progress=True)
    assert "residual" in capsys.readouterr().err


# ---- bad input -----------------------------------------------------------------------------------

GOOD_A = np.random.default_rng(10).standard_normal((8, 5))
GOOD_B = GOOD_A.sum(axis=1)


def refuse(name, error=(ValueError, TypeError), **options):
    arguments = {"A": GOOD_A, "b": GOOD_B, **options}
    return assert_refused(
        name,
        lambda: sketch_and_project(**arguments),
        error,
        lambda: (GOOD_A.tobytes(), GOOD_B.tobytes()),
    )


@pytest.mark.parametrize("kind", [k for k in ARRAYS if k != "one entry less"])
@pytest.mark.parametrize("name", ["A", "b"])
def test_arrays(name, kind):
    spoil, error = ARRAYS[kind]
    refuse(name, error, **{name: spoil(GOOD_A if name == "A" else GOOD_B)})


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("form", ["csr", "operator"])
def test_entries_of_other_matrices(form, value):
    A = GOOD_A.copy()
    A[3, 2] = value
    refuse("A", ValueError, A=FORMS[form](A))


def test_shapes_and_types():
    refuse("A", ValueError, A=np.zeros((0, 5)), b=np.zeros(0))
    refuse("A", ValueError, A=np.zeros((8, 0)))
    refuse("b", ValueError, b=GOOD_B[:-1])
    refuse("b", ValueError, b=np.zeros((8, 0)))
    refuse("b", TypeError, b=GOOD_B.astype(np.float32))
    refuse("A", TypeError, A=sp.csr_array(GOOD_A.astype(int)))
    refuse("A", TypeError, A=aslinearoperator(GOOD_A.astype(complex)))
    refuse("x0", ValueError, x0=np.zeros(4))
    refuse("x0", ValueError, x0=np.full(5, NAN))
    refuse("x0", TypeError, x0=np.zeros(5, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "Kaczmarz"),
        ("method", None),
        *[("block_size", v) for v in (*SIZES, 9) if v is not None],
        *[("max_iter", v) for v in (-1, 2.5, "3", True)],
        *[("tol", v) for v in (-1e-9, NAN, INF, "small")],
        *[("atol", v) for v in (-1e-9, NAN, None)],
        *[("relaxation", v) for v in (0.0, 2.0, -1, NAN, None)],
        *[("seed", v) for v in (-1, 2**64, 1.5, "0")],
        *[("n_threads", v) for v in (0, 1.5, "all")],
        ("metric", np.ones(4)),
        ("metric", np.full(5, NAN)),
        ("metric", np.ones(5, np.float32)),
        ("metric", np.triu(np.ones((5, 5)))),
    ],
    ids=shown,
)
def test_options(name, value):
    refuse(name, **{name: value})


def test_options_that_do_not_go_together():
    refuse("block_size", ValueError, method="kaczmarz", block_size=2)
    refuse("metric", ValueError, method="kaczmarz", metric=np.ones(5))
    refuse("metric", ValueError, method="extended", metric=np.ones(5))
    refuse("backend", ValueError, method="kaczmarz", backend="fortran")


@pytest.mark.parametrize("metric", [-np.ones(5), np.eye(5) - 0.5])
def test_metric_must_be_positive_definite(metric):
    with pytest.raises(LinAlgError, match=r"^metric must be positive"):
        sketch_and_project(GOOD_A, GOOD_B, metric=metric)


def test_an_operator_must_have_a_transpose():
    refuse("A", TypeError, A=LinearOperator((8, 5), matvec=lambda v: GOOD_A @ v, dtype=float))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["array", "csr", "operator"])
@pytest.mark.parametrize(
    ("of_a", "of_b"), [(0, -565), (0, 565), (-665, -600), (665, 600), (997, 3)]
)
def test_scale(backend, method, form, of_a, of_b):
    """A and b in other units."""
    rng = np.random.default_rng(0)
    A = matrix(rng, 40, 6, condition=2.0)
    b = np.column_stack((A @ rng.standard_normal(6), A @ rng.standard_normal(6)))
    options = {"method": method, "backend": backend}
    usual = sketch_and_project(FORMS[form](A), b, **options)
    scaled = FORMS[form](np.ldexp(A, of_a))
    found = sketch_and_project(scaled, np.ldexp(b, of_b), **options)
    assert found.converged
    norms = np.linalg.norm(b, axis=0)
    # Moderate is a range, so the units of the computation may differ, and with them its rounding.
    assert_within(np.ldexp(found.x, of_a - of_b), usual.x, 1e-6)
    if method != "extended":  # which may stop at a small gradient
        assert (np.ldexp(found.residual_norm, -of_b) <= 1e-8 * norms).all()
    residual = b - A @ np.ldexp(found.x, of_a - of_b)
    assert_within(np.ldexp(found.residual, -of_b), residual, 1e-14)


@pytest.mark.parametrize("size", [-400, 400])
def test_answers_that_no_float_holds(size):
    A = matrix(np.random.default_rng(0), 20, 4)
    with pytest.raises(LinAlgError, match="cannot hold an x of that size"):
        sketch_and_project(np.ldexp(A, -2 * size), np.ldexp(A[:, 0], 2 * size))
    with pytest.raises(LinAlgError, match="overflowed"):
        sketch_and_project(A.astype(np.float32) * 1e-30, A[:, 0].astype(np.float32) * 1e30)


@pytest.mark.parametrize("method", ["kaczmarz", "block_kaczmarz", "extended"])
@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-9])
def test_what_is_judged_is_returned(method, tol):
    """Of float32 the rounded x, which has an error of its own."""
    rng = np.random.default_rng(0)
    A = matrix(rng, 60, 8, condition=30).astype(np.float32)
    b = A @ rng.standard_normal(8).astype(np.float32)
    found = quiet(A, b, method=method, tol=tol)
    exact = b.astype(float) - A.astype(float) @ found.x
    assert_within(found.residual_norm, np.linalg.norm(exact), 1e-12 * np.linalg.norm(b))
    if method != "extended":
        assert found.converged == (found.residual_norm <= tol * np.linalg.norm(b))
        assert found.converged or tol < 1e-5
