"""Prune PyTorch models with second-order information (oBERT), at once or while they are trained.

>>> import torch
>>> from quadric.adapters.torch.prune import Pruner
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
>>> batches = list(torch.randn(64, 8, 16))
>>> def loss(model, x):
...     return (model(x) - x[:, :4]).square().mean()
>>> report = Pruner(model, loss, batches, progress=False).prune(0.8, recomputations=4)
>>> f"{report.sparsity:.1%}", len(report.steps)
('80.0%', 4)
"""

from quadric.adapters.torch.prune.gradual import GradualPruner
from quadric.adapters.torch.prune.masks import Masks
from quadric.adapters.torch.prune.pruner import Pruner
from quadric.adapters.torch.prune.report import PrunedLayer, PruningReport, PruningStep, plot
from quadric.adapters.torch.prune.schedule import Schedule

__all__ = [
    "GradualPruner",
    "Masks",
    "PrunedLayer",
    "Pruner",
    "PruningReport",
    "PruningStep",
    "Schedule",
    "plot",
]
