"""Sizes beyond 2^31 elements on a real GPU, where 32-bit arithmetic would overflow."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from quadric import arrays, device, sketch, sweep, transport, woodbury  # noqa: E402
from tests.cuda.real import needs_gpu, room  # noqa: E402

pytestmark = needs_gpu

MORE = 2**31 + 77


@pytest.fixture(autouse=True)
def _room() -> Iterator[None]:
    with room(100):
        yield


def test_copy_fill_and_first_not_finite() -> None:
    x = torch.zeros(MORE, dtype=torch.float16, device="cuda")
    a = device.wrap(x)
    a.fill(2.0)
    assert float(x[-1]) == float(x[2**31]) == 2
    assert bool((x == 2).all())
    assert a.first_not_finite() == -1
    x[2**31 + 5 :: 60] = torch.nan
    assert a.first_not_finite() == 2**31 + 5
    x[2**31 + 5 :: 60] = 2
    x[-1] = 7
    wide = a.astype("float32")
    assert bool((wide.owner[:-1] == 2).all())
    assert float(wide.owner[-1]) == 7
    del wide
    x[2**31 + 9] = 5
    assert arrays.first_difference(a, a.space.full(1, "float16", 2).spread(a.shape)) == 2**31 + 9


def test_copy_and_fill_of_strides() -> None:
    """A transposed view, and one of every other column, of more entries than that."""
    rows, columns = 46_349, 2 * 46_349
    x = torch.zeros(rows, columns, dtype=torch.uint8, device="cuda")
    part = device.wrap(x)[:, 1::2]
    assert part.size > 2**31
    part.fill(3)
    assert int(x[-1, -1]) == 3
    assert int(x[-1, -2]) == int(x[0, 0]) == 0
    x[-1, -3] = 9
    turned = part.T.copy()
    assert int(turned.owner[-2, -1]) == 9
    assert int(turned.owner[-1, -1]) == int(turned.owner[0, -1]) == 3


def test_gram() -> None:
    tokens, n = 70_000, 32_768
    x = torch.randn(tokens, n, device="cuda", dtype=torch.bfloat16)
    acc = sweep.HessianAccumulator(n)
    acc.update(x)
    h = acc.value()
    for i, j in ((0, 0), (0, n - 64), (n - 64, 0), (n - 64, n - 64), (17_000, 31_111)):
        left, right = (x[:, k : k + 64].double() for k in (i, j))
        expected = left.T @ right / tokens
        # Sums of products of size 1 in float32, 8192 at a time.
        assert float((h[i : i + 64, j : j + 64] - expected).abs().max()) < 1e-4
    assert torch.equal(h[-500:, :500], h[:500, -500:].T)


@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_gradient_window(storage: str) -> None:
    """The solution solves the system: F x = damping x + G^T (G x) / m."""
    d, capacity, damping = 16_777_259, 129, 0.1
    assert d * capacity > 2**31
    window = woodbury.GradientWindow(d, capacity=capacity, damping=damping, dtype=storage)
    kind = getattr(torch, storage)

    def gradient(i: int) -> torch.Tensor:
        generator = torch.Generator("cuda").manual_seed(i)
        g = torch.randn(d, device="cuda", generator=generator).to(kind).float()
        return g + (i % 2) * gradient_of_all if i else g

    gradient_of_all = torch.ones(d, device="cuda")
    for i in range(capacity + 2):
        x = window.push_and_solve(gradient(i))
    x, last = x.double(), capacity + 1
    residual = damping * x
    for i in range(2, capacity + 2):
        g = gradient(i).to(kind).double()
        residual += (g @ x) / capacity * g
    g = gradient(last).to(kind).double()
    residual -= g
    # 1 / damping of the rounding of x.
    assert float(residual.norm() / g.norm()) < 1e-4
    assert float(residual[-1000:].norm() / g[-1000:].norm()) < 1e-3


def test_quantize() -> None:
    """With a diagonal H nothing is fed back, and rounding to nearest gives the same codes."""
    m, n = 65_536, 33_024
    assert m * n > 2**31
    h = torch.diag(torch.rand(n, device="cuda") + 1)
    factor = sweep.factorize(h)
    del h
    w = torch.randn(m, n, device="cuda")
    q = sweep.quantize(w, factor, bits=4, group_size=128)
    del factor
    for rows in (slice(0, 700), slice(-700, None)):
        nearest = sweep.round_to_nearest(w[rows].contiguous(), bits=4, group_size=128)
        assert torch.equal(q.codes[rows], nearest.codes)
        assert torch.equal(q.scales[rows], nearest.scales)
        dense = w[rows] / q.scales[rows].repeat_interleave(128, 1)
        codes = (dense + q.zeros[rows].repeat_interleave(128, 1)).round().clamp(0, 15)
        assert float((codes != q.codes[rows]).float().mean()) < 1e-4
    whole = sweep.round_to_nearest(w, bits=4, group_size=128)
    assert torch.equal(q.codes, whole.codes)


@pytest.mark.parametrize("points", [False, True])
def test_transport(points: bool) -> None:
    """A cost x_i + y_j is paid whatever goes where; between points, a shift is the best map."""
    n = 46_500
    assert n * n > 2**31
    x, y = (torch.rand(n, 1, device="cuda") for _ in range(2))
    if points:
        result = transport.solve_points(x, x + 2, 0.1, method="sinkhorn", tol=1e-4)
        assert result.cost == pytest.approx(4, abs=0.1)
    else:
        result = transport.solve(None, None, x + y.T, 0.1, method="sinkhorn", tol=1e-4)
        assert result.cost == pytest.approx(float(x.mean() + y.mean()), rel=1e-5)
    assert result.converged
    assert torch.isfinite(result.f).all()


@pytest.mark.parametrize("name", ["sparse_sign", "count_sketch", "srht", "gaussian"])
def test_sketches(name: str) -> None:
    """Operator and transpose are of one matrix: <S A w, v> is <A w, S^T v>."""
    m, n, d = 64, 8_400_000, 256
    assert n * d > 2**31
    A = torch.randn(n, d, device="cuda")
    S = getattr(sketch, name)(m, n, seed=1)
    v = torch.randn(m, 1, device="cuda")
    left, right = (S @ A).T @ v, A.T @ (S.T @ v)
    assert float((left - right).norm() / right.norm()) < 1e-4


def test_fwht() -> None:
    x = torch.zeros(131_073, 16_384, device="cuda")
    assert x.numel() > 2**31
    x[-1, 12_345] = x[0, 77] = 1
    found = sketch.fwht(x, 1)
    for row in (0, -1):
        assert torch.equal(found[row], sketch.fwht(x[row].clone(), 0))
    assert float(found[1:-1].abs().max()) == 0


def test_lstsq() -> None:
    A, x = torch.randn(8_400_000, 256, device="cuda"), torch.randn(256, device="cuda")
    found = sketch.lstsq(A, A @ x)
    assert float((found.x - x).norm() / x.norm()) < 1e-4
