"""k-diffusion and ComfyUI: their denoisers in this package, and its samplers in their programs.

k-diffusion's samplers are functions ``sample_euler(model, x, sigmas, extra_args, callback,
disable)``, and ComfyUI calls samplers with the same arguments. `sampler` makes such a function of
any method or plan of this package, `sigmas` makes the list of noise levels that goes with it, and
`denoiser` wraps a k-diffusion model for `fastsample.sample`, `tune` and all the rest. Neither
program needs to be installed.

Their noise level is ``sigma / alpha`` of this package, and their samples are divided by alpha, so
that ``x = x0 + sigma eps`` (variance exploding). ComfyUI's flow models (its class `CONST`) keep
``x = (1 - sigma) x0 + sigma eps``.
"""

from fastsample.integrations.k_diffusion.denoiser import denoiser
from fastsample.integrations.k_diffusion.levels import karras
from fastsample.integrations.k_diffusion.sampler import sampler
from fastsample.integrations.k_diffusion.tables import schedule, sigmas

__all__ = ["denoiser", "karras", "sampler", "schedule", "sigmas"]
