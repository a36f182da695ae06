"""Sinkhorn-Newton-Sparse as it was published, for comparison.

Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao and Ying, "Accelerating Sinkhorn
algorithm with sparse Newton iterations", ICLR 2024, arXiv:2401.12253, algorithm 1.

It has nothing that makes it converge from everywhere: on points in the plane it takes hundreds of
steps or stalls, on grids with equal distances it fails.  ``method="newton"`` is the one to use.
"""

import math

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from quadric import backends
from quadric.transport.cost import Cost
from quadric.transport.history import Progress, Recorder
from quadric.transport.optimize import Outcome

_STEPS = 100  # Newton steps, unless max_iter says otherwise
_CG_TOL = 1e-6  # relative; the paper names none
_ARMIJO = 1e-4  # of the predicted increase
_SHORTEST = 1e-10  # a step below it is none: the direction was useless


def published(
    cost: Cost,
    a: np.ndarray,
    b: np.ndarray,
    reg: float,
    tol: float,
    max_iter: int | None,
    backend: str | None,
    n_threads: int,
    *,
    warm_start: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Progress = None,
    sweeps: int = 20,
    sparsity: float = 2.0,
) -> Outcome:
    """Solve balanced problems by Sinkhorn iterations, then Newton steps on a sparse Hessian.

    The Newton stage maximizes ``<f, a> + <g, b> - reg sum P``, whose gradient is
    ``(a - P 1, b - P^T 1)`` and whose Hessian is ``-1 / reg`` times::

        diag(P 1)   P
        P^T         diag(P^T 1)

    Only the largest entries of P are kept, the rest of the Hessian being as it is; conjugate
    gradients with the diagonal as preconditioner give the direction, and a backtracking line search
    the step.

    Parameters
    ----------
    cost : Cost
        B problems, (B, n, m).
    a, b : array of float64, shape (B, n) and (B, m)
        Masses, all positive.
    reg, tol : float
        In the units of the cost; of both marginal errors, added.
    max_iter : int or None
        Sinkhorn iterations and Newton steps together, at most; None allows 100 Newton steps.
    backend : str or None
        Of the kernels that the entries come from.
    n_threads : int
        At least 1.
    warm_start : pair of array of float64, shape (B, n) and (B, m), optional
        Potentials to start from; zeros by default.
    progress : callable, optional
        Is told (iterations, error, tol) after each step.
    sweeps : int, default 20
        Sinkhorn iterations, N_1 in the paper: 20, and 700 for L1 distances between pixels.
    sparsity : float, default 2
        The share lambda of the Hessian's (n + m)^2 entries that the blocks P and P^T keep, times
        (n + m) / 2: 2, and 15 for L1 distances between pixels.

    Returns
    -------
    Outcome
        Of the last step made; not converged if `max_iter` was reached or the line search failed.
    """
    B, n, m = cost.shape
    limit = sweeps + _STEPS if max_iter is None else max_iter
    kept = min(n * m, math.ceil(sparsity * (n + m)))
    f, g = (np.zeros((B, n)), np.zeros((B, m))) if warm_start is None else map(np.array, warm_start)
    error, iterations = np.empty(B), np.empty(B, np.int64)
    recorder = Recorder(tol, limit, progress)
    for k in range(B):
        before = recorder.iterations
        run = _Run(cost.item(k), a[k], b[k], reg, backend, n_threads, recorder)
        run.sinkhorn(f[k], g[k], min(sweeps, limit), tol)
        run.newton(limit - (recorder.iterations - before), tol, kept)
        f[k], g[k], error[k] = run.f, run.g, run.error
        iterations[k] = recorder.iterations - before
    return Outcome(f, g, error, iterations, error <= tol, recorder.history(), "published")


class _Run:
    """One problem on its way."""

    def __init__(
        self,
        cost: Cost,
        a: np.ndarray,
        b: np.ndarray,
        reg: float,
        backend: str | None,
        n_threads: int,
        recorder: Recorder,
    ) -> None:
        self.cost, self.a, self.b, self.reg = cost, a, b, reg
        self.backend, self.n_threads, self.recorder = backend, n_threads, recorder

    def sinkhorn(self, f: np.ndarray, g: np.ndarray, count: int, tol: float) -> None:
        errors = np.full((1, count), np.nan)
        backends.resolve("transport.sinkhorn", self.backend, on=self.cost.array)(
            *self.cost.args,
            self.a[None],
            self.b[None],
            self.reg,
            1.0,
            1.0,
            np.ones(1),
            tol,
            count,
            f[None],
            g[None],
            errors,
            self.n_threads,
        )
        self.measure(*self.state(f, g))
        self.record("sinkhorn", int(np.isfinite(errors).sum()), self.P.size)

    def newton(self, count: int, tol: float, kept: int) -> None:
        for _ in range(count):
            if not tol < self.error < math.inf:
                return
            direction, cg_iterations = self.direction(kept)
            found = self.search(direction)
            if found is None:
                return
            self.measure(*found)
            self.record("newton", 1, kept, cg_iterations)

    def state(
        self, f: np.ndarray, g: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return `f`, `g`, their plan and what is maximized."""
        P = np.empty(self.cost.shape[1:], self.cost.dtype)
        plan = backends.resolve("transport.plan", self.backend, on=self.cost.array)
        plan(*self.cost.single(), f, g, self.reg, P, self.n_threads)
        total = float(P.sum(dtype=np.float64))
        return f, g, P, float(f @ self.a + g @ self.b) - self.reg * total

    def measure(self, f: np.ndarray, g: np.ndarray, P: np.ndarray, objective: float) -> None:
        self.f, self.g, self.P, self.objective = f, g, P, objective
        self.r, self.c = P.sum(axis=1, dtype=np.float64), P.sum(axis=0, dtype=np.float64)
        self.gradient = np.concatenate([self.a - self.r, self.b - self.c])
        self.error = float(np.abs(self.gradient).sum())

    def direction(self, kept: int) -> tuple[np.ndarray, int]:
        """Return the Newton direction (n + m,) and the conjugate gradient iterations."""
        cut = np.partition(self.P, -kept, axis=None)[-kept]
        S = sparse.csr_array(np.where(cut <= self.P, self.P, 0).astype(np.float64))
        diagonal = np.concatenate([self.r, self.c])
        H = sparse.block_array([[None, S], [S.T, None]], format="csr")
        H = (H + sparse.diags_array(diagonal)) / self.reg
        inverse = self.reg / np.maximum(diagonal, np.finfo(np.float64).tiny)
        steps: list[None] = []
        direction, _ = cg(
            H,
            self.gradient,
            rtol=_CG_TOL,
            maxiter=len(diagonal),
            M=sparse.diags_array(inverse),
            callback=lambda _: steps.append(None),
        )
        return np.asarray(direction), len(steps)

    def search(
        self, direction: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float] | None:
        """Return the state after the longest step 1, 1/2, 1/4... that increases the objective."""
        slope = float(self.gradient @ direction)
        noise = 4 * np.finfo(self.cost.dtype).eps * abs(self.objective)
        step = 1.0
        while step > _SHORTEST:
            df, dg = np.split(step * direction, [len(self.a)])
            with np.errstate(over="ignore"):
                found = self.state(self.f + df, self.g + dg)
            if found[-1] >= self.objective + _ARMIJO * step * slope - noise:
                return found
            step /= 2
        return None

    def record(self, method: str, iterations: int, kept: int, cg_iterations: int = 0) -> None:
        self.recorder.add(
            method, self.reg, iterations, self.error, self.objective, kept, cg_iterations
        )
