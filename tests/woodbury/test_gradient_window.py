"""GradientWindow: the last gradients, one out for each one in (M-FAC dynamic)."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.woodbury import GradientWindow
from tests import strategies as draws
from tests.bounds import assert_within
from tests.woodbury import oracle
from tests.woodbury.problems import EPS, KINDS, STORAGES, Rows, computing, gradients, storages

NORMALIZE = ("count", "capacity", "sum")


def truth(window: oracle.Window, storage: str) -> Rows:
    """Return the Gram form of the oracle's window, the newest gradient first."""
    g = np.stack(window.rows).astype(float)
    return Rows(g, window.damping, computing(STORAGES[storage]), window.divisor)


def norm(x) -> float:
    return float(np.linalg.norm(np.asarray(x).astype(float)))


class Pair:
    """A window and its oracle, which gets every gradient as it is after rounding."""

    def __init__(self, backend, d, capacity, damping, storage="float32", normalize="count"):
        self.d, self.storage = d, storage
        self.dtype = computing(STORAGES[storage])
        self.eps = float(np.finfo(self.dtype).eps)
        self.oracle = oracle.Window(capacity, damping, normalize)
        self.window = GradientWindow(
            d,
            capacity=capacity,
            damping=damping,
            dtype=storage,
            normalize=normalize,
            backend=backend,
        )

    def push(self, g, solve=False):
        g = g.astype(self.dtype)
        self.oracle.push(g.astype(STORAGES[self.storage]).astype(float))
        if not solve:
            self.window.push(g)
            return 0.0
        return self.assert_combined(self.window.push_and_solve(g), np.ones(1))

    def assert_combined(self, found, weights):
        """Assert count G^T A^-1 w to the bound of `Rows`, whose Gram matrix is exact here."""
        rows = truth(self.oracle, self.storage)
        w = np.zeros(rows.m)
        w[: len(weights)] = weights
        assert (found.shape, found.dtype) == ((self.d,), self.dtype)
        return assert_within(found, rows.combine(w), rows.combine_error(w), "combination")

    def assert_right(self, rng):
        """Assert the count, a combination and a general solution."""
        count = len(self.oracle.rows)
        assert self.window.count == count
        weights = rng.standard_normal(rng.integers(1, count + 1))
        used = self.assert_combined(self.window.combine(weights), weights)
        rows = truth(self.oracle, self.storage)
        x = rng.standard_normal((2, self.d)).astype(self.dtype)
        found = self.window.solve(x)
        assert (found.shape, found.dtype) == (x.shape, self.dtype)
        return max(used, assert_within(found, rows.solve(x), rows.solve_error(x), "solution"))


# ---- against the definition ----------------------------------------------------------------------


@given(
    d=draws.sizes(60),
    capacity=st.integers(1, 20),
    pushes=st.integers(1, 50),
    storage=storages,
    normalize=st.sampled_from(NORMALIZE),
    kind=st.sampled_from(KINDS),
    log_damping=st.integers(-7, -1),
    seed=draws.seeds,
)
def test_any_history(backend, d, capacity, pushes, storage, normalize, kind, log_damping, seed):
    """Half full, full, wrapped around; pushes with and without a solution, in any order."""
    rng = np.random.default_rng(seed)
    g = gradients(rng, pushes, d, kind) * 10.0 ** rng.integers(-1, 2)
    damping = 10.0**log_damping * (float(np.square(g).mean()) or 1.0)
    pair = Pair(backend, d, capacity, damping, storage, normalize)
    used = 0.0
    for row in g:
        used = max(used, pair.push(row, solve=rng.random() < 0.4))
        if rng.random() < 0.2:
            used = max(used, pair.assert_right(rng))
    target(max(used, pair.assert_right(rng)))


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("capacity", [1, 2, 5, 8])
def test_filling_and_wrapping(backend, capacity, normalize):
    """Every count from 1 to three times the capacity."""
    rng = np.random.default_rng(capacity)
    pair = Pair(backend, 12, capacity, 1e-3, "float64", normalize)
    for row in rng.standard_normal((3 * capacity + 1, 12)):
        pair.push(row, solve=True)
        pair.assert_right(rng)


