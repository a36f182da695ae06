"""
Pruning with the inverse Fisher matrix
======================================

Optimal brain surgery removes weights and lets their neighbours make up for them. The published code
treats each pruned weight as if it were the only one; the joint update solves for all of them at
once. What is it worth?
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import quadric as qd

# %%
# The first layer of a network that reads digits, and the gradient of its loss for each training
# image. Weights are numbered unit by unit, so the 64 weights of a unit share a block.

pixels, digits = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(pixels / 16, digits, random_state=0)
network = MLPClassifier((128,), max_iter=200, tol=1e-3, random_state=0).fit(X, y)
weights = network.coefs_[0].T.ravel()


def probabilities(w: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(images @ w.reshape(128, 64).T + network.intercepts_[0], 0)
    scores = np.exp(hidden @ network.coefs_[1] + network.intercepts_[1])
    return hidden, scores / scores.sum(axis=1, keepdims=True)


hidden, p = probabilities(weights, X)
behind = ((p - np.eye(10)[y]) @ network.coefs_[1].T) * (hidden > 0)
gradients = (behind[:, :, None] * X[:, None, :]).reshape(len(X), -1)

# %%
# Collect the blocks and score every weight. Damping of one percent of the mean squared gradient.

fisher = qd.woodbury.BlockFisher(
    weights.size, block_size=64, damping=1e-2 * float(np.mean(gradients**2))
)
fisher.update(gradients)
scores = fisher.scores(weights)

# %%
# Prune more and more. Magnitude takes the smallest weights and changes nothing else; the other two
# remove the same weights, those with the smallest score, and differ by their update.


def loss(w: np.ndarray) -> float:
    _, p = probabilities(w, X_test)
    return -np.mean(np.log(p[np.arange(len(y_test)), y_test]))


sparsities = np.arange(0.1, 0.95, 0.1)
measured: dict[str, list[float]] = {"magnitude": [], "independent": [], "joint": []}
predicted: dict[str, list[float]] = {"independent": [], "joint": []}
for sparsity in sparsities:
    small = np.abs(weights) > np.quantile(np.abs(weights), sparsity)
    measured["magnitude"].append(loss(np.where(small, weights, 0)))
    mask = scores > np.quantile(scores, sparsity)
    for update in predicted:
        pruned = fisher.prune(weights, mask, update=update, whole_blocks="zero")
        predicted[update].append(pruned.loss.sum())
        measured[update].append(loss(pruned.weights))

# %%
# The joint update has the smallest possible predicted loss for its mask, and the gap widens with
# the sparsity: the more weights go, the more cross terms there are to ignore. The loss on images
# that neither the training nor the Fisher matrix has seen follows.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, losses in predicted.items():
    left.semilogy(sparsities, losses, "o-", label=name)
for name, losses in measured.items():
    right.semilogy(sparsities, losses, "o-", label=name)
    print(f"{name:12} loss on unseen images at 50 %: {losses[4]:.3f}, at 80 %: {losses[7]:.3f}")
right.axhline(loss(weights), color="gray", linestyle=":", label="not pruned")
left.set(xlabel="share of weights removed", ylabel="predicted increase of the loss")
right.set(xlabel="share of weights removed", ylabel="loss on unseen images")
left.legend()
right.legend()
plt.show()
