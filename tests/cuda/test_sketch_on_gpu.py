"""The sketch family on arrays of a GPU, which is an emulated one.

The kernels are those of the CPU, so that results are the same but for what Python does in another
way there: factors by Cholesky, transforms by the arrays' own library, scales before sums.
"""

import pickle
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
from scipy import sparse

import quadric as qd
from quadric import sketch
from quadric.errors import ConvergenceWarning
from tests.cuda.test_sweep_on_gpu import same

STORAGES = ("float16", ml_dtypes.bfloat16, "float32", "float64")
EPS = {"float32": 3e-6, "float64": 1e-14}

OPERATORS = {
    "sparse_sign": lambda n: sketch.sparse_sign(48, n, nnz=8, seed=3),
    "count_sketch": lambda n: sketch.count_sketch(48, n, seed=3),
    "gaussian": lambda n: sketch.gaussian(40, n, seed=3),
    "rademacher": lambda n: sketch.rademacher(40, n, seed=3),
    "srht": lambda n: sketch.srht(40, n, seed=3),
    "circulant": lambda n: sketch.circulant(40, n, seed=3),
    "row_sampling": lambda n: sketch.row_sampling(
        np.array([3, n - 1, 3, 0, 17, 3]), n, np.array([1.0, 2.0, 0.5, 3.0, 0.0, 1.5])
    ),
    "composed": lambda n: sketch.gaussian(16, 48, seed=1) @ sketch.sparse_sign(48, n, seed=2),
}

operators = pytest.mark.parametrize("name", OPERATORS)