def test_by_age(backend):
    """Weights meet gradients by age, the newest first, wherever they lie in the ring."""
    window = GradientWindow(
        4, capacity=4, damping=1.0, dtype="float64", normalize="sum", backend=backend
    )
    for step in range(11):
        window.push(np.eye(4)[step % 4] * (step + 1))
        for age in range(window.count):
            value = step - age + 1.0
            expected = np.eye(4)[(step - age) % 4] * value / (1 + value**2)
            found = window.combine(np.eye(window.count)[age])
            assert_within(found, expected, 64 * EPS)
            assert_within(window.combine(np.eye(age + 1)[age].tolist()), expected, 64 * EPS)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_push_through_against_subtraction(backend, storage):
    """1e-5 of the result where the subtraction in float32 keeps nothing of it.

    x / damping - ... loses 1e-7 |g|^2 / (m damping) of F^-1 g, and that quotient is 1e8 here.
    """
    rng = np.random.default_rng(0)
    d, m = 1000, 16
    g = gradients(rng, 2 * m, d, "correlated")
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    pair = Pair(backend, d, m, 1 / (1e8 * m), storage)
    for row in g[:-1]:
        pair.push(row)
    pushed = pair.window.push_and_solve(g[-1].astype(np.float32))
    pair.oracle.push(g[-1].astype(np.float32).astype(STORAGES[storage]).astype(float))

    rows = truth(pair.oracle, storage)
    exact = rows.combine(np.eye(m)[0])
    assert norm(pushed - exact) <= 1e-5 * norm(exact)
    assert norm(pair.window.combine([1.0]) - exact) <= 1e-5 * norm(exact)
    # The same window, the same vector, nothing lost in A^-1 G x: only the difference is float32.
    y = rows.solved(rows.g @ rows.g[0]).astype(np.float32)
    newest, wide = rows.g[0].astype(np.float32), rows.g.astype(np.float32)
    subtracted = (newest - wide.T @ y) / np.float32(rows.damping)
    assert norm(subtracted - exact) > norm(exact) / 2


def test_momentum_is_a_combination(backend):
    """F^-1 of a running average of all gradients in the window, by one pass."""
    rng = np.random.default_rng(1)
    pair = Pair(backend, 30, 6, 1e-6)
    for row in gradients(rng, 9, 30, "correlated"):
        pair.push(row)
    weights = 0.9 ** np.arange(6)
    pair.assert_combined(pair.window.combine(weights), weights)
    average = sum(w * row for w, row in zip(weights, pair.oracle.rows, strict=True))
    expected = pair.oracle.solve(average)
    assert norm(pair.window.combine(weights) - expected) <= 1e-5 * norm(expected)


