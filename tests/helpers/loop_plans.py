"""One plan for each kind of operand that a row can need, and a network for it."""

from __future__ import annotations

import numpy as np
import torch

import fastsample as fs
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.rows import row_table
from fastsample.sampling.noise import Identity
from tests.helpers.networks import LINEAR, denoiser, halve, halve_wide

GRID = fs.Grid([900, 600, 300.5, 40, 0])


def multistep(order: int) -> fs.Plan:
    """Rows that look back, with numbers of no meaning; only the loop's bookkeeping matters."""
    alphas, sigmas = LINEAR.levels(GRID.times)
    k = np.arange(4)
    rows = row_table(
        4,
        p=0.9,
        q=-0.3,
        a=0.5 - 0.1 * k,
        b=0.4 + 0.05 * k,
        e=0.02 * k,
        c1=np.where(k > 0, 0.3 + 0.1 * k, 0.0),
        c2=np.where(k > 1, -0.2 * k, 0.0) if order == 3 else 0.0,
        d=[0.3, 0.2, 0.1, 0.0],
    )
    return fs.Plan(GRID.times, rows, alphas, sigmas, "epsilon", "multistep", "none", LINEAR)


PLANS = {
    "ddim": fs.ddim(LINEAR, GRID),
    "eta": fs.ddim(LINEAR, GRID, eta=0.7, clip=1.0),
    "raw": fs.ddim(LINEAR, GRID, clip=1.0, rederive=False),
    "sigma-hat": fs.ddim(LINEAR, GRID, sigma_hat=True),
    "ancestral": fs.ancestral(LINEAR, GRID, variance="large"),
    "learned": fs.ancestral(LINEAR, GRID, variance="learned_range"),
    "order 2": multistep(2),
    "order 3": multistep(3),
}


def parts(name: str, *shape: int) -> tuple[Denoiser, fs.Plan]:
    """(denoiser, plan) with the network that the plan needs."""
    wide = name == "learned"
    network = halve_wide if wide else halve
    variance = "learned_range" if wide else "small"
    return denoiser(network, *shape, variance=variance), PLANS[name]


def identity(batch: int, seed: int = 3) -> Identity:
    return Identity(torch.tensor([seed]), torch.arange(batch))
