"""Torch optimizers, and preconditioners for any other, with the curvature of quadric.woodbury.

>>> import torch
>>> from quadric.adapters.torch.optim import MFAC
>>> model = torch.nn.Linear(4, 1)
>>> optimizer = MFAC(model.parameters(), lr=1e-3, capacity=32)
>>> model(torch.ones(4)).sum().backward()
>>> optimizer.step()
"""

from quadric.adapters.torch.optim.galore import NaturalGaLore
from quadric.adapters.torch.optim.mfac import MFAC
from quadric.adapters.torch.optim.mkor import MKOR
from quadric.adapters.torch.optim.preconditioner import Preconditioner

__all__ = ["MFAC", "MKOR", "NaturalGaLore", "Preconditioner"]
