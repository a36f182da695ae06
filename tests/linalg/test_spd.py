"""Batched Cholesky, inverse, solve and log-determinant.

Every bound is the backward error of a Cholesky factorization, |L L^T - A| <= c |L| |L|^T with
c = 2 (B + 2) eps (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3), carried
to what is asked for. As |L| |L|^T has entries below sqrt(A_ii A_jj), its norm is below tr(A).
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

import quadric as qd
from quadric import backends, linalg
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg import oracle
from tests.strategies import Array

WHAT = {"cholesky": 0, "inverse": 1, "solve": 2, "logdet": 3}
# Straddles the vectors of every instruction set; the kernels work on several matrices at once.
COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)


@dataclass(frozen=True, repr=False)
class Batch:
    """Positive definite matrices (N, B, B) and right-hand sides (N, B, k)."""

    a: Array
    b: Array
    parameters: str

    @property
    def eps(self) -> float:
        return float(np.finfo(self.a.dtype).eps)

    @cached_property
    def inverse(self) -> Array:
        return oracle.inverse(self.a)

    @cached_property
    def logdet(self) -> tuple[Array, Array]:
        """Log-determinants, and the sums of the absolute logarithms of the pivots' roots."""
        roots = np.diagonal(oracle.cholesky(self.a)[0], axis1=1, axis2=2)
        return oracle.slogdet(self.a)[1], np.abs(np.log(roots)).sum(axis=1)

    def __repr__(self) -> str:
        return f"Batch({self.a.shape}, k={self.b.shape[2]}, {self.a.dtype}, {self.parameters})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def make(count, n, k, dtype, kind="exponential", log_cond=2, log_scale=0, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((count, n, n)))[0]
    values = 10.0**log_scale * draws.spectrum(kind, n, 10.0**log_cond)
    a = (basis * values) @ np.swapaxes(basis, 1, 2)
    return Batch(
        a=((a + np.swapaxes(a, 1, 2)) / 2).astype(dtype),
        b=rng.standard_normal((count, n, k)).astype(dtype),
        parameters=f"{kind=}, {log_cond=}, {log_scale=}, {seed=}",
    )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    dtype = draw(draws.dtypes)
    return make(
        draw(st.sampled_from(COUNTS)),
        draw(draws.sizes(40)),
        draw(st.sampled_from((1, 1, 2, 3, 8))),
        dtype,
        draw(st.sampled_from(("flat", "exponential", "step"))),
        draw(st.integers(1, 3 if dtype == np.float32 else 8)),
        draw(st.integers(-6, 6)),
        draw(draws.seeds),
    )


def assert_right(name, batch, value, logdet):
    """Assert the bounds of one function; return how much of them is used."""
    n = batch.a.shape[1]
    trace = np.trace(batch.a, axis1=1, axis2=2).astype(float)[:, None, None]
    inverse, (exact, logs) = batch.inverse, batch.logdet
    own = np.sqrt(np.diagonal(inverse, axis1=1, axis2=2).astype(float))[:, :, None]
    kappa = trace * np.linalg.norm(inverse.astype(float), 2, axis=(1, 2), keepdims=True)
    used = 0.0
    if name == "cholesky":
        np.testing.assert_array_equal(value, np.tril(value))
        wide = oracle.wide(value)
        size = np.abs(wide) @ np.abs(np.swapaxes(wide, 1, 2))
        product = wide @ np.swapaxes(wide, 1, 2)
        used = assert_within(product, batch.a, 2 * (n + 2) * batch.eps * size)
    elif name == "inverse":
        # The error of L moves entry (i, j) by eps tr(A) ||A^-1 e_i|| ||A^-1 e_j||, that of L^-1 by
        # eps ||L^-1|| ||L|| ||L^-1 e_i|| ||L^-1 e_j||; ||L^-1 e_i||^2 = A^-1_ii.
        np.testing.assert_array_equal(value, np.swapaxes(value, 1, 2))
        size = kappa * (own * np.swapaxes(own, 1, 2))
        used = assert_within(value, inverse, 2 * (4 * n + 8) * batch.eps * size)
    elif name == "solve":
        # Theorem 10.4: (A + E) x = b with three times the error of L.
        x = inverse @ batch.b
        norms = np.linalg.norm(x.astype(float), axis=1)[:, None]
        size = own * np.sqrt(kappa * trace) * norms
        used = assert_within(value, x, 2 * (3 * n + 2) * batch.eps * size)
    # log det moves by tr(A^-1 E); the logarithms are those of rounded pivots, added in float64.
    size = np.linalg.norm(inverse.astype(float), axis=(1, 2)) * trace[:, 0, 0] + n
    size = batch.eps * size + np.finfo(float).eps * logs
    return max(used, assert_within(logdet, exact, 2 * (n + 2) * size))


def call(name, batch, **options):
    arguments = (batch.a, batch.b) if name == "solve" else (batch.a,)
    return getattr(linalg, name)(*arguments, **options)


