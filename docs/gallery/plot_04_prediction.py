"""
Predicting the loss before the sweep
====================================

If rounding errors are uniform on :math:`[-s/2, s/2]`, a row of scale :math:`s` loses about
:math:`s^2/12 \\sum_j R_{jj}^2`. The sum needs no weights, so it ranks orders and dampings for free.
How good is the prediction?
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import quadric as qd

pixels, digits = load_digits(return_X_y=True)
X = pixels / 16
network = MLPClassifier((128,), max_iter=200, tol=1e-3, random_state=0).fit(X, digits)
W = network.coefs_[0].T

accumulator = qd.sweep.HessianAccumulator(64, dtype="float64")
accumulator.update(X)
H = accumulator.value()

# %%
# Twenty random orders at each of three dampings: the prediction, and the loss of the sweep.

rng = np.random.default_rng(0)
predicted: dict[float, list[float]] = {0.001: [], 0.01: [], 0.1: []}
measured: dict[float, list[float]] = {damping: [] for damping in predicted}
for damping in predicted:
    for _ in range(20):
        factor = qd.sweep.factorize(H, damping=damping, order=rng.permutation(64))
        alive = ~factor.dead[factor.order]  # blank pixels have weight 0 and cost nothing
        price = np.sum(np.diag(factor.R)[alive] ** 2)
        q = qd.sweep.quantize(W, factor, bits=4)
        predicted[damping].append(np.sum(q.scales[:, 0] ** 2) / 12 * price)
        measured[damping].append(q.loss.sum())

# %%
# The points lie a few percent above the line of equality. Rounding errors are only about uniform,
# and now and then a target leaves the range of its grid, which costs more than half a step.

figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
for damping, x in predicted.items():
    y = measured[damping]
    axes.plot(x, y, ".", label=f"damping {damping}")
    print(
        f"damping {damping}: measured / predicted {np.sum(y) / np.sum(x):.2f}, "
        f"correlation over orders {np.corrcoef(x, y)[0, 1]:.2f}"
    )
axes.axline((0.1, 0.1), slope=1, color="gray", linestyle=":")
axes.set(xlabel="predicted loss", ylabel="loss of the sweep")
axes.legend()
plt.show()
