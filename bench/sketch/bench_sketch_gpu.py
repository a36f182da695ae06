"""Sketches, least squares and leverage scores on a GPU, against PyTorch's own ways.

    python -m bench.sketch.bench_sketch_gpu

Floors: bytes that must move over the copy bandwidth, plus flops over the rate of products in that
type where both cannot overlap; all rates are measured in this run.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import quadric as qd
from bench import common, gpu

N, D = 1_000_000, 256
CONDITION, RESIDUAL = 1e8, 1e-3
BACKWARD_GOAL = 1e-15


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", dtype=dtype, generator=generator)


def main(report: gpu.Report, ceilings: gpu.Ceilings) -> None:
    parts = (signs, hadamard, dense, passes, transforms, leverage, least_squares)
    rows: list[list[str]] = []
    facts: list[list[str]] = []
    for part in tqdm(parts, "sketch", leave=False):
        times, errors = part(ceilings)
        rows += times
        facts += errors
        torch.cuda.empty_cache()
    report.add(common.table(gpu.HEADER, rows))
    report.add("Accuracy, in the same run:")
    report.add(common.table(["work", "error", "value", "peer", "its value", "goal", "met"], facts))


Part = tuple[list[list[str]], list[list[str]]]


def fact(
    work: str,
    what: str,
    value: float,
    peer: str = "",
    theirs: float | None = None,
    goal: float | None = None,
) -> list[str]:
    judged = ["", ""] if goal is None else [f"{goal:g}", common.verdict(value <= goal)]
    return [work, what, f"{value:.1e}", peer, "" if theirs is None else f"{theirs:.1e}", *judged]


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    expected = expected.double()
    return float((found.double() - expected).abs().max() / expected.abs().max())


# ---- sketches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByIndex:
    """S A by ``index_add_``, a pass over A for each sign of a row."""

    rows: Tensor  # (nnz, n)
    values: Tensor  # (nnz, n)
    m: int

    @classmethod
    def of(cls, S: Any) -> "ByIndex":
        found = S.to_sparse("float32")
        rows = found.indices.reshape(S.n, S.nnz).T.astype(np.int64)
        values = found.data.reshape(S.n, S.nnz).T
        return cls(
            torch.from_numpy(np.ascontiguousarray(rows)).cuda(),
            torch.from_numpy(np.ascontiguousarray(values)).cuda(),
            S.m,
        )

    def __call__(self, A: Tensor) -> Tensor:
        out = torch.zeros(self.m, A.shape[1], device="cuda", dtype=A.dtype)
        for rows, values in zip(self.rows, self.values, strict=True):
            out.index_add_(0, rows, A * values[:, None])
        return out


def signs(ceilings: gpu.Ceilings) -> Part:
    A, m = normal(N, D), 2048
    rows, facts = [], []
    for nnz, goal in ((8, 0.6), (4, None), (1, None)):
        S = qd.sketch.sparse_sign(m, N, nnz=nnz, seed=1)
        other = ByIndex.of(S)
        calls: dict[str, gpu.Call] = {"ours": partial(S.__matmul__, A), "torch": partial(other, A)}
        times = gpu.measure(calls)
        name = f"sparse sign ({nnz}), m = {m}, 1e6 x {D} float32"
        peer = ("torch index_add", times["torch"])
        rows.append(gpu.row(name, times["ours"], A.nbytes / ceilings.copy, goal, peer))
        exact = torch.zeros(m, D, device="cuda", dtype=torch.float64)
        for index, values in zip(other.rows, other.values, strict=True):
            exact.index_add_(0, index, A.double() * values[:, None])
        facts.append(
            fact(name, "relative", apart(S @ A, exact), "index_add", apart(other(A), exact))
        )
    S = qd.sketch.sparse_sign(m, N, nnz=8, seed=1)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        B = A.to(dtype)
        seconds = gpu.measure({"ours": partial(S.__matmul__, B)})["ours"]
        name = f"  the same, {str(dtype).removeprefix('torch.')}"
        rows.append(gpu.row(name, seconds, B.nbytes / ceilings.copy, None, None))
    B = S @ A
    seconds = gpu.measure({"ours": partial(S.T.__matmul__, B)})["ours"]
    rows.append(gpu.row("  its transpose", seconds, A.nbytes / ceilings.copy, None, None))
    return rows, facts


def hadamard(ceilings: gpu.Ceilings) -> Part:
    A, m = normal(N, D), 1024
    flips = torch.sign(normal(N, 1, seed=1))
    picked = torch.randperm(N // 2, device="cuda")[: m // 2]
    floor = A.nbytes / ceilings.copy

    def fourier() -> Tensor:
        return torch.fft.rfft(A * flips, dim=0)[picked]

    rows, facts = [], []
    for S, goal in ((qd.sketch.srht(m, N, seed=1), 0.6), (qd.sketch.circulant(m, N, seed=1), None)):
        times = gpu.measure({"ours": partial(S.__matmul__, A), "torch": fourier})
        name = f"{'SRHT' if goal else 'circulant'}, m = {m}, 1e6 x {D} float32"
        peer = ("torch FFT, sampled", times["torch"])
        rows.append(gpu.row(name, times["ours"], floor, goal, peer))
        # A few columns against the dense operator.
        n = 40_000
        few = type(S).__name__ == "SubsampledHadamard"
        T = qd.sketch.srht(m, n, seed=2) if few else qd.sketch.circulant(m, n, seed=2)
        B = A[:n, :8].contiguous()
        exact = torch.from_numpy(T.to_dense()).cuda() @ B.double()
        facts.append(fact(f"  {n} x 8", "relative", apart(T @ B, exact)))
    return rows, facts


def dense(ceilings: gpu.Ceilings) -> Part:
    A, m = normal(N, D), 1024
    slab = 65_536

    def theirs() -> Tensor:
        out = torch.zeros(m, D, device="cuda")
        for rows in A.split(slab):
            out.addmm_(torch.randn(m, len(rows), device="cuda"), rows)
        return out

    rows = []
    floor = 2 * m * N * D / ceilings.float32
    for make in (qd.sketch.gaussian, qd.sketch.rademacher):
        S = make(m, N, seed=1)
        times = gpu.measure({"ours": partial(S.__matmul__, A), "torch": theirs})
        peer = ("torch randn, product", times["torch"])
        name = f"{make.__name__}, m = {m}, 1e6 x {D} float32"
        rows.append(gpu.row(name, times["ours"], floor, None, peer))
    n = 20_000
    S, B = qd.sketch.gaussian(m, n, seed=1), A[:n].contiguous()
    exact = torch.from_numpy(S.to_dense()).cuda() @ B.double()
    return rows, [fact(f"gaussian, {n} x {D}", "relative", apart(S @ B, exact))]


def passes(ceilings: gpu.Ceilings) -> Part:
    rows = []
    for dtype in (torch.float32, torch.float64):
        A, x, b = normal(N, D, dtype=dtype), normal(D, dtype=dtype), normal(N, dtype=dtype)

        def theirs(A: Tensor = A, x: Tensor = x, b: Tensor = b) -> Tensor:
            r = b - A @ x
            return A.T @ r + 0 * torch.linalg.norm(r)

        ours = partial(qd.sketch.residual_gradient, A, x, b)
        times = gpu.measure({"ours": ours, "torch": theirs})
        peer = ("torch, two products", times["torch"])
        name = f"residual_gradient 1e6 x {D} {str(dtype).removeprefix('torch.')}"
        rows.append(gpu.row(name, times["ours"], A.nbytes / ceilings.copy, None, peer))
    return rows, []


def transforms(ceilings: gpu.Ceilings) -> Part:
    rows, facts = [], []
    for size, dtype in (
        (2**15, torch.float32),
        (2**13, torch.float32),
        (2**15, torch.bfloat16),
        (2**15, torch.float64),
        (2**20, torch.float32),
    ):
        count = 2**15 if size == 2**15 else 2**30 // size
        source = normal(count, size, dtype=torch.float32).to(dtype)
        x = source.clone()

        def ours(x: Tensor = x) -> object:
            return qd.sketch.fwht(x, 1, out=x, check_finite=False)

        # The copy brings back numbers of moderate size for the next round.
        times = gpu.measure({"ours": ours, "copy": partial(x.copy_, source)})
        goal = 1.2 * times["copy"] * 1e3 if (size, dtype) == (2**15, torch.float32) else None
        name = f"FWHT {count} of {size}, {str(dtype).removeprefix('torch.')}"
        floor = 2 * x.nbytes / ceilings.copy
        rows.append(gpu.row(name, times["ours"], floor, goal, ("a copy", times["copy"])))
        one = source[:1].double().cpu().numpy()
        exact = torch.from_numpy(qd.sketch.fwht(one, 1))
        x[:1].copy_(source[:1])
        found = qd.sketch.fwht(x[:1], 1)
        facts.append(fact(name, "relative", apart(found.cpu(), exact)))
        del source, x, ours
        torch.cuda.empty_cache()
    return rows, facts


# ---- regression ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """min |b - A x| with A = Q diag(sigma) V^T, and the residual outside the range of A."""

    A: Tensor
    b: Tensor
    Q: Tensor
    sigma: Tensor
    V: Tensor

    @classmethod
    def of(cls, n: int, d: int) -> "Problem":
        Q = torch.linalg.qr(normal(n, d, dtype=torch.float64))[0]
        V = torch.linalg.qr(normal(d, d, dtype=torch.float64, seed=1))[0]
        sigma = torch.logspace(
            0, -float(np.log10(CONDITION)), d, device="cuda", dtype=torch.float64
        )
        A = (Q * sigma) @ V.T
        x = normal(d, dtype=torch.float64, seed=2)
        x /= torch.linalg.norm(x)
        outside = normal(n, dtype=torch.float64, seed=3)
        for _ in range(2):
            outside -= Q @ (Q.T @ outside)
        return cls(A, A @ x + RESIDUAL / torch.linalg.norm(outside) * outside, Q, sigma, V)

    def backward_error(self, x: Tensor) -> float:
        """Relative change of A alone that makes x the solution, after Karlson and Walden."""
        r = self.b - self.A @ x
        w = torch.linalg.norm(r) / torch.linalg.norm(x)
        scaled = (self.V.T @ (self.A.T @ r)) / torch.hypot(self.sigma, w)
        size = torch.linalg.norm(x) * torch.linalg.norm(self.sigma)
        return float(torch.linalg.norm(scaled) / size)


def gels(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.lstsq(A, b[:, None], driver="gels").solution[:, 0]


def by_qr(A: Tensor, b: Tensor) -> Tensor:
    Q, R = torch.linalg.qr(A)
    return torch.linalg.solve_triangular(R, (Q.T @ b)[:, None], upper=True)[:, 0]


def least_squares(ceilings: gpu.Ceilings) -> Part:
    rows, facts = [], []
    for d, goal in ((256, 10.0), (1024, 85.0)):
        task = Problem.of(N, d)
        A, b = task.A, task.b
        calls: dict[str, gpu.Call] = {
            "ours": partial(qd.sketch.lstsq, A, b),
            "gels": partial(gels, A, b),
            "qr": partial(by_qr, A, b),
        }
        times = gpu.measure(calls, rounds=(3, 10))
        # A product with a triangle and a symmetric one; five reads of A.
        floor = 2 * N * d * d / ceilings.float64 + 5 * A.nbytes / ceilings.copy
        name = f"lstsq 1e6 x {d} float64, condition {CONDITION:g}"
        result = qd.sketch.lstsq(A, b)
        for peer in ("gels", "qr"):
            label = f"torch {peer}"
            rows.append(gpu.row(name, times["ours"], floor, goal, (label, times[peer])))
            theirs = task.backward_error(calls[peer]())  # type: ignore[arg-type]
            ours = task.backward_error(result.x)
            facts.append(fact(name, "backward", ours, label, theirs, BACKWARD_GOAL))
        said = float(result.backward_error)
        facts.append(fact(f"  {result.method}, {result.passes} passes", "as it says", said))
        for method in ("spir", "fossils"):
            seconds = gpu.measure(
                {method: partial(qd.sketch.lstsq, A, b, method=method)}, rounds=(1, 2)
            )[method]
            rows.append(gpu.row(f"  {method}", seconds, floor, None, None))
            error = task.backward_error(qd.sketch.lstsq(A, b, method=method).x)
            facts.append(fact(f"  {method}", "backward", error))
        del task, A, b, calls, result
        torch.cuda.empty_cache()
    return rows, facts


def leverage(ceilings: gpu.Ceilings) -> Part:
    task = Problem.of(N, D)
    A = task.A

    def theirs() -> Tensor:
        return torch.linalg.qr(A)[0].square().sum(dim=1)

    times = gpu.measure({"ours": partial(qd.sketch.leverage_scores, A), "torch": theirs})
    # Products with a triangle twice and a symmetric one; three reads of A.
    floor = 3 * N * D * D / ceilings.float64 + 3 * A.nbytes / ceilings.copy
    name = f"leverage scores 1e6 x {D} float64, condition {CONDITION:g}"
    rows = [gpu.row(name, times["ours"], floor, 8.0, ("torch QR", times["torch"]))]
    exact = task.Q.square().sum(dim=1)
    errors = apart(qd.sketch.leverage_scores(A), exact), apart(theirs(), exact)
    return rows, [fact(name, "relative", errors[0], "torch QR", errors[1])]


if __name__ == "__main__":
    gpu.run("sketch", "Sketches and regression on a GPU", main)
