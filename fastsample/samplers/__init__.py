"""Samplers: pure functions from a schedule, a grid and a few knobs to a plan."""

from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim, ddim_inversion

__all__ = ["ancestral", "ddim", "ddim_inversion"]
