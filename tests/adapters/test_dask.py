"""Dask arrays: the plain answer, the same bits on every scheduler, and workers that die."""

import gc
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.client import FutureCancelledError

import quadric as qd
import quadric.adapters.dask as qdask

# A killed worker leaves sockets behind that nobody closes; when they are found is up to chance.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EPS = np.finfo(np.float64).eps
N, D = 3000, 7
CHUNKS = (700, 1, 800, 256, 999, 244)


def tall(n: int = N, d: int = D, cond: float = 1e3, dtype: Any = np.float64) -> np.ndarray:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    A = rng.standard_normal((n, d)) * np.logspace(0, -np.log10(cond), d) @ turn
    return A.astype(dtype)


def cut(A: np.ndarray, chunks: Any = CHUNKS) -> da.Array:
    return da.from_array(A, chunks=(chunks, *A.shape[1:]))


def side(k: int = 0, n: int = N, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, k) if k else n).astype(dtype)


def everything(A: da.Array, b: Any) -> list[np.ndarray]:
    """Return what all functions make of A and b."""
    S = qd.sketch.sparse_sign(64, A.shape[0], nnz=8, seed=5)
    dense = qd.sketch.gaussian(32, A.shape[0])
    x = np.linspace(-1, 1, A.shape[1])
    lazy = [
        qdask.sketch(S, A),
        qdask.sketch(dense, A),
        qdask.gram(A),
        *qdask.residual_gradient(A, x, b),
        qdask.leverage_scores(A),
        qdask.leverage_scores(A, approximate=True),
    ]
    solved = qdask.lstsq(A, b)
    return [*dask.compute(*lazy), solved.x, solved.residual.compute()]


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
    ):
        yield client


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name", ["sparse_sign", "count_sketch", "gaussian", "rademacher", "srht", "circulant"]
)
def test_sketch(name: str, dtype: Any) -> None:
    A = tall(dtype=dtype)
    S = getattr(qd.sketch, name)(64, N, seed=3)
    lazy = qdask.sketch(S, cut(A))
    found = lazy.compute()
    assert lazy.shape == found.shape == (64, D)
    assert lazy.dtype == found.dtype == dtype
    # Each entry is a sum of at most n terms of size |S_ij| |a_i|, in two orders.
    size = np.sqrt(N / 64) * np.linalg.norm(A, axis=0)
    assert (np.abs(found - S @ A) <= 10 * np.finfo(dtype).eps * size).all()
    if name in ("sparse_sign", "count_sketch"):
        one = cut(A, (N,))
        assert np.array_equal(qdask.sketch(S, one).compute(), S @ A)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gram(dtype: Any) -> None:
    A = tall(dtype=dtype)
    wide = A.astype(np.float64)
    size = np.linalg.norm(wide, axis=0)[:, None] * np.linalg.norm(wide, axis=0)
    G = qdask.gram(cut(A)).compute()
    assert G.dtype == np.float64
    assert np.array_equal(G, G.T)
    eps = np.finfo(dtype).eps  # products of a few hundred rows are summed in the dtype of A
    assert (np.abs(G - wide.T @ wide) <= 20 * eps * size).all()
    weights = np.arange(N) % 5.0
    G = qdask.gram(cut(A), weights=weights).compute()
    assert (np.abs(G - (wide.T * weights) @ wide) <= 100 * eps * size).all()


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residual_gradient(k: int, dtype: Any) -> None:
    A, b = tall(dtype=dtype), side(k, dtype=dtype)
    x = side(k, n=D, dtype=dtype)
    for right in (b, None):
        plain = qd.sketch.residual_gradient(A, x, right)
        lazy = qdask.residual_gradient(cut(A), x, right)
        assert lazy.residual.chunks[0] == CHUNKS
        g, r, norm = dask.compute(*lazy)
        assert g.dtype == r.dtype == dtype
        assert np.array_equal(r, plain.residual)
        size = np.linalg.norm(A, axis=0)[(...,) + (None,) * (k > 0)] * plain.norm
        assert (np.abs(g - plain.gradient) <= 10 * np.finfo(dtype).eps * size).all()
        assert np.abs(norm / plain.norm - 1).max() <= 10 * EPS


