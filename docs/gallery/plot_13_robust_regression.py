"""
The sky behind the temple
=========================

A clear sky is a smooth function of the place, and a temple stands in front of it. To a fit of the
sky the temple is nothing but outliers. Least squares gives in to them. The sum of absolute
residuals is indifferent to how far away an outlier is, and it sees the sky.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

import quadric as qd

# %%
# The upper part of the photograph, and all polynomials of degree 3 in the place of a pixel.

temple = load_sample_images().images[0][:200] / 255
height, width, _ = temple.shape
places = np.stack(np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"))
A = qd.sketch.polynomial_basis(places.reshape(2, -1).T, 3)
B = temple.reshape(-1, 3)

# %%
# ``lp_regression`` solves the problem on a few of its rows, drawn with probabilities by which no
# direction can be missed, and weighted so that the sum of absolute residuals is right on average.

squares = qd.sketch.lstsq(A, B).x
sampled = [qd.sketch.lp_regression(A, b, 1, sampling="lewis", sketch_size=4000) for b in B.T]
absolute = np.stack([fit.x for fit in sampled], axis=1)
whole = np.stack([qd.sketch.lp_regression(A, b, 1, sampling=None).x for b in B.T], axis=1)
print(f"{len(A)} rows, of which {len(sampled[0].sampled_rows)} were used")
for name, x in (("least squares", squares), ("l1, sampled", absolute), ("l1, all rows", whole)):
    print(f"{name:14} mean absolute residual {np.abs(B - A @ x).mean():.4f}")

# %%
# Where the sky is not what the fit says, something stands in front of it.

figure, axes = plt.subplots(2, 3, figsize=(11, 3.4), layout="constrained")
skies = {"least squares": A @ squares, "sum of absolute residuals": A @ absolute}
axes[0, 0].imshow(temple)
axes[0, 0].set_title("photograph")
for ax, (name, sky) in zip(axes.T[1:], skies.items(), strict=True):
    ax[0].imshow(np.clip(sky, 0, 1).reshape(temple.shape))
    ax[0].set_title(name)
    ax[1].imshow(np.abs(B - sky).max(axis=1).reshape(height, width), vmax=0.4, cmap="gray")
in_front = np.abs(B - skies["sum of absolute residuals"]).max(axis=1) > 0.12
axes[1, 0].imshow(np.where(in_front[:, None], B, 1).reshape(temple.shape))
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])

# %%
# One line of pixels, and the fits along it. Least squares on the sky alone is what both should be.

clear = qd.sketch.lstsq(A[~in_front], B[~in_front]).x
line = np.s_[120 * width : 121 * width]
figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
ax.plot(B[line, 2], ".", color="silver", markersize=3, label="pixels, blue")
ax.plot((A @ squares)[line, 2], label="least squares, all pixels")
ax.plot((A @ absolute)[line, 2], label="absolute residuals, all pixels")
ax.plot((A @ clear)[line, 2], "k:", label="least squares, sky alone")
ax.set(xlabel="column", ylabel="intensity")
ax.legend()

# %%
# How many rows does it take, and does it matter how they are drawn? Pixels of a sky are all alike.
# But fit one colour by powers of the other two, and a few rare colours decide. Rows drawn by Lewis
# weights, which have to be computed only once, against rows drawn with equal probabilities; medians
# of 9 draws.

b = B[:, 2]
A = qd.sketch.polynomial_basis(2 * B[:, :2] - 1, 5)
best = qd.sketch.lp_regression(A, b, 1, sampling=None)
scores = {
    "Lewis weights": qd.sketch.lewis_weights(np.column_stack([A, b]), 1, tol=1e-3),
    "equal probabilities": np.ones(len(A)),
}
sizes = (50, 100, 200, 400, 800, 1600, 3200)
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for rule, score in scores.items():
    excess = []
    for size in sizes:
        losses = []
        for seed in range(9):
            rows, w = qd.sketch.sample_rows(score, size, p=1, seed=seed)
            x = qd.sketch.lp_regression(w[:, None] * A[rows], w * b[rows], 1, sampling=None).x
            losses.append(np.abs(b - A @ x).sum() / best.objective - 1)
        excess.append(np.median(losses))
    ax.loglog(sizes, excess, "o-", label=rule)
    print(f"{rule:19} {sizes[3]} rows: {excess[3]:.1%} above the minimum")
ax.set(xlabel="rows", ylabel="objective above its minimum, relative")
ax.legend()
plt.show()
