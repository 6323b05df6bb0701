"""What tests of adjoints share: a linear network, and the random signs of samples."""

from __future__ import annotations

import torch
from torch import nn

from fastsample import ops
from fastsample.sampling.noise import make_identity

D = 4


class Linear(nn.Module):
    """Epsilon as a matrix that turns with time, so that no two Jacobians commute."""

    def __init__(self, dtype=torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        both = torch.randn(2, D, D, generator=generator, dtype=torch.float64) * 0.25
        self.matrices = nn.Parameter((both + torch.eye(D, dtype=torch.float64)).to(dtype))

    def forward(self, x, t):
        share = (t.to(x.dtype) / 1000)[:, None]
        return (1 - share) * (x @ self.matrices[0]) + share * (x @ self.matrices[1])


def identity(count, first=0):
    return make_identity("test", 0, first, count, torch.device("cpu"))


def signs(count, first=0):
    """The random signs of the samples, `(count, D)`."""
    z = ops.noise(*identity(count, first), (D,), draw=0xFFFFFFFE, dtype=torch.float64)
    return torch.where(z >= 0.0, 1.0, -1.0).double()