def test_leverage_scores() -> None:
    A = tall(cond=1e6)
    A[5] *= 1e4
    exact = np.square(np.linalg.qr(A)[0]).sum(axis=1)
    lazy = qdask.leverage_scores(cut(A))
    assert lazy.chunks[0] == CHUNKS
    # The error of a score is a few eps times the condition number.
    assert np.abs(lazy.compute() - exact).max() <= 100 * EPS * np.linalg.cond(A)
    rough = qdask.leverage_scores(cut(A), approximate=True, seed=1).compute()
    same = qd.sketch.leverage_scores(A, approximate=True, seed=1)
    assert np.abs(rough - same).max() <= 100 * EPS * np.linalg.cond(A)
    ridged = qdask.leverage_scores(cut(A), ridge=2.0).compute()
    plain = qd.sketch.leverage_scores(A, ridge=2.0)
    assert np.abs(ridged - plain).max() <= 100 * EPS * np.linalg.cond(A)
    single = tall(dtype=np.float32)
    assert qdask.leverage_scores(cut(single)).compute().dtype == np.float32


@pytest.mark.parametrize("log_cond", [1, 6, 10, 13])
@pytest.mark.parametrize("method", ["gram", "spir"])
def test_lstsq_is_backward_stable(log_cond: int, method: Any) -> None:
    A, b = tall(cond=10.0**log_cond), side()
    result = qdask.lstsq(cut(A), b, method=method)
    assert result.converged
    assert result.method == method
    assert result.backward_error <= 4 * EPS
    assert qd.sketch.lstsq_backward_error(A, b, result.x, exact=True) <= 10 * EPS
    plain = np.linalg.lstsq(A, b)[0]
    kappa = np.linalg.cond(A)
    r = np.linalg.norm(b - A @ plain)
    # Wedin's bound, c eps with c = 20 for each of the two solvers.
    bound = 40 * EPS * kappa * (np.linalg.norm(plain) + kappa * r / np.linalg.norm(A))
    assert np.linalg.norm(result.x - plain) <= bound
    assert result.residual.chunks[0] == CHUNKS
    residual = result.residual.compute()
    assert np.array_equal(residual, qd.sketch.residual_gradient(A, result.x, b).residual)
    assert result.residual_norm == pytest.approx(np.linalg.norm(residual), rel=100 * EPS)
    assert result.passes <= (6 if method == "gram" else 60)


def test_lstsq_with_many_right_hand_sides_ridge_and_float32() -> None:
    A, b = tall(), side(4)
    b[:, 2] = 0
    result = qdask.lstsq(cut(A), da.from_array(b, chunks=(1000, 2)), ridge=0.5)
    plain = qd.sketch.lstsq(A, b, ridge=0.5)
    assert result.x.shape == (D, 4)
    assert np.abs(result.x - plain.x).max() <= 1e4 * EPS * np.abs(plain.x).max()
    assert np.abs(result.residual_norm - plain.residual_norm).max() <= 1e3 * EPS * np.sqrt(N)
    assert (result.x[:, 2] == 0).all()
    single = qdask.lstsq(cut(A.astype(np.float32)), b.astype(np.float32), ridge=0.5)
    assert single.x.dtype == np.float32
    assert (
        np.abs(single.x - plain.x).max() <= 1e4 * np.finfo(np.float32).eps * np.abs(plain.x).max()
    )


def test_lstsq_of_dependent_columns() -> None:
    A, b = tall(cond=10.0), side()
    A = np.c_[A, A[:, 0] + A[:, 1]]
    with pytest.warns(np.exceptions.RankWarning, match="A has numerical rank 7, below its 8"):
        qdask.lstsq(cut(A), b)
    result = qdask.lstsq(cut(A), b, minimum_norm=True)
    plain = np.linalg.lstsq(A, b)[0]
    assert result.rank == 7
    assert np.abs(result.x - plain).max() <= 1e4 * EPS * np.abs(plain).max()


def test_two_rows_that_meet_in_the_sketch_are_no_dependence() -> None:
    n, d = 20_000, 3
    S = qd.sketch.sparse_sign(76, n, nnz=4, seed=0)  # the first sketch of the default method
    places = (S.to_sparse().indices.reshape(n, 4) + 1) * np.sign(S.to_sparse().data.reshape(n, 4))
    _, first, counts = np.unique(places, axis=0, return_index=True, return_counts=True)
    one = first[counts > 1][0]
    rows = np.append(np.flatnonzero((places == places[one]).all(axis=1))[:2], 7)
    A, b = np.zeros((n, d)), side(n=n)
    A[rows] = np.eye(d)
    assert np.linalg.matrix_rank(S @ A) == 2
    result = qdask.lstsq(cut(A, 5000), b)
    assert result.rank == d
    assert np.abs(result.x - b[rows]).max() <= 1e3 * EPS * np.linalg.norm(b)


