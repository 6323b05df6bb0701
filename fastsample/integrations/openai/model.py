"""Turns a network of improved-diffusion or guided-diffusion into a `Denoiser`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.grids.makers import respaced
from fastsample.integrations.openai.settings import NAME, Project, Settings
from fastsample.integrations.openai.weights import load_weights


def denoiser(
    model: Callable[..., Any],
    shape: Sequence[int] | None = None,
    *,
    settings: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    project: Project | None = None,
    diffusion_steps: int | None = None,
    noise_schedule: str | None = None,
    learn_sigma: bool | None = None,
    sigma_small: bool | None = None,
    rescale_timesteps: bool | None = None,
    predict_xstart: bool | None = None,
    class_cond: bool | None = None,
    clip_denoised: bool | None = None,
    image_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    **others: Any,
) -> Denoiser:
    """Wrap a network of improved-diffusion or guided-diffusion, or of one of their many forks.

    The keyword arguments are the flags of their command lines, so that their dictionary can be
    passed as it is: ``denoiser(model, **model_and_diffusion_defaults())``, or with the flags that
    differ. Flags that do not matter here, such as `num_channels`, are accepted; unknown ones are
    not. Nichol and Dhariwal 2021 (arXiv:2102.09672), Dhariwal and Nichol 2021 (arXiv:2105.05233).

    The network of a class-conditional model takes its labels as ``fs.sample(..., cond={"y": y})``.

    Args:
        model: the network, ``(x, timesteps, y=None) -> output``, as `create_model_and_diffusion`
            returns it first. No file of theirs is needed for any other callable of this form.
        shape: shape of one sample; None takes the square of `image_size`, with the 3 channels that
            all networks of both projects have.
        settings: more flags: a mapping, or the path of a JSON file with one. Keyword arguments win.
        project: "improved" or "guided", for the default of `rescale_timesteps`.
        diffusion_steps: T, 1000 by default; 4000 for most networks of improved-diffusion.
        noise_schedule: "linear", the default, or "cosine".
        learn_sigma: whether the output has twice the channels, the second half a learned variance.
        sigma_small: without `learn_sigma`, ancestral sampling has the variance beta-tilde if True,
            and beta if False, which is the default of both projects.
        rescale_timesteps: whether the network takes ``index * 1000 / T`` instead of the index. It
            must be given here or by `project`, since a wrong one gives wrong images and no error.
        predict_xstart: whether the network predicts x0 instead of the noise.
        class_cond: whether the network takes labels; compared with the network, if it tells.
        clip_denoised: whether x0 is clamped to [-1, 1], True by default.
        image_size: height and width, for `shape`.
        checkpoint: a file of weights to load into the network first, see `load_weights`.
        uncond: keyword arguments that mean "no condition", for networks trained for guidance.
        device: where to run; the network is moved there.
        **others: their other flags.

    Raises:
        TypeError: an argument of the wrong type.
        FileNotFoundError: no such file.
        ValueError: an unknown flag, one that does not fit the network, or a wrong checkpoint.
    """
    if not callable(model):
        raise TypeError(
            f"{NAME}: model must be a network (x, timesteps, y=None) -> output, got "
            f"{type(model).__name__}; pass the first of what create_model_and_diffusion returns"
        )
    flags = Settings.of(
        settings,
        project,
        {
            **others,
            "diffusion_steps": diffusion_steps,
            "noise_schedule": noise_schedule,
            "learn_sigma": learn_sigma,
            "sigma_small": sigma_small,
            "rescale_timesteps": rescale_timesteps,
            "predict_xstart": predict_xstart,
            "class_cond": class_cond,
            "clip_denoised": clip_denoised,
            "image_size": image_size,
        },
    )
    sizes = _shape(shape, flags)
    _check_network(model, sizes, flags)
    schedule = flags.schedule()
    if checkpoint is not None:
        load_weights(cast("nn.Module", model), checkpoint)
    return Denoiser(
        model,
        schedule,
        sizes,
        prediction="x0" if flags.predict_xstart else "epsilon",
        variance=(
            "learned_range" if flags.learn_sigma else "small" if flags.sigma_small else "large"
        ),
        clip=1.0 if flags.clip_denoised else None,
        time="rescaled" if flags.rescale_timesteps else "index",
        uncond=uncond,
        device=device,
    )


def grid(timestep_respacing: str | int | Sequence[int] = "", diffusion_steps: int = 1000) -> Grid:
    """Return the times that their `timestep_respacing` keeps, for ``fs.sample(model, grid)``.

    Args:
        timestep_respacing: their flag: "250", "10,15,20" or a list (steps kept in each of equal
            sections), "ddim25" (a fixed stride); "" keeps all steps.
        diffusion_steps: T of the model, such as 4000: the times are steps of that schedule.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: more steps than there are, or a stride that does not exist.
    """
    whole = timestep_respacing == "" or timestep_respacing == []
    return respaced(diffusion_steps, diffusion_steps if whole else timestep_respacing)


def _shape(shape: Sequence[int] | None, flags: Settings) -> Sequence[int]:
    """Return the shape of one sample: the caller's, or a square with 3 channels."""
    if shape is not None:
        return shape
    if flags.image_size is None:
        raise ValueError(f"{NAME}: shape must be given without image_size, got None")
    return 3, flags.image_size, flags.image_size


def _check_network(model: Any, shape: Sequence[int], flags: Settings) -> None:
    """Raise ValueError for flags that contradict the attributes of their `UNetModel`."""
    outputs, classes = getattr(model, "out_channels", None), getattr(model, "num_classes", "")
    expected = (1 + flags.learn_sigma) * shape[0]
    if isinstance(outputs, int) and outputs != expected:
        remedy = ""
        if outputs == (2 - flags.learn_sigma) * shape[0]:
            remedy = f"; pass learn_sigma={not flags.learn_sigma}"
        raise ValueError(
            f"{NAME}: model must have {expected} output channels for shape {tuple(shape)} and "
            f"learn_sigma={flags.learn_sigma}, got {outputs}{remedy}"
        )
    labelled = classes is not None
    if flags.class_cond is not None and classes != "" and labelled != flags.class_cond:
        raise ValueError(
            f"{NAME}: class_cond must be {labelled} for this network, whose num_classes is "
            f"{classes}, got {flags.class_cond}"
        )
