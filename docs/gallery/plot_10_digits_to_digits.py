"""
From one digit to another
=========================

Two images with the same amount of ink: how does a 2 turn into a 5 with the least movement of ink?
The answer depends on what a move costs. Compare the squared distance with the L1 distance, where a
detour along the axes is as good as the straight way.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from sklearn.datasets import load_digits

import quadric as qd

# %%
# Two digits, enlarged to 28 x 28 pixels. Masses are the ink; many pixels have none, and need not be
# taken out. Places are in units of the image, so that costs are at most 2.

images, digits = load_digits().images, load_digits().target
ink = [np.clip(zoom(images[digits == digit][0], 3.5, order=1), 0, None) for digit in (2, 5)]
a, b = (image.ravel() / image.sum() for image in ink)
rows, columns = np.indices((28, 28)) / 27
places = np.stack([rows.ravel(), columns.ravel()], axis=1)

costs = ("sqeuclidean", "cityblock")
results = {
    cost: qd.transport.solve_points(places, places, reg=1 / 1200, a=a, b=b, cost=cost)
    for cost in costs
}
sinkhorn = {
    cost: qd.transport.solve_points(
        places, places, reg=1 / 1200, a=a, b=b, cost=cost, method="sinkhorn", tol=tol
    )
    for cost, tol in zip(costs, (1e-9, 1e-3), strict=True)
}

# %%
# On the way, each bit of ink is a part of the straight line from where it was to where it goes.
# ``sparse_plan`` has the moves that matter.

times = np.linspace(0, 1, 7)
figure, axes = plt.subplots(2, len(times), figsize=(10, 3.2), layout="constrained")
for row, cost in zip(axes, costs, strict=True):
    moves = results[cost].sparse_plan(drop=1e-3).matrix.tocoo()
    start, end = places[moves.row], places[moves.col]
    for ax, t in zip(row, times, strict=True):
        where = (1 - t) * start + t * end
        picture, *_ = np.histogram2d(
            *where.T, bins=112, range=[(-1 / 54, 1 + 1 / 54)] * 2, weights=moves.data
        )
        ax.imshow(gaussian_filter(picture, 4), cmap="gray_r")
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(cost)

# %%
# The L1 cost on a grid is the hard one: whole families of plans cost the same, and only the entropy
# chooses among them. Sinkhorn is only asked for an error of 1e-3 there, "auto" for 1e-9 as always.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
for ax, cost in zip(axes, costs, strict=True):
    for name, result in (("sinkhorn", sinkhorn[cost]), ("auto", results[cost])):
        steps = result.history
        ax.semilogy(steps["seconds"], steps["error"], ".-", label=f"method={name!r}")
        print(f"{cost:12} {name:9} {result.iterations:4} iterations, cost {result.cost:.6f}")
    ax.set(title=cost, xlabel="seconds", ylabel="marginal error")
    ax.legend()
plt.show()
