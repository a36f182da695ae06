"""Projection determinantal point processes: subsets of rows that span much volume."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quadric import checks, threads
from quadric.arrays import Array
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import draws
from quadric.sketch.row_sample import categorical
from quadric.sketch.rows import Rows, check_rows, factorize

Method = Literal["rejection", "exact"]

_APART = 2**32  # numbers between two samples of one seed
_SAMPLES = 2**29
_MOST = 4096  # proposals that are looked at together


class ProjectionDPP:
    """The process on rows of Phi with ``P(S) = det(Q_S)^2``, Q an orthonormal basis of its range.

    The set-up takes about 4 n d^2 flops in matrix products; :func:`projection_dpp` is one sample.

    Parameters
    ----------
    Phi : array or scipy.sparse matrix, shape (n, d)
        Features, float32 or float64, of any strides. It is not copied and must stay as it is.
    seed : int, Generator or None, optional
        Of the sketch of the set-up; the law depends on it by rounding only.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Attributes
    ----------
    rank : int
        Rank of Phi, the number of rows in every sample.
    leverage : array of float64, shape (n,)
        Leverage scores of Phi: the probability of each row to be in a sample.
    cumulative : array of float64, shape (n,)
        Their cumulative sums.

    Raises
    ------
    ValueError
        If `Phi` is empty, zero or not finite.
    TypeError
        If `Phi` is not float32 or float64.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> Phi = np.random.default_rng(0).standard_normal((1000, 4))
    >>> process = qd.sketch.ProjectionDPP(Phi)
    >>> process.sample(3, seed=1).shape
    (3, 4)
    >>> bool((process.sample(seed=1) == process.sample(3, seed=1)[0]).all())
    True
    """

    def __init__(
        self,
        Phi: Array,
        *,
        seed: Seed = 0,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self._set_up(check_rows(Phi, "Phi", backend, n_threads), resolve_seed(seed))

    @classmethod
    def of(cls, rows: Rows, seed: int = 0) -> "ProjectionDPP":
        """Return the process on rows that were checked under a name of their own."""
        process = cls.__new__(cls)
        process._set_up(rows, seed)
        return process

    def _set_up(self, rows: Rows, seed: int) -> None:
        self._rows = rows
        with threads.blas_limit(1):
            self._M = factorize(rows, seed=seed).M
            self.leverage: NDArray[np.float64] = rows.norms(self._M)
        if not np.isfinite(self.leverage).all():
            rows.refuse_what_is_not_finite()
        self.rank = int(self._M.shape[1])
        if self.rank == 0:
            raise ValueError(f"{rows.name} must have a row that is not zero, got only zeros")
        self.cumulative = np.cumsum(self.leverage)

    def sample(
        self, size: int | None = None, *, seed: Seed = 0, method: Method = "rejection"
    ) -> NDArray[np.int64]:
        """Return the rows of one sample, or of `size` independent ones.

        Parameters
        ----------
        size : int, optional
            Number of samples; None is one, without the first axis.
        seed : int, Generator or None, optional
            Same seed, same samples; sample j does not depend on how many there are.
        method : {"rejection", "exact"}, optional
            "rejection" proposes rows by leverage, about ``d log d`` of them, and needs
            ``d^3 log d`` flops whatever n is. "exact" is the chain rule, with the
            conditional probability of every row: ``2 n d^2`` flops. The law is the same.

        Returns
        -------
        array of int64, shape (rank,) or (size, rank)
            Rows of each sample in ascending order.

        Raises
        ------
        ValueError, TypeError
            If an argument is out of range or of the wrong type.

        Notes
        -----
        Row i follows the rows S with probability proportional to its squared distance from their
        span, ``r_i = ||q_i||^2 - ||P_S q_i||^2``. A row proposed with probability ``||q_i||^2 / d``
        is taken with probability ``r_i / ||q_i||^2`` [1]_; on average ``d / (d - |S|)`` are
        proposed.

        References
        ----------
        .. [1] Derezinski, Warmuth, Hsu, "Leveraged volume sampling for linear regression",
           NeurIPS 2018, arXiv:1802.06749.
        """
        checks.choice(method, "method", ("rejection", "exact"))
        count = 1 if size is None else checks.integer(size, "size", low=0, high=_SAMPLES)
        out = self.draw(count, resolve_seed(seed), method=method)
        return out[0] if size is None else out

    def draw(
        self, count: int, seed: int, first: int = 0, method: Method = "rejection"
    ) -> NDArray[np.int64]:
        """Return samples number `first` to ``first + count - 1`` of a seed."""
        one = self._reject if method == "rejection" else self._chain
        out, backend = np.empty((count, self.rank), np.int64), self._rows.backend
        with threads.blas_limit(1):
            for j in range(count):
                out[j] = np.sort(one(draws.Draws(seed, draws.DPP, backend, (first + j) * _APART)))
        return out

    def orthonormal(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return rows of an orthonormal basis of the range of Phi."""
        result: NDArray[np.float64] = self._rows.take(index) @ self._M
        return result

    def _reject(self, source: draws.Draws) -> NDArray[np.int64]:
        d = self.rank
        chosen, span = np.empty(d, np.int64), np.empty((d, d))
        harmonic = float(np.sum(1 / np.arange(1, d + 1)))
        count = min(int(1.3 * d * harmonic) + 8, _MOST)  # enough in most cases
        taken = 0
        while taken < d:
            index = categorical(self.cumulative, source.uniforms(count))
            Q = self.orthonormal(index)
            norms = np.einsum("ij,ij->i", Q, Q)
            height = source.uniforms(count) * norms
            left = norms - np.square(Q @ span[:taken].T).sum(axis=1)
            left[np.isin(index, chosen[:taken])] = 0.0  # exactly, whatever the rounding
            j = 0
            while taken < d:
                below = height[j:] < left[j:]
                j += int(below.argmax())
                if not below.any():
                    break
                span[taken] = b = _new_direction(Q[j], span[:taken])
                chosen[taken] = index[j]
                taken += 1
                left[j:] -= np.square(Q[j:] @ b)
                left[index == index[j]] = 0.0
        return chosen

    def _chain(self, source: draws.Draws) -> NDArray[np.int64]:
        d = self.rank
        chosen, span = np.empty(d, np.int64), np.empty((d, d))
        left = self.leverage.copy()
        for t, u in enumerate(source.uniforms(d)):
            # Normalized by the sum itself, not by d - t, which it equals up to rounding.
            chosen[t] = i = categorical(np.cumsum(left), u)
            span[t] = b = _new_direction(self.orthonormal(chosen[t : t + 1])[0], span[:t])
            left -= np.square(self._rows.times(self._M @ b, np.float64))
            np.maximum(left, 0.0, out=left)
            left[i] = 0.0
        return chosen