def normal(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layouts(a):
    """Yield the same entries with other strides."""
    yield a
    yield np.asfortranarray(a)
    yield np.pad(a, ((1, 2), (3, 1)), constant_values=np.nan)[1:-2, 3:-1]
    yield a[::-1, ::-1].copy()[::-1, ::-1]


def problem(n, d, condition=1e4, dtype="float64", k=None, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, d)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    A = A * np.logspace(0, -np.log10(condition), d) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    shape = (d,) if k is None else (d, k)
    b = A @ rng.standard_normal(shape)
    b += 1e-3 * rng.standard_normal(b.shape)
    return A.astype(dtype), b.astype(dtype)


# ---- operators -----------------------------------------------------------------------------------


@operators
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_product(gpu, name, dtype):
    n, eps = 700, EPS[dtype]
    S, A, B = OPERATORS[name](n), normal((n, 5), dtype), normal((6, n), dtype)
    for layout in layouts(A):
        same(gpu, S @ gpu.put(layout), S @ A, eps)
    same(gpu, S @ gpu.put(A[:, 0]), S @ A[:, 0], eps)
    same(gpu, gpu.put(B) @ S.T, B @ S.T, eps)
    same(gpu, gpu.put(B[0]) @ S.T, B[0] @ S.T, eps)
    assert (S @ gpu.put(A[:, :0])).shape == (S.m, 0)


@operators
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adjoint(gpu, name, dtype):
    S, eps = OPERATORS[name](700), EPS[dtype]
    B = normal((S.m, 5), dtype)
    for layout in layouts(B):
        same(gpu, S.T @ gpu.put(layout), S.T @ B, eps)
    same(gpu, S.T @ gpu.put(B[:, 0]), S.T @ B[:, 0], eps)
    same(gpu, gpu.put(B.T.copy()) @ S, B.T @ S, eps)
    assert (S.T @ gpu.put(B[:, :0])).shape == (700, 0)


@operators
def test_parts(gpu, name):
    """Also those that begin within a block, and for circulant ones windows that wrap around."""
    n = 9000
    S, A = OPERATORS[name](n), normal((n, 3))
    for rows, columns in (
        (slice(None), slice(300, 8500)),
        (slice(2, 5), slice(None)),
        (slice(1, 6), slice(33, 34)),
        (slice(0, 4), slice(5000, 9000)),
    ):
        part, piece = S[rows, columns], A[columns]
        same(gpu, part @ gpu.put(piece), part @ piece, 1e-13)
        B = normal((part.m, 2))
        same(gpu, part.T @ gpu.put(B), part.T @ B, 1e-13)


def test_samples_stay_on_their_gpu(gpu, monkeypatch):
    """The first product leaves them there for the next ones; a copy of the operator has none."""
    S, A = OPERATORS["srht"](700), normal((700, 5))
    first = [gpu.get(S @ gpu.put(A, device)) for device in (0, 1)]
    assert len(S._there) == 2
    again = pickle.loads(pickle.dumps(S))
    assert again == S
    assert not again._there
    monkeypatch.setattr("quadric.sketch.hadamard._samples", None)  # or they would be drawn again
    for device, result in enumerate(first):
        np.testing.assert_array_equal(gpu.get(S @ gpu.put(A, device)), result)


@pytest.mark.parametrize("width", [1, 2, 1000])
def test_circulant_in_pieces(gpu, monkeypatch, width):
    S, A, B = sketch.circulant(100, 9000, seed=1), normal((9000, 5)), normal((100, 5))
    module = sys.modules["quadric.sketch.circulant"]
    monkeypatch.setattr(module, "_ENTRIES_ON_GPU", width * S._length)
    same(gpu, S @ gpu.put(A), S @ A, 1e-13)
    same(gpu, S.T @ gpu.put(B), S.T @ B, 1e-13)


@operators
@pytest.mark.parametrize("storage", STORAGES[:2])
def test_entries_of_16_bits(gpu, name, storage):
    S, A = OPERATORS[name](700), normal((700, 5)).astype(storage)
    wide = A.astype(np.float32)
    same(gpu, S @ gpu.put(A), S @ wide, EPS["float32"])
    B = normal((S.m, 2)).astype(storage)
    same(gpu, S.T @ gpu.put(B), S.T @ B.astype(np.float32), EPS["float32"])


@operators
def test_not_finite(gpu, name):
    A = normal((700, 5))
    A[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"A must be finite, got nan at index \(3, 2\)"):
        OPERATORS[name](700) @ gpu.put(A)


def test_operators_refuse(gpu):
    S, A = sketch.sparse_sign(48, 700), normal((700, 5))
    with pytest.raises(ValueError, match="A must have 700 rows"):
        S @ gpu.put(A[:5])
    with pytest.raises(TypeError, match="A must be float16, bfloat16, float32 or float64"):
        S @ gpu.put(A.astype(int))
    with pytest.raises(ValueError, match="backend must be cuda"):
        sketch.sparse_sign(48, 700, backend="numba") @ gpu.put(A)
    with pytest.raises(ValueError, match="chunk must be in CPU memory"):
        S.stream(5).update(gpu.put(A))
    same(gpu, sketch.srht(48, 700, backend="cuda") @ gpu.put(A), sketch.srht(48, 700) @ A, 1e-14)


def test_like_jax(gpu):
    gpu.library.waits = True
    for make in OPERATORS.values():
        S, A, B = make(700), normal((700, 5), "float32"), normal((make(700).m, 3), "float32")
        same(gpu, S @ gpu.put(A), S @ A, EPS["float32"])
        same(gpu, S.T @ gpu.put(B), S.T @ B, EPS["float32"])
    A, b = problem(3000, 5, 10.0, "float32")
    found, expected = sketch.lstsq(gpu.put(A), gpu.put(b)), sketch.lstsq(A, b)
    same(gpu, found.x, expected.x, 1e-5)
    same(gpu, sketch.leverage_scores(gpu.put(A)), sketch.leverage_scores(A), 1e-5)


# ---- fwht and residual_gradient ------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("orthonormal", [False, True])
def test_fwht(gpu, storage, orthonormal):
    x = normal((3, 64, 2)).astype(storage)
    wide = x if x.itemsize > 2 else x.astype(np.float32)
    expected = sketch.fwht(wide, axis=1, orthonormal=orthonormal)
    eps = {2: 2 * float(ml_dtypes.finfo(x.dtype).eps)}.get(x.itemsize, 1e-6)
    on_gpu = gpu.put(x)
    found = sketch.fwht(on_gpu, axis=1, orthonormal=orthonormal)
    assert gpu.get(found).dtype == x.dtype
    same(gpu, found, expected.astype(x.dtype), eps)
    assert np.array_equal(gpu.get(on_gpu), x)
    out = gpu.put(np.empty((3, 64, 4), x.dtype))[:, :, ::2]
    assert sketch.fwht(on_gpu, 1, orthonormal=orthonormal, out=out) is out
    same(gpu, out, expected.astype(x.dtype), eps)
    assert sketch.fwht(on_gpu, 1, orthonormal=orthonormal, out=on_gpu) is on_gpu
    same(gpu, on_gpu, expected.astype(x.dtype), eps)


def test_fwht_refuses(gpu):
    x = gpu.put(normal((6, 4)))
    with pytest.raises(ValueError, match="power of two"):
        sketch.fwht(x)
    with pytest.raises(ValueError, match="out must have the shape"):
        sketch.fwht(x, 1, out=gpu.put(normal((6, 2))))
    with pytest.raises(ValueError, match="share no memory"):
        sketch.fwht(x[:2, :2], 1, out=x[1:3, :2])
    with pytest.raises(ValueError, match="out must be where x is"):
        sketch.fwht(x, 1, out=normal((6, 4)))
    with pytest.raises(ValueError, match="x must be finite"):
        sketch.fwht(gpu.put(np.array([1.0, np.inf])))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_residual_gradient(gpu, dtype, k):
    A, x = normal((300, 4), dtype), normal((4,) if k is None else (4, k), dtype, 1)
    b = normal((300, *x.shape[1:]), dtype, 2)
    for right in (None, b):
        there = None if right is None else gpu.put(right)
        g, r, norm = sketch.residual_gradient(gpu.put(A), gpu.put(x), there)
        expected = sketch.residual_gradient(A, x, right)
        same(gpu, g, expected.gradient, EPS[dtype])
        same(gpu, r, expected.residual, EPS[dtype])
        np.testing.assert_allclose(norm, expected.norm, rtol=EPS[dtype])


def test_residual_gradient_of_any_size(gpu):
    A, x, b = normal((30, 4)), normal((4, 2)), normal((30, 2))
    huge, tiny = (gpu.put(b * s) for s in (1e200, 1e-200))
    for there, scale in ((huge, 1e200), (tiny, 1e-200)):
        _, _, norm = sketch.residual_gradient(gpu.put(A), gpu.put(x * scale), there)
        expected = sketch.residual_gradient(A, x, b).norm * scale
        np.testing.assert_allclose(norm, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="x must be where A is"):
        sketch.residual_gradient(gpu.put(A), gpu.put(x, 1))
    with pytest.raises(ValueError, match="b must be finite"):
        sketch.residual_gradient(gpu.put(A), gpu.put(x), gpu.put(b * np.nan))


# ---- least squares -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [None, 1, 4, 30])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("n", [400, 20_000])
def test_lstsq(gpu, dtype, k, ridge, n):
    A, b = problem(n, 20, 1e2 if dtype == "float32" else 1e8, dtype, k)
    expected = sketch.lstsq(A, b, method="gram" if n > 400 else "auto", ridge=ridge)
    on_gpu = gpu.put(A), gpu.put(b)
    waits, copies = gpu.waits, gpu.launched.count("sketch.srht")
    found = sketch.lstsq(*on_gpu, ridge=ridge)
    assert found.method == ("gram" if n > 400 else "direct")
    assert gpu.launched.count("sketch.srht") - copies == (2 if n > 400 else 0)
    if k != 30:
        assert gpu.waits - waits <= 10
    assert found.converged
    assert found.rank == 20
    eps = 1e-3 if dtype == "float32" else 1e-6
    same(gpu, found.x, expected.x, eps)
    same(gpu, found.residual, expected.residual, eps)
    np.testing.assert_allclose(found.residual_norm, expected.residual_norm, rtol=eps)
    limit = 2e-7 if dtype == "float32" else 4e-16
    assert (found.backward_error <= limit).all() if k else found.backward_error <= limit
    x = gpu.get(found.x)
    assert np.max(sketch.lstsq_backward_error(A, b, x, ridge=ridge, exact=True)) <= 2 * limit
    assert 0.2 < found.condition / expected.condition < 5
    assert list(found.history["iterations"]) == list(range(len(found.history)))
    residues, rank, s = tuple(found)[1:]
    np.testing.assert_allclose(residues, np.square(found.residual_norm))
    assert rank == 20
    np.testing.assert_allclose(gpu.get(s), expected.singular_values, rtol=0.3)
    assert repr(found).startswith(f"LstsqResult(x of shape {x.shape}")


def test_lstsq_error_is_that_of_the_cpu(gpu):
    """For columns of all sizes, and a residual that is not small."""
    A, b = problem(3000, 12, 1e6)
    A *= np.logspace(-5, 5, 12)
    b += normal(3000, seed=4)
    for tol in (None, 1e-6):
        found = sketch.lstsq(gpu.put(A), gpu.put(b), method="gram", tol=tol)
        mine = sketch.lstsq_backward_error(A, b, gpu.get(found.x), exact=True)
        assert mine / 3 <= found.backward_error <= 3 * mine
    start = found.history["backward_error"][0]
    rough = sketch.lstsq(A, b, method="sketch", sketch_size=4 * 12 + 64, nnz=4)
    assert 0.3 < start / rough.history["backward_error"][0] < 3


@pytest.mark.parametrize("condition", [1e2, 1e10, 1e12, 1e14])
@pytest.mark.parametrize("residual", [1e-12, 1e-3, 1e3])
def test_lstsq_for_conditions_and_residuals(gpu, condition, residual):
    A, b = problem(4000, 16, condition)
    b = b + residual * normal(4000, seed=5)
    found = sketch.lstsq(gpu.put(A), gpu.put(b))
    assert found.converged
    exact = sketch.lstsq_backward_error(A, b, gpu.get(found.x), exact=True)
    assert exact <= 1e-15


def test_lstsq_shifts_of_many_sides(gpu):
    """Residuals from rounding to large ones, one of them none, in groups."""
    A, b = problem(3000, 10, 1e3, k=12)
    b = A @ normal((10, 12)) + np.logspace(-14, 2, 12) * normal((3000, 12), seed=1)
    b[:, 3] = 0
    found = sketch.lstsq(gpu.put(A), gpu.put(b), method="gram")
    assert found.converged
    assert not gpu.get(found.x)[:, 3].any()
    assert found.backward_error[3] == 0
    exact = sketch.lstsq_backward_error(A, b, gpu.get(found.x), exact=True)
    assert (exact <= 1e-15).all()
    assert (found.backward_error >= exact / 3).all()


@pytest.mark.parametrize("method", ["spir", "fossils", "iterative", "precondition", "sketch"])
@pytest.mark.parametrize("k", [None, 3])
def test_lstsq_methods(gpu, method, k):
    A, b = problem(3000, 10, 1e3, k=k)
    expected = sketch.lstsq(A, b, method=method, ridge=1e-3)
    found = sketch.lstsq(gpu.put(A), gpu.put(b), method=method, ridge=1e-3)
    assert found.method == method
    same(gpu, found.x, expected.x, 1e-10)
    same(gpu, found.residual, expected.residual, 1e-8)
    assert abs(found.iterations - expected.iterations) <= 1


@pytest.mark.parametrize("operator", ["srht", "circulant", "gaussian", "count_sketch"])
def test_lstsq_operators(gpu, operator):
    A, b = problem(5000, 10, 1e3)
    found = sketch.lstsq(gpu.put(A), gpu.put(b), method="gram", operator=operator)
    assert found.converged
    same(gpu, found.x, sketch.lstsq(A, b).x, 1e-9)
    linf = sketch.lstsq(gpu.put(A), gpu.put(b), guarantee="linf", eps=0.9)
    same(gpu, linf.x, sketch.lstsq(A, b, guarantee="linf", eps=0.9).x, 1e-9)


@pytest.mark.parametrize("minimum_norm", [False, True])
@pytest.mark.parametrize("n", [60, 4000])
def test_lstsq_of_low_rank(gpu, minimum_norm, n):
    A, b = problem(n, 8, 10.0)
    A[:, 5] = A[:, 2] - A[:, 1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = sketch.lstsq(A, b, minimum_norm=minimum_norm)
        found = sketch.lstsq(gpu.put(A), gpu.put(b), minimum_norm=minimum_norm)
    assert len(caught) == (0 if minimum_norm else 2)
    assert found.rank == expected.rank == 7
    same(gpu, found.x, expected.x, 1e-8)


@pytest.mark.parametrize("scale", [1e-120, 1e150])
def test_lstsq_of_any_size(gpu, scale):
    A, b = problem(3000, 6, 100.0)
    for a, right in ((A, b * scale), (A * 1e-30, b), (np.ones((3000, 1)), b * scale)):
        expected = sketch.lstsq(a, right)
        found = sketch.lstsq(gpu.put(a), gpu.put(right))
        assert found.converged
        same(gpu, found.x, expected.x, 1e-10)
        same(gpu, found.residual, expected.residual, 1e-10)


def test_lstsq_of_few_rows(gpu):
    A, _ = problem(400, 12, 10.0)
    wide, right = A.T.copy(), normal((12, 2))
    for matrix in (wide, wide * 1e-160):
        expected = sketch.lstsq(matrix, right)
        found = sketch.lstsq(gpu.put(matrix), gpu.put(right))
        same(gpu, found.x, expected.x, 1e-10)
        assert found.method == "minimum_norm"
        assert gpu.get(found.residual).shape == (12, 2)


def test_lstsq_refuses(gpu):
    A, b = problem(3000, 6, 10.0)
    for bad, name in ((0, "A"), (1, "b")):
        pair = [A.copy(), b.copy()]
        pair[bad][7] = np.nan
        for method in ("auto", "spir"):
            with pytest.raises(ValueError, match=f"{name} must be finite, got nan at index \\(7"):
                sketch.lstsq(*map(gpu.put, pair), method=method)
    with pytest.raises(ValueError, match="b must be where A is"):
        sketch.lstsq(gpu.put(A), b)
    with pytest.raises(ValueError, match="b must be where A is"):
        sketch.lstsq(A, gpu.put(b))
    with pytest.raises(TypeError, match="A must be float32 or float64, got float16"):
        sketch.lstsq(gpu.put(A.astype(np.float16)), gpu.put(b))
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        sketch.lstsq(gpu.put(A), gpu.put(b), method="gram", max_iter=1, tol=1e-30)


def test_lstsq_leaves_its_input_alone(gpu):
    for n in (40, 5000):
        A, b = problem(n, 6, 10.0)
        there = gpu.put(A), gpu.put(b)
        sketch.lstsq(*there)
        sketch.leverage_scores(there[0])
        assert np.array_equal(gpu.get(there[0]), A)
        assert np.array_equal(gpu.get(there[1]), b)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [None, 3])
def test_lstsq_backward_error(gpu, exact, k):
    A, b = problem(3000, 6, 1e4, k=k)
    x = np.linalg.lstsq(A, b)[0] * (1 + 1e-9)
    expected = sketch.lstsq_backward_error(A, b, x, exact=exact)
    for there in (gpu.put(x), x):
        found = sketch.lstsq_backward_error(gpu.put(A), gpu.put(b), there, exact=exact)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = sketch.lstsq_backward_error(gpu.put(A), gpu.put(b * 1e200), gpu.put(x * 1e200))
    np.testing.assert_allclose(found, sketch.lstsq_backward_error(A, b, x), rtol=1e-6)


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("n", [3, 100, 5000])
def test_leverage_scores(gpu, dtype, ridge, n):
    A, _ = problem(n, 7, 10.0, dtype) if n > 7 else (normal((n, 7), dtype), None)
    expected = sketch.leverage_scores(A, ridge=ridge)
    for layout in layouts(A):
        waits = gpu.waits
        found = sketch.leverage_scores(gpu.put(layout), ridge=ridge)
        assert gpu.waits - waits <= 1 or n == 3
        assert gpu.get(found).dtype == A.dtype
        same(gpu, found, expected, 1e-5 if dtype == "float32" else 1e-11)
    rough = sketch.leverage_scores(gpu.put(A), ridge=ridge, approximate=True)
    expected = sketch.leverage_scores(A, ridge=ridge, approximate=True)
    same(gpu, rough, expected, 1e-4 if dtype == "float32" else 1e-10)


def test_leverage_scores_of_low_rank(gpu):
    A, _ = problem(4000, 7, 10.0)
    A[:, 5] = A[:, 2] - A[:, 1]
    same(gpu, sketch.leverage_scores(gpu.put(A)), sketch.leverage_scores(A), 1e-9)
    A[9, 1] = np.inf
    with pytest.raises(ValueError, match=r"A must be finite, got inf at index \(9, 1\)"):
        sketch.leverage_scores(gpu.put(A))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1.0, 3.0])
