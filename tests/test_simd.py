"""Every instruction set that this processor has: the tests of the raw kernels, each time anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quadric import backends

LEVELS = ("baseline", "x86-64-v3", "x86-64-v4")
ROOT = Path(__file__).parents[1]
# Of each family: the modules, what in them does not depend on vectors or takes long and so runs at
# one level only, how many examples, and how many tests there are at least.
FAMILIES = {
    "woodbury": (
        (
            "tests/linalg/test_spd.py",
            "tests/woodbury/test_block_kernels.py",
            "tests/woodbury/test_row_kernels.py",
            "tests/woodbury/test_factor_kernels.py",
        ),
        "numba or large or threads or failure or leading or refuses or torch",
        3,
        200,
    ),
    "transport": (
        (
            "tests/transport/test_sinkhorn_kernel.py",
            "tests/transport/test_plan_kernels.py",
            "tests/transport/test_sparse_kernels.py",
            "tests/transport/test_capped_kernels.py",
        ),
        "numba or threads or divergence",
        5,
        60,
    ),
}

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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_level(level, family):
    from quadric import _core

    if level not in _core.simd_levels():
        pytest.skip(f"this processor has no {level}")
    if level == _core.simd_level():
        pytest.skip(f"{level} is what all the other tests run with")
    modules, left_out, examples, least = FAMILIES[family]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", f"not ({left_out})"]
    limits = {"QUADRIC_TEST_EXAMPLES": str(examples), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, level, *options, *modules],
        cwd=ROOT,
        env=os.environ | {"QUADRIC_SIMD": level} | limits,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > least
