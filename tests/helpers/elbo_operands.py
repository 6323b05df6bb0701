"""Operands of the operator elbo_sums, and the plain sums in float64 of the same values."""

from __future__ import annotations

import torch

from fastsample import ops
from fastsample.ops import reference

COEFFICIENTS = [1.3, -0.8, 0.2, 0.9, -1.0, 1.0]
"""p, q, r, g, lo, hi: x0hat is clipped here and there."""


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


NODES = vector(0.0, 1e-9, 1e-3, 0.3, 0.5, 1.0, 5.0, 11.5)
SCALES = torch.linspace(-4.0, 0.1, 7, dtype=torch.float64)


def operands(shape, learned, dtype=torch.float64, device="cpu"):
    """(x0, x, out); the values do not depend on the device."""
    generator = torch.Generator().manual_seed(sum(shape))
    wide = (shape[0], shape[1] * (2 if learned else 1), *shape[2:])
    x0 = 2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0
    x0.view(-1)[::5] = x0.view(-1)[::5].sign()  # the outer bins are open
    x, out = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, wide))
    return tuple(t.to(dtype).to(device) for t in (x0, x, out))


def columns(given, nodes=NODES, scales=SCALES, bin_width=2 / 255):
    """What the operator itself returns: the sums side by side."""
    device = given[0].device
    nodes = nodes.to(device) if given[2].shape != given[0].shape else nodes.new_empty(0).to(device)
    return torch.ops.fastsample.elbo_sums(*given, COEFFICIENTS, nodes, scales.to(device), bin_width)


def truth(given, nodes=NODES, scales=SCALES, bin_width=2 / 255):
    """The plain sums in float64 of the same values."""
    given = [t.cpu().double() for t in given]
    nodes = nodes if given[2].shape != given[0].shape else nodes.new_empty(0)
    return reference.elbo_sums(*given, COEFFICIENTS, nodes, scales, bin_width)


def keywords(given, **changes):
    """`fastsample.ops.elbo_sums` with its own arguments."""
    p, q, r, g, lo, hi = COEFFICIENTS
    named = {"x0_terms": (p, q), "eps_terms": (r, g), "clip": (lo, hi)}
    named |= {"nodes": NODES, "log_scales": SCALES}
    return ops.elbo_sums(*given, **{**named, **changes})


def parts(row):
    """The sums by name, out of the operator's columns `(B, 3 + 2 n + m)`."""
    n = len(NODES)
    names = ("error", "eps_square", "v", "excess", "weighted", "nll")
    return dict(zip(names, row.split([1, 1, 1, n, n, len(SCALES)], dim=1), strict=True))
