"""Bad input: one line that begins with the argument's name, and nothing changed."""

import numpy as np
import pytest

from quadric.transport import (
    dist,
    entropic_map,
    monge_gap,
    round_to_marginals,
    sinkhorn,
    sinkhorn_divergence,
    solve,
    solve_points,
    unif,
)
from tests.refusals import (
    ARRAYS,
    EXECUTION,
    INF,
    NAN,
    POSITIVE,
    SIZES,
    assert_refused,
    shown,
    spoiled,
)

N, M, D = 6, 7, 3


class Case:
    """Good arguments; each test spoils one thing."""

    def __init__(self, backend):
        rng = np.random.default_rng(0)
        self.backend = backend
        self.cost = rng.random((N, M))
        self.x, self.y = rng.random((N, D)), rng.random((M, D))
        self.a, self.b = np.full(N, 1 / N), np.full(M, 1 / M)
        self.result = solve(self.a, self.b, self.cost, 0.1, backend=backend)

    def state(self):
        """Return everything that may not change."""
        arrays = (self.cost, self.x, self.y, self.a, self.b, self.result.f, self.result.g)
        return [v.tobytes() for v in arrays]

    def refuse(self, name, call, error=(ValueError, TypeError)):
        return assert_refused(name, call, error, self.state)

    def solve(self, **options):
        arguments = {"a": self.a, "b": self.b, "M": self.cost, "reg": 0.1, "backend": self.backend}
        return solve(**(arguments | options))

    def points(self, **options):
        arguments = {"x": self.x, "y": self.y, "reg": 0.1, "backend": self.backend}
        return solve_points(**(arguments | {"a": self.a, "b": self.b} | options))


@pytest.fixture
def case(backend):
    return Case(backend)


def options(values):
    return pytest.mark.parametrize(("option", "value"), values, ids=shown)


SOLVERS = ("solve", "points")
both = pytest.mark.parametrize("solver", SOLVERS)

# ---- masses --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_masses(case, solver, name, kind):
    if kind == "none":
        return  # uniform
    spoil, error = ARRAYS[kind]
    bad = spoil(getattr(case, name))
    case.refuse(name, lambda: getattr(case, solver)(**{name: bad}), error)


@both
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("value", [-1e-300, -0.1, NAN, INF, -INF])
@pytest.mark.parametrize("unbalanced", [None, 1.0])
def test_the_bad_mass_is_named(case, solver, name, value, unbalanced):
    bad = spoiled(getattr(case, name), value, 4)
    message = case.refuse(
        name, lambda: getattr(case, solver)(**{name: bad, "unbalanced": unbalanced}), ValueError
    )
    assert message.endswith("at index (4,)"), message


@both
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("normalize", [False, True])
def test_no_mass_at_all(case, solver, name, normalize):
    bad = 0 * getattr(case, name)
    case.refuse(
        name, lambda: getattr(case, solver)(**{name: bad, "normalize": normalize}), ValueError
    )


@both
def test_masses_that_do_not_match(case, solver):
    """By how much, and what to do."""
    call = getattr(case, solver)
    message = case.refuse("a", lambda: call(b=1.25 * case.b), ValueError)
    for part in ("1.25", "0.25", "normalize=True", "b"):
        assert part in message
    message = case.refuse("a", lambda: call(a=(1 + 1e-6) * case.a), ValueError)
    assert "1e-06" in message
    assert call(b=1.25 * case.b, normalize=True).converged
    assert call(b=1.25 * case.b, unbalanced=1.0).converged
    # What the rounding of a sum does is nobody's fault.
    assert call(a=(1 + 1e-13) * case.a).converged
    assert call(a=case.a.astype(np.float32)).converged


def test_masses_of_batches(case):
    cost = np.stack([case.cost] * 3)
    a = np.stack([case.a] * 3)
    for bad in (a[:2], a[:, :-1], a[None], np.ones((3, 1))):
        case.refuse("a", lambda bad=bad: case.solve(M=cost, a=bad), ValueError)
    a[1] *= 2
    message = case.refuse("a", lambda: case.solve(M=cost, a=a), ValueError)
    assert "problem 1" in message
    a[1] = 0
    assert "1" in case.refuse("a", lambda: case.solve(M=cost, a=a), ValueError)


