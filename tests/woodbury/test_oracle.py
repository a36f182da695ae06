"""The oracle itself: by hand, and each published recursion against the dense definition."""

import numpy as np
import pytest

from tests.linalg.oracle import Long, inverse, solve
from tests.woodbury import oracle

EPS = float(np.finfo(Long).eps)


def near(a, b, limit):
    return np.abs(np.asarray(a - b)).max() <= limit


def test_one_gradient_by_hand():
    # F = 1 + 3^2 = 10 for one gradient; 1 + (9 + 1) / 2 = 6 for two.
    assert oracle.curvature(np.array([[3.0]]), 1.0).tolist() == [[10.0]]
    assert oracle.curvature(np.array([[3.0], [1.0]]), 1.0).tolist() == [[6.0]]
    assert oracle.curvature(np.array([[3.0], [1.0]]), 1.0, 1).tolist() == [[11.0]]
    assert near(oracle.woodfisher(np.array([[3.0], [1.0]]), 1.0), 1 / Long(6), 4 * EPS)


def test_blocks():
    g = np.array([[1.0, 2.0, 3.0]])
    assert oracle.block_curvature(g, 2, 1.0).tolist() == [[2, 2, 0], [2, 5, 0], [0, 0, 10]]
    assert oracle.block_curvature(g, None, 0.0).tolist() == np.outer(g, g).tolist()
    assert oracle.blocks(3, 2) == [slice(0, 2), slice(2, 3)]


@pytest.mark.parametrize("damping", [1.0, 1e-2, 1e-7])
@pytest.mark.parametrize("m", [1, 5, 12, 30])
def test_recursions_are_the_dense_inverse(m, damping):
    """Up to rounding: the recursions start at 1 / damping, so that is where their errors are."""
    rng = np.random.default_rng(m)
    g, x = rng.standard_normal((m, 12)), rng.standard_normal(12)
    dense = inverse(oracle.curvature(g, damping))
    cond = 12 * m / damping
    limit = 64 * m * EPS * cond / damping
    assert near(oracle.woodfisher(g, damping), dense, limit)
    assert near(oracle.mfac(g, damping, x), dense @ x, limit * np.abs(x).sum())


# F = [[2, 1], [1, 2]], F^-1 = [[2, -1], [-1, 2]] / 3.
TWO = np.array([[1.0, 1.0]]), 1.0


def test_pruning_one_weight_by_hand():
    # OBS: removing w_0 costs w_0^2 / (2 [F^-1]_00) and moves w_1 by -w_0 [F^-1]_10 / [F^-1]_00.
    w, kept = np.array([4.0, 5.0]), np.array([False, True])
    inverted = inverse(oracle.curvature(*TWO))
    pruned, cost = oracle.constrained(*TWO, w, kept)
    assert near(pruned, [0.0, 7.0], 16 * EPS)
    assert abs(cost - 12) <= 32 * EPS
    assert near(oracle.independent(inverted, w, kept), pruned, 64 * EPS)
    assert near(oracle.scores(inverted, w, 1), [12.0, 18.75], 64 * EPS)
    # Both: nothing is left to move, and the cost is w^T F w / 2.
    pruned, cost = oracle.constrained(*TWO, w, np.array([False, False]))
    assert pruned.tolist() == [0.0, 0.0]
    assert cost == (2 * 16 + 2 * 20 + 2 * 25) / 2
    assert near(oracle.scores(inverted, w, 2), [cost], 64 * EPS)
    # None: nothing happens.
    pruned, cost = oracle.constrained(*TWO, w, np.array([True, True]))
    assert (pruned.tolist(), cost) == ([4.0, 5.0], 0.0)


def test_independent_moves_are_added_up():
    # Pruning 4 moves 5 by 2, pruning 5 moves 4 by 2.5, and both end at zero all the same; a third
    # weight that knows only the first moves by that one alone.
    f = np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 0.0], [1.0, 0.0, 2.0]])
    inverted = inverse(f)  # [[4, -2, -2], [-2, 3, 1], [-2, 1, 3]] / 4
    pruned = oracle.independent(inverted, np.array([4.0, 6.0, 1.0]), np.array([False, False, True]))
    assert near(pruned, [0.0, 0.0, 1.0 + 4 * 2 / 4 - 6 / 3], 64 * EPS)


