"""The function `denoiser`, which makes a `Denoiser` of a pipeline or a network of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.timesteps import TimeInput
from fastsample.denoiser.wrap import check_denoiser
from fastsample.integrations.diffusers.conventions import Conventions, conventions
from fastsample.integrations.diffusers.families import PLAIN, Family, flow_family
from fastsample.integrations.diffusers.inputs import DiffusersNetwork, unwrapped
from fastsample.integrations.diffusers.shapes import learns_variance, sample_shape
from fastsample.schedules.schedule import NoiseSchedule

_SECOND_NETWORKS = ("transformer_2", "unet_2", "controlnet", "prior", "prior_prior")


def denoiser(
    pipeline_or_model: Any,
    scheduler: Any = None,
    shape: Sequence[int] | None = None,
    *,
    time: TimeInput | Literal["auto"] = "auto",
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """Return the network of a pipeline of diffusers as a `Denoiser`.

    Schedule, prediction, clip range, dynamic thresholding and the last level come from the
    scheduler's config, and the timesteps are those that the network's own pipeline tells it: the
    index for networks of discrete steps; for flow matching whatever the class was trained with
    (1000 t, t, or 1 - t), rounded as the pipeline rounds it in the network's dtype. A multistep
    scheduler of flow matching (UniPC, DPM-Solver++) truncates 1000 t to integers, and so does this.

    The conditions are the keyword arguments of the network, without time and x. What is equal for
    all samples, such as the `img_ids` and `txt_ids` of FLUX, goes through `fastsample.shared`;
    texts of different lengths (Z-Image) are a list. Guidance is ``u + w (c - u)``, as in Stable
    Diffusion; Z-Image's guidance scale g is w = g + 1. Text encoders, VAE and safety checker are
    not run: samples are latents, and `cond` holds embeddings (``pipe.encode_prompt``).

    Args:
        pipeline_or_model: a pipeline with a `unet` or `transformer` and a scheduler, or a network.
        scheduler: a scheduler with the network's config, which is not changed; None is the
            pipeline's. Its class matters for flow matching only.
        shape: shape of one sample (latents), without the batch axis; None takes it from the
            network's config where that tells it.
        time: the timestep that the network takes, see `Denoiser`; "auto" is described above.
        uncond: conditions that mean "no condition", such as the embedding of the empty prompt; for
            DiT it is the class without a label by default.
        device: where to run; the network is moved there. None leaves it where it is.

    Returns:
        The denoiser. Networks with twice the channels have ``variance="learned_range"``, which
        DiT's and PixArt's own pipelines drop (`method="ancestral"` with ``variance="small"``).

    Raises:
        TypeError: no network, or a pipeline without a known one.
        ValueError: a scheduler of a kind that this package does not know, no scheduler or shape, a
            pipeline of two networks, or a flow-matching network of an unknown class.

    Warns:
        UserWarning: the network is in training mode.
    """
    network, scheduler = _network_and_scheduler(pipeline_or_model, scheduler)
    inner = unwrapped(network)
    learned = learns_variance(inner)
    read = _conventions(scheduler, learned)
    sizes = sample_shape(inner) if shape is None else shape
    if shape is None and hasattr(pipeline_or_model, "vocoder"):
        sizes = None  # A spectrogram's latents are not square, as `sample_size` would mean.
    if sizes is None:
        raise ValueError(
            f"denoiser: shape must be given for {type(inner).__name__}, whose config does not tell "
            "it, got None; pass the shape of the latents that the network takes, without the batch"
        )
    threshold = read.threshold
    if threshold is not None and read.clip is not None and threshold[1] == read.clip:
        threshold = None  # This is plain clipping, which the kernel does.
    family = _family(inner, read, time)
    labels = getattr(inner, "config", {}).get("num_embeds_ada_norm")
    if uncond is None and labels is not None and type(inner).__name__ == "DiTTransformer2DModel":
        uncond = {"class_labels": labels}  # The embedding after those of the classes.
    told: Any = _time(scheduler, read) if isinstance(time, str) and time == "auto" else time
    made = Denoiser(
        DiffusersNetwork(network, family),
        read.schedule,
        sizes,
        prediction=read.prediction,
        variance="learned_range" if learned else "small",
        clip=read.clip,
        time=told,
        uncond=uncond,
        device=device,
        threshold=threshold,
        last=read.last,  # pyright: ignore[reportArgumentType]
    )
    check_denoiser("denoiser", made)
    return made


def _network_and_scheduler(source: Any, scheduler: Any) -> tuple[nn.Module, Any]:
    """Return the network and the scheduler of a pipeline, or of a network with its scheduler."""
    if isinstance(source, nn.Module):
        if scheduler is None:
            raise ValueError(
                "denoiser: scheduler must be given with a network, got None; pass "
                "denoiser(network, pipe.scheduler)"
            )
        return source, scheduler
    name = type(source).__name__
    if isinstance(source, type) or not hasattr(source, "scheduler"):
        raise TypeError(
            "denoiser: pipeline_or_model must be a pipeline of diffusers or a torch.nn.Module, got "
            f"{source.__name__ if isinstance(source, type) else name}"
        )
    networks = [getattr(source, part, None) for part in ("unet", "transformer")]
    found = [network for network in networks if isinstance(network, nn.Module)]
    if len(found) != 1:
        raise TypeError(
            "denoiser: pipeline_or_model must be a pipeline with a unet or a transformer, got "
            f"{name}; pass denoiser(network, scheduler)"
        )
    for part in _SECOND_NETWORKS:
        if getattr(source, part, None) is not None:
            raise ValueError(
                f"denoiser: pipeline_or_model must be a pipeline of one network, got {name} with "
                f"{part}; pass denoiser(network, pipe.scheduler) to sample from one alone"
            )
    return found[0], source.scheduler if scheduler is None else scheduler


def _conventions(scheduler: Any, learned: bool) -> Conventions:
    """Return the conventions of a network; raise for what cannot be carried over."""
    if type(scheduler).__name__ == "CosineDPMSolverMultistepScheduler":
        return _cosine(scheduler)
    read = conventions("denoiser", scheduler)
    if learned and scheduler.config.get("variance_type") == "learned":
        raise ValueError(
            'denoiser: variance_type must be "learned_range" or a fixed one, got "learned", whose '
            "output is the variance itself"
        )
    return read


def _cosine(scheduler: Any) -> Conventions:
    """Return the conventions of Stable Audio: v prediction, alpha = cos(pi t / 2), T = 1.

    Its scheduler writes them as the preconditioning of EDM (Karras et al. 2022, arXiv:2206.00364)
    with the timestep ``2 atan(sigma / alpha) / pi`` = t.
    """
    kind, width = scheduler.config["prediction_type"], scheduler.config["sigma_data"]
    if kind != "v_prediction" or width != 1.0:
        raise ValueError(
            'denoiser: scheduler must have prediction_type="v_prediction" and sigma_data=1, got '
            f"{kind!r} and {width}"
        )
    schedule = NoiseSchedule.from_functions(alpha=_cosine_alpha, sigma=_cosine_sigma)
    return Conventions(schedule, "v", None, None, "data")


def _cosine_alpha(t: Any) -> Any:
    return np.cos(0.5 * np.pi * t)


def _cosine_sigma(t: Any) -> Any:
    return np.sin(0.5 * np.pi * t)


def _family(network: Any, read: Conventions, time: Any) -> Family:
    """Return how the network is called; ValueError for an unknown one of flow matching."""
    if not read.is_flow:
        return PLAIN
    family = flow_family(network)
    if isinstance(time, str) and time == "auto":
        if family is None:
            raise ValueError(
                f"denoiser: time must be given for {type(network).__name__}, which this package "
                'does not know, got "auto"; pass time="thousandths" (1000 t), "fraction" (t) or '
                '"reversed" (1 - t), as its pipeline does'
            )
        return family
    # With a time of the caller only the rest of the family's conventions is kept.
    return Family(PLAIN.told) if family is None else Family(PLAIN.told, family.sign, family.lists)


def _time(scheduler: Any, read: Conventions) -> TimeInput:
    """Return the timesteps that the scheduler counts in."""
    if not read.is_flow:
        return "index" if read.schedule.num_steps is not None else "fraction"
    steps = scheduler.config["num_train_timesteps"]
    whole = bool(scheduler.config.get("use_flow_sigmas"))
    if steps == 1000:
        return "whole_thousandths" if whole else "thousandths"
    return partial(_counted, steps, whole)


def _counted(steps: int, whole: bool, times: Any) -> Any:
    """Return a scheduler's timesteps at times, as integers or not."""
    return (steps * times).astype(np.int64) if whole else steps * times
