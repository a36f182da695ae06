"""The oracle itself: by hand, against brute force, and its parts against each other."""

from itertools import permutations

import numpy as np
import pytest

from tests.linalg.oracle import Long, solve, wide
from tests.transport import oracle

EPS = float(np.finfo(Long).eps)
INF = oracle.INF


def problem(n, m, seed=0):
    rng = np.random.default_rng(seed)
    a, b = wide(rng.random(n) + 0.1), wide(rng.random(m) + 0.1)
    return rng.random((n, m)), a / a.sum(), b / b.sum()


def near(a, b, limit):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) <= limit


def test_costs_by_hand():
    x, y = np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[4.0, 0.0]])
    assert oracle.costs(x, y, "sqeuclidean").tolist() == [[25.0], [9.0]]
    assert oracle.costs(x, y, "euclidean").tolist() == [[5.0], [3.0]]
    assert oracle.costs(x, y, "cityblock").tolist() == [[7.0], [3.0]]
    assert oracle.costs(x, y, "cosine").tolist() == [[1.0], [0.0]]


def test_log_sum():
    z = wide(np.array([[0.0, 0.0], [-INF, 5.0], [-INF, -INF], [1e4, 0.0]]))
    assert near(oracle.log_sum(z, 1)[[0, 1, 3]], [np.log(Long(2)), 5, 1e4], 8 * EPS)
    assert oracle.log_sum(z, 1)[2] == -INF


def test_one_entry_by_hand():
    """P = a = b = 1: f + g = C after one iteration, and nothing is left to do."""
    one = np.ones(1)
    step = oracle.iterate(np.array([[3.0]]), one, one, 0.5, np.zeros(1), np.zeros(1))
    assert near(step.f + step.g, 3, 8 * EPS)
    assert near(step.error, 0, 8 * EPS)
    # Half way with omega = 1/2, and again half of the rest.
    step = oracle.iterate(np.array([[3.0]]), one, one, 0.5, np.zeros(1), np.zeros(1), omega=0.5)
    assert near([step.f[0], step.g[0]], [1.5, 0.75], 8 * EPS)


def test_penalties_by_hand():
    """One entry: C + reg log P + rho_a log(P / a) + rho_b log(P / b) = 0."""
    a, b, c, reg, rho = 2.0, 3.0, 0.7, 0.5, (0.3, 0.9)
    total = reg + sum(rho)
    p = np.exp((rho[0] * np.log(a) + rho[1] * np.log(b) - c) / total)
    one = [np.array([[c]]), np.array([a]), np.array([b])]
    f, g = oracle.sinkhorn(*one, reg, rho=rho)
    assert near(oracle.plan(one[0], f, g, reg), p, 1e-14)
    primal = c * p + reg * p * (np.log(p) - 1)
    for weight, mass in zip(rho, (a, b), strict=True):
        primal += weight * (p * np.log(p / mass) - p + mass)
    assert near(oracle.value(*one, reg, np.array([[p]]), rho), primal, 1e-14)
    assert near(oracle.dual_value(*one, reg, f, g, rho), primal, 1e-14)


@pytest.mark.parametrize("rho", [(INF, INF), (0.4, INF), (INF, 0.4), (1.3, 0.2)])
@pytest.mark.parametrize(("n", "m", "reg"), [(1, 1, 0.1), (2, 7, 0.05), (9, 5, 0.3), (6, 6, 10)])
def test_newton_is_sinkhorn(n, m, reg, rho):
    cost, a, b = problem(n, m)
    f, g = oracle.sinkhorn(cost, a, b, reg, rho=rho, tol=1e-17)
    p = oracle.plan(cost, f, g, reg)
    assert near(oracle.plan(cost, *oracle.optimum(cost, a, b, reg, rho=rho), reg), p, 1e-14)
    assert near(
        oracle.value(cost, a, b, reg, p, rho), oracle.dual_value(cost, a, b, reg, f, g, rho), 1e-14
    )
    # No other plan with the same sums, nor another one at all if there are penalties, is better.
    rng, best = np.random.default_rng(1), oracle.value(cost, a, b, reg, p, rho)
    for _ in range(5):
        change = rng.random((n, m)) - 0.5
        if INF in rho:
            change = change - change.mean(1, keepdims=True)
            change = change - change.mean(0, keepdims=True)
        other = p + 0.5 * p.min() * change
        assert oracle.value(cost, a, b, reg, other, rho) >= best - 64 * EPS


