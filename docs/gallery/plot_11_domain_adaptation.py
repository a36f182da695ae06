"""
A classifier behind another scanner
===================================

A classifier of digits is trained on images of one scanner and used on those of another, which turns
the page by 15 degrees, is out of focus, and has a lamp at one corner. Nobody has labelled those
images. Transport learns the difference between the two scanners without labels.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter, rotate
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from quadric.adapters.sklearn import TransportMap

# %%
# 600 labelled images of the first scanner, 600 of the second without labels, and 597 more of the
# second to test with.

pixels, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(pixels))
labelled, unlabelled, unseen = order[:600], order[600:1200], order[1200:]
lamp = np.linspace(0, 1, 8) * np.linspace(0.3, 1, 8)[:, None]


def other_scanner(images: np.ndarray) -> np.ndarray:
    turned = rotate(images.reshape(-1, 8, 8), 15, axes=(1, 2), reshape=False, order=1)
    blurred = gaussian_filter(turned, (0, 0.5, 0.5))
    return ((1 - 0.8 * lamp) * blurred + 0.8 * lamp).reshape(len(images), -1)


first = pixels[labelled] / 16
second, new = (other_scanner(pixels[i] / 16) for i in (unlabelled, unseen))
classifier = LogisticRegression(max_iter=2000).fit(first, digits[labelled])
before = classifier.score(new, digits[unseen])

# %%
# Fit the map from the second scanner to the first, and send images through it that it has not seen.
# A small ``reg`` matches images one by one, noise and all; a large one moves every image to the
# mean. In between the classifier sees almost what it was trained on.

strengths = np.geomspace(0.03, 3, 9)
maps = [TransportMap(reg=reg).fit(second, target=first) for reg in strengths]
scores = [classifier.score(m.transform(new), digits[unseen]) for m in maps]
shifted = classifier.score(new - second.mean(axis=0) + first.mean(axis=0), digits[unseen])
chosen = TransportMap().fit(second, target=first)
default = classifier.score(chosen.transform(new), digits[unseen])
for name, score in (("as they are", before), ("means made equal", shifted), ("moved", default)):
    print(f"{name:17} {score:.1%} right")

# %%
# What the scanner gives, and where the map sends it.

moved = chosen.transform(new[:8])
figure, axes = plt.subplots(2, 8, figsize=(8, 2.3), layout="constrained")
for ax, image in zip(axes.flat, [*new[:8], *moved], strict=True):
    ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("scanned")
axes[1, 0].set_ylabel("moved")

# %%
# The default of ``reg`` is 5 % of the variance of both sets, which is marked.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.semilogx(strengths, scores, "o-", label="moved")
left.plot(chosen.reg_, default, "k*", markersize=12, label="moved, default")
left.axhline(shifted, color="gray", linestyle="--", label="means made equal")
left.axhline(before, color="gray", linestyle=":", label="as they are")
left.set(xlabel="reg", ylabel="share of unseen images classified right")
left.legend()
maps[0].result_.plot(right)
right.set_title(f"convergence at reg = {strengths[0]:g}")
plt.show()
