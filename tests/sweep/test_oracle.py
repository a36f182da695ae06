"""The oracle itself, on examples small enough to work out by hand."""

import numpy as np
import pytest

from tests.sweep import oracle

# H^-1 = [[2, -1], [-1, 2]] / 3 and U = [[sqrt(2/3), -1/sqrt(6)], [0, 1/sqrt(2)]].
# An error d in the first weight moves the second by -d * U_01 / U_00 = d / 2.
TWO = np.array([[2.0, 1.0], [1.0, 2.0]])


def test_one_column_rounds_to_its_own_end():
    q = oracle.sweep(np.array([[3.0], [-1.5], [0.0]]), np.eye(1), bits=2)
    assert q.codes.tolist() == [[3], [0], [2]]  # the empty grid is [-1, 1]: -lo / scale = 1.5 -> 2
    assert q.scales.tolist() == [[1.0], [0.5], [2.0 / 3.0]]
    assert q.zeros.tolist() == [[0], [3], [2]]
    assert q.weights.tolist() == [[3.0], [-1.5], [0.0]]


def test_two_columns_by_hand():
    # The row [1.4, 3] has scale 1. 1.4 -> 1, and the error 0.4 moves 3 to 3.2, clipped to 3.
    q = oracle.sweep(np.array([[1.4, 3.0]]), TWO, bits=2)
    assert q.weights.tolist() == [[1.0, 3.0]]
    # Swept from the right: 3 stays, nothing to pass on.
    q = oracle.sweep(np.array([[1.4, 3.0]]), TWO, np.array([1, 0]), bits=2)
    assert q.weights.tolist() == [[1.0, 3.0]]
    # [3, 1.4]: no error at 3. [2.6, -0.4]: scale 1, zero 0.4 -> 0; 2.6 -> 3, and -0.4 -> -0.6 -> 0.
    q = oracle.sweep(np.array([[3.0, 1.4], [2.6, -0.4]]), TWO, bits=2)
    assert q.weights.tolist() == [[3.0, 1.0], [3.0, 0.0]]


def test_feedback_decides_a_code():
    # Three columns on the grid {0, 1, 2, 3}: 1.4 -> 1, and 1.3 becomes 1.3 + 0.4 / 2 = 1.5.
    h = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    w = np.array([[1.4, 1.35, 3.0]])
    assert oracle.sweep(w, h, bits=2).weights.tolist() == [[1.0, 2.0, 3.0]]
    assert oracle.sweep(w, None, bits=2).weights.tolist() == [[1.0, 1.0, 3.0]]


def test_scales_of_a_dynamic_group_come_from_the_current_weights():
    # Groups of one column: 2-bit asymmetric grids of a single weight represent it exactly,
    # so only rounding the scale to bfloat16 leaves an error: 1.4 -> 3 * round(1.4 / 3).
    scale = oracle.Grid(bits=2, scale_dtype="bfloat16").stored(np.array([1.4 / 3]))[0]
    q = oracle.sweep(np.array([[1.4, 3.0]]), TWO, bits=2, group_size=1, scale_dtype="bfloat16")
    moved = 3.0 + (1.4 - 3 * scale) / 2
    expected = oracle.Grid(bits=2, scale_dtype="bfloat16").stored(np.array([moved / 3]))[0]
    assert q.scales.tolist() == [[scale, expected]]
    # Masks: 1 of 2 in a group of 4 columns; dropping 1 moves its neighbour from 2 to 2.5.
    h = np.kron(np.eye(2), TWO)
    p = oracle.sweep(np.array([[1.0, 2.0, 2.0, 1.0]]), h, pattern=(1, 2))
    assert p.mask.tolist() == [[False, True, True, False]]
    assert p.weights[0] == pytest.approx([0.0, 2.5, 2.0, 0.0], abs=1e-14)


def test_stale_scales_ignore_what_happened_in_the_block():
    w = np.array([[1.4, 3.0]])
    stored = oracle.Grid(bits=2, scale_dtype="bfloat16").stored
    q = oracle.sweep(w, TWO, bits=2, group_size=1, scale_dtype="bfloat16", stale_scales=True)
    assert q.scales.tolist() == [[*stored(w[0] / 3)]]


def test_static_groups_follow_the_original_columns():
    w = np.array([[1.0, 2.0, 30.0, 60.0]])
    order = np.array([3, 0, 2, 1])
    q = oracle.sweep(w, np.eye(4), order, bits=8, group_size=2, static_groups=True)
    assert q.scales.tolist() == [[2.0 / 255, 60.0 / 255]]
    assert q.group_index.tolist() == [0, 0, 1, 1]
    q = oracle.sweep(w, np.eye(4), order, bits=8, group_size=2)
    assert q.scales.tolist() == [[60.0 / 255, 30.0 / 255]]  # columns 3, 0, then 2, 1
    assert q.group_index.tolist() == [0, 1, 1, 0]