def run(name, a, b=None, *, backend, n_threads=1):
    """Call the raw kernel; everything it writes starts as a number that no result is."""
    count, n, _ = a.shape
    dtype = a.dtype
    out = None if name == "logdet" else np.full((count, n, b.shape[2] if b is not None else n), -7)
    out = None if out is None else out.astype(dtype)
    logdet, status = np.full(count, -7.0), np.full(count, -7, np.int32)
    backends.resolve("linalg.spd", backend)(a, b, WHAT[name], out, logdet, status, n_threads)
    return out, logdet, status


every_function = pytest.mark.parametrize("name", WHAT)


@every_function
@given(batch=batches(), layout=draws.layouts)
def test_within_the_bound(backend, name, batch, layout):
    shown = Batch(draws.relayout(batch.a, layout), draws.relayout(batch.b, layout), "")
    before = draws.whole(shown.a).tobytes(), draws.whole(shown.b).tobytes()
    result = call(name, shown, backend=backend)
    assert result.ok
    assert (result.status == -1).all()
    assert result.status.dtype == np.int32
    assert result.logdet.dtype == np.float64
    if name == "logdet":
        np.testing.assert_array_equal(result.value, result.logdet)
    else:
        assert result.value.dtype == batch.a.dtype
    target(assert_right(name, batch, result.value, result.logdet))
    assert (draws.whole(shown.a).tobytes(), draws.whole(shown.b).tobytes()) == before


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 31, 32, 33, 48, 50, 63, 64])
def test_every_small_size(backend, dtype, n):
    batch = make(9, n, 2, dtype, seed=n)
    for name in WHAT:
        result = call(name, batch, backend=backend)
        assert_right(name, batch, result.value, result.logdet)


@cache
def large(n):
    """Return one large matrix; the oracle takes a second for it."""
    return make(1, n, 1, np.float32 if n % 2 else np.float64, seed=n)


@pytest.mark.parametrize("n", [65, 96, 127, 128, 129, 200, 255, 256])
def test_large_sizes(backend, n):
    batch = large(n)
    for name in WHAT:
        result = call(name, batch, backend=backend)
        assert_right(name, batch, result.value, result.logdet)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 16, 33, 64, 100, 256])
def test_integers_are_exact(backend, dtype, n):
    """A unit triangle of few small integers comes back bit by bit, and so does its determinant."""
    rng = np.random.default_rng(n)
    exact = np.eye(n) + np.tril(
        rng.integers(-1, 2, (5, n, n)) * (rng.random((5, n, n)) < 2 / n), -1
    )
    result = linalg.cholesky((exact @ np.swapaxes(exact, 1, 2)).astype(dtype), backend=backend)
    np.testing.assert_array_equal(result.value, exact)
    np.testing.assert_array_equal(result.logdet, np.zeros(5))


@every_function
@given(batch=batches(), log4=st.integers(-10, 10))
def test_scaling_is_exact(backend, name, batch, log4):
    """Powers of 4 scale each result without rounding."""
    plain = call(name, batch, backend=backend).value
    c = batch.a.dtype.type(4.0**log4)
    scaled = call(name, Batch(c * batch.a, batch.b, ""), backend=backend).value
    if name == "logdet":
        return
    factor = 2.0**log4 if name == "cholesky" else 4.0**-log4
    np.testing.assert_array_equal(scaled, batch.a.dtype.type(factor) * plain)


@every_function
def test_only_the_lower_triangles_are_read(backend, name):
    batch = make(11, 13, 3, np.float64)
    lower = np.where(np.tri(13, dtype=bool), batch.a, np.nan)
    a = call(name, batch, backend=backend)
    b = call(name, Batch(lower, batch.b, ""), backend=backend)
    np.testing.assert_array_equal(a.value, b.value)
    np.testing.assert_array_equal(a.logdet, b.logdet)


@every_function
@pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3), (3, 1, 2), (0,), (2, 0)])
def test_any_leading_shape(backend, name, lead):
    count = int(np.prod(lead))
    batch = make(max(count, 1), 5, 2, np.float64)
    flat = call(name, Batch(batch.a[:count], batch.b[:count], ""), backend=backend)
    shaped = Batch(batch.a[:count].reshape(*lead, 5, 5), batch.b[:count].reshape(*lead, 5, 2), "")
    result = call(name, shaped, backend=backend)
    assert result.logdet.shape == result.status.shape == lead
    assert result.value.shape == {"logdet": lead, "solve": (*lead, 5, 2)}.get(name, (*lead, 5, 5))
    np.testing.assert_array_equal(result.value.ravel(), flat.value.ravel())


@pytest.mark.parametrize("k", [0, 1, 5])
def test_right_hand_sides(backend, k):
    batch = make(4, 6, k, np.float64)
    x = linalg.solve(batch.a, batch.b, backend=backend).value
    assert x.shape == (4, 6, k)
    for column in range(k):
        one = linalg.solve(batch.a, batch.b[:, :, column], backend=backend).value
        assert one.shape == (4, 6)
        # The same arithmetic for any number of columns is not promised: twice the bound of one.
        size = np.linalg.norm(np.linalg.inv(batch.a), axis=(1, 2)) ** 2
        size = size * np.trace(batch.a, axis1=1, axis2=2) * np.linalg.norm(one, axis=1)
        assert (np.abs(one - x[:, :, column]) <= 80 * batch.eps * size[:, None]).all()


