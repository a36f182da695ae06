"""Bad input of lstsq and lstsq_backward_error: one line with the argument, nothing changed."""

import numpy as np
import pytest
import scipy.sparse as sp

from quadric.sketch import lstsq, lstsq_backward_error, sparse_sign
from tests.refusals import (
    ARRAYS,
    EXECUTION,
    INF,
    NAN,
    POSITIVE,
    SIZES,
    assert_refused,
    shown,
    spoiled,
)
from tests.sketch.lstsq_problems import make

# Both where A itself is factored and where a sketch of it is.
SHAPES = {"direct": (60, 6), "sketched": (30_000, 10)}


class Case:
    """Good arguments; each test spoils one thing."""

    def __init__(self, backend, shape):
        p = make(*shape)
        self.A, self.b, self.x, self.backend = p.A, p.b, p.x.copy(), backend

    def state(self):
        return [v.tobytes() for v in (self.A, self.b, self.x)]

    def refuse(self, name, error=(ValueError, TypeError), **options):
        arguments = {"A": self.A, "b": self.b, "backend": self.backend} | options
        return assert_refused(name, lambda: lstsq(**arguments), error, self.state)

    def refuse_error(self, name, error=(ValueError, TypeError), **options):
        given = {"A": self.A, "b": self.b, "x": self.x, "backend": self.backend} | options
        return assert_refused(name, lambda: lstsq_backward_error(**given), error, self.state)


@pytest.fixture(params=SHAPES)
def case(backend, request):
    return Case(backend, SHAPES[request.param])


def options(values):
    return pytest.mark.parametrize(("option", "value"), values, ids=shown)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("method", ["auto", "sketch", "spir", "iterative"])
def test_matrix(case, kind, method):
    spoil, error = ARRAYS[kind]
    bad = spoil(case.A)
    if kind == "list":  # welcome, see test_lstsq_options
        case.refuse_error("A", error, A=bad)
    elif kind == "one entry less":
        bad = bad[:-1]  # of the rows; any number of columns is fine
        case.refuse("b", ValueError, A=bad, method=method)
    else:
        case.refuse("A", error, A=bad, method=method)
        case.refuse_error("A", error, A=bad)


@pytest.mark.parametrize("kind", ARRAYS)
def test_right_hand_side(case, kind):
    spoil, error = ARRAYS[kind]
    if kind != "list":
        case.refuse("b", error, b=spoil(case.b))
    case.refuse_error("b", error, b=spoil(case.b))
    if kind not in ("more axes", "scalar"):
        case.refuse_error("x", error, x=spoil(case.x))


def test_entries_that_are_not_finite_are_found_anywhere(case):
    """Also where a sketch of few rows of A is all that is looked at."""
    for value in (NAN, INF, -INF):
        for at in ((0, 0), (-1, -1), (17, 3)):
            assert "index" in case.refuse("A", ValueError, A=spoiled(case.A, value, at))
            sparse = sp.csr_array(case.A)
            place = tuple(i % n for i, n in zip(at, case.A.shape, strict=True))
            sparse.data[place[0] * case.A.shape[1] + place[1]] = value
            for kind in ("csr", "csc"):
                message = case.refuse("A", ValueError, A=sparse.asformat(kind))
                assert message == f"A must be finite, got {value} at index {place}"
        for method in ("precondition", "gram", "fossils"):
            case.refuse("A", ValueError, A=spoiled(case.A, value), method=method)


def test_integers_are_told_what_to_do(case):
    message = case.refuse("A", TypeError, A=np.ones(case.A.shape, np.int64))
    assert message == "A must be float32 or float64, got int64: A.astype(float) converts it"
    message = case.refuse("A", TypeError, A=[[1, 2], [3, 4]], b=[1.0, 2.0])
    assert message == "A must hold floats: np.array(A, float) converts it"
    case.refuse("b", TypeError, A=[[1.0, 2.0], [3.0, 4.0]], b=[1, 2])
    case.refuse("A", ValueError, A=[[1.0, 2.0], [3.0]], b=[1.0, 2.0])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty(case, shape):
    message = case.refuse("A", ValueError, A=np.zeros(shape), b=np.zeros(shape[0]))
    assert "at least one row and one column" in message
    case.refuse("b", ValueError, b=np.zeros((len(case.b), 0)))


