"""Runs the deterministic schedulers of diffusers for the benchmark of defaults."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from benchmarks.default_targets import Target
from fastsample.evaluation.diffusers_schedulers import (
    TIMES,
    DiffusersSampler,
    deterministic_samplers,
    unclipped_samplers,
)

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def label(sampler: DiffusersSampler) -> str:
    """Return a sampler's name with its timestep spacing or shift."""
    shift = [v for k, v in sampler.options.items() if k in ("shift", "flow_shift")]
    options = {k: v for k, v in sampler.options.items() if k == "solver_order"}
    if not shift:
        return f"{sampler.short_label}, {sampler.grid}"
    name = sampler.scheduler.replace("Multistep", "").replace("Scheduler", "")
    return f"{name}{options.get('solver_order', '')}, shift {shift[0]:g}"


def samplers(target: Target) -> list[DiffusersSampler]:
    """Return the deterministic settings of diffusers for a target."""
    if target.peer.prediction == "flow":
        multistep = [
            ("UniPCMultistepScheduler", {"solver_order": 2}),
            ("UniPCMultistepScheduler", {"solver_order": 3}),
            ("DPMSolverMultistepScheduler", {"solver_order": 2}),
            ("DPMSolverMultistepScheduler", {"solver_order": 3}),
            ("DEISMultistepScheduler", {}),
        ]
        return [
            *(
                DiffusersSampler("flow", f"FlowMatch{name}DiscreteScheduler", {"shift": shift})
                for name in ("Euler", "Heun")
                for shift in (1.0, 3.0)
            ),
            *(
                DiffusersSampler("flow", name, {**FLOW, **options, "flow_shift": shift})
                for name, options in multistep
                for shift in (1.0, 3.0)
            ),
        ]
    found = deterministic_samplers()
    if target.denoiser.clip is not None:
        found += unclipped_samplers()
    for name, spacings in (
        ("EulerDiscreteScheduler", ("leading", "trailing", "linspace", "karras", "exponential")),
        ("HeunDiscreteScheduler", ("trailing", "linspace", "karras")),
        ("LMSDiscreteScheduler", ("trailing", "linspace", "karras", "exponential")),
        ("PNDMScheduler", ("leading", "trailing", "linspace")),
    ):
        extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
        found += [
            DiffusersSampler(name, name, {**extra, **TIMES[grid]}, grid, clips=False)
            for grid in spacings
        ]
    return found


def diffusers_samples(target: Target, sampler: DiffusersSampler, calls: int) -> Tensor:
    """Draw samples in at most this many network calls; ValueError if the scheduler makes more."""
    import diffusers

    flow, name = target.peer.prediction == "flow", sampler.scheduler
    scheduler = getattr(diffusers, name)(**sampler.options) if flow else sampler.make(target.peer)
    steps = (calls + 1) // 2 if "Heun" in name else calls - 1 if "PNDM" in name else calls
    if name == "FlowMatchEulerDiscreteScheduler":
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) > calls:
        raise ValueError(f"diffusers_samples: {name} must make at most {calls} calls")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x = target.start * float(getattr(scheduler, "init_noise_sigma", 1.0))
    lift = (..., None) if x.dim() == 2 else (...,)  # Thresholding fails for samples of one axis.
    for k, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        when = float(t) + 1.0
        if flow:  # Multistep schedulers round their timesteps.
            when = float(t) / 1000 if "FlowMatch" in name else float(scheduler.sigmas[k])
        output = target.peer.at_time(scaled.float(), when)
        x = scheduler.step(output[lift], t, x[lift]).prev_sample.reshape(x.shape)
    return x
