"""Every instruction set that this processor has, each in a process of its own."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from quadric import backends
from tests import strategies as draws
from tests.sweep import oracle
from tests.sweep.witness import assert_definition, errors, loss_bound

# Runs with QUADRIC_SIMD set; the arrays of a layer in, those of the results out.
SCRIPT = """
import sys
import numpy as np
from quadric import _core, sweep

layers = np.load(sys.argv[1])
out = {"level": np.array(_core.simd_level())}
for key in ("float32", "float64", "exact"):
    h, w, x = (layers[f"{key}_{name}"] for name in "hwx")
    accumulator = sweep.HessianAccumulator(len(h), dtype=x.dtype.name, backend="native")
    accumulator.update(x)
    out[f"{key}_gram"] = accumulator.value()
    damping = 0.0 if key == "exact" else 0.01
    factor = sweep.factorize(h, damping=damping, backend="native")
    out |= {f"{key}_{name}": getattr(factor, name) for name in ("R", "order", "dead")}
    for name, (function, options) in CASES.items():
        result = getattr(sweep, function)(w, factor, backend="native", **options)
        for field in ("codes", "scales", "zeros", "group_index", "weights", "mask", "loss"):
            value = getattr(result, field, None)
            if value is not None:
                out[f"{key}_{name}_{field}"] = value
np.savez(sys.argv[2], **out)
"""
CASES = {
    "quantize": ("quantize", {"bits": 4}),
    "groups": ("quantize", {"bits": 3, "group_size": 48, "scale": "mse"}),
    "compress": ("compress", {"bits": 4, "group_size": 16, "pattern": (2, 4)}),
    "prune": ("prune", {"sparsity": 0.5}),
}
LEVELS = ("baseline", "x86-64-v3", "x86-64-v4")

pytestmark = pytest.mark.skipif(
    backends.why_missing("native") is not None,
    reason=f"no native backend: {backends.why_missing('native')}",
)


def layers():
    """Return one random layer per dtype, and one on which all arithmetic is exact."""
    rng = np.random.default_rng(0)
    n, m = 164, 37  # no multiple of a vector or a block
    x = rng.standard_normal((300, n)) @ rng.standard_normal((n, n)) / 12
    arrays = {}
    for name in ("float32", "float64"):
        arrays |= {f"{name}_h": (x.T @ x / 300).astype(name), f"{name}_x": x.astype(name)}
        arrays[f"{name}_w"] = rng.standard_normal((m, n)).astype(name)
    r = np.eye(n)
    r[: n // 2, n // 2 :] = rng.integers(-1, 2, (n // 2, n - n // 2))
    w = rng.integers(0, 61, (m, n)) / 4
    w[:, 0], w[:, 1] = 0.0, 15.0  # scale 1
    arrays |= {"exact_h": r @ r.T, "exact_w": w, "exact_x": rng.integers(-8, 9, (256, n))}
    return {k: v.astype(np.float32) if k.startswith("exact") else v for k, v in arrays.items()}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    path = tmp_path_factory.mktemp("simd") / "layers.npz"
    arrays = layers()
    np.savez(path, **arrays)
    return path, arrays


@pytest.mark.parametrize("level", LEVELS)
def test_level(level, problem):
    from quadric import _core

    if level not in _core.simd_levels():
        pytest.skip(f"this processor has no {level}")
    path, arrays = problem
    out_path = path.with_name(f"{level}.npz")
    subprocess.run(
        [sys.executable, "-c", f"CASES = {CASES}\n{SCRIPT}", str(path), str(out_path)],
        env=os.environ | {"QUADRIC_SIMD": level, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    out = dict(np.load(out_path))
    assert out["level"].item() == level
    for key in ("float32", "float64"):
        layer = draws.Layer(arrays[f"{key}_w"], arrays[f"{key}_h"], out[f"{key}_order"])
        fields = {name: out[f"{key}_{name}"] for name in ("R", "order", "dead")}
        factor = SimpleNamespace(**fields, n=len(layer.hessian), damping=0.01)
        eps = np.finfo(layer.dtype).eps
        x = arrays[f"{key}_x"].astype(float)
        absolute = np.abs(x).T @ np.abs(x) / len(x)
        wrong = np.abs(out[f"{key}_gram"] - x.T @ x / len(x))
        assert (wrong <= (len(x) + 8) * eps * absolute).all()
        for name, (_, options) in CASES.items():
            prefix = f"{key}_{name}_"
            found = {k.removeprefix(prefix): v for k, v in out.items() if k.startswith(prefix)}
            result = SimpleNamespace(**{"mask": None} | found)
            assert_definition(result, layer, factor, options)
            q = found.get("weights")
            if q is None:
                scales, zeros = (found[k][:, found["group_index"]] for k in ("scales", "zeros"))
                q = scales * (found["codes"].astype(layer.dtype) - zeros)
            e, off = errors(layer.weights, q, factor)
            assert (np.abs(result.loss - (e**2).sum(axis=1)) <= loss_bound(e, off, eps)).all()
    assert_exact(out, arrays)


def assert_exact(out, arrays):
    """No bound at all where nothing is rounded: the levels agree in every bit."""
    w, h, x = (arrays[f"exact_{name}"].astype(float) for name in "whx")
    n = len(h)
    np.testing.assert_array_equal(out["exact_gram"], x.T @ x / 256)
    u = np.eye(n)
    u[: n // 2, n // 2 :] = -np.triu(out["exact_R"], 1)[: n // 2, n // 2 :]
    np.testing.assert_array_equal(out["exact_R"].astype(float) @ out["exact_R"].T, h)
    expected = oracle.sweep(w, h, u=u, bits=4)
    np.testing.assert_array_equal(out["exact_quantize_codes"], expected.codes)
    d = w - expected.weights
    np.testing.assert_array_equal(out["exact_quantize_loss"], ((d @ h) * d).sum(axis=1))


def test_a_level_that_does_not_exist():
    """A typing error must not silently run something else."""
    done = subprocess.run(
        [sys.executable, "-c", "import quadric; quadric.show_config()"],
        env=os.environ | {"QUADRIC_SIMD": "x86-64-v9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "QUADRIC_SIMD" in done.stderr
    assert "baseline" in done.stderr  # what there is