def _new_direction(q: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Return the unit vector of q outside of the span; twice is enough (Kahan)."""
    for _ in range(2):
        q = q - span.T @ (span @ q)
    result: np.ndarray = q / np.sqrt(q @ q)
    return result


def projection_dpp(
    Phi: Array,
    *,
    seed: Seed = 0,
    method: Method = "rejection",
    size: int | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.int64]:
    """Draw from the process on rows of Phi with ``P(S) = det(Phi_S)^2 / det(Phi^T Phi)``.

    Parameters
    ----------
    Phi : array or scipy.sparse matrix, shape (n, d)
        Features, float32 or float64, of any strides. The law depends on its range alone; below rank
        d a sample has as many rows as the rank.
    seed : int, Generator or None, optional
        Same seed, same samples.
    method : {"rejection", "exact"}, optional
        As in :meth:`ProjectionDPP.sample`: same law, ``d^3 log d`` or ``n d^2`` per sample.
    size : int, optional
        Number of independent samples; None is one, without the first axis.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    array of int64, shape (rank,) or (size, rank)
        Rows of each sample in ascending order.

    Raises
    ------
    ValueError
        If `Phi` is empty, zero or not finite, or an argument is out of range.
    TypeError
        If `Phi` is not float32 or float64.

    See Also
    --------
    ProjectionDPP : keeps the set-up between calls.
    volume_sample : larger subsets, and weights.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> angle = np.linspace(0, np.pi, 50)
    >>> Phi = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    >>> i, j = qd.sketch.projection_dpp(Phi, seed=3)
    >>> bool(abs(np.sin(angle[i] - angle[j])) > 0.3)  # far from parallel
    True
    """
    process = ProjectionDPP(Phi, seed=0, backend=backend, n_threads=n_threads)
    return process.sample(size, seed=seed, method=method)
