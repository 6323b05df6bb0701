"""The registries that tests parametrise over. A new sampler, schedule or grid is one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import get_args

import numpy as np

from fastsample import grids
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.fastdpm import fastdpm
from fastsample.samplers.shortcut import shortcut
from fastsample.samplers.unipc import unipc
from fastsample.schedules.schedule import NoiseSchedule

SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": NoiseSchedule.linear(),
    "linear, closed form above 1 near 0": NoiseSchedule.linear(50, 1e-4, 0.05),
    "linear, falling": NoiseSchedule.linear(60, 0.08, 0.001),
    "linear, constant": NoiseSchedule.linear(40, 0.02, 0.02),
    "linear, zero SNR": NoiseSchedule.linear(20, 0.005, 1.0),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
    "from_betas": NoiseSchedule.from_betas(np.linspace(1e-3, 0.2, 100) ** 1.5),
    "from_alpha_bar, zero SNR": NoiseSchedule.from_alpha_bar(np.linspace(0.99, 0.0, 30)),
    "vdm": NoiseSchedule.vdm(),
    "flow": NoiseSchedule.flow(),
}


def noisiest(schedule: NoiseSchedule) -> float:
    """T as the grid makers want it: an int for integer times."""
    return schedule.num_steps or schedule.T


GRIDS: dict[str, Callable[[NoiseSchedule], Grid]] = {
    "one step": lambda s: grids.uniform(noisiest(s), 1),
    "uniform": lambda s: grids.uniform(noisiest(s), 10),
    "quadratic": lambda s: grids.quadratic(noisiest(s), 9),
    "log_snr": lambda s: grids.log_snr(s, 8),
    "karras": lambda s: grids.karras(s, 7),
    "random": lambda s: grids.random(noisiest(s), 6, seed=3),
    "every step": lambda s: grids.uniform(noisiest(s), s.num_steps or 200),
    "fractional": lambda s: Grid(s.T * np.array([0.93, 0.61, 0.37, 0.11, 0.0])),
}

# Grids of other people's integer index lists, for discrete schedules.
INDEX_GRIDS: dict[str, Callable[[int], Grid]] = {
    "ddim uniform": lambda T: grids.ddim(T, 7),
    "ddim quadratic": lambda T: grids.ddim(T, 10, "quadratic"),
    "respaced": lambda T: grids.respaced(T, [2, 3, 4]),
    "diffusers leading": lambda T: grids.diffusers(T, 6, "leading", 1),
    "diffusers trailing": lambda T: grids.diffusers(T, 6, "trailing"),
    "diffusers linspace": lambda T: grids.diffusers(T, 6, "linspace"),
    "from_indices": lambda T: Grid.from_indices([5, 0, T - 1, 5, T // 2]),
}

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)

SAMPLERS: dict[str, Callable[[NoiseSchedule, Grid, Prediction], Plan]] = {
    "ddim": lambda s, g, m: ddim(s, g, prediction=m),
    "ddim eta=0.5": lambda s, g, m: ddim(s, g, eta=0.5, clip=1.0, prediction=m),
    "ddim eta=1": lambda s, g, m: ddim(s, g, eta=1.0, prediction=m),
    "ddim raw": lambda s, g, m: ddim(s, g, rederive=False, clip=1.0, prediction=m),
    "ddim raw eta=1": lambda s, g, m: ddim(s, g, eta=1.0, rederive=False, prediction=m),
    "ddim sigma_hat": lambda s, g, m: ddim(s, g, sigma_hat=True, prediction=m),
    "ancestral small": lambda s, g, m: ancestral(s, g, clip=(0.0, 2.0), prediction=m),
    "ancestral large": lambda s, g, m: ancestral(s, g, variance="large", prediction=m),
    "ancestral learned": lambda s, g, m: ancestral(s, g, variance="learned_range", prediction=m),
    "ancestral array": lambda s, g, m: ancestral(
        s, g, variance=np.linspace(0.5, 0.0, len(g)) if len(g) > 1 else [0.0], prediction=m
    ),
    "shortcut": lambda s, g, m: shortcut(s, g, clip=1.0, prediction=m),
    "dpm++ 1": lambda s, g, m: dpm_solver(s, g, order=1, prediction=m),
    "dpm++ 2": lambda s, g, m: dpm_solver(s, g, order=min(2, len(g)), clip=1.0, prediction=m),
    "dpm++ 3": lambda s, g, m: dpm_solver(s, g, order=min(3, len(g)), prediction=m),
    "dpm++ sde": lambda s, g, m: dpm_solver(
        s, g, order=min(2, len(g)), stochastic=True, prediction=m
    ),
    "unipc 1": lambda s, g, m: unipc(s, g, order=1, clip=(0.0, 2.0), prediction=m),
    "unipc 2": lambda s, g, m: unipc(s, g, order=min(2, len(g)), prediction=m),
}

# Samplers that choose their own times, given how many, on schedules with whole steps.
STEP_SAMPLERS: dict[str, Callable[[NoiseSchedule, int, Prediction], Plan]] = {
    "fastdpm steps": lambda s, K, m: fastdpm(s, K, prediction=m),
    "fastdpm steps, quadratic": lambda s, K, m: fastdpm(
        s, K, spacing="quadratic", kappa=0.5, clip=1.0, prediction=m
    ),
    "fastdpm var": lambda s, K, m: fastdpm(
        s, K, approximation="var", extended=True, kappa=1.0, prediction=m
    ),
    "fastdpm var, quadratic": lambda s, K, m: fastdpm(
        s, K, approximation="var", spacing="quadratic", extended=True, kappa=0.5, prediction=m
    ),
}

# DTYPES, SHAPES: registries of the tests that run on tensors.


@cache
def all_grids(schedule: NoiseSchedule) -> tuple[tuple[str, Grid], ...]:
    """Every grid that fits a schedule, by name; made once for all samplers."""
    found = [(name, make(schedule)) for name, make in GRIDS.items()]
    if schedule.num_steps is not None:
        found += [(name, make(schedule.num_steps)) for name, make in INDEX_GRIDS.items()]
    return tuple(found)


def plans(sampler: str, schedule: str, prediction: Prediction) -> Iterator[tuple[str, Plan]]:
    """One plan for every grid that fits; epsilon needs some signal at the start."""
    levels = SCHEDULES[schedule]
    for name, grid in all_grids(levels):
        if prediction != "epsilon" or levels.alpha(grid.times[0]) > 0:
            yield name, SAMPLERS[sampler](levels, grid, prediction)


@cache
def turns(schedule: NoiseSchedule) -> tuple[tuple[Grid, Prediction, Clip], ...]:
    """Two grids for each K = 1..20; kinds of grids, predictions and clips take turns."""
    kinds: tuple[Callable[[int], Grid], ...] = (
        lambda K: grids.uniform(noisiest(schedule), K),
        lambda K: grids.log_snr(schedule, K),
        lambda K: grids.karras(schedule, K),
        lambda K: grids.random(noisiest(schedule), K, seed=K),
    )
    clips: tuple[Clip, ...] = (None, 1.0, (-0.2, 0.7))
    found: list[tuple[Grid, Prediction, Clip]] = []
    for i in range(40):
        grid = kinds[(i + i // 8) % 4](i // 2 + 1)
        if schedule.alpha(grid.times[0]) == 0:
            grid = Grid(0.97 * grid.times)  # epsilon takes its turn too
        found.append((grid, PREDICTIONS[i // 4 % 4], clips[i % 3]))
    return tuple(found)
