"""The operators of `fastsample.ops`, implemented in plain torch.

They are the reference of tests and benchmarks, and run on devices without a kernel. The code is
written to be read: nothing is fused. The results equal the kernels' to rounding, and the integer
words of the noise exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def step_x0(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    draw: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (x_next, x0), as `fastsample.ops.step_x0` does."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    p, q, lo, hi, w, a, b, e, *c, d, lv_lo, lv_hi = _coefficients(rows, row, x, dtype)
    current = x.to(dtype)
    learned = out.shape != x.shape
    m, v = out.to(dtype).chunk(2, dim=1) if learned else (out.to(dtype), None)
    if uncond is not None:
        u = (uncond.chunk(2, dim=1)[0] if learned else uncond).to(dtype)
        m = u + w * (m - u)
    x0 = torch.clamp(p * current + q * m, lo, hi)
    x_next = a * current + b * x0 + e * m
    # The result is NaN if the row reads an earlier x0 or noise that was not passed.
    for weight, h in zip(c, (h1, h2, h3, h4), strict=True):
        missing = torch.where(weight == 0, 0.0, torch.nan).to(dtype)
        x_next = x_next + (missing if h is None else weight * h)
    if v is not None:
        log_variance = lv_lo + (v + 1) / 2 * (lv_hi - lv_lo)
        reads_v = (lv_lo != 0) | (lv_hi != 0)
        d = d * torch.where(reads_v, torch.exp(torch.where(reads_v, log_variance, 0.0) / 2), 1.0)
    if noise is None and seeds is not None:
        assert index is not None
        draws = (row if draw is None else draw).reshape(-1).expand(x.shape[0])
        z = _normal(seeds, index, x.shape[1:], draws).to(dtype)
    elif noise is not None:
        z = noise.to(dtype)
    else:
        z = torch.full_like(x, torch.nan, dtype=dtype)
    z = torch.where(d == 0, torch.zeros_like(z), z)  # because 0 * NaN would be NaN
    x_next = x_next + torch.where(d == 0, torch.zeros_like(z), d * z)
    return x_next.to(x.dtype), x0


def elbo_sums(
    x0: Tensor,
    x: Tensor,
    out: Tensor,
    coefficients: Sequence[float],
    nodes: Tensor,
    log_scales: Tensor,
    bin_width: float,
) -> Tensor:
    """Return the sums of `fastsample.ops.elbo_sums` as one table, like its field `table`."""
    p, q, r, g, lo, hi = coefficients
    dtype = torch.float32 if x0.device.type == "mps" else torch.float64
    x0, x, out, nodes, log_scales = (t.to(dtype) for t in (x0, x, out, nodes, log_scales))
    m, raw = out.chunk(2, dim=1) if out.shape != x0.shape else (out, None)
    x0hat = torch.clamp(p * x + q * m, lo, hi)
    error2 = ((x0 - x0hat) ** 2).flatten(1)
    sums = [error2.sum(1), ((r * x + g * m) ** 2).flatten(1).sum(1)]
    v = torch.zeros_like(error2) if raw is None else ((raw + 1) / 2).flatten(1)
    sums.append(v.sum(1))
    # For small x the sum expm1(-x) + x, about x^2 / 2, loses digits: a series replaces it.
    excess: list[Tensor] = []
    for a in nodes:
        y = a * v
        small = y.clamp(-0.5, 0.5)
        series = torch.zeros_like(y)
        for n in range(16, 1, -1):
            series = (1 - series) * small / n
        excess.append(torch.where(y.abs() < 0.5, series * small, torch.expm1(-y) + y).sum(1))
    weighted = [(error2 * torch.exp(-a * v)).sum(1) for a in nodes]
    nll = [
        -bin_log_likelihood(x0, x0hat, scale, bin_width).flatten(1).sum(1) for scale in log_scales
    ]
    return torch.stack([*sums, *excess, *weighted, *nll], dim=1)


def bin_log_likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor, bin_width: float) -> Tensor:
    """Return the log-probability of the bin of each element of x0 under a Gaussian.

    It equals `fastsample.likelihood.bound.discretized_gaussian_log_likelihood`.

    The tanh approximation of the normal distribution function is a logistic function. The
    difference of two of its values is taken in the smaller tail, where it does not cancel.
    """
    inverse = torch.exp(-log_scale)
    upper, lower = ((x0 - mean + side * bin_width / 2) * inverse for side in (1, -1))
    upper, lower = (1.5957691216057308 * (z + 0.044715 * z**3) for z in (upper, lower))
    upper = torch.where(x0 > 0.999, torch.inf, upper)
    lower = torch.where(x0 < -0.999, -torch.inf, lower)
    reflect = upper + lower > 0
    upper, lower = torch.where(reflect, -lower, upper), torch.where(reflect, -upper, lower)
    inside = torch.sigmoid(upper) - torch.sigmoid(lower)
    # improved-diffusion has this floor too: a bin of probability 0 would make the loss infinite.
    return torch.log(inside.clamp(min=1e-12))


def step(*operands: Tensor | None) -> Tensor:
    """Return x_next, as `fastsample.ops.step` does."""
    return step_x0(*operands)[0]  # pyright: ignore[reportArgumentType]


def step_into(target: Tensor, *operands: Tensor | None) -> None:
    """Write x_next of a step to `target`."""
    target.copy_(step(*operands))


def step_backward(
    grad: Tensor,
    grad_x0: Tensor | None,
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    draw: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, out, uncond, noise and h1 to h4, computed by autograd.

    Those of operands that were not passed are empty.
    """
    x, out = x.detach().requires_grad_(), out.detach().requires_grad_()
    uncond, noise, h1, h2, h3, h4 = (
        None if t is None else t.detach().requires_grad_() for t in (uncond, noise, h1, h2, h3, h4)
    )
    history = (h1, h2, h3, h4)
    leaves = (x, out, uncond, noise, *history)
    with torch.enable_grad():
        x_next, x0 = step_x0(x, out, rows, row, uncond, seeds, index, draw, noise, *history)
        cotangents = (grad, torch.zeros_like(x0) if grad_x0 is None else grad_x0)
        inputs = [t for t in leaves if t is not None]
        gradients = torch.autograd.grad((x_next, x0), inputs, cotangents, materialize_grads=True)
    each = iter(gradients)
    return tuple(x.new_empty(0) if t is None else next(each) for t in leaves)