def test_lewis_weights_and_sensitivities(gpu, dtype, p):
    A, _ = problem(2000, 5, 10.0, dtype)
    eps = 1e-3 if dtype == "float32" else 1e-8
    same(gpu, sketch.lewis_weights(gpu.put(A), p), sketch.lewis_weights(A, p), eps)
    bound = sketch.lp_sensitivities(A, p, method="bound")
    same(gpu, sketch.lp_sensitivities(gpu.put(A), p, method="bound"), bound, 10 * eps)
    few = A[:12]
    exact = sketch.lp_sensitivities(few, p, method="exact")
    same(gpu, sketch.lp_sensitivities(gpu.put(few), p, method="exact"), exact, 10 * eps)


@pytest.mark.parametrize("rule", ["auto", "uniform", "root_leverage", "lewis", "mixed"])
@pytest.mark.parametrize("replace", [False, True])
def test_sample_rows(gpu, rule, replace):
    A, _ = problem(2000, 5, 10.0)
    words = {"rule": rule, "p": 1.5, "replace": replace}
    expected = sketch.sample_rows(A, 100, **words)
    found = sketch.sample_rows(gpu.put(A), 100, **words)
    assert np.array_equal(gpu.get(found.indices), expected.indices)
    same(gpu, found.weights, expected.weights, 1e-8)
    same(gpu, found.operator() @ gpu.put(A), expected.operator() @ A, 1e-8)
    scores = sketch.leverage_scores(A)
    indices, _ = sketch.sample_rows(gpu.put(scores), 100)
    assert np.array_equal(gpu.get(indices), sketch.sample_rows(scores, 100).indices)


