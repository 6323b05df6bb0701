"""EDM networks (Karras et al. 2022, NVlabs/edm): ``net(x, sigma, class_labels) -> x0``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastsample._support.checks import FloatArray, check_real
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.integrations.k_diffusion.denoiser import wrap
from fastsample.integrations.k_diffusion.levels import karras_grid
from fastsample.plans.rows import Clip

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""The range of noise levels of the authors' sampler, cut to what the network supports."""


def denoiser(
    net: Callable[..., Any],
    shape: Sequence[int] | None = None,
    *,
    sigma_max: float = SIGMA_MAX,
    clip: Clip = None,
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """Wrap a network with EDM's preconditioning; classes are ``cond={"class_labels": one_hot}``.

    The schedule is ``x_t = x0 + t eps`` up to the smaller of `sigma_max` and ``net.sigma_max``; the
    network predicts x0 and is told t. `fastsample.sample` starts from noise of deviation ``sqrt(1 +
    sigma_max^2)``, the authors' sampler from `sigma_max` itself.

    Args:
        net: callable ``(x, sigma, class_labels=None) -> x0``, such as `EDMPrecond`, or VP, VE and
            iDDPM of the same repository.
        shape: shape of one sample; None is that of ``net.img_channels`` and ``net.img_resolution``.
        sigma_max: the largest noise level.
        clip: range of the data: a bound on |x0|, a pair (lo, hi), or None.
        uncond: keyword arguments that mean "no condition", for guidance.
        device: where to run; a module is moved there.

    Raises:
        TypeError: a network that cannot be called.
        ValueError: no `shape` where the network does not state one, or a level out of range.
    """
    name = "edm.denoiser"
    if not callable(net):
        raise TypeError(f"{name}: net must be callable, got {type(net).__name__}")
    if shape is None:
        channels, size = (getattr(net, key, None) for key in ("img_channels", "img_resolution"))
        if channels is None or size is None:
            raise ValueError(
                f"{name}: shape must be given for {type(net).__name__}, which has no img_channels "
                "and img_resolution, got None"
            )
        shape = (channels, size, size)
    top = min(check_real(name, "sigma_max", sigma_max), _stated(net, "sigma_max", math.inf))
    if top > 0.0:
        top = max(top, float(_rounded(net, np.array([top]))[0]))  # where its grid may begin
    return wrap(name, net, shape, top, clip, uncond, device)


def grid(
    net: Callable[..., Any],
    steps: int,
    *,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = 7.0,
) -> Grid:
    """Make the noise levels of the authors' sampler for a network, as times of its schedule.

    They are eq. (5) of Karras et al. 2022 (arXiv:2206.00364) between the levels that the network
    supports, rounded by ``net.round_sigma`` as there. `fastsample.grids.karras` ends elsewhere.

    Args:
        net: the network; its `sigma_min`, `sigma_max` and `round_sigma` are read if it has them.
        steps: K, at least 1; levels that round to the same one are dropped.
        sigma_min: the last level before 0.
        sigma_max: the first level.
        rho: exponent, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.
    """
    low = max(check_real("edm.grid", "sigma_min", sigma_min), _stated(net, "sigma_min", 0.0))
    high = min(check_real("edm.grid", "sigma_max", sigma_max), _stated(net, "sigma_max", math.inf))
    times = karras_grid("edm.grid", steps, low, high, rho).times
    return Grid(np.append(np.unique(_rounded(net, times[:-1]))[::-1], 0.0))


def _rounded(net: Any, levels: FloatArray) -> FloatArray:
    """Return the levels that a network rounds these to, if it takes only some of them."""
    round_sigma: Any = getattr(net, "round_sigma", None)
    if round_sigma is None:
        return levels
    return round_sigma(torch.as_tensor(np.array(levels))).detach().cpu().double().numpy()


def _stated(net: Any, name: str, otherwise: float) -> float:
    """Return a noise level that a network states, or another one."""
    return float(getattr(net, name, otherwise))
