"""Measures lists of times for variance-exploding models, on targets with exact networks.

    python -m benchmarks.bench_exploding            # ten minutes on one core
    python -m benchmarks.bench_exploding --quick    # one target, writes nothing

Targets are a normal distribution and mixtures, with equal and with steeply falling spectra; the
largest sigma is 14.6, 80 or 700. The error of a deterministic method is the root mean square
distance to the many-step result of the same noise, that of a stochastic one the sliced Wasserstein
distance to data. A ratio is the error with a list over that with "log_snr"; the table has geometric
means over all targets and 5, 10 and 20 calls. Writes results/exploding.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from fastsample.grids.sigmas import karras_sigmas

from .timing import facts, write

SIGMAS = (14.6, 80.0, 700.0)
STEPS = (5, 10, 20)
METHODS = ("ddim", "ancestral", "shortcut", "unipc", "dpm++")
STOCHASTIC = ("ancestral", "shortcut")
LISTS = ("uniform", "blended", "karras", "edm")
SAMPLES = 300

Network = Callable[[Tensor, Tensor], Tensor]
TARGETS: dict[str, dict[str, Any]] = {
    "normal, falling spectrum": {"dim": 64, "modes": 1, "power": 1.0, "scale": 10.0},
    "mixture, falling spectrum": {"dim": 64, "modes": 10, "power": 1.0, "scale": 10.0},
    "mixture, steep spectrum": {"dim": 64, "modes": 10, "power": 1.2, "scale": 5.0},
    "8 modes in 2-D": {"dim": 2, "modes": 8, "power": 0.0, "scale": 0.5},
    "10 modes in 16-D": {"dim": 16, "modes": 10, "power": 0.0, "scale": 0.5},
    "10 modes in 64-D": {"dim": 64, "modes": 10, "power": 0.0, "scale": 0.5},
    "6 wide modes in 8-D": {"dim": 8, "modes": 6, "power": 0.0, "scale": 1.0},
}


def target(
    dim: int, modes: int, power: float, scale: float, seed: int = 1
) -> tuple[Network, Callable[[int], Tensor]]:
    """Return the exact posterior mean ``(x, sigma) -> x0`` of a mixture, and its sampler.

    The deviation of coordinate i is proportional to ``i^-power``.
    """
    source = torch.Generator().manual_seed(seed)
    spectrum = scale * torch.arange(1, dim + 1, dtype=torch.float64) ** -power
    means = 0.9 * spectrum * torch.randn(modes, dim, generator=source, dtype=torch.float64)
    widths = 0.05 + 0.25 * torch.rand(modes, 1, generator=source, dtype=torch.float64)
    variances = (widths * spectrum) ** 2

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        difference = x.double()[:, None] - means
        noise = sigma.double().view(-1, 1, 1) ** 2
        total = variances + noise
        logits = -0.5 * (difference**2 / total + total.log()).sum(-1)
        weights = torch.softmax(logits, 1)[..., None]
        return (weights * (means + variances / total * difference)).sum(1).to(x.dtype)

    def draw(count: int) -> Tensor:
        source = torch.Generator().manual_seed(seed + 77)
        mode = torch.randint(modes, (count,), generator=source)
        noise = torch.randn(count, dim, generator=source, dtype=torch.float64)
        return means[mode] + variances[mode].sqrt() * noise

    return network, draw


def karras_grid(steps: int, smallest: float, largest: float) -> fs.Grid:
    """Return the list of Karras et al. between two levels."""
    levels = karras_sigmas("bench_exploding", steps, sigma_min=smallest, sigma_max=largest, rho=7.0)
    return fs.Grid(np.append(levels, 0.0))


def grid_of(name: str, schedule: fs.NoiseSchedule, steps: int) -> fs.Grid:
    """Return a list of times by its name; "edm" is that of EDM, which ends at 0.002."""
    if name == "edm":
        return karras_grid(steps, 0.002, schedule.T)
    if name == "uniform":
        return fs.grids.uniform(schedule.T, steps)
    return getattr(fs.grids, name)(schedule, steps)


def sliced(x: Tensor, y: Tensor) -> float:
    """Return the sliced Wasserstein-2 distance of two sets of equal size, over 100 directions."""
    source = torch.Generator().manual_seed(5)
    directions = torch.randn(x.shape[1], 100, generator=source, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    gaps = (x @ directions).sort(0).values - (y @ directions).sort(0).values
    return float(gaps.square().mean().sqrt())


def run(names: list[str], sigmas: tuple[float, ...]) -> list[dict[str, Any]]:
    """Return the errors of every list, method, target, largest sigma and number of calls."""
    results: list[dict[str, Any]] = []
    for name in names:
        network, draw = target(**TARGETS[name])
        for sigma in sigmas:
            schedule = fs.NoiseSchedule.exploding(sigma)
            shape = (TARGETS[name]["dim"],)
            model = fs.Denoiser(
                network, schedule, shape, prediction="x0", time=lambda times: 1.0 * times
            )
            source = torch.Generator().manual_seed(9)
            start = torch.randn(SAMPLES, *shape, generator=source, dtype=torch.float64)
            start *= schedule.start_scale(schedule.T)
            fine = karras_grid(300, 0.0005, sigma)
            limit, data = fs.sample(model, fine, method="dpm++", start=start), draw(SAMPLES)
            for steps in STEPS:
                for method in METHODS:
                    errors: dict[str, float] = {}
                    for grid in (*LISTS, "log_snr"):
                        times = grid_of(grid, schedule, steps)
                        x = fs.sample(model, times, method=method, start=start, seed=3)
                        errors[grid] = (
                            sliced(x, data)
                            if method in STOCHASTIC
                            else float((x - limit).square().mean().sqrt())
                        )
                    results.append(
                        {
                            "target": name,
                            "sigma_max": sigma,
                            "steps": steps,
                            "method": method,
                            "errors": errors,
                        }
                    )
            print(name, sigma, flush=True)
    return results


def ratios(results: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return by method and list the geometric mean of the ratios, and the cells that are better."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for method in METHODS:
        cells = [entry["errors"] for entry in results if entry["method"] == method]
        table[method] = {}
        for grid in LISTS:
            logs = [math.log(errors[grid] / errors["log_snr"]) for errors in cells]
            table[method][grid] = {
                "ratio": math.exp(statistics.fmean(logs)),
                "better": sum(value < 0 for value in logs),
                "cells": len(logs),
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one target, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = list(TARGETS)[3:4] if options.quick else list(TARGETS)
    results = run(names, SIGMAS[1:2] if options.quick else SIGMAS)
    table = ratios(results)
    for method, row in table.items():
        cells = (f"{grid} {cell['ratio']:.2f} ({cell['better']})" for grid, cell in row.items())
        print(f"{method:10}", *cells)
    if not options.quick:
        result = {
            "benchmark": "exploding",
            "samples": SAMPLES,
            "facts": facts(torch.device("cpu")),
            "table": table,
            "results": results,
        }
        print(write("exploding", result))


if __name__ == "__main__":
    main()
