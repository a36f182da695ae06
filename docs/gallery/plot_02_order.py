"""
The order of the sweep
======================

The sweep may take the columns in any order. Activation order starts with the inputs that carry the
most energy, while many columns are still free to make up for their error.
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
# Three orders: as the pixels stand, by falling energy, and by rising energy, which is the worst
# that one would do on purpose.

energy = np.diag(H)
orders = {
    "natural": "natural",
    "activation": "activation",
    "reversed activation": np.argsort(energy, kind="stable"),
}
factors = {name: qd.sweep.factorize(H, order=order) for name, order in orders.items()}

# %%
# :math:`R_{jj}^2` is the price of a rounding error in column :math:`j`: what is left of it after
# all later columns have absorbed what they can. The first column can lean on all others. The last
# one pays its own :math:`H_{jj}` in full, so it had better be a small one.

losses = {
    name: [qd.sweep.quantize(W, factor, bits=bits).loss.sum() for bits in (2, 3, 4)]
    for name, factor in factors.items()
}
for name, loss in losses.items():
    ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(loss, losses["natural"], strict=True))
    print(f"{name:20} loss against natural at 2, 3, 4 bits: {ratios}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
damped = np.sort(energy[energy > 0])[::-1] + 0.01 * energy[energy > 0].mean()
left.plot(damped, color="gray", linestyle=":", label="$H_{jj}$, sorted")
for name, factor in factors.items():
    alive = ~factor.dead[factor.order]  # blank pixels have weight 0 and cost nothing
    left.plot(np.diag(factor.R)[alive] ** 2, label=f"$R_{{jj}}^2$, {name}")
left.set(yscale="log", xlabel="position in the sweep", ylabel="price of an error")
left.legend(fontsize="small")
for shift, (name, loss) in enumerate(losses.items()):
    right.bar(np.arange(3) + 0.27 * (shift - 1), loss, 0.27, label=name)
right.set(
    yscale="log", xticks=range(3), xticklabels=[2, 3, 4], xlabel="bits", ylabel="loss of the layer"
)
right.legend(fontsize="small")
plt.show()