# ---- what stays on the CPU says so ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda A, b: sketch.lp_regression(A, b, 1.5), "A"),
        (lambda A, b: sketch.projection_dpp(A), "Phi"),
        (lambda A, b: sketch.volume_sample(A, 9), "A"),
        (lambda A, b: sketch.weighted_least_squares_design(A, 9), "basis"),
        (lambda A, b: sketch.sketch_and_project(A, b), "A"),
        (lambda A, b: sketch.sparse_regression(A, b, 2), "A"),
        (lambda A, b: sketch.top_singular_vector(A), "A"),
        (lambda A, b: sketch.randomized_svd(A, 2), "A"),
        (lambda A, b: sketch.sketched_qr(A), "A"),
        (lambda A, b: sketch.clarkson_woodruff_transform(A, 9), "input_matrix"),
        (lambda A, b: sketch.polynomial_basis(A, 3), "points"),
        (lambda A, b: sketch.row_sampling(b, 50), "indices"),
    ],
)
def test_others_refuse(gpu, call, name):
    A, b = problem(100, 4, 10.0)
    with pytest.raises(ValueError, match=f"{name} must be in CPU memory"):
        call(gpu.put(A), gpu.put(b))


def test_backend_cuda_on_arrays_of_the_host(gpu):
    A, b = problem(3000, 6, 100.0)
    S = sketch.sparse_sign(48, 3000, backend="cuda")
    assert np.array_equal(S @ A, sketch.sparse_sign(48, 3000) @ A)
    found = sketch.lstsq(A, b, backend="cuda")
    np.testing.assert_allclose(found.x, sketch.lstsq(A, b).x)
    for matrix in (A, sparse.csr_array(A)):
        words = {"method": "kaczmarz", "max_iter": 10, "tol": 1e-1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = sketch.sketch_and_project(matrix, b, **words).x
            x = sketch.sketch_and_project(matrix, b, backend="cuda", **words).x
        assert np.array_equal(x, expected)
    assert np.array_equal(qd.random.words(1, 2, 3, 9, backend="cuda"), qd.random.words(1, 2, 3, 9))
