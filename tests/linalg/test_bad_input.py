"""Bad input to quadric.linalg: one line that begins with the argument's name."""

import numpy as np
import pytest

import quadric as qd
from quadric import linalg
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, assert_refused, shown, spoiled

FUNCTIONS = ("cholesky", "inverse", "solve", "logdet")
every_function = pytest.mark.parametrize("name", FUNCTIONS)


class Case:
    def __init__(self, backend):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, 4, 9))
        self.a, self.b = x @ np.swapaxes(x, 1, 2), rng.standard_normal((3, 4, 2))
        self.backend = backend

    def call(self, name, a=None, **options):
        a = self.a if a is None else a
        arguments = (a, options.pop("b", self.b)) if name == "solve" else (a,)
        return getattr(linalg, name)(*arguments, **{"backend": self.backend} | options)

    def state(self):
        return self.a.tobytes(), self.b.tobytes()


@pytest.fixture
def case(backend):
    return Case(backend)


# What is not finite is not positive definite; any number of leading axes is fine.
NOT_FINITE = ("nan", "inf", "minus inf", "last entry", "both infinities")


@every_function
@pytest.mark.parametrize("kind", [k for k in ARRAYS if k not in (*NOT_FINITE, "more axes")])
def test_matrices(case, name, kind):
    spoil, error = ARRAYS[kind]
    bad = spoil(case.a)
    options = {"on_failure": "nan", "backend": case.backend}
    arguments = (bad, case.b) if name == "solve" else (bad,)
    assert_refused("A", lambda: getattr(linalg, name)(*arguments, **options), error, case.state)


@every_function
@pytest.mark.parametrize("shape", [(), (5,), (5, 4), (2, 5, 4), (0, 0), (3, 0, 0), (257, 257)])
def test_shapes(case, name, shape):
    assert_refused("A", lambda: case.call(name, np.ones(shape)), ValueError)


@every_function
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_not_finite_is_not_positive_definite(case, name, value):
    """And above the diagonal nobody looks."""
    bad = spoiled(case.a, value, (1, 2, 0))
    with pytest.raises(qd.LinAlgError, match=r"^A\[1\].*\b2$"):
        case.call(name, bad)
    case.call(name, spoiled(case.a, value, (1, 0, 2)))


@pytest.mark.parametrize("kind", [k for k in ARRAYS if k not in ("one entry less", "integers")])
def test_right_hand_sides(case, kind):
    spoil, error = ARRAYS[kind]
    bad = spoil(case.b)
    assert_refused("b", lambda: linalg.solve(case.a, bad), error, case.state)


@pytest.mark.parametrize(
    "shape", [(3, 5), (3, 5, 2), (4,), (2, 4), (2, 4, 2), (3, 1, 4, 2), (4, 3)]
)
def test_shapes_of_right_hand_sides(case, shape):
    assert_refused("b", lambda: case.call("solve", b=np.ones(shape)), ValueError, case.state)


def test_right_hand_sides_of_another_type(case):
    assert_refused("b", lambda: case.call("solve", b=case.b.astype(np.float32)), TypeError)


@every_function
@pytest.mark.parametrize(
    ("option", "value"),
    [("on_failure", "ignore"), ("on_failure", None), ("on_failure", True), *EXECUTION],
    ids=shown,
)
def test_options(case, name, option, value):
    assert_refused(option, lambda: case.call(name, **{option: value}), state=case.state)


def test_read_only(case):
    for array in (case.a, case.b):
        array.flags.writeable = False
    for name in FUNCTIONS:
        assert case.call(name).ok