def test_pruning_is_the_joint_step_of_optimal_brain_surgeon():
    """The saddle point of the Lagrangian, the formula with F^-1, and random rivals."""
    rng = np.random.default_rng(1)
    g, w, kept = rng.standard_normal((20, 9)), rng.standard_normal(9), rng.random(9) < 0.5
    f, gone = oracle.curvature(g, 0.1), ~kept
    pruned, cost = oracle.constrained(g, 0.1, w, kept)
    constraint = np.eye(9)[gone]
    zeros = np.zeros((len(constraint), len(constraint)))
    saddle = solve(
        np.block([[f, constraint.T], [constraint, zeros]]),
        np.concatenate([np.zeros(9), -w[gone]])[:, None],
    )
    assert near(pruned, w + saddle[:9, 0], 1e4 * EPS)
    inverted = inverse(f)
    multiplier = inverse(inverted[np.ix_(gone, gone)]) @ w[gone]
    assert near(pruned, w - inverted[:, gone] @ multiplier, 1e4 * EPS)
    assert abs(cost - w[gone] @ multiplier / 2) <= 1e4 * EPS
    change = pruned - w
    assert abs(cost - change @ f @ change / 2) <= 1e4 * EPS
    # No other weights with these zeros are as near, neither random ones nor the independent update.
    rivals = pruned + kept * rng.normal(size=(9, 9))
    for other in [oracle.independent(inverted, w, kept), *rivals]:
        assert oracle.increase(g, 0.1, other - w) > cost


@pytest.mark.parametrize("group", [1, 2, 3, 4, 9])
def test_scores_are_constrained_minima(group):
    rng = np.random.default_rng(group)
    g, w = rng.standard_normal((20, 9)), rng.standard_normal(9)
    costs = []
    for q in oracle.blocks(9, group):
        kept = np.ones(9, bool)
        kept[q] = False
        costs.append(oracle.constrained(g, 0.1, w, kept)[1])
    assert near(oracle.scores(inverse(oracle.curvature(g, 0.1)), w, group), costs, 1e4 * EPS)


def test_window_is_a_ring():
    window = oracle.Window(2, 0.5)
    for value in (1.0, 2.0, 3.0):
        window.push(np.array([value]))
    assert window.curvature().tolist() == [[0.5 + (9 + 4) / 2]]
    assert window.solve(np.array([7.0])).tolist() == [1.0]
    assert window.solve(np.array([[7.0], [14.0]])).tolist() == [[1.0], [2.0]]
    assert window.combine(np.array([1.0, 2.0])).tolist() == [1.0]  # (3 + 2 * 2) / 7
    assert window.combine(np.array([7.0])).tolist() == [3.0]


@pytest.mark.parametrize(("normalize", "divisor"), [("count", 1), ("capacity", 4), ("sum", 1)])
def test_window_normalizes(normalize, divisor):
    window = oracle.Window(4, 1.0, normalize)
    window.push(np.array([2.0]))
    assert window.curvature().tolist() == [[1 + 4 / divisor]]
    window.push(np.array([2.0]))
    assert window.curvature().tolist() == [[1 + {"count": 4, "capacity": 2, "sum": 8}[normalize]]]


def test_rules_by_hand():
    # J = 1 / 2, v = 2, c = 1 / 2: L = 2 / 2 + 4 / 2 = 3; A = 3 / 4, 3 / 4 - (3 / 2)^2 / 4 = 3 / 16;
    # 1 / 4 + (1 / 2) / (1 / 4 * (1 + 1 / 4 * 2)) * 1 = 1 / 4 + 4 / 3.
    j, v = np.array([[0.5]]), np.array([2.0])
    expected = {"exact": 1 / Long(3), "mkor": 3 / Long(16), "published": 1 / Long(4) + 4 / Long(3)}
    for rule, value in expected.items():
        assert near(oracle.RULES[rule](j, v, 0.5), value, 4 * EPS)


def test_exact_rule_inverts_the_average():
    rng = np.random.default_rng(2)
    average = oracle.curvature(rng.standard_normal((30, 8)), 0.3)
    v = rng.standard_normal(8)
    found = oracle.exact_rule(inverse(average), v, 0.95)
    assert near(found, inverse(oracle.factor(average, v, 0.95)), 1e4 * EPS)


def test_the_printed_rule_decays():
    """It has a plus where an inverse has a minus: no inverse of anything after a while."""
    rng = np.random.default_rng(3)
    j = np.eye(4, dtype=Long)
    for _ in range(200):
        j = oracle.published_rule(j, 0.1 * rng.standard_normal(4), 0.9)
    assert np.abs(j).max() < 0.2


def test_stabilizer():
    j = np.array([[3.0, -1.0], [-1.0, 1.0]])
    assert oracle.stabilized(j, 4.0, 0.5) is j  # at the bound, not above it
    assert oracle.stabilized(j, 3.9, 0.5).tolist() == [[2.0, -0.5], [-0.5, 1.0]]


def test_kronecker():
    out, grad, inner = np.diag([2.0, 1.0]), np.array([[3.0], [4.0]]), np.array([[1.0]])
    assert oracle.kronecker(out, grad, inner, rescale=False).tolist() == [[6.0], [4.0]]
    rescaled = oracle.kronecker(out, grad, inner, rescale=True)
    assert near(np.sqrt((rescaled**2).sum()), 5.0, 8 * EPS)
    assert near(rescaled[0] * 4, rescaled[1] * 6, 32 * EPS)
    assert oracle.kronecker(out, 0 * grad, inner, rescale=True).tolist() == [[0.0], [0.0]]