def row_gradients(
    grad: Tensor,
    grad_x0: Tensor | None,
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    draw: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
) -> Tensor:
    """Return the gradient `(B, 15)` of each sample's row, computed by autograd."""
    batch = x.shape[0]
    numbers = row.reshape(-1).expand(batch)
    if noise is None and seeds is not None and index is not None:
        draws = numbers if draw is None else draw.reshape(-1).expand(batch)
        noise = _normal(seeds, index, x.shape[1:], draws).to(x.dtype)
    sample_rows = rows.detach()[numbers.clamp(0, rows.shape[0] - 1)].requires_grad_()
    with torch.enable_grad():
        x_next, x0 = step_x0(
            *(x.detach(), out.detach(), sample_rows, torch.arange(batch, device=x.device), uncond),
            *(None, None, None, noise, h1, h2, h3, h4),
        )
        cotangents = (grad, torch.zeros_like(x0) if grad_x0 is None else grad_x0)
        (gradient,) = torch.autograd.grad(
            (x_next, x0), sample_rows, cotangents, materialize_grads=True
        )
    return gradient


def noise(
    seeds: Tensor,
    index: Tensor,
    size: Sequence[int],
    draw: int,
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """Return noise of size ``(B, *shape)``, as `fastsample.ops.noise` does."""
    draws = torch.full_like(index, draw)
    z = _normal(seeds, index, size[1:], draws).to(dtype)
    if channels_last:
        z = z.to(memory_format=torch.channels_last if z.dim() == 4 else torch.channels_last_3d)
    return z


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the four random words of the generator Philox4x32-10 (Salmon et al. 2011).

    All words are int64 tensors that hold 32 bits and broadcast with each other.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # These int64 products wrap modulo 2^64, which leaves both 32-bit halves right.
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _normal(seeds: Tensor, index: Tensor, shape: Sequence[int], draws: Tensor) -> Tensor:
    """Return standard normals ``(B, *shape)`` in float32; `draws` holds each sample's draw."""
    size = torch.Size(shape).numel()
    blocks = torch.arange((size + 3) // 4, device=index.device)
    column = index[:, None]
    counter = (blocks, column & _MASK, (column >> 32) & _MASK, draws[:, None] & _MASK)
    keys = seeds.reshape(-1, 1)
    r0, r1, r2, r3 = philox(counter, (keys & _MASK, (keys >> 32) & _MASK))
    # Compute in float64, since float32 cannot hold r + 0.5; but MPS has no float64.
    real = torch.float32 if index.device.type == "mps" else torch.float64
    first, second = (_box_muller(r, angle, real) for r, angle in ((r0, r1), (r2, r3)))
    z = torch.stack((*first, *second), dim=-1).flatten(1)[:, :size]
    return z.reshape(index.shape[0], *shape).float()


def _box_muller(r: Tensor, angle: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two normals from two random words, one for the radius and one for the angle.

    This is version 2 of the noise, in the exact arithmetic that csrc/core/noise.h approximates.
    """
    u = (r.to(dtype) + 0.5) * 2.0**-32
    distance = ((_MASK - r).to(dtype) + 0.5) * 2.0**-32  # 1 - u without cancellation
    radius = torch.sqrt(-2 * torch.where(u < 0.5, torch.log(u), torch.log1p(-distance)))
    signed = torch.where(angle < 2**31, angle, angle - 2**32)
    theta = (signed.to(dtype) + 0.5) * (torch.pi / 4 * 2.0**-31)  # within an eighth of a turn
    along, across = radius * torch.cos(theta), radius * torch.sin(theta)
    # The two lowest bits choose among the four quarters of the circle.
    along = torch.where(angle & 1 != 0, -along, along)
    swap = angle & 2 != 0
    return torch.where(swap, across, along), torch.where(swap, along, across)


def _coefficients(rows: Tensor, row: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the 15 coefficients of each sample's row, each shaped to broadcast over x."""
    number = row.reshape(-1)
    table = rows.index_select(0, number.clamp(0, len(rows) - 1)).to(dtype)
    # As in the kernel, a row outside the table gives NaN: raising would have to wait for the GPU.
    valid = (number >= 0) & (number < len(rows))
    table = torch.where(valid[:, None], table, torch.nan)
    return tuple(c.reshape(-1, *([1] * (x.dim() - 1))) for c in table.unbind(1))