def test_derivatives_are_those_of_the_dual_value():
    cost, a, b = problem(3, 4)
    rng = np.random.default_rng(2)
    at = wide(rng.random(7) / 3)
    for rho in ((INF, INF), (0.5, 2.0)):

        def dual(v, rho=rho):
            return oracle.dual_value(cost, a, b, 0.3, v[:3], v[3:], rho)

        gradient, hessian = oracle.derivatives(cost, a, b, 0.3, at[:3], at[3:], rho)
        h = Long(1e-5)
        for i, e in enumerate(np.eye(7, dtype=Long)):
            assert near((dual(at + h * e) - dual(at - h * e)) / (2 * h), gradient[i], 1e-7)
            moved = [
                oracle.derivatives(cost, a, b, 0.3, v[:3], v[3:], rho)[0]
                for v in (at + h * e, at - h * e)
            ]
            assert near((moved[1] - moved[0]) / (2 * h), hessian[i], 1e-6)


@pytest.mark.parametrize("reg", [1e-3, 0.1, 1.0, 100.0])
def test_two_by_two(reg):
    cost, a, b = problem(2, 2, 3)
    p = oracle.two_by_two(cost, a, b, reg)
    assert near(p.sum(0), b, 8 * EPS)
    assert near(p.sum(1), a, 8 * EPS)
    odds = np.log(p[0, 0]) + np.log(p[1, 1]) - np.log(p[0, 1]) - np.log(p[1, 0])
    k = (wide(cost)[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1]) / Long(reg)
    assert near(odds, k, 1e-12 * (1 + abs(float(k))) / float(p.min()))
    if reg >= 0.1:
        assert near(p, oracle.plan(cost, *oracle.optimum(cost, a, b, reg), reg), 1e-15)
    assert near(oracle.two_by_two(np.zeros((2, 2)), a, b, 1.0), np.outer(a, b), 4 * EPS)


def test_lines_and_assignments_by_brute_force():
    rng = np.random.default_rng(4)
    x, y = rng.random(5), rng.random(5)
    for power in (1, 2):
        cost = np.abs(x[:, None] - y) ** power
        best = min(cost[range(5), list(order)].mean() for order in permutations(range(5)))
        assert near(oracle.line(x, y, power), best, 1e-15)
        assert near(oracle.assignment(cost)[1], best, 1e-15)
    same = np.full(5, 0.2)
    assert near(oracle.line_with_weights(x, same, y, same), oracle.line(x, y, 1), 1e-15)
    assert near(oracle.line_with_weights([0.0, 1.0], [0.75, 0.25], [1.0], [1.0]), 0.75, EPS)


def test_gaussians():
    # One dimension, by hand: k solves k^2 + (reg / 2) k = s^2 t^2.
    k = oracle.gaussian_covariance(np.array([[4.0]]), np.array([[9.0]]), 0.6)[0, 0]
    assert near(k**2 + 0.3 * k, 36, 1e-13)
    rng = np.random.default_rng(5)
    a, b = (x @ x.T + np.eye(2) for x in rng.standard_normal((2, 2, 2)))
    reg = 0.8
    k = oracle.gaussian_covariance(a, b, reg)
    # The gradient of 2 tr K + (reg / 2) log det(A - K B^-1 K^T) is zero.
    inner = a - k @ solve(b, k.T).astype(float)
    gradient = 2 * np.eye(2) - reg * solve(inner, k @ np.linalg.inv(b)).astype(float)
    assert near(gradient, 0, 1e-12)
    limit = np.trace(a) + np.trace(b) - 2 * np.trace(oracle.gaussian_covariance(a, b, 1e-9))
    assert near(limit, oracle.bures(a, b), 1e-8)
    assert near(oracle.bures(a, a), 0, 1e-14)


def test_capped_columns_by_hand():
    t, shift = oracle.capped_column([3.0, 1.0, 2.5, -4.0], 1.0, 4)
    assert (t.tolist(), shift) == ([0.75, 0.0, 0.25, 0.0], -2.25)
    t, shift = oracle.capped_column([3.0, 1.0, 2.5, -4.0], 1.0, 1)
    assert (t.tolist(), shift) == ([1.0, 0.0, 0.0, 0.0], -2.0)
    t, shift = oracle.capped_column([3.0, 1.0, 2.5, -4.0], 10.0, 3)
    assert near(t, [3 + 3.5 / 3, 1 + 3.5 / 3, 2.5 + 3.5 / 3, 0], 1e-15)
    assert near(t.sum(), 10, 16 * EPS)
