"""
Three rules with one name
=========================

MKOR keeps the inverse of a running average :math:`L \\leftarrow c L + (1 - c)\\, v v^T` current by
rank-one updates. Its paper prints one rule, its package runs another, and the identity of Sherman
and Morrison gives a third. Follow all three over the inputs of a real layer.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import quadric as qd

# %%
# The vectors are images of digits, without the pixels that are always blank.

pixels, _ = load_digits(return_X_y=True)
X = pixels[:, pixels.std(axis=0) > 0.5] / 16
n, decay, steps = X.shape[1], 0.95, 300

# %%
# Update the average and the three candidates side by side. An inverse satisfies :math:`J L = I`.

L = np.eye(n)
J = {rule: np.eye(n) for rule in ("exact", "mkor", "published")}
defect: dict[str, list[float]] = {rule: [] for rule in J}
size: dict[str, list[float]] = {rule: [] for rule in J}
for v in X[:steps]:
    L = decay * L + (1 - decay) * np.outer(v, v)
    for rule, matrix in J.items():
        qd.woodbury.rank_one_inverse_update(matrix, v, decay=decay, rule=rule, out=matrix)
        defect[rule].append(np.linalg.norm(matrix @ L - np.eye(n)) / np.sqrt(n))
        size[rule].append(np.trace(matrix) / n)

# %%
# The exact rule stays an inverse. The package's rule settles on the inverse of something else: its
# blend with the identity keeps it bounded, which is a stabilizer in disguise. The printed rule is
# no inverse of anything; here it explodes, and with shorter vectors it decays to zero. The exact
# :math:`J` grows in directions that no recent image has; this is what ``norm_bound`` is for.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for rule in J:
    left.semilogy(defect[rule], label=rule)
    right.semilogy(size[rule], label=rule)
    print(f"{rule:10} distance from the inverse after {steps} steps: {defect[rule][-1]:.0e}")
right.semilogy(np.full(steps, np.trace(np.linalg.inv(L)) / n), "k:", label="inverse, at the end")
left.set(xlabel="step", ylabel=r"$\Vert J L - I \Vert / \sqrt{n}$", ylim=(1e-16, 1e6))
right.set(xlabel="step", ylabel="mean diagonal of $J$", ylim=(1e-2, 1e8))
left.legend()
right.legend()
plt.show()