# ---- for a long time -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "kind", "log_damping"),
    [("float32", "correlated", -6), ("float64", "normal", -7)],
)
def test_ten_thousand_replacements_do_not_drift(backend, storage, kind, log_damping):
    """The error after 10 000 updates of the inverse is within the bound of the first."""
    rng = np.random.default_rng(2)
    d, capacity = 24, 8
    g = gradients(rng, 10_000 + capacity, d, kind)
    scale = 10.0 ** np.repeat(rng.integers(-1, 2, len(g) // 500 + 1), 500)[: len(g), None]
    pair = Pair(backend, d, capacity, 10.0**log_damping, storage)
    for step, row in enumerate(scale * g):
        check = step < 2 * capacity or step % 500 < 2 or step >= len(g) - 4
        pair.push(row, solve=check)
        if check:  # and the inverse is made anew, however good it still is
            assert pair.window.state_dict()["updates"] < capacity
    pair.assert_right(rng)


def test_replacing_by_something_quite_different(backend):
    """Steps of 1e8 in scale, twins and zeros, where an update of the inverse would break down."""
    rng = np.random.default_rng(3)
    pair = Pair(backend, 10, 4, 1e-6, "float64")
    base = rng.standard_normal((6, 10))
    history = [*base, *(1e4 * base), *(1e-4 * base), *(base[:1] * np.ones((6, 1))), *(0 * base)]
    history += [*base, base[0], base[0] * (1 + 1e-9), *(1e4 * base[:1]), *base]
    for row in history:
        pair.push(row, solve=True)
        pair.assert_right(rng)


@pytest.mark.parametrize("storage", ["float32", "float64"])
def test_twins(backend, storage):
    """The same gradient all over the window: G G^T has rank 1, the damping does the rest.

    Push-through adds up m coefficients of 1 / (m damping) that cancel. The sums are float64, so
    that float32 loses nothing but the rounding of the result.
    """
    rng = np.random.default_rng(4)
    row = rng.standard_normal(20)
    pair = Pair(backend, 20, 7, 1e-5, storage)
    for _ in range(20):
        pair.push(row, solve=True)
    exact = row.astype(pair.dtype).astype(float)
    norm2 = exact @ exact
    right = exact / (1e-5 + norm2)
    limit = 4 * 7 * EPS * np.sqrt(norm2) / 1e-5 + pair.eps * np.abs(right)
    assert_within(pair.window.combine([1.0]), right, limit)
    # The sum of all of them is no difference of large numbers: 7 g / (damping + |g|^2).
    found = pair.window.combine(np.ones(7))
    assert_within(found, 7 * exact / (1e-5 + norm2), 64 * pair.eps * 7 / np.sqrt(norm2))


# ---- options and state ---------------------------------------------------------------------------


def test_damping_can_be_set_at_any_time(backend):
    rng = np.random.default_rng(5)
    pair = Pair(backend, 15, 5, 0.1, "float64")
    for step, row in enumerate(rng.standard_normal((17, 15))):
        pair.push(row)
        pair.window.damping = pair.oracle.damping = 10.0 ** -(step % 5 + 1)
        pair.assert_right(rng)
    assert pair.window.damping == pair.oracle.damping


@pytest.mark.parametrize("pushes", [0, 3, 7])
def test_clear(backend, pushes):
    """As a new window."""
    rng = np.random.default_rng(6)
    pair, new = (Pair(backend, 9, 5, 0.1) for _ in range(2))
    for row in rng.standard_normal((pushes, 9)):
        pair.window.push(row)
    pair.window.clear()
    assert pair.window.count == 0
    for row in rng.standard_normal((7, 9)).astype(np.float32):
        np.testing.assert_array_equal(
            pair.window.push_and_solve(row), new.window.push_and_solve(row)
        )


def test_an_empty_window_only_damps(backend):
    window = GradientWindow(5, capacity=3, damping=0.25, backend=backend)
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(window.solve(x), 4 * x)
    with pytest.raises(ValueError, match="gradient"):
        window.combine([1.0])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("pushes", [0, 1, 4, 6, 7, 23])
def test_state_goes_on_bit_for_bit(backend, storage, pushes):
    """Empty, half full, just full, wrapped; the inverse is part of the state."""
    rng = np.random.default_rng(7)
    options = {"capacity": 6, "damping": 1e-4, "dtype": storage, "backend": backend}
    a, b = GradientWindow(8, **options), GradientWindow(8, **options | {"damping": 1.0})
    b.push(np.ones(8))  # is forgotten
    g = rng.standard_normal((pushes + 15, 8)).astype(computing(STORAGES[storage]))
    for i in range(pushes):
        a.push(g[i]) if i % 2 else a.push_and_solve(g[i])
    state = a.state_dict()
    held = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in state.items()}
    b.load_state_dict(state)
    assert (b.count, b.damping) == (a.count, a.damping)
    for row in g[pushes:]:
        np.testing.assert_array_equal(a.push_and_solve(row), b.push_and_solve(row))
        np.testing.assert_array_equal(a.combine([1.0]), b.combine([1.0]))
    for key, value in held.items():  # a copy, and not changed by loading
        np.testing.assert_array_equal(state[key], value, err_msg=key)


def test_state_goes_through_files(backend, tmp_path):
    """NumPy arrays, numbers and strings: an .npz without pickle holds it."""
    rng = np.random.default_rng(8)
    a, b = (
        GradientWindow(8, capacity=3, dtype="bfloat16", damping=0.1, backend=backend)
        for _ in range(2)
    )
    for row in rng.standard_normal((5, 8)):
        a.push(row)
    np.savez(tmp_path / "state.npz", **a.state_dict())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        b.load_state_dict({k: v if v.ndim else v.item() for k, v in file.items()})
    g = rng.standard_normal(8)
    np.testing.assert_array_equal(a.push_and_solve(g), b.push_and_solve(g))


# ---- arrays --------------------------------------------------------------------------------------


@given(storage=storages, layout=draws.layouts, seed=draws.seeds)
def test_layouts(backend, storage, layout, seed):
    """Gradients and vectors as they come; nothing in them is changed or kept."""
    rng = np.random.default_rng(seed)
    dtype = computing(STORAGES[storage])
    g = rng.standard_normal((4, 23)).astype(dtype)
    shown = draws.relayout(g, layout)
    before = draws.whole(shown).tobytes()
    a, b = (
        GradientWindow(23, capacity=3, damping=1e-3, dtype=storage, backend=backend)
        for _ in range(2)
    )

    def assert_same(found, expected):
        if backend != "cuda":
            np.testing.assert_array_equal(found, expected)
            return
        # There, rows that begin at multiples of 16 bytes are summed in another order than others,
        # in float64, of which 1 / damping may be lost.
        lost = 64 * np.finfo(np.float64).eps * np.abs(g).max() / a.damping
        rounding = 2 * np.finfo(dtype).eps * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=lost + rounding)

    for i in range(4):
        assert_same(b.push_and_solve(shown[i]), a.push_and_solve(g[i]))
    assert_same(b.solve(shown), a.solve(g))
    assert_same(b.solve(shown[2]), a.solve(g[2]))
    assert draws.whole(shown).tobytes() == before
    held = a.combine([1.0])
    g[:] = 0  # the caller's to reuse
    np.testing.assert_array_equal(a.combine([1.0]), held)


