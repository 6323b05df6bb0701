"""Makes sampling functions with the arguments of k-diffusion's, which ComfyUI calls too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.training_mode import warn_of_training_mode
from fastsample.grids.sigmas import Convention, checked_convention
from fastsample.integrations.k_diffusion.comfyui import (
    in_range,
    is_const,
    model_sampling,
    noise_scale,
)
from fastsample.integrations.k_diffusion.convert import for_x0_models
from fastsample.integrations.k_diffusion.levels import checked_sigmas
from fastsample.integrations.k_diffusion.rows import Choice, Made, network_of
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, clip_bounds
from fastsample.samplers.registry import METHODS, check_method
from fastsample.sampling.diagnosis import call_counter
from fastsample.sampling.loop import Step, run
from fastsample.sampling.noise import as_seed, make_identity
from fastsample.sampling.program import Program
from fastsample.sampling.recent import Recent

_NAME = "k_diffusion.sampler"


class SampleFunction(Protocol):
    """A sampling function with the arguments of k-diffusion's `sample_euler` and its kin."""

    def __call__(
        self,
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
        **knobs: Any,
    ) -> Tensor:
        """Return x at the last of the noise levels; see `sampler`."""
        ...


def sampler(
    plan_or_method: Plan | str = "auto",
    *,
    seed: int | None = None,
    clip: Clip = None,
    convention: Convention | None = None,
    **knobs: Any,
) -> SampleFunction:
    """Make a method or a plan of this package a sampling function of k-diffusion and ComfyUI.

    The result is called as ``sample(model, x, sigmas, extra_args=None, callback=None,
    disable=None)``. `model` returns x0 from ``(x, sigma)``. `sigmas` falls from the noise level of
    `x` to that of the result: 0 for a whole run, above 0 for the first part of one; a list for
    image-to-image starts lower. A single level is no step, and returns `x`. Between them the method
    takes ``len(sigmas) - 1`` network calls. In ComfyUI ``comfy.samplers.KSAMPLER(sampler(...))`` is
    a SAMPLER.

    ``sampler("ddim")`` is their Euler, ``sampler("ddim", eta=1.0)`` Euler ancestral (for ``x = x0 +
    sigma eps``; ComfyUI divides the noise of flow models otherwise), ``sampler("dpm++")`` DPM++ 2M
    and ``sampler("dpm++", stochastic=True)`` DPM++ 2M SDE of the midpoint type.

    Noise is that of `fastsample.sample`: a function of the seed, the sample's position in the batch
    and the row, whatever the batch and the device. Two parts of one run need two seeds, since each
    counts its rows from 0.

    Args:
        plan_or_method: a name of `fastsample.samplers.registry.METHODS` (but "fastdpm", which
            chooses its own levels), "auto", or a `Plan`. A plan of any schedule and prediction is
            run on its own list of noise levels, which `sigmas` returns, and on no other.
        seed: seed of the noise; None is ``extra_args["seed"]``, which ComfyUI passes, and without
            that a fresh one from torch's CPU generator.
        clip: range that x0 is clamped to: a bound on |x0|, a pair (lo, hi), or None.
        convention: what sigma and the samples are: "ratio" for ``x = x0 + sigma eps``, "flow" for
            ``x = (1 - sigma) x0 + sigma eps``. None is "flow" where the model's `model_sampling` is
            ComfyUI's `CONST`, and else "ratio".
        **knobs: further keyword arguments of the method, such as ``order=3``. An order above the
            number of steps is lowered to it. The result takes them too, for a single run.

    Returns:
        The function. Its keyword argument ``noise_sampler(sigma, sigma_next)``, which k-diffusion's
        have, replaces the generated noise.

    Raises:
        TypeError: an argument of the wrong type, or a knob that no method takes.
        ValueError: an unknown method, knobs of another one, or a plan with guidance or learned
            variances. The result raises it for levels that rise, are not finite, begin above the
            model's `sigma_max` or are not the plan's.
    """
    clip_bounds(_NAME, clip)
    given = None if convention is None else checked_convention(_NAME, convention, None)
    label = _checked_source(plan_or_method, clip, knobs)
    choice = Choice(_NAME, plan_or_method, clip, knobs)
    programs: Recent[Made] = Recent(16)

    def sample(
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
        **knobs: Any,
    ) -> Tensor:
        """Return x at the last of the noise levels; see `sampler`."""
        _check_call(model, x, extra_args, callback, noise_sampler)
        arguments = dict(extra_args or {})
        levels = checked_sigmas(_NAME, sigmas)
        kind: Convention = given or ("flow" if is_const(model_sampling(model)) else "ratio")
        levels = in_range(_NAME, model, levels, kind)
        if len(levels) == 1:
            return x  # a list that was split at its end, where a loop of k-diffusion has no step
        chosen = replace(choice, knobs={**choice.knobs, **knobs}) if knobs else choice
        scale = noise_scale(model) if kind == "flow" else 1.0
        key = (levels.tobytes(), kind, scale, *sorted(knobs.items()), x.device)
        made = programs.get(key, lambda: Made.of(chosen.rows(levels, kind, scale), x.device))
        network = network_of(model, x, arguments, made.input_scales)
        own = arguments.get("seed") if seed is None else seed
        return _run(made.program, network, x, own, noise_sampler, callback, disable)

    sample.__name__ = sample.__qualname__ = f"sample_fastsample_{label}"
    return sample


