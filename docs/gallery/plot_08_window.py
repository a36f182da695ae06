"""
How many gradients does a window need?
======================================

An optimizer keeps the last few gradients only. Compare its direction with that of the Fisher matrix
of all gradients, for windows of different length and for float32 and bfloat16 storage.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import quadric as qd

# %%
# Gradients of the first layer of a half-trained network that reads digits: 8192 weights, batches of
# 4 images.

pixels, digits = load_digits(return_X_y=True)
X = pixels / 16
network = MLPClassifier((128,), random_state=0)
for _ in range(10):
    network.partial_fit(X, digits, classes=range(10))
hidden = np.maximum(X @ network.coefs_[0] + network.intercepts_[0], 0)
error = network.predict_proba(X) - np.eye(10)[digits]
behind = (error @ network.coefs_[1].T) * (hidden > 0)
batches = np.split(np.random.default_rng(0).permutation(1796), 449)
G = np.stack([np.ravel(X[b].T @ behind[b]) / len(b) for b in batches]).astype(np.float32)
d = G.shape[1]

# %%
# The direction for the newest gradient, from all gradients and from the last few, at three dampings
# in units of the mean squared gradient.

capacities = [1, 2, 4, 8, 16, 32, 64, 128, 256, 449]
strength = float(np.mean(G**2))


def direction(capacity: int, damping: float, dtype: str) -> np.ndarray:
    window = qd.woodbury.GradientWindow(d, capacity=capacity, damping=damping, dtype=dtype)
    for g in G[-capacity:-1]:
        window.push(g)
    return window.push_and_solve(G[-1])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def change(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


# %%
# The more damping, the fewer gradients it takes: what the window does not know is treated as flat,
# and damping flattens everything. Rounding the stored gradients to the 8 bits of bfloat16 changes
# the direction far less than leaving out some of them.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for factor in (0.1, 1.0, 10.0):
    damping = factor * strength
    full = qd.woodbury.EmpiricalFisher(G, damping=damping).solve(G[-1])
    single = [direction(capacity, damping, "float32") for capacity in capacities]
    half = [direction(capacity, damping, "bfloat16") for capacity in capacities]
    label = f"damping {factor:g}"
    left.semilogx(capacities, [cosine(x, full) for x in single], "o-", label=label)
    changes = [change(x, y) for x, y in zip(half, single, strict=True)]
    right.loglog(capacities, changes, "o-", label=label)
    print(f"{label:12} 32 of 449: cosine {cosine(single[5], full):.2f}, bfloat16 {changes[5]:.1%}")
left.set(xlabel="gradients in the window", ylabel="cosine to the direction from all")
right.set(xlabel="gradients in the window", ylabel="change of direction by bfloat16")
left.legend()
right.legend()
plt.show()
