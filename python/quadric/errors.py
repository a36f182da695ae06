"""What goes wrong numerically, as exceptions and warnings."""

import numpy as np


class LinAlgError(np.linalg.LinAlgError):
    """A factorization or a solve broke down.

    Parameters
    ----------
    message : str
        What was tried, and what happened.
    pivot : int, optional
        Index, in the caller's own order, at which the matrix stopped being positive definite.

    Attributes
    ----------
    pivot : int or None
        As above; None where no single pivot is to blame.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> H = np.array([[1.0, 9.0], [9.0, 1.0]])
    >>> try:
    ...     qd.sweep.factorize(H)
    ... except qd.LinAlgError as error:
    ...     print(error.pivot)
    0
    """

    def __init__(self, message: str, pivot: int | None = None) -> None:
        super().__init__(message)
        self.pivot = pivot

    def __reduce__(self) -> tuple[type["LinAlgError"], tuple[str, int | None]]:
        # The default would lose the pivot on the way back from a worker process.
        return type(self), (str(self), self.pivot)


class ConvergenceWarning(UserWarning):
    """An iteration stopped before it reached the tolerance that was asked for."""
