"""Measures inpainting with jumps (RePaint), and Restart against DDIM, where the truth is known.

    python -m benchmarks.bench_inpaint            # about twenty minutes on one core
    python -m benchmarks.bench_inpaint --quick    # fewer samples and settings, writes nothing

The models are Gaussian mixtures with their exact noise. Given some coordinates, the others are a
mixture too, from which exact samples are drawn: the figure is the root of the sliced squared
Wasserstein-2 distance of the filled-in coordinates to such samples, as a root mean square over
several known points, in data units. "exact" is that of other exact samples, the floor. Restart is
compared with DDIM on the same kind of times at equal network calls, with an exact network and with
one that has a smooth error. Its settings are fixed beforehand, none is chosen by its result. Writes
benchmarks/results/inpaint.json.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from benchmarks.models import Mixture, generator
from benchmarks.timing import facts, write
from fastsample.distances.distances import random_directions, sliced_wasserstein

SCHEDULE = fs.NoiseSchedule.linear()
DIRECTIONS = 64
POINTS = 4  # known points per target
ROWS = 50
REPEATS = (0, 1, 2, 4, 8, 16)
LENGTHS = (2, 10)
FINE = (200, 2, 32)  # rows, length and repeats of the run that shows the limit
CALLS = (10, 20, 40, 80)


def wide(dim: int, width: float) -> Mixture:
    """Make a mixture of six Gaussians that overlap."""
    source = np.random.default_rng(7)
    means = 0.9 * source.standard_normal((6, dim))
    deviations = source.uniform(0.7, 1.3, (6, dim)) * width
    return Mixture(means, deviations**2, source.uniform(0.5, 2.0, 6))


def narrow(dim: int, count: int = 10) -> Mixture:
    """Make a mixture of ten Gaussians that hardly overlap, as in `benchmarks.models.modes`."""
    source = np.random.default_rng(dim)
    means = 0.9 * source.standard_normal((count, dim))
    deviations = np.geomspace(0.05, 0.5, count)[:, None] * source.uniform(0.7, 1.3, (count, dim))
    return Mixture(means, deviations**2, source.uniform(0.5, 2.0, count))


def ring() -> Mixture:
    """Make the mixture of eight narrow Gaussians on a circle."""
    angles = np.arange(8) * (math.pi / 4)
    means = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 1.4
    return Mixture(means, np.full((8, 1), 0.1**2), np.ones(8))


def model(mixture: Mixture, error: float = 0.0) -> fs.Denoiser:
    """Return the exact noise prediction of a mixture, plus a smooth error of this size."""
    weights = torch.randn(mixture.dim, mixture.dim, generator=generator("network error", 0))
    weights = 3.0 * weights / math.sqrt(mixture.dim)

    def network(x: Tensor, index: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.levels(min(float(index.reshape(-1)[0]) + 1.0, SCHEDULE.T))
        noise = mixture.epsilon(x, float(alpha), float(sigma))
        return noise + error * torch.sin(x @ weights.to(x.dtype)) if error else noise

    return fs.Denoiser(network, SCHEDULE, (mixture.dim,))


def conditional(mixture: Mixture, known: Tensor, point: Tensor) -> Mixture:
    """Return the mixture of the unknown coordinates, given the known ones of a point.

    The coordinates of one component are independent: only the weights change, by Bayes' rule.
    """
    mean, variance = mixture.means[:, known], mixture.variances[:, known]
    away = (point[known].double() - mean) ** 2 / variance + variance.log()
    weights = (mixture.weights.log() - 0.5 * away.sum(1)).softmax(0)
    return Mixture(mixture.means[:, ~known], mixture.variances[:, ~known], weights)


def squared_distance(samples: Tensor, reference: Tensor) -> float:
    """Return the squared sliced Wasserstein-2 distance of two sets."""
    size = samples.shape[1]
    axes = random_directions(DIRECTIONS, size, generator("directions", size))
    return float(sliced_wasserstein(samples, reference, axes if size > 1 else torch.ones(1, 1)))


def inpainting(
    name: str, mixture: Mixture, num_known: int, count: int, settings: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Measure settings of `inpaint` on one mixture, of which the first coordinates are known."""
    known = torch.arange(mixture.dim) < num_known
    points = mixture.sample(POINTS, generator("known points", 1))
    truths = [conditional(mixture, known, point) for point in points]
    references = [
        truth.sample(count, generator("reference", i), even=True) for i, truth in enumerate(truths)
    ]
    others = [truth.sample(count, generator("exact", i)) for i, truth in enumerate(truths)]
    pairs = zip(others, references, strict=True)
    exact = math.sqrt(np.mean([squared_distance(x, y) for x, y in pairs]))
    results: list[dict[str, Any]] = []
    for setting in settings:
        begin, squares = time.perf_counter(), list[float]()
        for i, (point, reference) in enumerate(zip(points, references, strict=True)):
            x = fs.inpaint(model(mixture), point[None], known, seed=i, num_samples=count, **setting)
            assert torch.equal(x[:, known], point[known].expand(count, -1))
            squares.append(squared_distance(x[:, ~known], reference))
        results.append(
            {
                **setting,
                "distance": math.sqrt(np.mean(squares)),
                "seconds": time.perf_counter() - begin,
            }
        )
        print(name, setting, f"{results[-1]['distance']:.4f}, exact {exact:.4f}", flush=True)
    return {"known": num_known, "dim": mixture.dim, "exact": exact, "results": results}


