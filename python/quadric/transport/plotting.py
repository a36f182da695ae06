"""How a solver converged, as a picture."""

from typing import Any

import numpy as np


def convergence(history: np.ndarray, ax: Any = None) -> Any:
    """Draw the error after each step of `history` against the iterations; return the axes."""
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError('plot needs matplotlib: pip install "quadric[plot]"') from error
        ax = plt.figure().subplots()
    done = history["iterations"]
    ax.plot(done, history["error"], color="0.8", zorder=1)
    for method in dict.fromkeys(history["method"].tolist()):
        steps = history["method"] == method
        ax.scatter(done[steps], history["error"][steps], s=12, label=method, zorder=2)
    ax.set(yscale="log", xlabel="iterations", ylabel="marginal error")
    ax.legend()
    return ax
