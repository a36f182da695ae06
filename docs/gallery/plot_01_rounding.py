"""
Rounding with and without the sweep
===================================

Quantize one layer of a trained network to 2, 3, 4 and 8 bits, once by rounding each weight to the
nearest grid point and once with the sweep. The grids are the same kind; only the rounding differs.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import quadric as qd

# %%
# A network that reads 8 x 8 images of digits. Its first layer maps 64 pixels to 128 units.

pixels, digits = load_digits(return_X_y=True)
X, X_test, y, _ = train_test_split(pixels / 16, digits, random_state=0)
network = MLPClassifier((128,), max_iter=200, tol=1e-3, random_state=0).fit(X, y)
W = network.coefs_[0].T

# %%
# Collect the Hessian of the layer from the training images, and factor it once. Some pixels are
# always blank. They are dead inputs: the factor knows them and the sweep sets their weights to 0.

accumulator = qd.sweep.HessianAccumulator(64, dtype="float64")
accumulator.update(X)
factor = qd.sweep.factorize(accumulator.value(), order="activation")
print(f"blank pixels: {factor.report.dead}")

# %%
# Quantize at each width, and measure the squared error of the layer's outputs on images that the
# sweep has not seen.


def error(result: qd.sweep.QuantizedMatrix) -> float:
    outputs = X_test @ (W - result.dequantize()).T
    return np.mean(np.sum(outputs**2, axis=1))


widths = [2, 3, 4, 8]
nearest = [qd.sweep.round_to_nearest(W, factor=factor, bits=bits) for bits in widths]
swept = [qd.sweep.quantize(W, factor, bits=bits) for bits in widths]
print("sweep against round to nearest")
for bits, q, r in zip(widths, swept, nearest, strict=True):
    print(f"{bits} bits: loss {q.loss.sum() / r.loss.sum():.2f}, unseen {error(q) / error(r):.2f}")

# %%
# The loss that the sweep reports is the error on the images it has seen, plus the share of the
# damping. The error on unseen images follows it.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
for shift, (name, results) in enumerate({"round to nearest": nearest, "sweep": swept}.items()):
    place = np.arange(len(widths)) + 0.4 * shift - 0.2
    axes[0].bar(place, [q.loss.sum() for q in results], 0.4, label=name)
    axes[1].bar(place, [error(q) for q in results], 0.4, label=name)
for axis, title in zip(axes, ("loss of the layer", "error on unseen images"), strict=True):
    axis.set(yscale="log", title=title, xlabel="bits", xticks=range(4), xticklabels=widths)
    axis.legend()
plt.show()
