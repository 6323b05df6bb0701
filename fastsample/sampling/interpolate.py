"""The function `interpolate`, which interpolates between starting noises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


def interpolate(z1: Tensor, z2: Tensor, weights: Tensor | Sequence[float]) -> Tensor:
    """Return spherical interpolations (slerp) between the noises of two samples.

    Eq. 67 of Song et al. 2021 (arXiv:2010.02502). The angle is between the whole tensors,
    flattened, as in the DDIM repository; pass single samples, and the result to `sample` as
    `start`. Tensors that are nearly parallel (or opposite, where no arc is the shortest) are
    interpolated linearly.

    Args:
        z1: noise ``(*shape)``.
        z2: noise of the same shape, dtype and device.
        weights: ``(W,)``, any real numbers; 0 gives `z1`, 1 gives `z2`.

    Returns:
        ``(W, *shape)`` in the dtype of `z1`; the arithmetic is in float64.

    Raises:
        TypeError: noise that is no floating tensor.
        ValueError: shapes, dtypes or devices that differ, or weights that are not a vector.
    """
    for name, tensor in (("z1", z1), ("z2", z2)):
        _check_floating(name, tensor)
    if z1.dtype != z2.dtype or z1.device != z2.device:
        raise ValueError(
            f"interpolate: z2 must be {z1.dtype} on {z1.device} like z1, "
            f"got {z2.dtype} on {z2.device}"
        )
    if z1.shape != z2.shape:
        raise ValueError(
            f"interpolate: z2 must have the shape of z1 {tuple(z1.shape)}, got {tuple(z2.shape)}"
        )
    w = torch.as_tensor(weights, dtype=torch.float64, device=z1.device)
    if w.dim() != 1:
        raise ValueError(f"interpolate: weights must have shape (W,), got {tuple(w.shape)}")
    if not torch.isfinite(w).all():
        wrong = w[~torch.isfinite(w)][0].item()
        raise ValueError(f"interpolate: weights must be finite, got {wrong}")
    a, b = z1.double().flatten(), z2.double().flatten()
    norms = cast(Tensor, a.norm() * b.norm())  # pyright: ignore[reportUnknownMemberType]
    cosine = torch.clamp(a @ b / norms, -1.0, 1.0)
    theta = torch.acos(cosine)
    sine = torch.sin(theta)
    # A norm of 0 makes the angle NaN.
    linear = (sine.abs() < 1e-6) | ~torch.isfinite(sine)
    first = torch.where(linear, 1.0 - w, torch.sin((1.0 - w) * theta) / sine)
    second = torch.where(linear, w, torch.sin(w * theta) / sine)
    mixed = first[:, None] * a + second[:, None] * b
    return mixed.to(z1.dtype).reshape(-1, *z1.shape)


def _check_floating(name: str, tensor: Any) -> None:
    """Raise TypeError for anything but a floating tensor."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(f"interpolate: {name} must be a floating tensor, got {tensor!r:.80}")
