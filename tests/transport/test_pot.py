"""The words of POT: its return values, its conventions, and its own results where it is there."""

import warnings

import numpy as np
import pytest

import quadric.transport as ot
from quadric.errors import ConvergenceWarning
from tests.bounds import assert_within
from tests.transport import oracle
from tests.transport.problems import EPS, masses, optimal

NAMES = (
    "sinkhorn",
    "sinkhorn_log",
    "greenkhorn",
    "sinkhorn_stabilized",
    "sinkhorn_epsilon_scaling",
)


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 2))
    return x, ot.unif(60), ot.dist(x, x)


def sums_fit(plan, a, b, limit=2e-9):
    assert_within(plan.sum(1), a, limit)
    assert_within(plan.sum(0), b, limit)


def test_documented_example():
    """Lists in, the plan out."""
    s = 1 / (1 + np.exp(-1.0))
    expected = np.array([[s, 1 - s], [1 - s, s]]) / 2
    plan = ot.sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1)
    assert isinstance(plan, np.ndarray)
    assert_within(plan, expected, 1e-9)
    cost = ot.sinkhorn2([0.5, 0.5], [0.5, 0.5], [[0, 1], [1, 0]], 1)
    assert_within(cost, 1 - s, 1e-9)
    assert np.ndim(cost) == 0


@pytest.mark.parametrize("method", NAMES)
def test_constraints_and_one_solution(clouds, method):
    """Whatever the name of the method."""
    _x, u, cost = clouds
    plan = ot.sinkhorn(u, u, cost, 1.0, method=method, stopThr=1e-10)
    sums_fit(plan, u, u, 1e-10)
    f, g, least = optimal(cost, u, u, 1.0)
    # An error of 1e-10 moves the potentials by 2e-10 / curvature.
    expected = oracle.plan(cost, f, g, 1.0)
    assert_within(plan, expected, expected * (6e-10 / least + 64 * EPS * cost.max()))


@pytest.mark.parametrize("method", ["", "emd", "sinkhorn_screening", 3, None])
def test_other_methods(clouds, method):
    _x, u, cost = clouds
    for function in (ot.sinkhorn, ot.sinkhorn2):
        with pytest.raises(ValueError, match=r"^method"):
            function(u, u, cost, 1.0, method=method)


def test_empty_masses_are_uniform(clouds):
    _x, u, cost = clouds
    expected = ot.sinkhorn(u, u, cost, 1.0)
    for empty in ([], np.array([]), None):
        np.testing.assert_array_equal(ot.sinkhorn(empty, empty, cost, 1.0), expected)
    np.testing.assert_array_equal(ot.sinkhorn2([], [], cost, 1.0), ot.sinkhorn2(u, u, cost, 1.0))


def test_log(clouds):
    """u and v scale the kernel exp(-M / reg) to the plan; their logarithms start another run."""
    _x, u, cost = clouds
    plan, log = ot.sinkhorn(u, u, cost, 2.0, log=True)
    scaled = log["u"][:, None] * np.exp(-cost / 2) * log["v"]
    size = 64 * EPS * (1 + cost.max() / 2 + np.abs(log["log_u"]).max() + np.abs(log["log_v"]).max())
    assert_within(scaled, plan, size * plan)
    assert_within(np.exp(log["log_u"]), log["u"], 4 * EPS * log["u"])
    assert log["err"][-1] <= 1e-9
    assert isinstance(log["err"], list)
    assert 1 <= log["niter"] <= 1000
    assert log["result"].converged
    value, log2 = ot.sinkhorn2(u, u, cost, 2.0, log=True)
    assert_within(value, (plan * cost).sum(), 64 * EPS * cost.max())
    assert set(log) == set(log2)


def test_warm_start(clouds):
    _x, u, cost = clouds
    plan, log = ot.sinkhorn(u, u, cost, 0.3, stopThr=1e-11, log=True)
    again, second = ot.sinkhorn(u, u, cost, 0.3, stopThr=1e-9, warmstart=log["warmstart"], log=True)
    assert second["niter"] <= 3
    assert_within(again, plan, 1e-8)
    zero = np.zeros(60), np.zeros(60)
    assert_within(ot.sinkhorn(u, u, cost, 0.3, warmstart=zero), plan, 1e-7)