def test_types_that_do_not_go_together(case):
    message = case.refuse("b", TypeError, b=case.b.astype(np.float32))
    assert message == "b must be float64 to go with A, got float32"
    case.refuse("b", TypeError, A=case.A.astype(np.float32))
    case.refuse("A", TypeError, A=sp.csr_array(case.A).astype(np.int64))
    case.refuse("A", TypeError, A=sp.csr_array(case.A).astype(np.complex128))
    case.refuse("A", ValueError, A=sp.coo_array(case.b), b=case.b)


@options(
    [
        *(("ridge", v) for v in (-1e-9, -1.0, NAN, INF, "small", None)),
        *(("tol", v) for v in POSITIVE if v is not None),
        *(("max_iter", v) for v in SIZES if v is not None),
        *(("sketch_size", v) for v in SIZES if v is not None),
        *(("nnz", v) for v in SIZES if v is not None),
        *(("eps", v) for v in (0, 1, -0.5, NAN, "small", None)),
        *(("rcond", v) for v in (-1e-9, 1.5, NAN, "small")),
        *(("cond", v) for v in (-1e-9, 1.5, NAN, "small")),
        *(("seed", v) for v in (-1, 2**64, 1.5, "one", True)),
        ("method", "gelsd"),
        ("method", None),
        ("operator", "dct"),
        ("operator", np.eye(3)),
        ("guarantee", "l2"),
        *EXECUTION,
    ]
)
def test_options(case, option, value):
    case.refuse(option, **{option: value})


def test_size_of_the_sketch(case):
    n, d = case.A.shape
    for size in (d - 1, n + 1, 10 * n):
        message = case.refuse("sketch_size", ValueError, sketch_size=size)
        assert f"between {d} and {n} for A of shape ({n}, {d}), got {size}" in message
    case.refuse("operator", ValueError, operator=sparse_sign(d - 1, n, nnz=1, backend=case.backend))
    case.refuse("operator", ValueError, operator=sparse_sign(16, n + 1, backend=case.backend))
    S = sparse_sign(2 * d, n, nnz=1, backend=case.backend)
    case.refuse("sketch_size", ValueError, operator=S, sketch_size=2 * d)
    case.refuse("cond", ValueError, cond=1e-9, rcond=1e-9)
    case.refuse("method", ValueError, guarantee="linf", method="spir")


def test_few_rows(case):
    A = case.A.T
    b = np.ones(len(A))
    for method in ("sketch", "gram", "fossils", "iterative", "precondition"):
        message = case.refuse("method", ValueError, A=A, b=b, method=method)
        assert "fewer rows than columns" in message
    case.refuse("guarantee", ValueError, A=A, b=b, guarantee="linf")
    case.refuse("A", ValueError, A=spoiled(A, NAN), b=b)
    case.refuse_error("A", ValueError, A=A, b=b, x=np.ones(A.shape[1]))


def test_numbers_that_overflow(case):
    """Finite entries whose norms or whose solution float64 or float32 cannot hold."""
    A = np.full_like(case.A, 1e308)
    A[::2] = -1e308
    case.refuse("A", ValueError, A=A)
    small = (case.A * 1e-30).astype(np.float32)
    message = case.refuse("A", ValueError, A=small, b=(case.b * 1e30).astype(np.float32))
    assert "float32 can hold" in message


@options(
    [
        *(("ridge", v) for v in (-1e-9, NAN, "small")),
        *(("theta", v) for v in (0, -1.0, NAN, "small")),
        ("operator", "srht"),
        ("seed", -1),
        *EXECUTION,
    ]
)
def test_options_of_the_backward_error(case, option, value):
    case.refuse_error(option, **{option: value})


def test_shapes_of_the_backward_error(case):
    n, d = case.A.shape
    case.refuse_error("x", ValueError, x=np.ones((d, 2)))
    case.refuse_error("x", ValueError, x=np.ones((d, 1)))
    case.refuse_error("operator", ValueError, operator=sparse_sign(16, n + 1, backend=case.backend))