# ---- failures ------------------------------------------------------------------------------------


def spoiled(batch, at, kind):
    """Return the batch with matrix ``at`` spoiled, and the pivot that finds it."""
    a, n = batch.a.copy(), batch.a.shape[1]
    j = n // 2
    if kind == "indefinite":
        a[at, j, j] = -1.0
    elif kind == "singular":  # a row and column of zeros
        a[at, j], a[at, :, j] = 0.0, 0.0
    elif kind == "diagonal":
        a[at, j, j] = np.nan
    elif kind == "inf":
        a[at, j, j] = np.inf
    elif j:
        a[at, j, j - 1] = {"below": np.nan, "minus inf": -np.inf}[kind]
    else:  # one entry
        a[at, j, j] = np.nan
    return Batch(a, batch.b, ""), j


@every_function
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize(
    "kind", ["indefinite", "singular", "diagonal", "inf", "below", "minus inf"]
)
@pytest.mark.parametrize("n", [1, 2, 9, 16, 50, 130])
def test_a_failure_stays_with_its_matrix(backend, name, dtype, kind, n):
    """The others have the same bits as if it had not been there."""
    batch = make(7 if n < 100 else 3, n, 2, dtype)
    alone = call(name, batch, backend=backend)
    bad, pivot = spoiled(batch, 2, kind)
    result = call(name, bad, on_failure="nan", backend=backend)
    assert not result.ok
    assert result.status[2] == pivot
    assert np.isnan(result.value[2]).all()
    assert np.isnan(result.logdet[2])
    others = np.arange(len(batch.a)) != 2
    assert (result.status[others] == -1).all()
    np.testing.assert_array_equal(result.value[others], alone.value[others])
    np.testing.assert_array_equal(result.logdet[others], alone.logdet[others])
    with pytest.raises(qd.LinAlgError, match=rf"^A\[2\].*\b{pivot}$") as caught:
        call(name, bad, backend=backend)
    assert caught.value.pivot == pivot
    assert isinstance(caught.value, np.linalg.LinAlgError)


def test_the_first_failure_is_named(backend):
    a = np.broadcast_to(np.eye(3), (2, 3, 3, 3)).copy()
    a[1, 0, 1, 1] = a[0, 2, 2, 2] = -1.0
    with pytest.raises(qd.LinAlgError, match=r"^A\[0, 2\].*\b2$"):
        linalg.inverse(a, backend=backend)
    with pytest.raises(qd.LinAlgError, match=r"^A is not positive definite.*\b2$"):
        linalg.inverse(a[0, 2], backend=backend)
    status = linalg.inverse(a, on_failure="nan", backend=backend).status
    assert status.tolist() == [[-1, -1, 2], [1, -1, -1]]


def test_pivots_that_cancel(backend):
    """4 - 2 * 2 is zero in any arithmetic, and 0 is not positive."""
    a = np.array([[1.0, 2.0], [2.0, 4.0]])
    for dtype in draws.DTYPES:
        result = linalg.cholesky(a.astype(dtype), on_failure="nan", backend=backend)
        assert result.status == 1


@every_function
@pytest.mark.parametrize(("dtype", "exponent"), [(np.float32, 96), (np.float64, 400)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_large_and_small_entries(backend, name, dtype, exponent, sign):
    """The determinant is far outside the range of any type here."""
    n = 40
    a = np.ldexp(np.eye(n) + 0.5, sign * exponent).astype(dtype)[None]
    batch = Batch(a, np.ones((1, n, 1), dtype), "")
    result = call(name, batch, backend=backend)
    assert_right(name, batch, result.value, result.logdet)
    assert abs(result.logdet.item()) > 2000


# ---- the raw kernel ------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize(("count", "n"), [(0, 3), (1, 1), (300, 3), (70, 20), (5, 90)])
def test_threads_change_nothing(backend, name, dtype, count, n):
    batch = make(count, n, 3, dtype)
    b = batch.b if name == "solve" else None
    one = run(name, batch.a, b, backend=backend, n_threads=1)
    for threads in (2, 3):
        more = run(name, batch.a, b, backend=backend, n_threads=threads)
        for x, y in zip(one, more, strict=True):
            assert x is y is None or x.tobytes() == y.tobytes()
    assert_right(name, batch, one[0], one[1])


def test_results_in_the_callers_type():
    torch = pytest.importorskip("torch")
    batch = make(3, 4, 2, np.float32)
    a, b = torch.from_numpy(batch.a), torch.from_numpy(batch.b)
    for name in WHAT:
        plain = call(name, batch)
        result = call(name, Batch(a, b, ""))
        for field in ("value", "logdet", "status"):
            found = getattr(result, field)
            assert isinstance(found, torch.Tensor)
            np.testing.assert_array_equal(found.numpy(), getattr(plain, field))
    view = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))
    spd = torch.einsum("ijk,ljk->kil", view, view)
    result = linalg.cholesky(spd)
    np.testing.assert_array_equal(result.value, linalg.cholesky(spd.numpy().copy()).value)