def _checked_source(source: Any, clip: Clip, knobs: Mapping[str, Any]) -> str:
    """Check a plan or a method's name, and return a name for the function made of it."""
    if isinstance(source, Plan):
        given = {**({} if clip is None else {"clip": clip}), **knobs}
        if given:
            raise ValueError(
                f"{_NAME}: clip and knobs must be left out with a Plan, which decides them, "
                f"got {given}"
            )
        for_x0_models(_NAME, source, "flow")  # refuses what no run could use
        return "plan"
    if isinstance(source, str) and source == "auto":
        return "auto"
    if check_method(_NAME, source, knobs).chooses_times:
        usable = ["auto", *(name for name, method in METHODS.items() if not method.chooses_times)]
        raise ValueError(
            f"{_NAME}: method must take the levels of a list, one of {usable}, got {source!r}"
        )
    return source


def _run(
    program: Program,
    network: Denoiser,
    x: Tensor,
    seed: Any,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None,
    callback: Callable[[dict[str, Any]], object] | None,
    disable: bool | None,
) -> Tensor:
    """Run the rows, and report to the other program's callback."""
    plan, batch = program.plan, x.shape[0]
    sigmas = torch.as_tensor(np.array(plan.nodes), device="cpu").to(x.device, x.dtype).unbind()
    identity, noise = None, None
    if plan.is_stochastic and noise_sampler is not None:
        draws = [
            noise_sampler(sigmas[k], sigmas[k + 1]).to(x) if d > 0.0 else torch.zeros_like(x)
            for k, d in enumerate(plan.column("d").tolist())
        ]
        noise = torch.stack(draws)
    elif plan.is_stochastic:
        identity = make_identity(_NAME, as_seed(_NAME, seed), None, batch, x.device)
    calls, state = np.cumsum(plan.calls_network) - 1, [x]

    def report(step: Step) -> None:
        # k-diffusion's functions show the samples that the network was given.
        if callback is not None and program.calls[step.row]:
            sigma = sigmas[step.row]
            callback(
                {
                    "x": state[0],
                    "i": int(calls[step.row]),
                    "sigma": sigma,
                    "sigma_hat": sigma,
                    "denoised": step.x0.to(x.dtype),
                }
            )
        state[0] = step.x

    shown = disable is False or (disable is None and sys.stderr.isatty())
    with torch.no_grad(), call_counter(plan.calls, show=shown) as count_call:
        # Without `in_place`, a model may keep the x that it is given, as it may in k-diffusion.
        return run(
            network,
            program,
            x,
            identity=identity,
            noise=noise,
            conditions=Conditions(_NAME, batch=batch, device=x.device),
            callback=None if callback is None else report,
            count_call=count_call,
        )


def _check_call(model: Any, x: Any, extra_args: Any, *functions: Any) -> None:
    """Raise unless the functions can be called and x is a batch of floating samples."""
    names = ("model", "callback", "noise_sampler")
    for name, function in zip(names, (model, *functions), strict=True):
        if not callable(function) and (function is not None or name == "model"):
            raise TypeError(f"{_NAME}: {name} must be callable, got {type(function).__name__}")
    if not isinstance(extra_args, Mapping | None):
        raise TypeError(
            f"{_NAME}: extra_args must be a mapping of keyword arguments, got {extra_args!r:.60}"
        )
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{_NAME}: x must be a floating tensor, got {got}")
    if x.dim() < 2:
        raise ValueError(f"{_NAME}: x must have shape (B, *shape), got {tuple(x.shape)}")
    warn_of_training_mode(_NAME, model)
