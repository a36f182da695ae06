"""Top singular vectors of streams, randomized SVD, sketched QR: against NumPy and their bounds."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, target
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from quadric.errors import LinAlgError
from quadric.sketch import (
    StreamingTopVector,
    gaussian,
    randomized_svd,
    sketched_qr,
    srht,
    top_singular_vector,
)
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, NAN, SIZES, assert_refused, shown, spoiled

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
METHODS = ("blocks", "oja")


def spiked(seed, n, d, ratio):
    """Gaussian rows whose covariance has one eigenvalue `ratio` and d - 1 of 1; the direction."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(d)
    v /= np.linalg.norm(v)
    A = rng.standard_normal((n, d))
    return A + (np.sqrt(ratio) - 1) * np.outer(A @ v, v), v


def top(A):
    return np.linalg.svd(A, full_matrices=False)[2][0]


def stream(chunks, d, **options):
    s = StreamingTopVector(d, **options)
    for chunk in chunks:
        s.update(chunk)
    return s


# ---- the top vector of a stream ------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d", "ratio"), [(20_000, 40, 4.0), (30_000, 100, 2.0)])
def test_spiked_covariance(backend, method, n, d, ratio):
    """1 - correlation^2 of one block of b rows is near d ratio / (b (ratio - 1)^2), b = n / 5.

    That is the variance of perturbation theory; five times as much leaves room for earlier blocks.
    """
    for seed in range(3):
        A, _ = spiked(seed, n, d, ratio)
        v = top_singular_vector(A, method=method, seed=seed, backend=backend)
        lost = 1 - (v @ top(A)) ** 2
        assert lost <= 5 * d * ratio / (n / 5 * (ratio - 1) ** 2)
        assert np.linalg.norm(v) == pytest.approx(1, abs=4e-16 * d)
        assert v[np.abs(v).argmax()] > 0


@pytest.mark.parametrize("method", METHODS)
def test_singular_value(backend, method):
    A, _ = spiked(0, 20_000, 30, 5.0)
    s = stream([A], 30, method=method, backend=backend)
    # A block of a fifth of the rows estimates the variance along v to sqrt(2 / 4000) = 0.02.
    assert s.singular_value == pytest.approx(np.linalg.norm(A, 2), rel=0.06)


def test_heavy_rows_count(backend):
    """Rows that make the top vector by themselves, and that later blocks would forget."""
    rng = np.random.default_rng(1)
    A = rng.standard_normal((10_000, 40))
    direction = rng.standard_normal(40)
    A[[3, 300, 700]] = np.outer([20, -12, 16], direction)
    expected = top(A)
    kept = top_singular_vector(A, backend=backend)
    dropped = top_singular_vector(A, heavy_rows=0, backend=backend)
    assert 1 - abs(kept @ expected) < 1e-3
    assert 1 - abs(dropped @ expected) > 10 * (1 - abs(kept @ expected))


@given(
    n=st.sampled_from((1, 2, 127, 128, 129, 255, 256, 257, 1000)),
    d=draws.sizes(40),
    method=st.sampled_from(METHODS),
    dtype=draws.dtypes,
    layout=draws.layouts,
    heavy=st.sampled_from((0, 2, 64)),
    pieces=st.integers(1, 60),
    announced=st.booleans(),
    seed=draws.seeds,
)
def test_bits_do_not_depend_on_chunks_or_layout(
    backend, n, d, method, dtype, layout, heavy, pieces, announced, seed
):
    rng = np.random.default_rng(seed)
    A = (rng.standard_normal((n, d)) * rng.lognormal(sigma=2, size=(n, 1))).astype(dtype)
    shown_ = draws.relayout(A, layout)
    before = draws.whole(shown_).tobytes()
    options = {
        "method": method, "heavy_rows": heavy, "dtype": dtype, "seed": seed, "backend": backend,
        "rows": n if announced else None,
    }  # fmt: skip
    whole = stream([A], d, **options).value()
    cuts = np.sort(rng.integers(0, n + 1, pieces - 1))
    chunks = np.split(shown_, cuts)
    parts = stream(chunks, d, n_threads=2, **options)
    assert np.array_equal(parts.value(), whole)
    assert np.array_equal(parts.value(), whole)  # looking changes nothing
    assert parts.rows_seen == n
    assert whole.dtype == dtype
    assert draws.whole(shown_).tobytes() == before
    rows = stream(list(A), d, **options) if n <= 300 else parts
    assert np.array_equal(rows.value(), whole)