# ---- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARRAYS)
def test_costs(case, kind):
    spoil, error = ARRAYS[kind]
    bad = spoil(case.cost)
    if kind == "inf":
        assert case.solve(M=bad).plan()[N // 2, M // 2] == 0
        return
    if kind == "one entry less":
        case.refuse("b", lambda: case.solve(M=bad), ValueError)
        case.refuse("M", lambda: case.solve(M=bad[:, :0]), ValueError)
        return
    case.refuse("M", lambda: case.solve(M=bad), error)


@pytest.mark.parametrize("value", [NAN, -INF])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_bad_cost_is_named(case, value, order):
    bad = np.asarray(spoiled(case.cost, value, (4, 2)), order=order)
    message = case.refuse("M", lambda: case.solve(M=bad), ValueError)
    assert message.endswith("at index (4, 2)"), message
    batch = np.stack([case.cost, bad])
    message = case.refuse("M", lambda: case.solve(M=batch), ValueError)
    assert message.endswith("at index (1, 4, 2)"), message
    # With a forbidden pair beside it.
    bad[0, 0] = INF
    case.refuse("M", lambda: case.solve(M=bad), ValueError)


@pytest.mark.parametrize("shape", [(0, M), (N, 0), (0, 0), (N,), (1, 2, N, M), (), (0, N, M)])
def test_shapes_of_costs(case, shape):
    case.refuse("M", lambda: case.solve(M=np.ones(shape)), ValueError)


@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize("unbalanced", [None, 1.0])
def test_infeasible(case, side, unbalanced):
    """A mass that may go nowhere: which one."""
    bad = case.cost.copy()
    bad[(4, slice(None)) if side == "row" else (slice(None), 4)] = INF
    if unbalanced is None:
        message = case.refuse("M", lambda: case.solve(M=bad), ValueError)
        assert f"{side} 4" in message
        assert "infeasible" in message
    # Without mass there it is fine.
    a, b = case.a.copy(), case.b.copy()
    (a if side == "row" else b)[4] = 0
    r = case.solve(M=bad, a=a, b=b, normalize=True, unbalanced=unbalanced)
    assert r.converged
    assert np.isfinite(r.cost)


def test_infeasible_because_of_a_mass_of_zero(case):
    """The only partner of a row has no mass."""
    bad = case.cost.copy()
    bad[2, 1:] = INF
    b = case.b.copy()
    b[0] = 0
    message = case.refuse("M", lambda: case.solve(M=bad, b=b, normalize=True), ValueError)
    assert "row 2" in message


def test_infeasible_together(case):
    """Two rows that share one column with too little mass: no plan, and no silence."""
    bad = case.cost.copy()
    bad[:2, 1:] = INF
    with pytest.warns(Warning, match="marginal error"):
        r = case.solve(M=bad, max_iter=300)
    assert not r.converged
    # 2 / 6 of mass have to go where 1 / 7 is wanted.
    assert r.marginal_error >= 2 / 6 - 1 / 7
    assert np.isfinite(r.f).all()


# ---- points --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_points(case, name, kind):
    spoil, error = ARRAYS[kind]
    bad = spoil(getattr(case, name))
    wrong = name if kind != "one entry less" else "y"
    if kind == "more axes":
        bad = bad[None]
    case.refuse(wrong, lambda: case.points(**{name: bad}), error)


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("shape", [(0, D), (4, 0), (D,), (2, 4, D), ()])
def test_shapes_of_points(case, name, shape):
    wrong = "y" if shape == (2, 4, D) else name
    case.refuse(
        wrong, lambda: case.points(**{name: np.ones(shape), "a": None, "b": None}), ValueError
    )


def test_points_of_different_types(case):
    case.refuse("y", lambda: case.points(y=case.y.astype(np.float32)), TypeError)


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_the_bad_point_is_named(case, name, value):
    bad = spoiled(getattr(case, name), value, (4, 1))
    message = case.refuse(name, lambda: case.points(**{name: bad}), ValueError)
    assert message.endswith("at index (4, 1)"), message


@pytest.mark.parametrize("name", ["x", "y"])
def test_zero_vectors_have_no_direction(case, name):
    bad = getattr(case, name).copy()
    bad[4] = 0
    message = case.refuse(name, lambda: case.points(**{name: bad, "cost": "cosine"}), ValueError)
    assert "4" in message


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cityblock"])
def test_points_that_overflow(case, cost):
    huge = np.finfo(float).max
    for name in ("x", "y"):
        bad = spoiled(getattr(case, name), huge)
        case.refuse(
            "x", lambda bad=bad, name=name: case.points(**{name: bad, "cost": cost}), ValueError
        )


# ---- options -------------------------------------------------------------------------------------

OPTIONS = [
    *(("reg", x) for x in POSITIVE),
    *(("reg", x) for x in ([0.1], np.ones(3), 1j)),
    *(("tol", x) for x in (-1e-9, NAN, INF, "small")),
    *(("max_iter", x) for x in SIZES if x is not None),
    *(("omega", x) for x in (0, 2, -1.0, 2.5, NAN, INF, None, "best")),
    *(("unbalanced", x) for x in (0, -1.0, NAN, "both", (1.0,), (1.0, 2.0, 3.0))),
    *(("unbalanced", x) for x in ((1.0, 0.0), (NAN, 1.0))),
    *(("method", x) for x in ("Newton", "sinkhorn_log", None, 1)),
    *(("warm_start", x) for x in ("hot", 1.0, (np.zeros(N),), (np.zeros(N), np.zeros(N)))),
    *(("warm_start", x) for x in ((np.full(N, NAN), np.zeros(M)), (np.zeros(N), np.full(M, INF)))),
    *(("warm_start", (x, np.zeros(M))) for x in (np.zeros(N, int), np.zeros((2, N)))),
    *EXECUTION,
]  # fmt: skip


@both
@options(OPTIONS)
def test_options(case, solver, option, value):
    case.refuse(option, lambda: getattr(case, solver)(**{option: value}))


@options([("cost", x) for x in ("minkowski", "l2", None, 2, "Euclidean")])
def test_costs_of_points(case, option, value):
    case.refuse(option, lambda: case.points(cost=value), ValueError)


def test_warm_start_of_another_problem(case):
    other = solve(None, None, np.ones((N + 1, M)), 0.1, backend=case.backend)
    case.refuse("warm_start", lambda: case.solve(warm_start=other), ValueError)


# ---- results -------------------------------------------------------------------------------------


@options(
    [
        *(("k", x) for x in SIZES if x is not None),
        *(("drop", x) for x in (-1e-9, 1.5, NAN, "few", None)),
    ]
)
def test_sparse_plan(case, option, value):
    case.refuse(option, lambda: case.result.sparse_plan(**{option: value}))


@pytest.mark.parametrize("kind", ARRAYS)
def test_values(case, kind):
    if kind == "one entry less":
        case.refuse("values", lambda: case.result.barycentric(case.y[:-1]), ValueError)
        return
    spoil, error = ARRAYS[kind]
    bad = spoil(case.y)
    case.refuse("values", lambda: case.result.barycentric(bad), error)


@pytest.mark.parametrize("kind", ARRAYS)
def test_plans_to_round(case, kind):
    spoil, error = ARRAYS[kind]
    bad = spoil(case.cost)
    wrong = "b" if kind == "one entry less" else "P"
    case.refuse(wrong, lambda: round_to_marginals(bad, case.a, case.b), error)


def test_rounding(case):
    message = case.refuse(
        "P",
        lambda: round_to_marginals(spoiled(case.cost, -0.5, (4, 2)), case.a, case.b),
        ValueError,
    )
    assert message.endswith("at index (4, 2)"), message
    case.refuse("P", lambda: round_to_marginals(np.ones((0, 3)), case.a, case.b), ValueError)
    case.refuse("a", lambda: round_to_marginals(case.cost, -case.a, case.b), ValueError)
    case.refuse("a", lambda: round_to_marginals(case.cost, 2 * case.a, case.b), ValueError)
    case.refuse("b", lambda: round_to_marginals(case.cost, case.a, 0 * case.b), ValueError)
    case.refuse("a", lambda: round_to_marginals(case.cost, None, case.b), TypeError)


# ---- what is built on the solver -----------------------------------------------------------------


@options(
    [
        ("x", np.full((N, D), NAN)),
        ("x", np.ones((N, D), int)),
        ("y", np.ones((M, D + 1))),
        ("a", -np.ones(N)),
        ("b", np.ones(M + 1)),
        ("reg", 0),
        ("cost", "l2"),
        ("tol", -1.0),
        ("max_iter", 0),
        ("method", "best"),
        *EXECUTION,
    ]
)
def test_divergence(case, option, value):
    arguments = {"x": case.x, "y": case.y, "reg": 0.1, "backend": case.backend}
    case.refuse(option, lambda: sinkhorn_divergence(**(arguments | {option: value})))


@options(
    [
        ("x", np.full((N, D), NAN)),
        ("Tx", np.ones((M, D))),
        ("Tx", np.ones((N, D + 1))),
        ("Tx", "flip"),
        ("Tx", None),
        ("Tx", np.full((N, D), INF)),
        ("Tx", np.ones((N, D), np.float32)),
        ("a", -np.ones(N)),
        ("a", np.ones(N + 1)),
        ("reg", -1.0),
        ("cost", "l2"),
        *EXECUTION,
    ]
)
def test_monge_gap(case, option, value):
    arguments = {"x": case.x, "Tx": case.x + 1, "reg": 0.1, "backend": case.backend}
    case.refuse(option, lambda: monge_gap(**(arguments | {option: value})))


@options(
    [
        ("x", np.ones((2, D + 1))),
        ("x", np.full((2, D), NAN)),
        ("x", np.ones((2, D), np.float32)),
        ("y", np.ones(M)),
        ("g", np.ones(M + 1)),
        ("g", np.full(M, -INF)),
        ("g", np.full(M, NAN)),
        ("g", np.ones(M, np.float32)),
        ("reg", 0.0),
        ("values", np.ones((M + 1, 2))),
        ("values", np.full((M, 2), NAN)),
        ("cost", "l2"),
        *EXECUTION,
    ]
)
def test_entropic_map(case, option, value):
    g = np.zeros(M)
    arguments = {"x": case.x, "y": case.y, "g": g, "reg": 0.1, "backend": case.backend}
    name = "y" if option == "x" and getattr(value, "dtype", None) == np.float32 else option
    case.refuse(name, lambda: entropic_map(**(arguments | {option: value})))


def test_words_of_pot(case):
    for name, call in {
        "a": lambda: sinkhorn(-case.a, case.b, case.cost, 0.1),
        "b": lambda: sinkhorn(case.a, case.b[:-1], case.cost, 0.1),
        "M": lambda: sinkhorn(case.a, case.b, spoiled(case.cost, NAN), 0.1),
        "reg": lambda: sinkhorn(case.a, case.b, case.cost, 0.0),
        "x1": lambda: dist("points"),
        "n": lambda: unif(0),
    }.items():
        case.refuse(name, call)


# ---- after the last iteration --------------------------------------------------------------------


@both
@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton", "published"])
def test_max_iter_reached(case, solver, method):
    """A warning with the error that was reached, at the caller's line; the best plan so far."""
    with pytest.warns(UserWarning, match="marginal error") as caught:
        r = getattr(case, solver)(max_iter=1, reg=0.003, method=method, tol=1e-12)
    assert len(caught) == 1
    assert f"{r.marginal_error:.3g}" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert not r.converged
    plan = r.plan()
    assert np.isfinite(plan).all()
    error = np.abs(plan.sum(1) - case.a).sum() + np.abs(plan.sum(0) - case.b).sum()
    assert abs(error - r.marginal_error) <= 1e-12 * (1 + error)


def test_read_only_arguments(case):
    """They are not written to, so they need not be writable."""
    for array in (case.a, case.b, case.cost, case.x, case.y):
        array.flags.writeable = False
    assert case.solve().converged
    assert case.points().converged
    assert case.solve(warm_start=case.result).converged
