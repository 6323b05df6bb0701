"""Few-step sampling of trained diffusion models.

A sampler is a table of rows (`Plan`), one fused kernel executes a row, one loop runs the table::

    import fastsample as fs

    model = fs.load("digits")
    images = fs.sample(model, steps=10, num_samples=16)
"""

from fastsample import grids, training
from fastsample.costs import CostTable
from fastsample.denoiser import Denoiser
from fastsample.elbo import elbo_costs
from fastsample.forward import diffuse
from fastsample.grid import Grid
from fastsample.interpolation import interpolate
from fastsample.inversion import invert
from fastsample.likelihood import BitsPerDim, bits_per_dim
from fastsample.loading import load
from fastsample.loop import Step
from fastsample.ops import build_info
from fastsample.plan import Plan
from fastsample.plan_file import load_plans, save_plans
from fastsample.planner import best_path, best_paths
from fastsample.profiles import Profile
from fastsample.profiling import profile
from fastsample.samplers import (
    ancestral,
    ddim,
    ddim_inversion,
    dpm_solver,
    fastdpm,
    shortcut,
    unipc,
)
from fastsample.sampling import sample
from fastsample.schedule import NoiseSchedule
from fastsample.tuning import tune

__version__: str = build_info()["version"]

__all__ = [
    "BitsPerDim",
    "CostTable",
    "Denoiser",
    "Grid",
    "NoiseSchedule",
    "Plan",
    "Profile",
    "Step",
    "__version__",
    "ancestral",
    "best_path",
    "best_paths",
    "bits_per_dim",
    "build_info",
    "ddim",
    "ddim_inversion",
    "diffuse",
    "dpm_solver",
    "elbo_costs",
    "fastdpm",
    "grids",
    "interpolate",
    "invert",
    "load",
    "load_plans",
    "profile",
    "sample",
    "save_plans",
    "shortcut",
    "training",
    "tune",
    "unipc",
]