def test_many_targets(clouds):
    """k columns of b: k costs, and scalings of shape (n, k)."""
    _x, u, cost = clouds
    rng = np.random.default_rng(1)
    targets = np.stack([masses(rng, 60) for _ in range(3)], 1)
    for function in (ot.sinkhorn, ot.sinkhorn2):
        found, log = function(u, targets, cost, 1.0, log=True)
        assert found.shape == (3,)
        assert log["u"].shape == log["v"].shape == (60, 3)
        for k in range(3):
            assert_within(found[k], ot.sinkhorn2(u, targets[:, k], cost, 1.0), 1e-8)
            plan = log["u"][:, [k]] * np.exp(-cost) * log["v"][:, k]
            sums_fit(plan, u, targets[:, k])
        again, log2 = function(u, targets, cost, 1.0, log=True, warmstart=log["warmstart"])
        assert_within(again, found, 1e-8)
        assert log2["niter"] <= log["niter"]


def test_zero_masses():
    """Rows without mass stay empty, in every method: no NaN."""
    rng = np.random.default_rng(2)
    cost, a, b = rng.random((5, 6)), masses(rng, 5), masses(rng, 6)
    a[1] = b[[0, 3]] = 0
    a, b = a / a.sum(), b / b.sum()
    for method in NAMES:
        plan, log = ot.sinkhorn(a, b, cost, 0.1, method=method, log=True)
        sums_fit(plan, a, b)
        assert (plan[1] == 0).all()
        assert (log["u"][1], log["v"][0]) == (0, 0)
    assert np.isfinite(ot.sinkhorn2(a, b, cost, 0.1))


def test_a_point_and_a_cloud():
    """One atom on a side, and masses of different length."""
    cost = np.arange(4.0)[None]
    plan = ot.sinkhorn([1.0], [0.25] * 4, cost, 0.1)
    assert_within(plan, np.full((1, 4), 0.25), 1e-9)
    assert_within(ot.sinkhorn([0.25] * 4, [1.0], cost.T, 0.1), np.full((4, 1), 0.25), 1e-9)


def test_small_reg(clouds):
    """Where exp(-M / reg) is zero in float64: no NaN, no zero plan."""
    x, u, _ = clouds
    y = np.random.default_rng(3).standard_normal((60, 2)) + 1
    cost = ot.dist(x, y)
    plan = ot.sinkhorn(u, u, cost, 1e-3 * cost.max(), numItermax=10_000)
    sums_fit(plan, u, u)
    _order, least = oracle.assignment(cost)
    assert (plan * cost).sum() <= least + 1e-3 * cost.max() * np.log(60) + 1e-7


def test_warnings(clouds):
    """One, unless it is not wanted."""
    _x, u, cost = clouds
    for function in (ot.sinkhorn, ot.sinkhorn2):
        with pytest.warns(ConvergenceWarning, match="1e-09"):
            plan = function(u, u, cost, 0.1, numItermax=1, warn=True)
        assert np.isfinite(plan).all()
        function(u, u, cost, 0.1, numItermax=1, warn=False)
    with pytest.warns(ConvergenceWarning) as caught:
        ot.sinkhorn(u, u, cost, 0.1, numItermax=1)
    assert caught[0].filename == __file__
    # As there: silent by default.
    ot.sinkhorn2(u, u, cost, 0.1, numItermax=1)


def test_arguments_of_its_methods(clouds, capsys):
    _x, u, cost = clouds
    expected = ot.sinkhorn(u, u, cost, 1.0)
    plan = ot.sinkhorn(u, u, cost, 1.0, "sinkhorn_stabilized", 1000, 1e-9, tau=1e3, print_period=5)
    np.testing.assert_array_equal(plan, expected)
    ot.sinkhorn(u, u, cost, 1.0, "sinkhorn_epsilon_scaling", epsilon0=1e4, numInnerItermax=10)
    assert capsys.readouterr().out == ""
    ot.sinkhorn(u, u, cost, 1.0, verbose=True)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    with pytest.raises(TypeError):
        ot.sinkhorn(u, u, cost, 1.0, no_such_argument=1)


def test_own_backends(clouds, backend):
    _x, u, cost = clouds
    sums_fit(ot.sinkhorn(u, u, cost, 1.0, backend=backend, n_threads=1), u, u)


