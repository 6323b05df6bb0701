"""Models of lucidrains' denoising-diffusion-pytorch: `GaussianDiffusion` and `ElucidatedDiffusion`.

The project need not be installed to import this: `denoiser` takes a live object and reads its
attributes, `grid` is its list of times, and `sample` runs networks that condition on themselves.
"""

from fastsample.integrations.lucidrains.lists import grid as grid
from fastsample.integrations.lucidrains.model import denoiser as denoiser
from fastsample.integrations.lucidrains.self_conditioning import sample as sample

__all__ = ["denoiser", "grid", "sample"]