def test_a_sketch_that_cannot_hold_the_rank_is_refused() -> None:
    n, d = 1000, 8
    A = np.eye(n, d)
    bad = [
        np.linalg.matrix_rank(qd.sketch.sparse_sign(d, n, nnz=8, seed=s) @ A) < d
        for s in range(200)
    ]
    seed = next(s for s in range(198) if all(bad[s : s + 3]))
    with pytest.raises(qd.LinAlgError, match="sketch_size must be larger"):
        qdask.lstsq(cut(A, 300), side(n=n), method="spir", sketch_size=d, seed=seed)


def test_few_rows_are_brought_together() -> None:
    A, b = tall(20), side(n=20)
    result = qdask.lstsq(cut(A, (7, 7, 6)), b)
    plain = np.linalg.lstsq(A, b)[0]
    assert np.abs(result.x - plain).max() <= 1e3 * EPS * np.linalg.cond(A) * np.abs(plain).max()


def test_empty_chunks_do_not_count() -> None:
    A, b = tall(), side()
    with_empty = cut(A, (0, 700, 1, 0, 800, 256, 999, 244, 0))
    with dask.config.set(scheduler="synchronous"):
        assert same_bits(everything(with_empty, b), everything(cut(A), b))


def test_the_bits_are_those_of_any_scheduler(cluster: Client) -> None:
    A, b = tall(), side()
    with dask.config.set(scheduler="synchronous"):
        one = everything(cut(A), b)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert same_bits(everything(cut(A), b), one)
    assert same_bits(everything(cut(A), b), one)  # three processes
    kept = cut(A).persist()
    assert same_bits(everything(kept, b), one)


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def never() -> np.ndarray:
        raise AssertionError("computed too soon")

    A = da.from_delayed(dask.delayed(never)(), (N, D), np.float64)
    qdask.sketch(qd.sketch.srht(32, N), A)
    qdask.gram(A)
    qdask.residual_gradient(A, np.ones(D), np.ones(N))


def calls(S: Any, b: np.ndarray) -> dict[str, Callable[[da.Array], Any]]:
    return {
        "sketch": lambda A: qdask.sketch(S, A).compute(),
        "gram": lambda A: qdask.gram(A).compute(),
        "lstsq": lambda A: qdask.lstsq(A, b),
        "leverage": lambda A: qdask.leverage_scores(A).compute(),
        "residual": lambda A: qdask.residual_gradient(A, np.ones(D), b).gradient.compute(),
    }


CALLS = pytest.mark.parametrize("call", calls(None, side()))


@CALLS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_chunk_is_named(call: str, bad: float) -> None:
    A = tall()
    A[1600, 3] = bad
    message = f"A must be finite, got {bad} at index (1600, 3)"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        calls(qd.sketch.sparse_sign(64, N), side())[call](cut(A))


def test_a_bad_chunk_is_named_on_a_cluster(cluster: Client) -> None:
    A, b = tall(), side()
    b[2999] = np.nan
    with pytest.raises(ValueError, match=r"^b must be finite, got nan at index \(2999,"):
        qdask.lstsq(cut(A), b)
    A[0, 6] = np.nan
    with pytest.raises(ValueError, match=r"^A must be finite, got nan at index \(0, 6\)$"):
        qdask.gram(cut(A)).compute()


