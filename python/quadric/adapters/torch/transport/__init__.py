"""Losses that compare clouds of points by optimal transport, with the gradients of its solution.

>>> import torch
>>> from quadric.adapters.torch.transport import SinkhornDivergence
>>> loss = SinkhornDivergence(reg=0.5)
>>> x = torch.zeros(30, 2, dtype=torch.float64, requires_grad=True)
>>> y = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
>>> loss(x, y).backward()
>>> x.grad.shape
torch.Size([30, 2])
"""

from quadric.adapters.torch.transport.losses import SinkhornDivergence, monge_gap, ot_loss

__all__ = ["SinkhornDivergence", "monge_gap", "ot_loss"]
