"""quadric.sketch.sketched_newton_kkt: known solutions, SciPy's solvers, what it promises."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, target
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize

from quadric.errors import ConvergenceWarning, LinAlgError
from quadric.sketch import sketched_newton_kkt
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, INF, NAN, POSITIVE, SIZES, assert_refused, shown

INNER = ("block_kaczmarz", "gaussian", "sparse_sign", "kaczmarz", "direct")
EPS = np.finfo(float).eps


@dataclass(frozen=True)
class Problem:
    """Functions, a start, and the least value."""

    f: Any
    gradient: Any
    hessian: Any
    c: Any
    jacobian: Any
    x0: np.ndarray
    value: float = float("nan")

    def solve(self, **options):
        return sketched_newton_kkt(
            self.f, self.gradient, self.hessian, self.c, self.jacobian, self.x0, **options
        )

    def kkt_error(self, x, y):
        return np.linalg.norm(
            np.concatenate([self.gradient(x) + self.jacobian(x).T @ y, self.c(x)])
        )


def quadratic(rng, d, m, condition):
    """min x^T Q x / 2 + q^T x subject to G x = h, and its solution and multipliers."""
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    Q = (basis * np.geomspace(1, condition, d)) @ basis.T
    Q = (Q + Q.T) / 2
    U, V = (np.linalg.qr(rng.standard_normal((s, m)))[0] for s in (m, d))
    G = (U * np.geomspace(1, 1.5, m)) @ V.T
    q, h = rng.standard_normal(d), rng.standard_normal(m)
    K = np.block([[Q, G.T], [G, np.zeros((m, m))]])
    solution = np.linalg.solve(K, np.concatenate([-q, h]))
    problem = Problem(
        lambda x: x @ Q @ x / 2 + q @ x,
        lambda x: Q @ x + q,
        lambda x, y: Q,
        lambda x: G @ x - h,
        lambda x: G,
        rng.standard_normal(d),
    )
    return problem, solution, K


def array(*values):
    return np.array(values, float)


# Problems of W. Hock, K. Schittkowski, Test examples for nonlinear programming codes, 1981, by
# their numbers there, with the starts and the least values that it gives.
HOCK_SCHITTKOWSKI = {
    6: Problem(
        lambda x: (1 - x[0]) ** 2,
        lambda x: array(-2 * (1 - x[0]), 0),
        lambda x, y: array(2 - 20 * y[0], 0, 0, 0).reshape(2, 2),
        lambda x: array(10 * (x[1] - x[0] ** 2)),
        lambda x: array(-20 * x[0], 10)[None],
        array(-1.2, 1),
        0.0,
    ),
    7: Problem(
        lambda x: np.log(1 + x[0] ** 2) - x[1],
        lambda x: array(2 * x[0] / (1 + x[0] ** 2), -1),
        lambda x, y: np.diag(
            [
                2 * (1 - x[0] ** 2) / (1 + x[0] ** 2) ** 2 + y[0] * (4 + 12 * x[0] ** 2),
                2 * y[0],
            ]
        ),
        lambda x: array((1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4),
        lambda x: array(4 * x[0] * (1 + x[0] ** 2), 2 * x[1])[None],
        array(2, 2),
        -np.sqrt(3),
    ),
    27: Problem(
        lambda x: 0.01 * (x[0] - 1) ** 2 + (x[1] - x[0] ** 2) ** 2,
        lambda x: array(
            0.02 * (x[0] - 1) - 4 * x[0] * (x[1] - x[0] ** 2), 2 * (x[1] - x[0] ** 2), 0
        ),
        lambda x, y: array(
            [0.02 - 4 * (x[1] - x[0] ** 2) + 8 * x[0] ** 2, -4 * x[0], 0],
            [-4 * x[0], 2, 0],
            [0, 0, 2 * y[0]],
        ),
        lambda x: array(x[0] + x[2] ** 2 + 1),
        lambda x: array(1, 0, 2 * x[2])[None],
        array(2, 2, 2),
        0.04,
    ),
    28: Problem(
        lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
        lambda x: array(
            2 * (x[0] + x[1]), 2 * (x[0] + 2 * x[1] + x[2]), 2 * (x[1] + x[2])
        ),
        lambda x, y: array([2, 2, 0], [2, 4, 2], [0, 2, 2]),
        lambda x: array(x[0] + 2 * x[1] + 3 * x[2] - 1),
        lambda x: array(1, 2, 3)[None],
        array(-4, 1, 1),
        0.0,
    ),
    39: Problem(
        lambda x: -x[0],
        lambda x: array(-1, 0, 0, 0),
        lambda x, y: np.diag([-6 * x[0] * y[0] + 2 * y[1], 0, -2 * y[0], -2 * y[1]]),
        lambda x: array(x[1] - x[0] ** 3 - x[2] ** 2, x[0] ** 2 - x[1] - x[3] ** 2),
        lambda x: array(
            [-3 * x[0] ** 2, 1, -2 * x[2], 0],
            [2 * x[0], -1, 0, -2 * x[3]],
        ),
        array(2, 2, 2, 2),
        -1.0,
    ),
    48: Problem(
        lambda x: (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2,
        lambda x: 2
        * array(x[0] - 1, x[1] - x[2], x[2] - x[1], x[3] - x[4], x[4] - x[3]),
        lambda x, y: 2
        * array([1, 0, 0, 0, 0], [0, 1, -1, 0, 0], [0, -1, 1, 0, 0], [0, 0, 0, 1, -1],
                [0, 0, 0, -1, 1]),
        lambda x: array(x.sum() - 5, x[2] - 2 * (x[3] + x[4]) + 3),
        lambda x: array([1, 1, 1, 1, 1], [0, 0, 1, -2, -2]),
        array(3, 5, -3, 2, -2),
        0.0,
    ),
}  # fmt: skip


def logistic(seed=0, n=200, d=8):
    """Regularized logistic regression with two linear constraints."""
    rng = np.random.default_rng(seed)
    A, G, h = rng.standard_normal((n, d)), rng.standard_normal((2, d)), rng.standard_normal(2)
    labels = np.where(A @ rng.standard_normal(d) + rng.standard_normal(n) > 0, 1.0, -1.0)
    B = labels[:, None] * A

    def weights(x):
        return 1 / (1 + np.exp(np.clip(B @ x, -500, 500)))

    return (
        Problem(
            lambda x: np.logaddexp(0, -B @ x).mean() + 0.005 * (x @ x),
            lambda x: -B.T @ weights(x) / n + 0.01 * x,
            lambda x, y: (B.T * (weights(x) * (1 - weights(x)))) @ B / n + 0.01 * np.eye(d),
            lambda x: G @ x - h,
            lambda x: G,
            np.zeros(d),
        ),
        G,
        h,
    )


# ---- solutions -----------------------------------------------------------------------------------


@given(
    d=st.integers(1, 20),
    part=st.floats(0, 1),
    log_condition=st.floats(0, 2),
    inner=st.sampled_from(INNER),
    seed=draws.seeds,
)
def test_quadratic_programs(d, part, log_condition, inner, seed):
    """Error at most |K^-1| times the KKT error, which is at most tol."""
    rng = np.random.default_rng(seed)
    m = max(1, round(part * d))
    problem, solution, K = quadratic(rng, d, m, 10**log_condition)
    r = problem.solve(inner=inner, tol=1e-10, seed=seed)
    assert r.converged
    assert r.kkt_error <= 1e-10
    least = np.linalg.svd(K, compute_uv=False)[-1]
    size = np.linalg.norm(solution) + 1
    bound = 2 * 1e-10 / least + 100 * d * EPS * size / least
    error = np.linalg.norm(np.concatenate([r.x, r.multipliers]) - solution)
    target(float(error / bound))
    assert error <= bound
    assert_within(r.constraints, 0, 1e-10)
    assert r.kkt_error == pytest.approx(problem.kkt_error(r.x, r.multipliers), abs=1e-12)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("number", HOCK_SCHITTKOWSKI)
def test_hock_schittkowski(number, inner):
    problem = HOCK_SCHITTKOWSKI[number]
    start = problem.x0.copy()
    r = problem.solve(inner=inner)
    assert r.converged
    assert np.array_equal(problem.x0, start)
    # f is stationary on the constraints: an error of 1e-8 in both conditions changes it by as much
    # times the multipliers and the distance to the solution, all below 10 here.
    assert_within(r.objective, problem.value, 1e-7)
    assert np.linalg.norm(r.constraints) <= 1e-8
    assert problem.kkt_error(r.x, r.multipliers) <= 1.001e-8


@pytest.mark.parametrize("number", [6, 28, 39, 48])
def test_slsqp_finds_the_same(number):
    p = HOCK_SCHITTKOWSKI[number]
    found = minimize(
        p.f, p.x0, jac=p.gradient, method="SLSQP", tol=1e-10,
        constraints={"type": "eq", "fun": p.c, "jac": p.jacobian},
    )  # fmt: skip
    assert found.success
    r = p.solve()
    assert_within(r.objective, found.fun, 1e-6)
    assert_within(r.x, found.x, 1e-3)  # SLSQP stops on changes of f, whose square root this is


@pytest.mark.parametrize("inner", ["block_kaczmarz", "kaczmarz"])
def test_logistic_regression_with_linear_constraints(inner):
    p, G, h = logistic()
    r = p.solve(inner=inner, tol=1e-9)
    assert r.converged
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(
            p.f, p.x0, jac=p.gradient, hess=lambda x: p.hessian(x, None), method="trust-constr",
            constraints=LinearConstraint(G, h, h), options={"gtol": 1e-10, "xtol": 1e-14},
        )  # fmt: skip
    # The Hessian is at least 0.01 I, and both gradients are below 1e-9 after projection.
    assert_within(r.x, found.x, 2e-9 / 0.01 * 10)
    assert r.objective <= found.fun + 1e-9


def test_start_far_from_the_constraints():
    """Global convergence, from starts where full Newton steps diverge."""
    p = HOCK_SCHITTKOWSKI[7]
    for seed in range(8):
        x0 = 10 * np.random.default_rng(seed).standard_normal(2)
        r = Problem(p.f, p.gradient, p.hessian, p.c, p.jacobian, x0).solve(max_iter=500)
        assert r.converged
        assert r.history["step"].min() <= 1


def test_as_many_constraints_as_variables():
    """The solution of c(x) = 0, whatever f is."""
    p = Problem(
        lambda x: x[0],
        lambda x: array(1, 0),
        lambda x, y: 2 * y[0] * np.eye(2),
        lambda x: array(x @ x - 2, x[0] - x[1]),
        lambda x: array(2 * x, [1, -1]),
        array(3, 0.5),
    )
    assert_within(p.solve().x, [1, 1], 1e-7)


# ---- what it promises ----------------------------------------------------------------------------


def test_merit_function_and_directions():
    """Each step lowers the merit function it was made for, by directions of descent."""
    for number in (6, 27, 39):
        h = HOCK_SCHITTKOWSKI[number].solve().history
        assert (np.diff(h["penalty_constraints"]) >= 0).all()
        assert (np.diff(h["penalty_gradient"]) <= 0).all()
        same = np.diff(h["penalty_constraints"]) == 0
        falls = np.diff(h["merit"])
        assert (falls[same] <= 1e-14 * np.abs(h["merit"][:-1][same])).all()
        assert ((h["step"] > 0) & (h["step"] <= 1)).all()


def test_near_the_solution_steps_are_whole():
    h = logistic()[0].solve(tol=1e-10).history
    assert (h["step"][-3:] == 1).all()


def test_accuracy_is_what_costs():
    """A sharper condition takes fewer Newton steps, and each system is solved better."""
    problem, _, _ = quadratic(np.random.default_rng(1), 16, 4, 3.0)
    rough, sharp = (
        problem.solve(inner="kaczmarz", tol=1e-9, accuracy_power=p, inner_max_iter=400_000)
        for p in (0.0, 1.0)
    )
    assert rough.converged
    assert sharp.converged
    assert sharp.iterations <= rough.iterations
    assert sharp.history["accuracy"][-1] < rough.history["accuracy"][-1]
    direct = problem.solve(inner="direct", tol=1e-9)
    assert (direct.iterations, direct.direct_solves, direct.inner_iterations) == (1, 1, 0)


def test_a_system_that_projections_cannot_solve_is_solved_directly():
    problem, *_ = quadratic(np.random.default_rng(2), 12, 3, 1e6)
    r = problem.solve(inner="kaczmarz", inner_max_iter=3, tol=1e-6)
    assert r.converged
    assert r.direct_solves > 0
    assert r.direct_solves == r.history["direct"].sum()


def test_the_seed_decides():
    p = HOCK_SCHITTKOWSKI[39]
    first, again, other = (p.solve(seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(first.history["merit"], again.history["merit"])
    assert not np.array_equal(first.history["merit"], other.history["merit"])


def test_sparse_derivatives_and_other_arrays():
    problem, *_ = quadratic(np.random.default_rng(3), 10, 3, 5.0)
    sparse = Problem(
        problem.f,
        problem.gradient,
        lambda x, y: sp.csr_array(problem.hessian(x, y)),
        problem.c,
        lambda x: sp.csc_array(problem.jacobian(x)),
        problem.x0,
    )
    assert np.array_equal(sparse.solve().x, problem.solve().x)
    torch = pytest.importorskip("torch")
    r = sketched_newton_kkt(
        lambda x: ((x - 2) ** 2).sum() / 2,
        lambda x: x - 2,
        lambda x, y: np.eye(3),
        lambda x: x.sum() - 3,
        lambda x: torch.ones(1, 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
    )
    assert isinstance(r.x, torch.Tensor)
    assert_within(r.x.numpy(), 1.0, 1e-8)


def test_multipliers_to_start_from():
    problem, solution, _ = quadratic(np.random.default_rng(4), 9, 4, 5.0)
    at = Problem(**{**problem.__dict__, "x0": solution[:9].copy()})
    r = at.solve(multipliers0=solution[9:].copy(), tol=1e-10)
    assert r.iterations == 0
    assert at.solve(tol=1e-10).iterations == 0  # those of least squares are as good there


def test_too_few_steps():
    p = HOCK_SCHITTKOWSKI[27]
    with pytest.warns(ConvergenceWarning, match="max_iter=2 steps"):
        r = p.solve(max_iter=2)
    assert (r.converged, r.iterations, len(r.history)) == (False, 2, 2)
    assert "max_iter" in r.message


def test_infeasible_constraints_end_without_convergence():
    p = Problem(
        lambda x: x @ x,
        lambda x: 2 * x,
        lambda x, y: (2 + 2 * y[0]) * np.eye(2),
        lambda x: array(x @ x + 1),  # no zero
        lambda x: 2 * x[None],
        array(1, 1),
    )
    with pytest.warns(ConvergenceWarning):
        assert not p.solve(max_iter=20).converged


# ---- bad input -----------------------------------------------------------------------------------

GOOD = HOCK_SCHITTKOWSKI[39]


def refuse(name, error=(ValueError, TypeError), **options):
    fields = {key: options.pop(key) for key in list(options) if key in Problem.__annotations__}
    problem = Problem(**{**GOOD.__dict__, **fields})
    return assert_refused(name, lambda: problem.solve(**options), error, lambda: GOOD.x0.tobytes())


@pytest.mark.parametrize("kind", [k for k in ARRAYS if k != "one entry less"])
def test_start(kind):
    spoil, error = ARRAYS[kind]
    refuse("x0", error, x0=spoil(GOOD.x0))


def test_start_of_another_type():
    refuse("x0", TypeError, x0=GOOD.x0.astype(np.float32))
    refuse("x0", ValueError, x0=np.zeros(0))
    refuse("multipliers0", ValueError, multipliers0=np.zeros(3))
    refuse("multipliers0", ValueError, multipliers0=np.full(2, NAN))


@pytest.mark.parametrize("name", ["f", "gradient", "hessian", "c", "jacobian"])
def test_functions(name):
    refuse(name, TypeError, **{name: None})
    refuse(name, ValueError, **{name: lambda *a: np.zeros((7, 7))})
    refuse(name, TypeError, **{name: lambda *a: "many"})
    for value in (NAN, INF):
        refuse(name, ValueError, **{name: lambda *a, v=value: v + getattr(GOOD, name)(*a)})


def test_more_constraints_than_variables():
    refuse("c", ValueError, c=lambda x: np.zeros(5))
    refuse("c", ValueError, c=lambda x: np.zeros(0))


def test_hessian_must_be_symmetric():
    refuse("hessian", ValueError, hessian=lambda x, y: np.triu(np.ones((4, 4))))


def test_jacobian_must_have_full_rank():
    p = Problem(**{**GOOD.__dict__, "jacobian": lambda x: np.ones((2, 4))})
    with pytest.raises(LinAlgError, match=r"^jacobian must have full row rank"):
        p.solve()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inner", "lu"),
        ("inner", None),
        *[("tol", v) for v in POSITIVE],
        *[("penalty_constraints", v) for v in POSITIVE],
        *[("penalty_gradient", v) for v in POSITIVE],
        *[("max_iter", v) for v in (-1, 2.5, "3", None, True)],
        *[("inner_max_iter", v) for v in SIZES if v is not None],
        *[("block_size", v) for v in (*SIZES, 7) if v is not None],
        *[("accuracy", v) for v in (0.0, 1.0, NAN)],
        *[("accuracy_power", v) for v in (-1.0, NAN, INF)],
        *[("seed", v) for v in (-1, 2**64, 0.5)],
        *[("n_threads", v) for v in (0, 1.5)],
    ],
    ids=shown,
)
def test_options(name, value):
    refuse(name, **{name: value})


@pytest.mark.parametrize("inner", ["block_kaczmarz", "direct"])
@pytest.mark.parametrize(("of_f", "of_c"), [(665, 0), (0, -665), (665, 665), (-665, -665)])
def test_scale(inner, of_f, of_c):
    """Powers of two in f and c change the multipliers and what the tolerance means."""
    H, J, g = np.diag([1.0, 2.0, 4.0]), np.array([[1.0, 1.0, 1.0]]), np.array([1.0, 2.0, 3.0])

    def solved(of_f, of_c, **options):
        return sketched_newton_kkt(
            lambda x: np.ldexp(x @ H @ x / 2 - g @ x, of_f),
            lambda x: np.ldexp(H @ x - g, of_f),
            lambda x, y: np.ldexp(H, of_f),
            lambda x: np.ldexp(J @ x - 1, of_c),
            lambda x: np.ldexp(J, of_c),
            np.zeros(3),
            inner=inner,
            **options,
        )

    usual = solved(0, 0)
    tol = 1e-8 * 2.0 ** min(of_f, of_c)
    found = solved(of_f, of_c, tol=tol) if of_f == of_c else solved(of_f, of_c, tol=1e-300)
    assert found.converged == (found.kkt_error <= (tol if of_f == of_c else 1e-300))
    assert_within(found.x, usual.x, 1e-7)
    assert_within(np.ldexp(found.multipliers, of_c - of_f), usual.multipliers, 1e-7)
    assert_within(np.ldexp(found.objective, -of_f), usual.objective, 1e-7)


def test_sizes_that_no_step_can_have():
    n = 3
    J = np.ones((1, n))
    with pytest.raises(LinAlgError, match="must be nearer 1 in size"):
        sketched_newton_kkt(
            lambda x: 1e200 * x @ x / 2 - x.sum(),
            lambda x: 1e200 * x - 1,
            lambda x, y: 1e200 * np.eye(n),
            lambda x: J @ x - 1,
            lambda x: J,
            np.zeros(n),
        )
