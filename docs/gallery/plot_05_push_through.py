"""
Preconditioning a gradient without losing digits
================================================

An optimizer preconditions a gradient with a Fisher matrix that holds this very gradient. The
formula of Woodbury subtracts two nearly equal numbers there; the push-through identity does not.
How much does it matter on the gradients of a real network, in float32?
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import quadric as qd

# %%
# Gradients of the first layer of a network that reads digits, 8192 weights, each over a batch of 16
# images. The network is half trained, so that they are not all zero.

pixels, digits = load_digits(return_X_y=True)
X = pixels / 16
network = MLPClassifier((128,), random_state=0)
for _ in range(10):
    network.partial_fit(X, digits, classes=range(10))
hidden = np.maximum(X @ network.coefs_[0] + network.intercepts_[0], 0)
error = network.predict_proba(X) - np.eye(10)[digits]
behind = (error @ network.coefs_[1].T) * (hidden > 0)
batches = np.split(np.random.default_rng(0).permutation(1792), 112)
G = np.stack([np.ravel(X[b].T @ behind[b]) / len(b) for b in batches]).astype(np.float32)

# %%
# Fill a window, precondition the newest gradient in both ways, and compare with float64. Each
# damping is a fraction of the mean squared entry of the gradients.

g, exact_G = G[-1], G.astype(np.float64)
m, d = G.shape


def exact(damping: float) -> np.ndarray:
    small = m * damping * np.eye(m) + exact_G @ exact_G.T
    return m * exact_G.T @ np.linalg.solve(small, np.eye(m)[-1])


def relative_error(x: np.ndarray, damping: float) -> float:
    truth = exact(damping)
    return np.linalg.norm(x - truth) / np.linalg.norm(truth)


def in_float32(damping: float) -> np.ndarray:
    """The formula of Woodbury as it stands, every number a float32."""
    small = np.float32(m * damping) * np.eye(m, dtype=np.float32) + G @ G.T
    return (g - G.T @ np.linalg.solve(small, G @ g)) / np.float32(damping)


fractions = 10.0 ** np.arange(-8, 1)
curves: dict[str, list[float]] = {"push-through": [], "solve": [], "all in float32": []}
for fraction in fractions:
    damping = fraction * np.mean(exact_G**2)
    window = qd.woodbury.GradientWindow(d, capacity=m, damping=damping)
    for row in G:
        pushed = window.push_and_solve(row)
    curves["push-through"].append(relative_error(pushed, damping))
    curves["solve"].append(relative_error(window.solve(g), damping))
    curves["all in float32"].append(relative_error(in_float32(damping), damping))

# %%
# The error of push-through does not depend on the damping. ``solve`` is right for vectors that the
# window has not seen; for its own rows it loses a digit for each digit of damping, and so does any
# other code that subtracts.

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for (name, errors), style in zip(curves.items(), ("o-", "s-", "^:"), strict=True):
    axes.loglog(fractions, errors, style, label=name)
    print(f"{name:15} error at the smallest damping: {errors[0]:.0e}")
axes.set(xlabel="damping / mean squared gradient", ylabel="relative error of $F^{-1} g$")
axes.legend()
plt.show()
