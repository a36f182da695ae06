"""The problems that all solvers get: assignment, points in the plane, images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

TOL = 1e-9  # the L1 errors of both marginals, added
SIDE = 28  # pixels of an image
PAD = 1e-3  # of the brightest pixel, added to all, so that all masses are positive


@dataclass(frozen=True)
class Problem:
    """min <C, P> + reg sum P (log P - 1) with P 1 = a and P^T 1 = b; C (n, m), float64."""

    C: np.ndarray
    a: np.ndarray
    b: np.ndarray
    reg: float

    def error(self, P: np.ndarray) -> float:
        """L1 errors of both marginals of the plan `P` (n, m), added; inf if it is no plan."""
        if not np.isfinite(P).all():
            return np.inf
        return float(np.abs(P.sum(1) - self.a).sum() + np.abs(P.sum(0) - self.b).sum())

    def value(self, P: np.ndarray) -> float:
        """The objective: two plans of equal marginals and value are the same plan."""
        log = np.log(P, where=P > 0, out=np.zeros_like(P))
        return float(np.vdot(P, self.C + self.reg * (log - 1)))


def assignment(n: int, inverse_reg: float) -> Problem:
    """Costs uniform in [0, 1), as in the experiments of the SNS paper (arXiv:2401.12253)."""
    return _uniform(np.random.default_rng(0).random((n, n)), inverse_reg)


def points(n: int, inverse_reg: float) -> Problem:
    """Squared distances between two clouds in the unit square, scaled to a largest cost of 1."""
    rng = np.random.default_rng(0)
    C = cdist(rng.random((n, 2)), rng.random((n, 2)), "sqeuclidean")
    return _uniform(C / C.max(), inverse_reg)


def images(metric: str, inverse_reg: float, *, pad: float = PAD) -> Problem:
    """A three and a five; pixels of the unit square. Without a `pad` black pixels are left out."""
    digits = load_digits()
    a, b = (_image(digits.images[digits.target == digit][0]) + pad for digit in (3, 5))
    x = np.indices((SIDE, SIDE)).reshape(2, -1).T / SIDE
    C = cdist(x[a > 0], x[b > 0], metric)
    return Problem(C, a[a > 0] / a.sum(), b[b > 0] / b.sum(), 1 / inverse_reg)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "assignment 500": partial(assignment, 500, 1200),
    "assignment 2000": partial(assignment, 2000, 4800),
    "points 500": partial(points, 500, 1200),
    "points 2000": partial(points, 2000, 1200),
    "points 2000, small reg": partial(points, 2000, 12000),
    "images, squared": partial(images, "sqeuclidean", 1200),
    "images, L2": partial(images, "euclidean", 1200),
    "images, L1": partial(images, "cityblock", 1200),
}


def _uniform(C: np.ndarray, inverse_reg: float) -> Problem:
    n, m = C.shape
    return Problem(C, np.full(n, 1 / n), np.full(m, 1 / m), 1 / inverse_reg)


def _image(digit: np.ndarray) -> np.ndarray:
    """A digit of 8 x 8 pixels upsampled: (SIDE^2,), brightest 1."""
    image = ndimage.zoom(digit, SIDE / len(digit), order=1)
    return np.asarray(image / image.max()).ravel()