def test_looking_on_the_way_changes_nothing(backend):
    A, _ = spiked(2, 2000, 10, 3.0)
    quiet, looked = (StreamingTopVector(10, backend=backend) for _ in range(2))
    for chunk in np.array_split(A, 23):
        quiet.update(chunk)
        looked.update(chunk)
        assert np.linalg.norm(looked.value()) == pytest.approx(1)
    assert np.array_equal(quiet.value(), looked.value())


@pytest.mark.parametrize("n", [1, 5, 128])
def test_short_streams_are_exact(n):
    A = np.random.default_rng(3).standard_normal((n, 7))
    s = stream([A], 7)
    assert abs(s.value() @ top(A)) == pytest.approx(1, abs=1e-14)
    assert s.singular_value == pytest.approx(np.linalg.norm(A, 2), rel=1e-14)


def test_rank_one_is_exact(backend):
    rng = np.random.default_rng(4)
    v = rng.standard_normal(20)
    A = np.outer(rng.standard_normal(3000), v)
    for method in METHODS:
        # Oja's steps leave a part of the random start of 0.1, the power steps do not.
        tolerance = 1e-12 if method == "blocks" else 1e-2
        found = top_singular_vector(A, method=method, backend=backend)
        assert abs(found @ v) / np.linalg.norm(v) == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_zero_rows(method):
    v = top_singular_vector(np.zeros((300, 4)), method=method)
    assert np.linalg.norm(v) == pytest.approx(1)


def test_blocks_of_one_size():
    A, _ = spiked(5, 12_800, 20, 6.0)
    few, many = (top_singular_vector(A, blocks=b) for b in (2, 10))
    assert 1 - abs(many @ top(A)) < 0.02
    assert not np.array_equal(few, many)


def test_sparse_rows_and_generators(backend):
    A, _ = spiked(6, 1500, 12, 4.0)
    A[np.abs(A) < 0.5] = 0
    plain = top_singular_vector(A, backend=backend)
    assert np.array_equal(top_singular_vector(sp.csr_array(A), backend=backend), plain)
    chunks = (c for c in np.array_split(A, 7))
    assert np.array_equal(top_singular_vector(chunks, rows=1500, backend=backend), plain)


def test_other_arrays():
    torch = pytest.importorskip("torch")
    A, _ = spiked(7, 500, 6, 4.0)
    v = top_singular_vector(torch.from_numpy(A))
    assert isinstance(v, torch.Tensor)
    assert np.array_equal(v.numpy(), top_singular_vector(A))


def test_seed():
    A, _ = spiked(8, 1000, 15, 2.0)
    assert np.array_equal(top_singular_vector(A, seed=1), top_singular_vector(A, seed=1))
    assert not np.array_equal(top_singular_vector(A, seed=1), top_singular_vector(A, seed=2))


# ---- bad streams ---------------------------------------------------------------------------------

CHUNK = np.random.default_rng(9).standard_normal((300, 5))


def fed(**options):
    return stream([CHUNK], 5, **options)


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_chunks_change_nothing(kind):
    spoil, error = ARRAYS[kind]
    s = fed()
    if kind in ("scalar", "more axes", "integers", "booleans", "unsigned 16 bit"):
        error = (ValueError, TypeError)
    assert_refused(
        "chunk", lambda: s.update(spoil(CHUNK)), error, lambda: (s.rows_seen, s.value().tobytes())
    )


def test_chunks_of_another_width_or_type():
    s = fed()
    state = lambda: (s.rows_seen, s.value().tobytes())  # noqa: E731
    assert_refused("chunk", lambda: s.update(np.ones((2, 6))), ValueError, state)
    assert_refused("chunk", lambda: s.update(np.ones(300)), ValueError, state)
    assert_refused("chunk", lambda: s.update(CHUNK.astype(np.float32)), TypeError, state)


def test_stream_of_another_length():
    s = fed(rows=301)
    state = lambda: (s.rows_seen, s.value(partial=True).tobytes())  # noqa: E731
    assert_refused("chunk", lambda: s.update(CHUNK[:2]), ValueError, state)
    message = assert_refused("StreamingTopVector", s.value, ValueError, state)
    assert "300 of 301" in message
    s.update(CHUNK[0])
    s.value()
    assert_refused("StreamingTopVector", StreamingTopVector(3).value, ValueError)


