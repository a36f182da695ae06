"""
Colours of one photograph for another
=====================================

A photograph without its places is a cloud of pixels in the cube of red, green and blue. Transport
moves the cloud of one photograph onto that of another at the least change of colour, and every
pixel takes its new colour with it: both photographs exchange their palettes.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

from quadric.adapters.sklearn import TransportMap

# %%
# The maps are fitted to 30 000 pixels of each photograph, one in nine. The cost matrix would take
# 3.6 GB; it is never stored. Half of one photograph is a bright sky, and the other one has little
# that is light: if all colours are to be used up, a part of the sky must go dark. The second map
# may leave colours unused, at a price.

temple, flower = (image / np.float32(255) for image in load_sample_images().images)
rng = np.random.default_rng(0)
source, target = (rng.permutation(p.reshape(-1, 3))[:30_000] for p in (temple, flower))
maps = {
    "all colours": TransportMap(reg=2e-2, tol=1e-3).fit(source, target=target),
    "some colours": TransportMap(reg=2e-2, tol=1e-3, unbalanced=0.2).fit(source, target=target),
}
for name, mapping in maps.items():
    result = mapping.result_
    print(f"{name:12} {result.iterations} iterations, marginal error {result.marginal_error:.0e}")

# %%
# A map is not a table of the pixels that it has seen: it moves any others, here those of smaller
# copies, and in both directions. A colour need only be right to one part in 256, hence the loose
# tolerance.

temple, flower = temple[::3, ::3], flower[::3, ::3]
temples = [temple, *(m.transform(temple.reshape(-1, 3)) for m in maps.values())]
flowers = [flower, *(m.inverse_transform(flower.reshape(-1, 3)) for m in maps.values())]
figure, axes = plt.subplots(2, 3, figsize=(10, 4.8), layout="constrained")
for row, pictures in zip(axes, (temples, flowers), strict=True):
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(np.clip(picture, 0, 1).reshape(temple.shape))
        ax.set(xticks=[], yticks=[])
for ax, title in zip(axes[0], ("as it was", *maps), strict=True):
    ax.set_title(title)

# %%
# The clouds of pixels of the temple, before and after, and how the solver came there.

figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
for ax, title, picture in zip(axes, ("as it was", *maps), temples, strict=False):
    pixels = rng.permutation(np.clip(picture, 0, 1).reshape(-1, 3))[:3000]
    ax.scatter(pixels[:, 0], pixels[:, 2], c=pixels, s=2)
    ax.set(title=title, xlabel="red", ylabel="blue", xlim=(0, 1), ylim=(0, 1), aspect="equal")
maps["all colours"].result_.plot(axes[3])
axes[3].set_title("convergence, all colours")
plt.show()
