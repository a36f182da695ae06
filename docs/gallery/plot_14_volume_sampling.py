"""
Where to ask
============

A function of two variables is expensive to evaluate, and a polynomial with 66 coefficients shall
stand in for it. At which points should it be evaluated, if 66 are all one can afford, or a few
more? Points drawn independently fall into clusters. Points drawn jointly, by the volume that they
span, keep apart.
"""

import matplotlib.pyplot as plt
import numpy as np

import quadric as qd

# %%
# Candidates are 5000 points of the square, and the polynomials those up to degree 10. The best of
# them is the one that all candidates together would give.

rng = np.random.default_rng(0)
points = rng.uniform(-1, 1, (5000, 2))
A = qd.sketch.polynomial_basis(points, degree=10)
n, d = A.shape
x, y = points.T
values = np.exp(-2 * (x + 0.3) ** 2 - y**2) * np.cos(4 * x * y) + np.abs(x + y / 2) ** 3
best = np.linalg.norm(qd.sketch.lstsq(A, values).residual)

# %%
# The fewest points possible, as many as coefficients. The colour is the leverage of a place, the
# probability of the independent draw; the joint draw has the same probability for each single
# point.

leverage = qd.sketch.leverage_scores(A)
few = {
    "uniform": rng.choice(n, d, replace=False),
    "independent, by leverage": qd.sketch.sample_rows(leverage, d, replace=True, seed=1).indices,
    "joint, by volume": qd.sketch.projection_dpp(A, seed=1),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
for ax, (name, rows) in zip(axes, few.items(), strict=True):
    ax.tripcolor(x, y, np.log(leverage), shading="gouraud", cmap="Blues", alpha=0.7)
    ax.plot(*points[rows].T, "o", color="tab:red", markeredgecolor="white", markersize=6)
    ax.set(title=name, xticks=[], yticks=[], aspect="equal")

# %%
# Error against the number of points. ``optimal`` draws independently by leverage, ``dpp`` replaces
# the first 66 by a joint draw, ``repeated_dpp`` makes one joint draw after the other. Lines are
# medians of 20 draws, and the bands hold the middle 80 %.

sizes = (66, 80, 100, 132, 198, 264)
rules = ("uniform", "optimal", "dpp", "repeated_dpp")
errors = {rule: {} for rule in rules}
for rule in rules:
    for size in sizes:
        if rule == "repeated_dpp" and size % d:
            continue
        found = []
        for seed in range(20):
            if rule == "uniform":
                rows = np.random.default_rng(seed).choice(n, size, replace=False)
                c = np.linalg.lstsq(A[rows], values[rows])[0]
            else:
                design = qd.sketch.weighted_least_squares_design(A, size, rule, seed=seed)
                c = design.fit(values[design.indices])
            found.append(np.linalg.norm(values - A @ c) / best)
        errors[rule][size] = np.quantile(found, [0.1, 0.5, 0.9])

figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
for rule, found in errors.items():
    low, middle, high = np.transpose(list(found.values()))
    (line,) = ax.loglog(list(found), middle, "o-", label=rule)
    ax.fill_between(list(found), low, high, color=line.get_color(), alpha=0.15)
    times = f"{middle[0]:6.1f} with {d} points, {found[2 * d][1]:.2f} with {2 * d}"
    print(f"{rule:13} error relative to the best: {times}")
ax.set(xlabel="points", ylabel="error, relative to the best polynomial", ylim=(0.9, 2e3))
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend()
plt.show()