def test_bad_sources():
    assert_refused("A", lambda: top_singular_vector(3.0), TypeError)
    assert_refused("A", lambda: top_singular_vector("rows"), TypeError)
    assert_refused("A", lambda: top_singular_vector([]), ValueError)
    assert_refused("A", lambda: top_singular_vector(np.zeros((0, 3))), ValueError)
    assert_refused("A", lambda: top_singular_vector(np.ones(3)), ValueError)
    assert_refused("A", lambda: top_singular_vector(spoiled(CHUNK, NAN)), ValueError)
    assert_refused("rows", lambda: top_singular_vector(CHUNK, rows=299), ValueError)
    assert_refused("StreamingTopVector", lambda: top_singular_vector([CHUNK], rows=301), ValueError)
    assert_refused("chunk", lambda: top_singular_vector([CHUNK, CHUNK[:, 1:]]), ValueError)
    assert_refused("chunk", lambda: top_singular_vector([[1.0, 2.0]]), TypeError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("d", v) for v in SIZES],
        *[("rows", v) for v in SIZES if v is not None],
        *[("blocks", v) for v in SIZES if v is not None],
        *[("heavy_rows", v) for v in (-1, 1.5, None)],
        *[("seed", v) for v in (-1, 0.5)],
        ("method", "power"),
        ("dtype", "int64"),
        *EXECUTION,
    ],
    ids=shown,
)
def test_stream_options(name, value):
    options = {"d": 5, **({"rows": 9} if name == "blocks" else {}), name: value}
    assert_refused(name, lambda: StreamingTopVector(**options))


def test_blocks_need_rows():
    assert_refused("blocks", lambda: StreamingTopVector(5, blocks=3), ValueError)


# ---- randomized SVD ------------------------------------------------------------------------------


def decaying(rng, n, d, factor):
    r = min(n, d)
    U, V = (np.linalg.qr(rng.standard_normal((size, r)))[0] for size in (n, d))
    sizes = factor ** np.arange(r)
    return (U * sizes) @ V.T, sizes


@given(
    n=st.integers(1, 80),
    d=st.integers(1, 60),
    part=st.floats(0, 1),
    factor=st.sampled_from((0.99, 0.8, 0.3)),
    rounds=st.integers(0, 2),
    dtype=draws.dtypes,
    layout=draws.layouts,
    form=st.sampled_from(("array", "csr", "operator")),
    seed=draws.seeds,
)
def test_randomized_svd(n, d, part, factor, rounds, dtype, layout, form, seed):
    """The spectral error is near singular value k + 1; singular values are never too large."""
    rng = np.random.default_rng(seed)
    A = decaying(rng, n, d, factor)[0]
    A = draws.relayout(A.astype(dtype), layout)
    k = max(1, round(part * min(n, d)))
    M = {"array": lambda a: a, "csr": sp.csr_array, "operator": aslinearoperator}[form](A)
    U, s, Vh = randomized_svd(M, k, oversampling=10, power_iterations=rounds, seed=seed)
    assert [v.dtype for v in (U, s, Vh)] == [dtype] * 3
    assert [v.shape for v in (U, s, Vh)] == [(n, k), (k,), (k, d)]
    eps = EPS[np.dtype(dtype).name]
    rounding = 40 * np.sqrt(n * d) * eps
    U, s, Vh = (v.astype(float) for v in (U, s, Vh))
    assert_within(U.T @ U, np.eye(k), 10 * np.sqrt(n) * eps + 1e-13)
    assert_within(Vh @ Vh.T, np.eye(k), 10 * np.sqrt(d) * eps + 1e-13)
    assert (np.diff(s) <= eps).all()
    exact = np.linalg.svd(A.astype(float), compute_uv=False)
    assert (s <= exact[:k] + rounding).all()
    left = exact[k] if k < len(exact) else 0.0
    # The bound for the mean is the formula of the docstring (p = 10); five times it never occurs.
    p = 10
    mean = 1 + np.sqrt(k / (p - 1)) + np.e * np.sqrt(k + p) / p * np.sqrt(max(min(n, d) - k, 0))
    bound = 5 * mean ** (1 / (2 * rounds + 1)) * left + rounding
    error = np.linalg.norm((U * s) @ Vh - A, 2)
    target(float(error / bound))
    assert error <= bound


def test_power_iterations_sharpen():
    A, _ = decaying(np.random.default_rng(0), 200, 150, 0.98)
    errors = [
        np.linalg.norm(np.subtract(A, (f.U * f.s) @ f.Vh), 2)
        for f in (randomized_svd(A, 10, oversampling=0, power_iterations=q) for q in (0, 1, 6))
    ]
    best = 0.98**10
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] - best < 0.5 * (errors[0] - best)