def test_symmetric_and_ternary_grids():
    w = np.array([[-4.0, 1.0, 2.0]])
    q = oracle.sweep(w, None, bits="ternary", symmetric=True)
    assert q.weights.tolist() == [[-4.0, 0.0, 0.0]]  # 2 / 4 = 0.5 is a tie and goes to even
    q = oracle.sweep(w, None, bits=2, symmetric=True)
    assert q.zeros.tolist() == [[2]]
    assert q.scales.tolist() == [[8.0 / 3.0]]
    assert q.codes.tolist() == [[0, 2, 3]]  # -1.5 -> -2, 0.375 -> 0, 0.75 -> 1


def test_tensor_grid_is_one_grid():
    q = oracle.sweep(np.array([[1.0, 2.0], [-3.0, 12.0]]), None, bits=4, group_size="tensor")
    assert q.scales.tolist() == [[1.0], [1.0]]
    assert q.zeros.tolist() == [[3], [3]]


def test_mse_search_prefers_a_smaller_range_for_an_outlier():
    w = np.array([[100.0] + 99 * [1.0, -1.0]])
    grid = oracle.Grid(bits=2, scale="mse")
    scale, zero = grid.fit(w)
    full = oracle.Grid(bits=2).fit(w)
    assert scale[0] < full[0][0]
    assert grid.misfit(w, scale, zero).sum() < grid.misfit(w, *full).sum()
    # Every range represents a row of zeros: the first one wins.
    assert grid.fit(np.zeros((1, 3)))[0].tolist() == [2.0 / 3.0]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_stored_scales_are_rounded_as_the_formats_round(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.float16 if name == "float16" else ml_dtypes.bfloat16
    info = np.finfo(np.float16) if name == "float16" else ml_dtypes.finfo(dtype)
    x = 2.0 ** np.random.default_rng(0).uniform(-24 if name == "float16" else -130, 15, 2000)
    stored = oracle.Grid(bits=4, scale_dtype=name).stored
    expected = x.astype(np.float32).astype(dtype).astype(float)
    assert np.array_equal(stored(x), expected)
    assert stored(np.array([1e-300]))[0] == float(info.smallest_subnormal)
    assert stored(np.array([1e300]))[0] == float(info.max)


def test_unstructured_counts_and_ties():
    w = np.array([[1.0, -1.0, 2.0], [1.0, 3.0, 0.5]])
    p = oracle.sweep(w, None, sparsity=0.5, block_size=2)
    # Block 0: floor(2 + 0.5) = 2 of the three ones, lowest row and column first; block 1: 1 more.
    assert p.mask.tolist() == [[False, False, True], [True, True, False]]
    p = oracle.sweep(w, None, sparsity=0.5, block_size=2, per_row=True)
    assert p.mask.tolist() == [[False, True, False], [False, True, False]]


def test_n_of_m_ties_drop_the_lower_column():
    p = oracle.sweep(np.ones((1, 4)), None, pattern=(2, 4))
    assert p.mask.tolist() == [[False, False, True, True]]


def test_pruning_one_column_is_optimal_brain_surgeon():
    # OBS: removing w_0 costs w_0^2 / (H^-1)_00 and moves the others by -w_0 (H^-1)_0j / (H^-1)_00.
    rng = np.random.default_rng(1)
    h = np.cov(rng.standard_normal((3, 20)))
    inverse = np.linalg.inv(h)
    w = np.array([[0.01, 1.0, -2.0]])
    p = oracle.sweep(w, h, sparsity=1 / 3)
    assert p.mask.tolist() == [[False, True, True]]
    expected = w[0] - w[0, 0] * inverse[0] / inverse[0, 0]
    assert np.abs(p.weights[0] - expected).max() <= 64 * np.finfo(float).eps * np.linalg.cond(h)
    d = w - p.weights
    assert (d @ h @ d.T).item() == pytest.approx(w[0, 0] ** 2 / inverse[0, 0], rel=1e-12)


def test_dead_inputs_are_zero_and_leave_the_others_alone():
    h = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    full, dead = oracle.damped(h, 0.5)
    assert dead.tolist() == [False, True, False]
    assert full.tolist() == [[3.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]]
    q = oracle.sweep(np.array([[1.4, 7.0, 3.0]]), full, dead=dead, bits=2)
    assert q.weights.tolist() == [[1.0, 0.0, 3.0]]


def test_loss_identity_of_the_definition():
    # The scaled errors of the definition satisfy sum e^2 = tr(D H D^T): here from D alone.
    rng = np.random.default_rng(2)
    h = np.cov(rng.standard_normal((5, 40)))
    w = rng.standard_normal((1, 5))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    d = w - oracle.sweep(w, h, bits=3).weights
    e = d @ np.linalg.inv(u)
    assert (e**2).sum() == pytest.approx((d @ h @ d.T).item(), rel=1e-12)
