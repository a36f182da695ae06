"""
A photograph as one polynomial
==============================

Every pixel of a photograph is an equation: the polynomial at this place shall have this colour.
That is a least-squares problem with many more rows than columns, and powers of coordinates make it
as badly conditioned as one likes. Which solver is fast, and which one can be trusted?
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from scipy import linalg
from sklearn.datasets import load_sample_images
from sklearn.preprocessing import PolynomialFeatures

import quadric as qd

# %%
# Rows and columns of the image become coordinates between -1 and 1, and these become all products
# of powers up to degree 20. Red, green and blue are three right-hand sides.

flower = load_sample_images().images[1][::2, ::2] / 255
height, width, _ = flower.shape
places = 2 * np.indices((height, width)).reshape(2, -1).T / width - [height / width, 1]
A = PolynomialFeatures(degree=20).fit_transform(places)
B = flower.reshape(-1, 3)

# %%
# All methods of ``lstsq``, two drivers of LAPACK, and the normal equations. Each runs twice and the
# faster time counts. The error is the backward error: by how much A and B would have to be changed,
# relative to their norms, for the answer to be exact.


def lapack(driver):
    return linalg.lstsq(A, B, lapack_driver=driver, check_finite=False)[0]


def normal_equations():
    return linalg.cho_solve(linalg.cho_factor(A.T @ A), A.T @ B)


methods = ("sketch", "precondition", "iterative", "spir", "fossils", "gram")
solvers = {name: lambda name=name: qd.sketch.lstsq(A, B, method=name).x for name in methods}
solvers |= {name: lambda name=name: lapack(name) for name in ("gelsd", "gelsy")}
solvers["normal equations"] = normal_equations
solutions, seconds, errors = {}, {}, {}
for name, solve in solvers.items():
    times = []
    for _ in range(2):
        start = time.perf_counter()
        solutions[name] = solve()
        times.append(time.perf_counter() - start)
    seconds[name] = min(times)
    errors[name] = np.max(qd.sketch.lstsq_backward_error(A, B, solutions[name]))

result = qd.sketch.lstsq(A, B)
print(f"{A.shape[0]} rows, {A.shape[1]} columns, condition number about {result.condition:.0e}")
print(f"of the methods, auto takes {result.method!r}")
for name, error in errors.items():
    print(f"{name:17} backward error {error:.0e}")

# %%
# The dotted line is what rounding the entries of A has done already, so whatever lies below is as
# good as a solver can be. Further left it is faster.

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for name, error in errors.items():
    mark = "s" if name in ("gelsd", "gelsy") else "X" if name == "normal equations" else "o"
    ax.loglog(seconds[name], error, mark, markersize=10, alpha=0.8, label=name)
ax.axhline(np.finfo(float).eps / 2, color="gray", linestyle=":")
ax.set(xlabel="seconds", ylabel="relative backward error")
ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5]
ax.set_xticks(ticks, ticks)
ax.minorticks_off()
figure.legend(loc="outside right center")

# %%
# What the errors mean. Above, the photograph, the polynomial that is closest to it, and the one of
# a single sketch, which is enough for the eye. Below, how far three answers are from that of
# LAPACK, in powers of ten of the range of a colour. The normal equations square the condition
# number, and it shows.

best = A @ solutions["gelsd"]
solutions["auto"] = result.x
above = {"photograph": B, "degree 20": best, "degree 20, one sketch": A @ solutions["sketch"]}
figure, axes = plt.subplots(2, 3, figsize=(10, 4.8), layout="constrained")
for ax, (name, picture) in zip(axes[0], above.items(), strict=True):
    ax.imshow(np.clip(picture, 0, 1).reshape(flower.shape))
    ax.set_title(name)
for ax, name in zip(axes[1], ("sketch", "normal equations", "auto"), strict=True):
    difference = np.abs(A @ solutions[name] - best).max(axis=1).reshape(height, width)
    image = ax.imshow(np.log10(difference + 1e-17), vmin=-14, vmax=0, cmap="magma")
    ax.set_title(name)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
figure.colorbar(image, ax=axes[1], label="log10 of the difference")
plt.show()
