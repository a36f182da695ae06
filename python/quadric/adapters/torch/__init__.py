"""Compress the layers of PyTorch models, and save the result for inference engines.

>>> import torch
>>> from quadric.adapters.torch import LayerRecipe, compress
>>> model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
>>> batches = [torch.randn(64, 16, generator=torch.Generator().manual_seed(0))]
>>> report = compress(model, batches, LayerRecipe(bits=4, group_size=16), progress=False)
>>> len(report.layers)
2
"""

try:
    import safetensors  # noqa: F401
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'quadric.adapters.torch needs {error.name}: pip install "quadric[torch]"'
    ) from error

import quadric.adapters.torch.checkpoint as checkpoint
import quadric.adapters.torch.prune as prune
from quadric.adapters.torch.compress import compress
from quadric.adapters.torch.fisher import FisherCollector, PrunedParameter
from quadric.adapters.torch.recipe import LayerRecipe, Recipe
from quadric.adapters.torch.report import CompressionReport, LayerReport
from quadric.adapters.torch.router import RouterReport, SparseRouter
from quadric.adapters.torch.transport import SinkhornDivergence, monge_gap, ot_loss

__all__ = [
    "CompressionReport",
    "FisherCollector",
    "LayerRecipe",
    "LayerReport",
    "PrunedParameter",
    "Recipe",
    "RouterReport",
    "SinkhornDivergence",
    "SparseRouter",
    "checkpoint",
    "compress",
    "monge_gap",
    "ot_loss",
    "prune",
]