@pytest.mark.parametrize("window", STORAGES)
@pytest.mark.parametrize("given", STORAGES)
def test_gradients_of_any_type(backend, window, given):
    """They are rounded once, from their own type to that of the window."""
    rng = np.random.default_rng(9)
    g = rng.standard_normal((5, 30)).astype(STORAGES[given])
    a, b = (
        GradientWindow(30, capacity=4, damping=0.1, dtype=window, backend=backend) for _ in range(2)
    )
    for row in g:
        a.push(row)
        if window != "float64":
            row = row.astype(np.float32)  # what float64 loses first, it would lose anyway
        b.push(row.astype(STORAGES[window]))
    np.testing.assert_array_equal(a.combine([1.0, 0.5]), b.combine([1.0, 0.5]))


@pytest.mark.parametrize("storage", STORAGES)
def test_threads_change_nothing(backend, storage):
    rng = np.random.default_rng(10)
    d = 30_000
    one, two = (
        GradientWindow(
            d, capacity=3, damping=1e-3, dtype=storage, backend=backend, n_threads=threads
        )
        for threads in (1, 2)
    )
    dtype = computing(STORAGES[storage])
    for row in rng.standard_normal((5, d)).astype(dtype):
        np.testing.assert_array_equal(one.push_and_solve(row), two.push_and_solve(row))
        np.testing.assert_array_equal(one.solve(row), two.solve(row))


@pytest.mark.parametrize("storage", STORAGES)
def test_torch_in_torch_out(backend, storage):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    a, b = (
        GradientWindow(12, capacity=3, damping=0.1, dtype=storage, backend=backend)
        for _ in range(2)
    )
    dtype = computing(STORAGES[storage])
    for row in rng.standard_normal((5, 12)):
        short = row.astype(STORAGES[storage])
        wide = torch.from_numpy(short.astype(dtype))
        found = b.push_and_solve(wide.to(getattr(torch, storage)).requires_grad_())
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), a.push_and_solve(short))
    x = torch.from_numpy(rng.standard_normal((2, 12)).astype(dtype))
    for name, argument in (("combine", [1.0, 2.0]), ("combine", torch.ones(3)), ("solve", x)):
        found = getattr(b, name)(argument)
        assert isinstance(found, torch.Tensor)
        plain = argument if isinstance(argument, list) else argument.numpy()
        np.testing.assert_array_equal(found.numpy(), getattr(a, name)(plain))


def test_memory_is_one_window(backend):
    """16-bit windows take half; state and window share no memory."""
    window = GradientWindow(100, capacity=4, dtype="bfloat16", backend=backend)
    for _ in range(3):
        window.push(np.ones(100))
    state = window.state_dict()
    assert state["rows"].dtype == np.uint16
    assert state["rows"].nbytes == 3 * 100 * 2
    state["rows"][:] = 0
    assert window.combine([1.0]).any()
