"""The opponents: POT, RegOT, over-relaxed Sinkhorn in NumPy, and the published sparse Newton.

Each takes a problem and its options, makes at most `max_iter` iterations and returns the plan and
how many they were.
"""

from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import ot
import regot
import torch

from bench import common
from bench.transport.problems import Problem
from quadric.transport.cost import Cost
from quadric.transport.published import published

Answer: TypeAlias = tuple[np.ndarray, int]

_EVERY = 10  # iterations between two looks at the error
_SMALL = -690.0  # exponents below it are a zero of the kernel: e^-690 is far above the subnormals
_LARGE = 1e80  # scalings that are taken into the potentials
_LEVEL = 30  # plain iterations at each larger reg


class Peer(Protocol):
    """A solver with its options: ``peer(problem, tol=..., max_iter=..., **options)``."""

    def __call__(self, problem: Problem, *, tol: float, max_iter: int, **options: Any) -> Answer:
        """Return the plan (n, m) and the iterations made."""


def over_relaxed(
    problem: Problem,
    *,
    tol: float,
    max_iter: int,
    omega: float = 1.0,
    ramp: int = 1,
    levels: int = 0,
) -> Answer:
    """Sinkhorn with over-relaxation, two products with the kernel per iteration, nothing else.

    u <- u (a / (u K v))^omega, then the same for v.  omega grows from 1 within the first `ramp`
    iterations, without which it has to be smaller or diverges; before them, reg comes down from
    4^levels times its value in steps of 4.  The kernel starts from potentials that make its
    largest entry in each row and column about 1, so that only few of its entries underflow.

    The error of the newest u and the v before costs no product of its own.
    """
    C, a, b = problem.C, problem.a, problem.b
    f = C.min(axis=1)
    g = (C - f[:, None]).min(axis=0)
    Kv, Ku, s, t = np.empty_like(a), np.empty_like(b), np.empty_like(a), np.empty_like(b)
    made = 0
    for level in range(levels, -1, -1):
        reg = problem.reg * 4.0**level
        K, u, v = _kernel(C, f, g, reg), np.ones_like(a), np.ones_like(b)
        count = _LEVEL if level else max_iter - made
        for k in range(count):
            weight = 1.0 if level else 1 + (omega - 1) * min(1, k / ramp)
            np.dot(K, v, out=Kv)
            np.divide(a, Kv, out=s)
            s /= u
            u *= np.power(s, weight, out=s)
            np.dot(K.T, u, out=Ku)
            if k % _EVERY == 0 and not level:
                error = np.abs(u * Kv - a).sum() + np.abs(v * Ku - b).sum()
                if error <= tol or not np.isfinite(error):
                    return u[:, None] * K * v, made + k + 1
            np.divide(b, Ku, out=t)
            t /= v
            v *= np.power(t, weight, out=t)
            if k % (5 * _EVERY) == 0 and _extreme(u, v):
                f, g = f + reg * np.log(u), g + reg * np.log(v)
                K, u, v = _kernel(C, f, g, reg), np.ones_like(a), np.ones_like(b)
        made += count
        if level:
            f, g = f + reg * np.log(u), g + reg * np.log(v)
    return u[:, None] * K * v, made


def pot(
    problem: Problem,
    *,
    tol: float,
    max_iter: int,
    method: str,
    library: str = "numpy",
    **options: Any,
) -> Answer:
    """`ot.sinkhorn` on arrays of NumPy or PyTorch; `tol` is the 2-norm of one marginal's error."""
    arrays = problem.a, problem.b, problem.C
    a, b, C = map(torch.from_numpy, arrays) if library == "torch" else arrays
    arguments = {"method": method, "stopThr": tol, "numItermax": max_iter, "warn": False} | options
    if method == "sinkhorn_epsilon_scaling":  # the limit holds for every reg on its way
        arguments |= {"numItermax": 0, "numInnerItermax": max_iter}
        return np.asarray(ot.sinkhorn(a, b, C, problem.reg, **arguments)), max_iter
    P, log = ot.sinkhorn(a, b, C, problem.reg, log=True, **arguments)
    return np.asarray(P), 1 + int(log["n_iter"] if "n_iter" in log else log["niter"])


def reg_ot(
    problem: Problem, *, tol: float, max_iter: int, solver: str, warm: int = 0, **options: Any
) -> Answer:
    """RegOT's `solver` after `warm` of its Sinkhorn iterations; `tol` is a gradient's 2-norm.

    It takes costs by columns: they are the rows of the transposed problem.
    """
    arguments = problem.C.T, problem.b, problem.a, problem.reg
    if warm:
        options |= {"x0": regot.sinkhorn_bcd(*arguments, tol=tol, max_iter=warm).dual}
    function = getattr(regot, f"sinkhorn_{solver}")
    result = function(*arguments, tol=tol, max_iter=max_iter, **options)
    return np.asarray(result.plan).T, int(result.niter)


def sns(problem: Problem, *, tol: float, max_iter: int, **options: Any) -> Answer:
    """Sinkhorn-Newton-Sparse as in its paper, on quadric's kernels."""
    cost, n_threads = Cost.stored(problem.C), common.THREADS
    masses = problem.a[None], problem.b[None]
    found = published(cost, *masses, problem.reg, tol, max_iter, None, n_threads, **options)
    f, g = found.f[0], found.g[0]
    return np.exp((f[:, None] + g - problem.C) / problem.reg), int(found.iterations[0])


PEERS: dict[str, Peer] = {
    "POT sinkhorn": partial(pot, method="sinkhorn"),
    "POT log": partial(pot, method="sinkhorn_log"),
    "POT stabilized": partial(pot, method="sinkhorn_stabilized"),
    "POT scaling": partial(pot, method="sinkhorn_epsilon_scaling"),
    "RegOT SSNS": partial(reg_ot, solver="ssns"),
    "RegOT SPLR": partial(reg_ot, solver="splr"),
    "over-relaxed": over_relaxed,
    "published SNS": sns,
}


def _kernel(C: np.ndarray, f: np.ndarray, g: np.ndarray, reg: float) -> np.ndarray:
    Z = f[:, None] + g
    Z -= C
    Z /= reg
    small = Z < _SMALL
    Z[small] = 0
    np.exp(Z, out=Z)
    Z[small] = 0
    return Z


def _extreme(u: np.ndarray, v: np.ndarray) -> bool:
    return max(u.max(), v.max(), 1 / u.min(), 1 / v.min()) > _LARGE
