"""Every instruction set that this processor has: the tests of the raw kernels, each time anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quadric import backends

LEVELS = ("baseline", "x86-64-v3", "x86-64-v4")
ROOT = Path(__file__).parents[2]
MODULES = (
    "tests/transport/test_sinkhorn_kernel.py",
    "tests/transport/test_plan_kernels.py",
    "tests/transport/test_sparse_kernels.py",
    "tests/transport/test_capped_kernels.py",
)
# What does not depend on vectors, or takes long, runs at one level only.
LEFT_OUT = "numba or threads or divergence"

# Fails unless the level is the one that was asked for.
SCRIPT = """
import sys
import pytest
from quadric import _core

if _core.simd_level() != sys.argv[1]:
    sys.exit(f"{_core.simd_level()} runs instead of {sys.argv[1]}")
sys.exit(pytest.main(sys.argv[2:]))
"""

pytestmark = pytest.mark.skipif(
    backends.why_missing("native") is not None,
    reason=f"no native backend: {backends.why_missing('native')}",
)


@pytest.mark.parametrize("level", LEVELS)
def test_level(level):
    from quadric import _core

    if level not in _core.simd_levels():
        pytest.skip(f"this processor has no {level}")
    if level == _core.simd_level():
        pytest.skip(f"{level} is what all the other tests run with")
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, level, *options, *MODULES],
        cwd=ROOT,
        env=os.environ
        | {"QUADRIC_SIMD": level, "QUADRIC_TEST_EXAMPLES": "5", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 60
