"""Three ComfyUI nodes: a SAMPLER, a list of SIGMAS, and both of a plan that was made for a model.

Copy this file to ``ComfyUI/custom_nodes/`` and install fastsample into ComfyUI's environment. The
outputs go into "SamplerCustom" or "SamplerCustomAdvanced", as those of ComfyUI's own nodes do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

import fastsample as fs
from fastsample.grids.registry import GRIDS
from fastsample.integrations import k_diffusion
from fastsample.plans.files import load_plans

# What the sampler node offers: names for people, and what they mean to `k_diffusion.sampler`.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "UniPC": ("unipc", {}),
    "DPM++ 2M": ("dpm++", {"order": 2}),
    "DPM++ 3M": ("dpm++", {"order": 3, "corrected": True}),
    "DPM++ 2M SDE": ("dpm++", {"order": 2, "stochastic": True}),
    "DDIM (Euler)": ("ddim", {}),
    "DDIM, eta = 1 (Euler ancestral)": ("ddim", {"eta": 1.0}),
    "Shortcut (noise afresh in every step)": ("shortcut", {}),
}
# Only grids that serve every schedule; "blended" is the one that fastsample takes by default.
SPACINGS = ["blended", "karras", "log_snr", "uniform", "quadratic", "power"]


class FastSampleSampler:
    """A SAMPLER that runs one of fastsample's methods on any list of SIGMAS."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI reads them."""
        return {"required": {"method": (list(SAMPLERS),)}}

    def get_sampler(self, method: str) -> tuple[Any]:
        """Return the SAMPLER of a method."""
        name, knobs = SAMPLERS[method]
        return (comfy.samplers.KSAMPLER(k_diffusion.sampler(name, **knobs)),)


class FastSampleSigmas:
    """SIGMAS of a model at the times of one of fastsample's grids."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI reads them."""
        return {
            "required": {
                "model": ("MODEL",),
                "spacing": (SPACINGS,),
                "steps": ("INT", {"default": 10, "min": 1, "max": 1000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(self, model: Any, spacing: str, steps: int, denoise: float) -> tuple[Tensor]:
        """Return the SIGMAS of a grid."""
        if denoise <= 0.0:
            return (torch.empty(0),)  # nothing to do, as ComfyUI's own schedulers say it
        schedule = k_diffusion.schedule(model.get_model_object("model_sampling"))
        # Image-to-image takes the last steps of a longer list, as ComfyUI's schedulers do. A model
        # with a table has no more levels than its length, so that fewer steps keep the start.
        total, most = int(steps / denoise), schedule.num_steps
        if most is not None and total > most:
            total, steps = most, max(1, round(most * denoise))
        sigmas = k_diffusion.sigmas(GRIDS[spacing](schedule, total), schedule)
        return (sigmas[-(steps + 1) :],)


class FastSamplePlan:
    """SAMPLER and SIGMAS of a plan that `fastsample.tune` or a planner made for this model."""

    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI reads them."""
        return {
            "required": {
                "path": ("STRING", {"default": "plans.json"}),
                "steps": ("INT", {"default": 8, "min": 1, "max": 1000}),
            }
        }

    def load(self, path: str, steps: int) -> tuple[Any, Tensor]:
        """Return the SAMPLER and the SIGMAS of one of the file's plans."""
        plans: dict[int, fs.Plan] = load_plans(Path(path).expanduser())
        if steps not in plans:
            raise ValueError(
                f"FastSamplePlan: steps must be one of the file's {sorted(plans)}, got {steps}"
            )
        plan = plans[steps]
        sampler = comfy.samplers.KSAMPLER(k_diffusion.sampler(plan))
        return sampler, k_diffusion.sigmas(plan)


NODE_CLASS_MAPPINGS = {
    "FastSampleSampler": FastSampleSampler,
    "FastSampleSigmas": FastSampleSigmas,
    "FastSamplePlan": FastSamplePlan,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FastSampleSampler": "fastsample: sampler",
    "FastSampleSigmas": "fastsample: sigmas",
    "FastSamplePlan": "fastsample: plan from a file",
}
