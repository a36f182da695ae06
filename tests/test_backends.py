"""The table of backends, and which one a call gets."""

import os
import subprocess
import sys

import numpy as np
import pytest

from quadric import backends, sweep


def test_numba_is_always_there():
    assert "numba" in backends.available()
    assert set(backends.available()) <= {*backends.ORDER, "cuda"}
    assert backends.why_missing("numba") is None


@pytest.mark.parametrize("kernel", backends.TABLE)
def test_every_promise_of_the_table_is_kept(backend, kernel):
    assert backend in backends.TABLE[kernel].backends
    assert callable(backends.resolve(kernel, backend))


@pytest.mark.parametrize("kernel", backends.TABLE)
def test_the_preferred_backend_is_the_default(kernel, monkeypatch):
    monkeypatch.delenv("QUADRIC_BACKEND", raising=False)
    first = backends.available()[0]
    assert backends.resolve(kernel) is backends.resolve(kernel, first)


@pytest.mark.parametrize("name", ["fortran", "", "NUMBA", "CUDA"])
def test_unknown_backend(name):
    with pytest.raises(ValueError, match=r"^backend\b.*numba"):
        backends.resolve("sweep.gram", name)


def test_environment_forces_a_backend(backend, monkeypatch):
    monkeypatch.setenv("QUADRIC_BACKEND", backend)
    assert backends.resolve("sweep.sweep") is backends.resolve("sweep.sweep", backend)
    monkeypatch.setenv("QUADRIC_BACKEND", "")  # as if it were not set
    assert callable(backends.resolve("sweep.sweep"))


def test_argument_beats_environment(monkeypatch):
    monkeypatch.setenv("QUADRIC_BACKEND", "fortran")
    assert callable(backends.resolve("sweep.sweep", "numba"))
    with pytest.raises(ValueError, match=r"^QUADRIC_BACKEND\b.*numba"):
        backends.resolve("sweep.sweep")
    with pytest.raises(ValueError, match=r"^QUADRIC_BACKEND\b"):
        sweep.factorize(np.eye(2))


def test_without_the_compiled_module():
    """All works where ``quadric._core`` cannot be imported, and native says why it is out."""
    script = """
import sys
sys.modules["quadric._core"] = None  # the import system's way to say: not there
import warnings
warnings.simplefilter("ignore")
import numpy as np
from quadric import backends, sweep
assert backends.available() == ["numba"], backends.available()
try:
    backends.resolve("sweep.sweep", "native")
except ValueError as error:
    assert "native" in str(error) and "numba" in str(error), error
else:
    raise AssertionError("native was resolved")
q = sweep.quantize(np.eye(3), sweep.factorize(np.eye(3)))
print(q.codes.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={k: v for k, v in os.environ.items() if k != "QUADRIC_BACKEND"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["(3,", "3)"]


def test_importing_is_light():
    """``import quadric`` loads neither the families nor torch nor numba."""
    script = (
        "import sys, quadric; print(*sorted({'torch', 'numba', 'quadric.sweep'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
