"""Few-step sampling of trained diffusion models.

A sampler is a table of rows (`Plan`), one fused kernel executes a row, one loop runs the table::

    import fastsample as fs

    model = fs.load("digits")
    images = fs.sample(model, steps=10, num_samples=16)

Names are imported when they are first used (PEP 562): `import fastsample` alone loads nothing,
not even torch. Samplers are found in `fastsample.samplers.registry`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; a test compares it with what is found below
    from fastsample import grids as grids
    from fastsample import integrations as integrations
    from fastsample import plans as plans
    from fastsample import training as training
    from fastsample.bundled.load import load as load
    from fastsample.denoiser.denoiser import Denoiser as Denoiser
    from fastsample.denoiser.trees import shared as shared
    from fastsample.grids.grid import Grid as Grid
    from fastsample.likelihood.bits_per_dim import BitsPerDim as BitsPerDim
    from fastsample.likelihood.bits_per_dim import bits_per_dim as bits_per_dim
    from fastsample.ops import build_info as build_info
    from fastsample.planning.cost_table import CostTable as CostTable
    from fastsample.planning.elbo import elbo_costs as elbo_costs
    from fastsample.planning.shortest_path import best_path as best_path
    from fastsample.planning.shortest_path import best_paths as best_paths
    from fastsample.plans.files import load_plans as load_plans
    from fastsample.plans.files import save_plans as save_plans
    from fastsample.plans.plan import Plan as Plan
    from fastsample.profiling.measure import profile as profile
    from fastsample.profiling.profile import Profile as Profile
    from fastsample.samplers.ancestral import ancestral as ancestral
    from fastsample.samplers.ddim import ddim as ddim
    from fastsample.samplers.ddim import ddim_inversion as ddim_inversion
    from fastsample.samplers.dpm_solver import dpm_solver as dpm_solver
    from fastsample.samplers.fastdpm import fastdpm as fastdpm
    from fastsample.samplers.restart import restart as restart
    from fastsample.samplers.shortcut import shortcut as shortcut
    from fastsample.samplers.unipc import unipc as unipc
    from fastsample.sampling.advance import SamplerStack as SamplerStack
    from fastsample.sampling.diffuse import diffuse as diffuse
    from fastsample.sampling.history import History as History
    from fastsample.sampling.inpaint import inpaint as inpaint
    from fastsample.sampling.interpolate import interpolate as interpolate
    from fastsample.sampling.invert import invert as invert
    from fastsample.sampling.log_prob import log_prob as log_prob
    from fastsample.sampling.loop import Step as Step
    from fastsample.sampling.noise import new_seed as new_seed
    from fastsample.sampling.sample import sample as sample
    from fastsample.sampling.sampler import Sampler as Sampler
    from fastsample.schedules.schedule import NoiseSchedule as NoiseSchedule
    from fastsample.tuning.tune import tune as tune

    __version__: str

# Public names by the module that defines them; the samplers come from their registry besides.
_MODULES = {
    "bundled.load": ("load",),
    "denoiser.denoiser": ("Denoiser",),
    "denoiser.trees": ("shared",),
    "grids.grid": ("Grid",),
    "likelihood.bits_per_dim": ("BitsPerDim", "bits_per_dim"),
    "ops": ("build_info",),
    "planning.cost_table": ("CostTable",),
    "planning.elbo": ("elbo_costs",),
    "planning.shortest_path": ("best_path", "best_paths"),
    "plans.files": ("load_plans", "save_plans"),
    "plans.plan": ("Plan",),
    "profiling.measure": ("profile",),
    "profiling.profile": ("Profile",),
    "samplers.ddim": ("ddim_inversion",),
    "sampling.advance": ("SamplerStack",),
    "sampling.diffuse": ("diffuse",),
    "sampling.history": ("History",),
    "sampling.inpaint": ("inpaint",),
    "sampling.interpolate": ("interpolate",),
    "sampling.invert": ("invert",),
    "sampling.log_prob": ("log_prob",),
    "sampling.loop": ("Step",),
    "sampling.noise": ("new_seed",),
    "sampling.sample": ("sample",),
    "sampling.sampler": ("Sampler",),
    "schedules.schedule": ("NoiseSchedule",),
    "tuning.tune": ("tune",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
# Public as they are: `fs.grids.uniform`, `fs.training.Trainer`.
_PACKAGES = ("grids", "integrations", "plans", "training")


def __getattr__(name: str) -> Any:
    """Find a public name where it is defined, and keep it."""
    if name == "__all__":
        value: Any = __dir__()
    elif name == "__version__":
        from importlib.metadata import version

        value = version("fastsample")
    elif name in _PLACES:
        value = getattr(import_module(f"fastsample.{_PLACES[name]}"), name)
    elif name.startswith("_") or "." in name:
        raise AttributeError(f"module 'fastsample' has no attribute {name!r}")
    elif name in _samplers():
        value = _samplers()[name]
    else:
        try:
            return import_module(f"fastsample.{name}")  # a room, such as `fs.ops`
        except ModuleNotFoundError as error:
            if error.name != f"fastsample.{name}":
                raise  # it is there, and something that it needs is not
        raise AttributeError(f"module 'fastsample' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_PLACES, *_PACKAGES, *_samplers(), "__version__"])


def _samplers() -> dict[str, Any]:
    """The samplers' functions by name."""
    from fastsample.samplers.registry import METHODS

    return {method.make.__name__: method.make for method in METHODS.values()}
