"""The opponents, written plainly in PyTorch: the formulas of the published code, nothing else.

Where the published code has CUDA kernels of its own for small triangular systems, LAPACK does them
here, so that the opponent is not slower than it has to be.
"""

import torch
from torch import Tensor


class SequentialInverse:
    """Block Fisher by rank-one updates of the inverse, all blocks at once.

    From F^-1 = I / damping, for each of m gradients g and in each block: h = F^-1 g,
    u = h / sqrt(m + g.h), F^-1 <- F^-1 - u u^T.  Kurtic et al., "The Optimal BERT Surgeon",
    EMNLP 2022, https://arxiv.org/abs/2203.07259.
    """

    def __init__(
        self, size: int, block: int, damping: float, count: int, device: str = "cpu"
    ) -> None:
        self.count = count
        self.inverse = (torch.eye(block, device=device) / damping).repeat(size // block, 1, 1)

    def add(self, g: Tensor) -> None:
        g = g.view(-1, self.inverse.shape[1])
        h = torch.einsum("bij,bj->bi", self.inverse, g)
        u = h / torch.sqrt(self.count + torch.einsum("bi,bi->b", g, h)).unsqueeze(1)
        self.inverse.baddbmm_(u.unsqueeze(2), u.unsqueeze(1), alpha=-1)


def batched_inverse(G: Tensor, block: int, damping: float, chunk: int = 64) -> Tensor:
    """Block Fisher by its definition: F = damping I + X^T X / m in each block, then F^-1.

    Products of `chunk` gradients at a time, read where they lie (a contiguous copy of each chunk
    takes three times as long).  G (m, d) with d a multiple of `block`.
    """
    fisher = torch.zeros(G.shape[1] // block, block, block, device=G.device)
    for rows in G.split(chunk):
        X = rows.unflatten(1, (-1, block)).permute(1, 0, 2)
        fisher.baddbmm_(X.transpose(1, 2), X, alpha=1 / G.shape[0])
    fisher.diagonal(dim1=1, dim2=2).add_(damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(fisher))


def static_setup(G: Tensor, damping: float, V: Tensor) -> Tensor:
    """Static M-FAC: fill `V` (m, d) and return q (m,), with F^-1 x = x / damping - V^T (V x / q).

    v_i = g_i / damping - sum_{j<i} (v_j.g_i / q_j) v_j and q_i = m + g_i.v_i.  Frantar et al.,
    "M-FAC", NeurIPS 2021, https://arxiv.org/abs/2107.03356.
    """
    m = G.shape[0]
    q = torch.empty(m, device=G.device)
    for i, g in enumerate(G):
        torch.div(g, damping, out=V[i])
        if i:
            V[i] -= ((V[:i] @ g) / q[:i]) @ V[:i]
        q[i] = m + g @ V[i]
    return q


class DynamicWindow:
    """Dynamic M-FAC: the last m gradients, one replaced in each step.

    S = m I + G G^T / damping = L D L^T (unit lower L); F^-1 x = x / damping - G^T B^T D^-1 t with
    B = L^-1 / damping and t = L^-1 G x / damping.  Each step computes one row of G G^T, sets up L
    and B again (O(m^3)) and applies F^-1: three passes over G.  The paper is that of
    :func:`static_setup`.
    """

    def __init__(self, G: Tensor, damping: float) -> None:
        self.G = G
        self.damping = damping
        self.products = G @ G.T
        self.oldest = 0

    def step(self, g: Tensor) -> Tensor:
        self.G[self.oldest] = g
        row = self.G @ g
        self.products[self.oldest] = row
        self.products[:, self.oldest] = row
        self.oldest = (self.oldest + 1) % len(self.G)
        one = torch.eye(len(self.G), device=self.G.device)
        C = torch.linalg.cholesky(len(self.G) * one + self.products / self.damping)
        pivots = C.diagonal()
        L = C / pivots
        B = torch.linalg.solve_triangular(L, one, upper=False, unitriangular=True) / self.damping
        t = (self.G @ g).unsqueeze(1) / self.damping
        t = torch.linalg.solve_triangular(L, t, upper=False, unitriangular=True).squeeze(1)
        return g / self.damping - ((t / pivots**2) @ B) @ self.G


def rank_one(J: Tensor, v: Tensor, decay: float) -> Tensor:
    """Inverse of decay L + (1 - decay) v v^T from J = L^-1, as one writes it first.

    (J - (1 - decay) u u^T / (decay + (1 - decay) v.u)) / decay with u = J v: the rank-one update of
    Mozaffari et al., "MKOR", NeurIPS 2023, https://arxiv.org/abs/2306.01685, in exact form.
    """
    u = J @ v
    weight = (1 - decay) / (decay + (1 - decay) * torch.dot(v, u))
    return (J - weight * torch.outer(u, u)) / decay


def rank_one_in_place(J: Tensor, v: Tensor, decay: float) -> Tensor:
    """The same in two passes, as one writes it when it has to be fast."""
    u = J @ v
    weight = (1 - decay) / (decay + (1 - decay) * float(torch.dot(v, u)))
    return J.addr_(u, u, beta=1 / decay, alpha=-weight / decay)


def rank_one_on_gpu(J: Tensor, v: Tensor, decay: float) -> Tensor:
    """The same without waiting for a number from the device."""
    u = J @ v
    weight = (1 - decay) / (decay + (1 - decay) * torch.dot(v, u))
    return J.sub_(torch.outer(u * weight, u)).div_(decay)