def test_randomized_svd_is_decided_by_its_seed():
    A, _ = decaying(np.random.default_rng(1), 50, 40, 0.9)
    before = A.copy()
    first = randomized_svd(A, 5, seed=1, power_iterations=0)
    assert np.array_equal(first.s, randomized_svd(A, 5, seed=1, power_iterations=0).s)
    assert not np.array_equal(first.s, randomized_svd(A, 5, seed=2, power_iterations=0).s)
    assert np.array_equal(A, before)


@pytest.mark.parametrize("kind", [k for k in ARRAYS if k != "one entry less"])
def test_randomized_svd_of_bad_matrices(kind):
    spoil, error = ARRAYS[kind]
    assert_refused("A", lambda: randomized_svd(spoil(CHUNK), 2), error, lambda: CHUNK.tobytes())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("k", v) for v in (*SIZES, 6)],
        *[("oversampling", v) for v in (-1, 1.5, None)],
        *[("power_iterations", v) for v in (-1, 1.5, None)],
        *[("seed", v) for v in (-1, 0.5)],
        *[("n_threads", v) for v in (0, "all")],
    ],
    ids=shown,
)
def test_randomized_svd_options(name, value):
    assert_refused(name, lambda: randomized_svd(CHUNK, **{"k": 2, name: value}))


# ---- sketched QR ---------------------------------------------------------------------------------


@given(
    n=st.integers(1, 3000),
    d=draws.sizes(40),
    log_condition=st.floats(0, 13),
    dtype=draws.dtypes,
    layout=draws.layouts,
    mode=st.sampled_from(("reduced", "r")),
    seed=draws.seeds,
)
def test_sketched_qr(backend, n, d, log_condition, dtype, layout, mode, seed):
    rng = np.random.default_rng(seed)
    n = max(n, d)
    eps = EPS[np.dtype(dtype).name]
    condition = 10 ** min(log_condition, 4.0 if dtype == np.float32 else 13.0)
    U, V = (np.linalg.qr(rng.standard_normal((size, d)))[0] for size in (n, d))
    A = ((U * np.geomspace(1, 1 / condition, d)) @ V.T).astype(dtype)
    shown_ = draws.relayout(A, layout)
    before = draws.whole(shown_).tobytes()
    Q, R = sketched_qr(shown_, mode=mode, seed=seed, backend=backend)
    assert draws.whole(shown_).tobytes() == before
    assert R.dtype == dtype
    assert R.shape == (d, d)
    assert np.array_equal(R, np.triu(R))
    assert (np.diagonal(R) >= 0).all()
    wide, R = A.astype(float), R.astype(float)
    size = np.linalg.norm(wide)
    # R^T R = A^T A with an error as of a backward stable QR factorization.
    assert_within(R.T @ R, wide.T @ wide, 10 * d * eps * size**2, "R^T R")
    if Q is None:
        assert mode == "r"
        return
    assert Q.dtype == dtype
    wide_Q = Q.astype(float)
    loss = np.linalg.norm(wide_Q.T @ wide_Q - np.eye(d), 2)
    target(float(loss / (10 * np.sqrt(d) * eps)))
    assert loss <= 10 * np.sqrt(d) * eps  # whatever the condition
    assert np.linalg.norm(wide_Q @ R - wide) <= 10 * np.sqrt(d) * eps * size


def test_sketched_qr_has_the_same_bits_for_any_threads_and_layout(backend):
    A = np.random.default_rng(2).standard_normal((9000, 24))
    Q, R = sketched_qr(A, backend=backend, n_threads=1)
    for other in (sketched_qr(A, backend=backend, n_threads=2),
                  sketched_qr(np.asfortranarray(A), backend=backend)):  # fmt: skip
        assert np.array_equal(other.Q, Q)
        assert np.array_equal(other.R, R)
    _, alone = sketched_qr(A, mode="r", backend=backend, n_threads=1)
    _, again = sketched_qr(A, mode="r", backend=backend, n_threads=2)
    assert np.array_equal(alone, again)


def test_the_sketch_changes_rounding_alone(backend):
    A = np.random.default_rng(3).standard_normal((2000, 16))
    _, R = sketched_qr(A, backend=backend)
    for options in (
        {"seed": 1},
        {"sketch_size": 400},
        {"nnz": 4},
        {"operator": srht(128, 2000)},
        {"operator": gaussian(64, 2000)},
    ):
        assert_within(sketched_qr(A, backend=backend, **options).R, R, 1e-12)
    exact = np.linalg.qr(A, mode="r")
    exact *= np.sign(np.diagonal(exact))[:, None]
    assert_within(R, exact, 1e-12)


