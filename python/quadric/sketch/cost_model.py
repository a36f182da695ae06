"""Which method `lstsq` takes by itself, and how large its sketch is.

Each method is its reads of A, at the speed of memory, and its products, at the speed of GEMM, in
units of flops; what one entry read is worth in flops is the machine's one constant here.
"""

import math

FLOPS_PER_ENTRY = 40.0
"""Flops of GEMM in the time that a core takes to read one float64 from memory (8 F / BW)."""

_PRODUCTS = 2.7  # flops of GEMM in the time of a TRMM and a SYRK, which are 2 n d^2
_QR = 2.0  # flops of GEMM in the time of one of QR, whose panels are slower
_SKETCH = {4: 3.0, 8: 4.0}  # reads of A that a sketch of so many signs takes
_STEPS = 26.0  # iterations of spir at 12 rows of the sketch for each column
_TALL = 8  # a matrix with at most so many rows for each column is factored itself
_WIDE = 512  # columns from which on factoring a sketch takes longer than BLAS threads spin
_SMALL = 2**18  # as is one of so few entries, where calls cost more than flops


def direct(n: int, d: int) -> bool:
    """Return whether to factor A itself instead of a sketch."""
    return n <= _TALL * d or n * d <= _SMALL


def fastest(n: int, d: int, k: int) -> str:
    """Return ``"gram"`` or ``"spir"`` for n x d with k right-hand sides.

    The Gram route is two products more, n d^2 flops each, and saves the iterations, each of which
    is a read of A, or k products with it where there are many right-hand sides.
    """
    reading = n * d * max(FLOPS_PER_ENTRY, 4.0 * k)
    qr = 2 * _QR * d**3
    gram = _SKETCH[4] * n * d * FLOPS_PER_ENTRY + 3 * reading + _PRODUCTS * n * d**2 + 4 * qr
    spir = _SKETCH[signs(d, "spir")] * n * d * FLOPS_PER_ENTRY + (_STEPS + 4) * reading + 12 * qr
    return "gram" if gram <= spir else "spir"


def factor_threads(d: int, n_threads: int) -> int:
    """Return on how many threads to factor matrices of d columns.

    The idle threads of a BLAS pool spin for tens of milliseconds and take the cores from the passes
    over A meanwhile.
    """
    return n_threads if d >= _WIDE else 1


def rows(d: int, method: str) -> int:
    """Return how many rows the sketch is to have.

    The Gram route corrects its preconditioner, so a rough one does. For the others each iteration
    gains a factor sqrt(m / d). A few rows more keep chance out of narrow matrices.
    """
    return (4 if method == "gram" else 12) * d + (64 if method == "gram" else 160)


def rows_on_gpu(d: int) -> int:
    """Return how many rows a sketch by Hadamard transform on a GPU is to have before a Gram matrix.

    It is one read of A for up to 1024 rows, and corrected later, as that of the Gram route.
    """
    return 4 * d if d >= 64 else 4 * d + 64


def signs(d: int, method: str) -> int:
    """Return how many signs a column of the sketch is to have.

    Half as many do where the preconditioner is corrected, or where the sketch of a wide matrix
    leaves the caches and each sign costs a walk through memory.
    """
    return 4 if method == "gram" or d >= _WIDE else 8


def rows_for_coordinates(d: int, k: int, eps: float, failure: float = 0.01) -> int:
    """Return how many rows of a dense sketch make every coordinate of x accurate.

    The error of a coordinate of A x = b sketched by a Gaussian matrix is about normal with variance
    ``|r|^2 |row of A^+|^2 / (m - d - 1)``; none of the d k of them exceeds the bound
    ``eps / sqrt(d) |r| |A^+|`` but with probability `failure`.
    """
    deviations = 2 * math.log(2 * d * k / failure)
    return d + 2 + math.ceil(deviations * d / eps**2)
