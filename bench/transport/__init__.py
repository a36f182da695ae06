"""Benchmarks of `quadric.transport`.

Importing this package sets the processor to treat subnormal numbers as zero, for everybody: entries
of a kernel are often that small, and arithmetic on them is more than ten times slower.
"""

import ctypes
import platform
import sys


def flush_subnormals() -> None:
    """Set flush-to-zero and denormals-are-zero here and in the threads that are started later.

    Threads inherit it, so this has to come before NumPy, whose BLAS starts its threads when it is
    loaded.  glibc on x86-64, where the last word of ``fenv_t`` is MXCSR; elsewhere nothing happens.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return
    libm = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()
    libm.fegetenv(environment)
    environment[7] |= 0x8040
    libm.fesetenv(environment)


flush_subnormals()