def test_sparse_matrices_have_a_qr_factorization(backend):
    A = sp.random_array((4000, 20), density=0.2, rng=np.random.default_rng(4), format="csr")
    dense = A.toarray()
    Q, R = sketched_qr(A, backend=backend)
    assert_within(Q @ R, dense, 1e-14 * np.linalg.norm(dense))
    assert_within(sketched_qr(A, mode="r", backend=backend).R, R, 1e-12)


def test_rank_deficient_matrices_are_refused(backend):
    A = np.random.default_rng(5).standard_normal((500, 6))
    A[:, 4] = A[:, 0] - 2 * A[:, 1]
    with pytest.raises(LinAlgError, match=r"^A must have full rank.* column 4") as caught:
        sketched_qr(A, backend=backend)
    assert caught.value.pivot == 4
    A[:, 2] = 0
    with pytest.raises(LinAlgError) as caught:
        sketched_qr(A, backend=backend)
    assert caught.value.pivot == 2


@pytest.mark.parametrize("kind", [k for k in ARRAYS if k != "one entry less"])
def test_sketched_qr_of_bad_matrices(kind):
    spoil, error = ARRAYS[kind]
    assert_refused("A", lambda: sketched_qr(spoil(CHUNK)), error, lambda: CHUNK.tobytes())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("A", {"A": np.ones((3, 4))}),
        ("A", {"A": np.ones((3, 0))}),
        ("mode", {"mode": "full"}),
        ("operator", {"operator": np.ones((20, 299))}),
        ("operator", {"operator": gaussian(4, 300)}),
        *[("sketch_size", {"sketch_size": v}) for v in (4, 301, 2.5)],
        *[("nnz", {"nnz": v}) for v in SIZES],
        *[("seed", {"seed": v}) for v in (-1, 0.5)],
        *[(name, {name: value}) for name, value in EXECUTION],
    ],
    ids=shown,
)
def test_sketched_qr_options(name, options):
    assert_refused(name, lambda: sketched_qr(**{"A": CHUNK, **options}))


@pytest.mark.parametrize("method", ["blocks", "oja"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("part", [-0.95, -0.5, -0.2, 0.2, 0.5, 0.9])
def test_scale_of_streams(backend, method, dtype, part):
    """Powers of two change no bit of the vector; the singular value has the unit of the rows."""
    exponent = int(part * np.finfo(dtype).maxexp)
    A = spiked(0, 2000, 6, 2.0)[0].astype(dtype)
    usual, found = (
        stream([a[:700], a[700:]], 6, method=method, backend=backend, dtype=dtype)
        for a in (A, np.ldexp(A, exponent))
    )
    np.testing.assert_allclose(found.value(), usual.value(), rtol=1e-6 if part < 0 else 1e-10)
    value = np.ldexp(found.singular_value, -exponent)
    assert_within(value, usual.singular_value, 1e-6 * usual.singular_value)


@pytest.mark.parametrize("method", ["blocks", "oja"])
def test_scale_that_changes_within_a_stream(backend, method):
    """Rows that are small beside others do not count, wherever they come."""
    rng = np.random.default_rng(0)
    v = np.array([0.6, 0.8, 0.0, 0.0])
    small = rng.standard_normal((512, 4)) * [9, 1, 1, 1]
    large = np.outer(rng.standard_normal(512), v)
    for of_small, of_large in ((1e-200, 1.0), (1.0, 1e200), (1e-200, 1e200), (0.0, 1e-250)):
        rows = [of_small * small, of_large * large]
        rising, falling = (
            stream(chunks, 4, method=method, backend=backend) for chunks in (rows, rows[::-1])
        )
        assert abs(rising.value() @ v) > 0.99
        assert abs(falling.value() @ v) > 0.99
        size = of_large * np.linalg.norm(large)
        assert size / 10 < rising.singular_value < 10 * size


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_scale_of_factorizations(backend, scale):
    A = np.random.default_rng(0).standard_normal((500, 6))
    for mode in ("reduced", "r"):
        usual = sketched_qr(A, mode=mode, backend=backend)
        found = sketched_qr(A * scale, mode=mode, backend=backend)
        assert_within(found.R / scale, usual.R, 1e-11)
        if mode == "reduced":
            assert_within(found.Q, usual.Q, 1e-12)
    assert_within(randomized_svd(A * scale, 3).s / scale, randomized_svd(A, 3).s, 1e-11)


def test_factorizations_that_overflow():
    A = np.full((500, 6), 1.7e308)
    with pytest.raises(ValueError, match="A must be smaller"):
        randomized_svd(A, 3)
    with pytest.raises(ValueError, match="A must be smaller"):
        sketched_qr(A)