@CALLS
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda A: A.rechunk((700, 3)), ValueError,
         "A must be cut between rows alone, got 3 chunks of columns: "
         "A.rechunk({1: -1}) joins them"),
        (lambda A: A[A[:, 0] > 0], ValueError,
         "A must have known chunks: call A.compute_chunk_sizes() first"),
        (lambda A: A.compute(), TypeError, "A must be a Dask array, got ndarray"),
        (lambda A: A.astype(np.int64), TypeError,
         "A must be float32 or float64, got int64: A.astype(float) converts it"),
        (lambda A: A.astype(complex), TypeError, "A must be float32 or float64, got complex128"),
        (lambda A: A[:, 0], ValueError, "A must be a matrix, got an array of shape (3000,)"),
        (lambda A: A[:0], ValueError, "A must have at least one row and column, got shape (0, 7)"),
    ],
)  # fmt: skip
def test_a_bad_array_is_refused(call: str, spoil: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message) + "$"):
        calls(qd.sketch.sparse_sign(64, N), side())[call](spoil(cut(tall())))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A, b: qdask.sketch(np.ones((5, N)), A), "S must be a sketching operator, got"),
        (lambda A, b: qdask.sketch(qd.sketch.srht(8, 99), A), "A must have 99 rows to go with S"),
        (lambda A, b: qdask.gram(A, weights=np.ones(5)), "weights must have shape (3000,)"),
        (lambda A, b: qdask.gram(A, backend="fortran"), "backend must be one of"),
        (lambda A, b: qdask.gram(A, n_threads=0), "n_threads must be at least 1, got 0"),
        (lambda A, b: qdask.residual_gradient(A, np.ones(3)), "x must have shape (7,) or (7, k)"),
        (lambda A, b: qdask.residual_gradient(A, np.full(7, np.nan)), "x must be finite, got nan"),
        (
            lambda A, b: qdask.residual_gradient(A, np.ones((7, 2)), b),
            "b must have shape (3000, 2)",
        ),
        (lambda A, b: qdask.leverage_scores(A, ridge=-1.0), "ridge must be finite and at least 0"),
        (lambda A, b: qdask.lstsq(A, b[1:]), "b must have shape (3000,) or (3000, k), got (2999,)"),
        (lambda A, b: qdask.lstsq(A, b.astype(np.float32)), "b must be float64 to go with A"),
        (lambda A, b: qdask.lstsq(A, b.tolist()), "b must be a Dask or NumPy array, got list"),
        (lambda A, b: qdask.lstsq(A, b, method="qr"), "method must be one of"),
        (lambda A, b: qdask.lstsq(A, b, sketch_size=3), "sketch_size must be between 7 and 3000"),
        (lambda A, b: qdask.lstsq(A, b, tol=0.0), "tol must be finite and above 0, got 0.0"),
        (lambda A, b: qdask.lstsq(A, b, ridge=-1.0), "ridge must be finite and at least 0"),
        (lambda A, b: qdask.lstsq(A[:5], b[:5]), "A must have at least as many rows as columns"),
    ],
)
def test_what_is_wrong_is_said(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call(cut(tall()), side())


def slow(A: np.ndarray, folder: Path, seconds: float) -> da.Array:
    """Return A in ten chunks, each of which takes its time and leaves a note when it is read."""

    def read(i: int, rows: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        (folder / f"{i}-{os.getpid()}").touch()
        return rows

    parts = np.array_split(A, 10)
    return da.concatenate(
        [
            da.from_delayed(dask.delayed(read)(i, rows), rows.shape, rows.dtype)
            for i, rows in enumerate(parts)
        ]
    )


def kill_when(ready: Callable[[], bool], pids: Any) -> threading.Thread:
    """Kill a process as soon as `ready` says so."""

    def run() -> None:
        while not ready():
            time.sleep(0.01)
        os.kill(next(iter(pids)), signal.SIGKILL)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def mortal() -> Iterator[Client]:
    """A cluster of its own, for a test that kills; it does not wait long for the dead."""
    patience = {"distributed.comm.timeouts.connect": "5s"}
    with (
        dask.config.set(patience),
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
    ):
        yield client
    gc.collect()


@pytest.mark.parametrize("persisted", [False, True])
def test_a_worker_that_dies_does_not_change_the_answer(
    mortal: Client, tmp_path: Path, persisted: bool
) -> None:
    A, b = tall(), side()
    expected = qdask.lstsq(cut(A, (300,) * 10), b)
    pids = mortal.run(os.getpid).values()
    chunked = slow(A, tmp_path, 0.03)
    if persisted:
        chunked = chunked.persist()
    # In the middle of the first pass, or as soon as all chunks are in memory.
    count = 10 if persisted else 4
    killer = kill_when(lambda: len(list(tmp_path.iterdir())) >= count, pids)
    result = qdask.lstsq(chunked, b)
    killer.join(timeout=10)
    assert not killer.is_alive()
    assert len(list(tmp_path.iterdir())) > 10  # some chunk was read again, elsewhere
    assert result.passes == expected.passes
    assert np.array_equal(result.x, expected.x)
    assert np.array_equal(result.residual.compute(), expected.residual.compute(scheduler="sync"))


def test_what_dies_with_a_worker_for_good_is_an_error(mortal: Client) -> None:
    """Rows that were sent to one worker alone cannot be made again."""
    A = tall()
    sent = mortal.scatter(np.array_split(A, 3), hash=False)
    pieces = [da.from_delayed(dask.delayed(rows), (1000, D), A.dtype) for rows in sent]
    (holder,) = mortal.who_has(sent)[sent[0].key]
    os.kill(mortal.run(os.getpid)[holder], signal.SIGKILL)
    for call in ("gram", "lstsq"):
        with pytest.raises(FutureCancelledError, match="lost dependencies"):
            calls(None, side())[call](da.concatenate(pieces))