def test_plan(clouds, backend):
    _x, u, cost = clouds
    plan = ot.plan(u, u, cost, 1.0, backend=backend)
    np.testing.assert_array_equal(plan, ot.solve(u, u, cost, 1.0, backend=backend).plan())


def test_nothing_is_changed(clouds):
    x, u, cost = clouds
    rng = np.random.default_rng(4)
    targets = np.stack([masses(rng, 60)] * 2, 1)
    before = [v.tobytes() for v in (x, u, cost, targets)]
    ot.sinkhorn(u, targets, cost, 1.0, log=True)
    ot.sinkhorn(u, u, cost, 1.0)
    assert [v.tobytes() for v in (x, u, cost, targets)] == before


def test_torch(clouds):
    torch = pytest.importorskip("torch")
    _x, u, cost = clouds
    a, m = torch.from_numpy(u), torch.from_numpy(cost)
    plan, log = ot.sinkhorn(a, a, m, 1.0, log=True)
    assert isinstance(plan, torch.Tensor)
    assert isinstance(log["u"], torch.Tensor)
    np.testing.assert_array_equal(plan.numpy(), ot.sinkhorn(u, u, cost, 1.0))
    cost32 = m.to(torch.float32)
    assert ot.sinkhorn(a.to(torch.float32), [], cost32, 1.0, stopThr=1e-5).dtype == torch.float32


def test_unif_and_dist():
    assert ot.unif(4).tolist() == [0.25] * 4
    assert ot.unif(3, type_as=np.zeros(1, np.float32)).dtype == np.float32
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((7, 3))
    for metric in oracle.KINDS:
        assert_within(ot.dist(x, y, metric=metric), oracle.costs(x, y, metric), 1e-13)
    assert_within(ot.dist(x, y), oracle.costs(x, y, "sqeuclidean"), 1e-13)
    assert_within(ot.dist(x), oracle.costs(x, x, "sqeuclidean"), 1e-13)
    assert ot.dist(x.astype(np.float32), y.astype(np.float32)).dtype == np.float32


# ---- side by side --------------------------------------------------------------------------------


@pytest.fixture
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("ot")


@pytest.mark.parametrize("reg", [1.0, 10.0])
def test_the_same_plan(clouds, theirs, reg):
    """Both stop at an L2 error of 1e-12 at most, which moves an entry by a multiple of it."""
    x, u, _ = clouds
    rng = np.random.default_rng(6)
    cost, b = ot.dist(x, rng.standard_normal((40, 2))), masses(rng, 40)
    their = theirs.sinkhorn(
        u, b, cost, reg, stopThr=1e-13, numItermax=100_000, method="sinkhorn_log"
    )
    ours = ot.sinkhorn(u, b, cost, reg, stopThr=1e-12)
    least = optimal(cost, u, b, reg)[2]
    error = np.sqrt(40) * 1e-13 + 1e-12 + 64 * EPS * cost.max() / reg
    assert_within(ours, their, ours * 6 * error / (least * reg))
    assert_within(
        ot.sinkhorn2(u, b, cost, reg, stopThr=1e-12),
        theirs.sinkhorn2(u, b, cost, reg, stopThr=1e-13, numItermax=100_000, method="sinkhorn_log"),
        cost.max() * 6 * error / (least * reg),
    )


def test_the_same_shapes(clouds, theirs):
    """Of everything that comes back; what they have in log, this has too."""
    _x, u, cost = clouds
    targets = np.stack([u, u[::-1]], 1)
    for b in (u, targets):
        for name in ("sinkhorn", "sinkhorn2"):
            ours, our_log = getattr(ot, name)(u, b, cost, 1.0, log=True)
            their, their_log = getattr(theirs, name)(u, b, cost, 1.0, log=True)
            assert np.shape(ours) == np.shape(their), (name, b.shape)
            for key in ("u", "v"):
                assert our_log[key].shape == their_log[key].shape
            assert set(their_log) - set(our_log) <= {"alpha", "beta"}
    # A start in their form is taken, and theirs takes ours.
    start = ot.sinkhorn(u, u, cost, 1.0, log=True)[1]["warmstart"]
    their, log = theirs.sinkhorn(u, u, cost, 1.0, warmstart=start, log=True)
    assert log["niter"] <= 10
