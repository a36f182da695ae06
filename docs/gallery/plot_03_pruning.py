"""
Pruning with and without the sweep
==================================

Magnitude pruning removes the smallest weights and leaves the others alone. The sweep also looks at
the inputs, and lets the weights that stay make up for those that go.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import quadric as qd

pixels, digits = load_digits(return_X_y=True)
X = pixels / 16
network = MLPClassifier((128,), max_iter=200, tol=1e-3, random_state=0).fit(X, digits)
W = network.coefs_[0].T

accumulator = qd.sweep.HessianAccumulator(64, dtype="float64")
accumulator.update(X)
factor = qd.sweep.factorize(accumulator.value())

# %%
# A fixed share of the weights, anywhere in the matrix.

shares = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
swept = [qd.sweep.prune(W, factor, sparsity=share).loss.sum() for share in shares]
magnitude = [
    qd.sweep.magnitude_prune(W, factor=factor, sparsity=share).loss.sum() for share in shares
]

# %%
# Two of every four columns, the pattern that sparse tensor cores run, alone and together with 4
# bits in the same sweep.

rows = {
    "2:4, magnitude": qd.sweep.magnitude_prune(W, factor=factor, pattern=(2, 4)),
    "2:4, sweep": qd.sweep.prune(W, factor, pattern=(2, 4)),
    "2:4 and 4 bits,\nmagnitude": qd.sweep.round_to_nearest(
        W, factor=factor, bits=4, pattern=(2, 4)
    ),
    "2:4 and 4 bits,\none sweep": qd.sweep.compress(W, factor, bits=4, pattern=(2, 4)),
}
for name, result in rows.items():
    print(
        f"{' '.join(name.split()):26} loss {result.loss.sum():6.3f}, kept {result.mask.mean():.2f}"
    )

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(shares, magnitude, "o-", label="magnitude")
left.plot(shares, swept, "o-", label="sweep")
left.set(yscale="log", xlabel="share of weights removed", ylabel="loss of the layer")
left.legend()
right.barh(list(rows), [result.loss.sum() for result in rows.values()])
right.invert_yaxis()
right.set(xlabel="loss of the layer")
plt.show()