def settings(repeats: Sequence[int], fine: bool) -> list[dict[str, Any]]:
    """Return the settings of `inpaint` to measure."""
    found: list[dict[str, Any]] = []
    for eta in (0.0, 1.0):
        found.append({"steps": ROWS, "eta": eta, "jumps": None})
        for length in LENGTHS:
            found.extend(
                {"steps": ROWS, "eta": eta, "jumps": (length, r)} for r in repeats if r > 0
            )
    if fine:
        steps, *jumps = FINE
        found.append({"steps": steps, "eta": 1.0, "jumps": tuple(jumps)})
    return found


def restarts(calls: int) -> dict[str, dict[str, Any]]:
    """Return the samplers that make so many calls, by name."""
    found: dict[str, dict[str, Any]] = {
        "ddim": {"steps": calls, "method": "ddim"},
        "unipc": {"steps": calls, "method": "unipc"},
        "ancestral": {"steps": calls, "method": "ancestral"},
    }
    for low, high in ((100, 500), (300, 700)):
        for repeats, share in ((1, 3), (2, 4)):
            rows = calls // share
            for base in ("ddim", "dpm++"):
                found[f"restart {base} {low}..{high} x {repeats}"] = {
                    "steps": calls - repeats * rows,
                    "method": "restart",
                    "base": base,
                    "intervals": ((low, high, repeats, rows),),
                }
    return found


def restarting(
    name: str, mixture: Mixture, count: int, calls: Sequence[int], seeds: int
) -> dict[str, Any]:
    """Measure Restart and DDIM on one mixture, with an exact network and with a wrong one."""
    reference = mixture.sample(count, generator("reference", 0), even=True)
    exact = math.sqrt(squared_distance(mixture.sample(count, generator("exact", 0)), reference))
    cells: dict[str, Any] = {}
    for error in (0.0, 0.1):
        network = model(mixture, error)
        for grid in ("uniform", "blended"):
            for K in calls:
                cell: dict[str, float] = {}
                for title, setting in restarts(K).items():
                    sampler = fs.Sampler(network, grid=grid, **setting)
                    assert sampler.plan.calls == K
                    squares = [
                        squared_distance(sampler(count, seed=s), reference) for s in range(seeds)
                    ]
                    cell[title] = math.sqrt(np.mean(squares))
                cells[f"error {error:g}, {grid}, {K} calls"] = cell
                text = ", ".join(f"{title} {value:.3f}" for title, value in cell.items())
                print(name, error, grid, K, text, f"exact {exact:.3f}", flush=True)
    return {"exact": exact, "cells": cells}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer settings; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    count = 500 if quick else 4000
    repeats = (0, 1, 4) if quick else REPEATS
    targets = {
        "wide-2": (wide(2, 0.5), 1),
        "wide-4": (wide(4, 0.6), 2),
        "narrow-16": (narrow(16), 8),
    }
    inpainted = {
        name: inpainting(name, mixture, known, count, settings(repeats, not quick))
        for name, (mixture, known) in targets.items()
    }
    sampled = {
        name: restarting(
            name,
            mixture,
            1000 if quick else 10_000,
            CALLS[:1] if quick else CALLS,
            1 if quick else 2,
        )
        for name, mixture in {"ring-2": ring(), "narrow-16": narrow(16)}.items()
    }
    if not quick:
        result = {"facts": facts(torch.device("cpu")), "inpaint": inpainted, "restart": sampled}
        print(write("inpaint", result))


if __name__ == "__main__":
    main()
