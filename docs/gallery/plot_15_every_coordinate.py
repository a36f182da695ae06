"""
Every coordinate right
======================

Solving a sketched problem gives an answer with an error, and for the norm of that error all good
sketches are alike. They are not for its largest coordinate. A dense sketch spreads the error evenly
over all coordinates; a sparse one may put it into a few.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

import quadric as qd

# %%
# The problem that tells them apart is simple. The first d rows of A are the identity, all others
# are zero, so the solution is the first part of b: here an image. The rest of b cannot be fitted.
# It is zero as well, but for m/d equal spikes, of norm 1 together.

n, d, m = 2**15, 256, 4096
image = zoom(load_digits().images[0] / 16, 2, order=1)
A = np.eye(n, d)
spikes = np.zeros(n)
spikes[d : d + m // d] = np.sqrt(d / m)

# %%
# Whoever needs every coordinate asks for it, and a sketch that cannot promise it is refused.

b = spikes.copy()
b[:d] = image.ravel()
result = qd.sketch.lstsq(A, b, method="sketch", guarantee="linf", sketch_size=m, operator="srht")
print(f"SRHT: largest error {np.abs(result.x - b[:d]).max():.3f}")
try:
    qd.sketch.lstsq(A, b, method="sketch", guarantee="linf", sketch_size=m, operator="sparse_sign")
except ValueError as error:
    print("sparse sign:", error)

# %%
# Now many draws of each sketch, with the spikes alone and with the image and eight times the
# spikes. The first rows are all that matter of A and b, so the first columns are all that matter of
# S.

sketches = {
    "Gaussian": lambda seed: qd.sketch.gaussian(m, n, seed=seed),
    "SRHT": lambda seed: qd.sketch.srht(m, n, seed=seed),
    "circulant": lambda seed: qd.sketch.circulant(m, n, seed=seed),
    "sparse, 8": lambda seed: qd.sketch.sparse_sign(m, n, nnz=8, seed=seed),
    "sparse, 4": lambda seed: qd.sketch.sparse_sign(m, n, nnz=4, seed=seed),
    "CountSketch": lambda seed: qd.sketch.count_sketch(m, n, seed=seed),
}
draws = 20
used = d + m // d
b = np.stack([spikes, 8 * spikes], axis=1)
b[:d, 1] = image.ravel()
errors, pictures = {}, {"solution": image}
for name, sketch in sketches.items():
    errors[name] = np.empty((draws, d))
    for seed in range(draws):
        S = sketch(seed)[:, :used].to_dense()
        SA, Sb = S[:, :d], S @ b[:used]
        x = np.linalg.pinv(SA.T @ SA, hermitian=True) @ (SA.T @ Sb)
        errors[name][seed] = x[:, 0]
    pictures[name] = x[:, 1].reshape(image.shape)
    norm = np.sqrt(np.square(errors[name]).sum(axis=1).mean())
    worst = np.sqrt(m) * np.abs(errors[name]).max(axis=1).mean()
    print(f"{name:12} norm {norm:.2f}, largest {worst:.1f}")

# %%
# The norm of the error is about sqrt(d/m) = 0.25 for all of them. The largest coordinate, printed
# in units of 1/sqrt(m), is not. What the last draws look like: with CountSketch most pixels are
# exact, some are far off, and two that were added into one row are known by their sum only.

figure, axes = plt.subplots(1, 7, figsize=(11, 1.9), layout="constrained")
for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
    ax.imshow(picture, cmap="gray_r", vmin=-0.3, vmax=1.3)
    ax.set(title=name, xticks=[], yticks=[])

# %%
# All coordinates of all draws, and the largest of each draw with its mean. CountSketch has no error
# at all until a spike and a coordinate meet, and then it is 16.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for name, e in errors.items():
    values = np.sort(np.abs(e).ravel())[::-1] * np.sqrt(m)
    left.loglog(np.arange(1, values.size + 1) / values.size, values, label=name)
left.set(xlabel="share of coordinates", ylabel="error above, times sqrt(m)", ylim=(0.1, 30))
left.legend(fontsize="small")
for place, e in enumerate(errors.values()):
    largest = np.sqrt(m) * np.abs(e).max(axis=1)
    right.plot(place + np.linspace(-0.25, 0.25, draws), largest, ".", alpha=0.7)
    right.hlines(largest.mean(), place - 0.35, place + 0.35, color="black")
right.set_xticks(range(len(errors)), errors, rotation=30)
right.set(ylabel="largest error, times sqrt(m)", ylim=(0, None))
plt.show()
