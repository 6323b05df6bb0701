"""Samplers: pure functions from a schedule, a grid and a few knobs to a plan."""

from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim, ddim_inversion
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.fastdpm import fastdpm
from fastsample.samplers.shortcut import shortcut
from fastsample.samplers.unipc import unipc

__all__ = ["ancestral", "ddim", "ddim_inversion", "dpm_solver", "fastdpm", "shortcut", "unipc"]
