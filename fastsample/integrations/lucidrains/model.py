"""Turns a live object of denoising-diffusion-pytorch into a `Denoiser`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastsample._support.checks import check_bool, check_integer, check_real
from fastsample.denoiser.denoiser import Denoiser
from fastsample.integrations.lucidrains.schedules import schedule_of
from fastsample.integrations.lucidrains.self_conditioning import SelfConditioned
from fastsample.plans.rows import Prediction
from fastsample.schedules.schedule import NoiseSchedule

_NAME = "lucidrains.denoiser"
_PREDICTIONS: dict[str, Prediction] = {"pred_noise": "epsilon", "pred_x0": "x0", "pred_v": "v"}


def denoiser(
    diffusion: Any,
    *,
    self_condition: bool | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """Wrap a `GaussianDiffusion`, `GaussianDiffusion1D` or `ElucidatedDiffusion`.

    Samples are in [-1, 1], as the network sees them, while the project's own `sample` returns them
    in [0, 1]: ``diffusion.unnormalize(x)``, or ``(x + 1) / 2``. A `LearnedGaussianDiffusion` is a
    noise prediction with a learned variance, whatever its `objective` says. The number and list of
    steps, eta and the method are arguments of `fastsample.sample`, see `grid`; x0 is clamped to
    [-1, 1] as there.

    An `ElucidatedDiffusion` becomes a model with ``x_t = x0 + t eps`` for t from 0 to `sigma_max`
    (Karras et al. 2022, arXiv:2206.00364), which predicts x0. The network's preconditioning is
    the object's own.

    Args:
        diffusion: the object; for the weights of an average, that of `trainer.ema.ema_model`.
        self_condition: whether the network is given its last x0 (Chen et al. 2022, "Analog Bits",
            arXiv:2208.04202); None is what the object was trained with. If True, draw samples with
            `sample` of this module. False runs such a network without it, with zeros, as half of
            its training did.
        device: where to run; the network is moved there.

    Raises:
        TypeError: another object.
        ValueError: an unknown objective, or a kind of diffusion that is not supported.
    """
    if all(hasattr(diffusion, name) for name in ("net", "sigma_data", "sigma_max")):
        return _elucidated(diffusion, self_condition, device)
    missing = [name for name in ("model", "betas", "objective") if not hasattr(diffusion, name)]
    if missing:
        remedy = "; pass the diffusion around the network, which has the schedule"
        if hasattr(diffusion, "log_snr"):
            remedy = (
                "; for a continuous time pass fs.Denoiser(network, NoiseSchedule.from_functions("
                'log_snr=...), shape, time="log_snr")'
            )
        elif hasattr(diffusion, "ema_model") or hasattr(diffusion, "ema"):
            remedy = "; pass trainer.model, or trainer.ema.ema_model for the averaged weights"
        raise TypeError(
            f"{_NAME}: diffusion must be a GaussianDiffusion or an ElucidatedDiffusion, got "
            f"{type(diffusion).__name__} without {missing[0]}{remedy}"
        )
    if hasattr(diffusion, "split_dims"):
        raise ValueError(
            f"{_NAME}: diffusion must predict noise, x0 or v, got {type(diffusion).__name__}, "
            "which predicts two of them; pass fs.Denoiser a function that returns their mixture"
        )
    if hasattr(diffusion.model, "cond_drop_prob"):
        raise ValueError(
            f"{_NAME}: diffusion must have a network without classes, got "
            f"{type(diffusion.model).__name__}, which drops them at random; pass fs.Denoiser a "
            "function: lambda x, t, classes: network(x, t, classes, cond_drop_prob=0.0)"
        )
    learned = hasattr(diffusion, "vb_loss_weight")
    objective = diffusion.objective
    if objective not in _PREDICTIONS:
        raise ValueError(
            f"{_NAME}: diffusion.objective must be one of {list(_PREDICTIONS)}, got {objective!r}"
        )
    shape = _shape(diffusion)
    _check_channels(diffusion.model, diffusion.channels, learned=learned)
    return Denoiser(
        _with_memory(diffusion.model, diffusion, self_condition, call=None),
        schedule_of(_NAME, diffusion.betas),
        shape,
        prediction="epsilon" if learned else _PREDICTIONS[objective],
        variance="learned_range" if learned else "small",
        clip=1.0,
        device=device,
    )


class Preconditioned(nn.Module):
    """The network of an `ElucidatedDiffusion` with its preconditioning, which predicts x0."""

    def __init__(self, diffusion: Any) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.training = False  # a network inside that is in training mode is still warned of

    def forward(self, x: Tensor, sigma: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        """Return the estimate of x0 at noise levels sigma `(B,)`."""
        return self.diffusion.preconditioned_network_forward(x, sigma, x_self_cond, clamp=False)


def _elucidated(diffusion: Any, self_condition: bool | None, device: Any) -> Denoiser:
    """Return the model of an `ElucidatedDiffusion`, whose time is the noise level."""
    top = check_real(_NAME, "diffusion.sigma_max", diffusion.sigma_max)
    schedule = NoiseSchedule.exploding(top)
    return Denoiser(
        _with_memory(diffusion.net, diffusion, self_condition, call=Preconditioned(diffusion)),
        schedule,
        _shape(diffusion),
        prediction="x0",
        clip=1.0,
        time=schedule.sigma,
        device=device,
    )


def _with_memory(network: Any, diffusion: Any, asked: bool | None, call: Any) -> nn.Module:
    """Return the network, so wrapped that it is given its last x0 if it conditions on itself."""
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"{_NAME}: diffusion must hold a torch.nn.Module, got {type(network).__name__}"
        )
    trained = bool(getattr(diffusion, "self_condition", False))
    if asked is not None and check_bool(_NAME, "self_condition", asked) and not trained:
        raise ValueError(
            f"{_NAME}: self_condition must be False for a network without self-conditioning, "
            "got True"
        )
    model: nn.Module = network if call is None else call
    return SelfConditioned(model) if trained and asked is not False else model


def _shape(diffusion: Any) -> tuple[int, ...]:
    """Return the shape of one sample."""
    channels = check_integer(_NAME, "diffusion.channels", getattr(diffusion, "channels", None), 1)
    if hasattr(diffusion, "seq_length"):
        length = check_integer(_NAME, "diffusion.seq_length", diffusion.seq_length, 1)
        return (
            (channels, length) if getattr(diffusion, "channel_first", True) else (length, channels)
        )
    size = getattr(diffusion, "image_size", None)
    sides = cast("tuple[Any, ...]", size if isinstance(size, (tuple, list)) else (size, size))
    return (channels, *(check_integer(_NAME, "diffusion.image_size", side, 1) for side in sides))


def _check_channels(network: Any, channels: int, *, learned: bool) -> None:
    """Raise ValueError for a network of the project that has other output channels."""
    outputs = getattr(network, "out_dim", None)
    expected = channels * (1 + learned)
    if isinstance(outputs, int) and outputs != expected:
        raise ValueError(
            f"{_NAME}: diffusion.model must have {expected} output channels for {channels} of the "
            f"samples, got {outputs}"
        )
