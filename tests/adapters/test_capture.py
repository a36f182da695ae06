"""What reaches a layer is what its Hessian is made of."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import quadric as qd
from quadric.adapters.torch.capture import Capture, UnequalInputs, call_order
from quadric.adapters.torch.layers import Layer, from_matrix, kind_of, to_matrix


def layers_of(model: nn.Module) -> list[Layer]:
    return [Layer(n, m, kind) for n, m in model.named_modules() if (kind := kind_of(m))]


def gram(x: Tensor) -> np.ndarray:
    acc = qd.sweep.HessianAccumulator(x.shape[-1])
    acc.update(x.reshape(-1, x.shape[-1]).numpy())
    return acc.value()


def assert_gram(found: np.ndarray, x: Tensor) -> None:
    """`found` is X^T X / T within the error of T float32 products, their sum and a division.

    Each is off by at most eps / 2 of the sum of magnitudes, in whatever order they are added up.
    """
    rows = x.reshape(-1, x.shape[-1]).double().numpy()
    bound = (len(rows) + 2) * np.finfo(np.float32).eps * (abs(rows).T @ abs(rows)) / len(rows)
    assert (abs(np.asarray(found) - rows.T @ rows / len(rows)) <= bound).all()


class Three(nn.Module):
    """Three layers, and a way to feed them."""

    def __init__(self, feed: Callable[["Three", Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.feed = feed

    def forward(self, x: Tensor) -> object:
        return self.feed(self, x)


def captured(model: nn.Module, xs: list[Tensor], share: bool = True) -> Capture:
    capture = Capture(layers_of(model), share=share)
    for x in xs:
        capture.run(lambda x=x: model(x))
    return capture


def test_layers_with_one_input_share() -> None:
    model = Three(lambda m, x: m.c(m.a(x) + m.b(x.view(x.shape))))
    xs = [torch.randn(5, 8), torch.randn(6, 8)]
    shared = captured(model, xs).shared()
    assert [[layer.name for layer in s.layers] for s in shared] == [["a", "b"], ["c"]]
    np.testing.assert_array_equal(shared[0].accumulator.tokens, 11)
    assert_gram(shared[0].accumulator.value(), torch.cat(xs))


def test_layers_with_equal_but_different_inputs_do_not_share() -> None:
    model = Three(lambda m, x: (m.a(x), m.b(x.clone()), m.c(x[:, :])))
    assert [len(s.layers) for s in captured(model, [torch.randn(5, 8)]).shared()] == [2, 1]


def test_memory_that_is_used_again_is_another_input() -> None:
    def feed(m: Three, x: Tensor) -> None:
        for layer in (m.a, m.b, m.c):
            layer(x * 2)  # freed at once, so the allocator would hand out the same place

    assert [len(s.layers) for s in captured(Three(feed), [torch.randn(5, 8)]).shared()] == [1, 1, 1]


def test_an_input_changed_in_place_is_another_input() -> None:
    def feed(m: Three, x: Tensor) -> None:
        x = x.clone()
        m.a(x)
        x.add_(1.0)
        m.b(x)

    x = torch.randn(5, 8)
    first, second = captured(Three(feed), [x]).shared()
    assert_gram(first.accumulator.value(), x)
    assert_gram(second.accumulator.value(), x + 1)


def test_sharing_that_changes_between_calls_is_noticed() -> None:
    def feed(m: Three, x: Tensor) -> None:
        m.a(x)
        m.b(x if len(x) == 5 else x.clone())

    xs = [torch.randn(5, 8), torch.randn(6, 8)]
    with pytest.raises(UnequalInputs):
        captured(Three(feed), xs).shared()
    alone = captured(Three(feed), xs, share=False).shared()
    assert [len(s.layers) for s in alone] == [1, 1]
    np.testing.assert_array_equal(alone[0].accumulator.value(), alone[1].accumulator.value())


def test_a_layer_called_twice_sums_both() -> None:
    x, y = torch.randn(5, 8), torch.randn(3, 8)
    model = Three(lambda m, x: (m.a(x), m.a(y)))
    (only,) = captured(model, [x]).shared()
    assert_gram(only.accumulator.value(), torch.cat([x, y]))


def test_empty_inputs_do_not_count() -> None:
    model = Three(lambda m, x: (m.a(x), m.b(x[:0]), m.c(x[:0])))
    (only,) = captured(model, [torch.randn(5, 8)]).shared()
    assert [layer.name for layer in only.layers] == ["a"]


def test_masked_tokens_do_not_count() -> None:
    x = torch.randn(2, 3, 8)
    x[1, 2] = torch.nan  # what padding holds must not matter
    mask = torch.tensor([[True, True, True], [True, False, False]])
    model = Three(lambda m, x: (m.a(x), m.b(x.view(-1, 8)), m.c(x[:, 0])))
    capture = Capture(layers_of(model))
    capture.run(lambda: model(x), mask=mask)
    first, flat, pooled = capture.shared()
    assert [s.accumulator.tokens for s in (first, flat, pooled)] == [4, 4, 2]
    np.testing.assert_array_equal(first.accumulator.value(), gram(x[mask]))
    np.testing.assert_array_equal(flat.accumulator.value(), gram(x[mask]))


def test_keyword_arguments_are_inputs_too() -> None:
    model = Three(lambda m, x: m.a(input=x))
    (only,) = captured(model, [torch.randn(5, 8)]).shared()
    assert only.accumulator.tokens == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_inputs_name_the_layer(bad: float) -> None:
    model = Three(lambda m, x: m.b(x))
    x = torch.randn(5, 8)
    x[3, 3] = bad
    capture = Capture(layers_of(model))
    with pytest.raises(ValueError, match=r"layer 'b', batch 7: X must be finite"):
        capture.run(lambda: model(x), where="batch 7")
    assert not model.b._forward_pre_hooks


def test_call_order_groups_by_input() -> None:
    model = Three(lambda m, x: m.a(m.b(x) + m.c(x)))
    order = call_order(layers_of(model), lambda: model(torch.randn(2, 8)))
    assert [[layer.name for layer in group] for group in order] == [["b", "c"], ["a"]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_input_dtypes(dtype: str) -> None:
    x = torch.randn(9, 8).to(getattr(torch, dtype))
    model = Three(lambda m, x: m.a(x)).to(x.dtype)
    (only,) = captured(model, [x]).shared()
    assert_gram(only.accumulator.value(), x.float())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": (1, 2)},
        {"padding": "same", "dilation": (2, 1)},
        {"padding": "valid"},
        {"padding": 2, "padding_mode": "reflect", "stride": (2, 1)},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_conv_rows_times_matrix_is_the_convolution(kernel: tuple[int, int], options: dict) -> None:
    conv = nn.Conv2d(3, 5, kernel, **options)
    x = torch.randn(2, 3, 9, 8)
    layer = Layer("conv", conv, "Conv2d")
    rows = layer.rows(x, None)
    wanted = conv(x)
    got = rows @ torch.from_numpy(layer.matrix()).T + conv.bias
    got = got.reshape(2, -1, 5).transpose(1, 2).reshape(wanted.shape)
    # c k eps, k the products in a sum, for values of order 1
    bound = 4 * rows.shape[1] * torch.finfo(torch.float32).eps
    assert (got - wanted).abs().max() < bound * wanted.abs().max()


def test_weights_go_to_matrices_and_back() -> None:
    for module in (nn.Linear(4, 6), nn.Conv2d(2, 6, 3), Conv1D(6, 4)):
        layer = Layer("layer", module, kind_of(module))
        weight = module.weight.detach()
        matrix = to_matrix(weight, layer.kind)
        assert layer.shape == tuple(matrix.shape)
        assert layer.shape[0] == 6
        assert torch.equal(from_matrix(matrix, layer.kind, tuple(weight.shape)), weight)
        assert torch.equal(layer.weight_from(layer.matrix()), weight)
        assert not np.shares_memory(layer.matrix(), weight.numpy())
