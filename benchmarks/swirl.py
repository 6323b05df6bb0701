"""Trains swirl models, fine-tunes them in several ways (arms), and measures their samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

import fastsample as fs
from fastsample.bundled.datasets import swirl_data
from fastsample.bundled.recipes import Recipe, recipe_of
from fastsample.distances.distances import energy_distance, random_directions, sliced_wasserstein
from fastsample.grids.registry import GRIDS
from fastsample.samplers.registry import METHODS
from fastsample.training import FidelityLoss, FidelityTerm, Trainer, VDMLoss

TRAINED = 3000  # iterations before fine-tuning
FINE_TUNED = 300
CALLS = (10, 5)
MANY = 200
SAMPLES, SAMPLING_SEEDS = 1024, (101, 102, 103)
LARGE = 10_000
_DETERMINISTIC = ("ddim", "dpm++", "unipc")


class SteppedTwice(AdamW):
    """AdamW that makes a second step with a zero gradient after each step.

    The code of Chen 2023 (arXiv:2301.01206) does this: the gradient of its fidelity loss is zero,
    but the second step on the same moments moves the weights nevertheless.
    """

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Step with the gradient, and again with a gradient of zero."""
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.zero_()
        return super().step()


@dataclass(frozen=True)
class Arm:
    """Describes one way to train the model further.

    Attributes:
        label: name in tables.
        fidelity: makes the fidelity loss or term; None trains without it.
        compute: number of iterations, as a multiple of the usual one.
        options: arguments of the trainer.
    """

    label: str
    fidelity: Callable[[], FidelityLoss | FidelityTerm] | None = None
    compute: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


def arms(recipe: Recipe, ratio: float) -> dict[str, Arm]:
    """Return all arms by name; `ratio` is the cost of an iteration with / without fidelity."""
    ours = recipe.fidelity
    paper: dict[str, Any] = {
        "method": "shortcut",
        "grid": "random",
        "distance": "mse",
        "start": "paired",
        "subset": 256,
    }
    return {
        "control": Arm("diffusion loss alone"),
        "compute": Arm("diffusion loss alone, equal compute", compute=ratio),
        "zero": Arm(
            "diffusion loss, second step of zero gradient",
            options={
                "optimizer": replace(
                    recipe.optimizer,
                    weight_decay=0.0,
                    make=partial(SteppedTwice, weight_decay=recipe.optimizer.weight_decay),
                )
            },
        ),
        # The paper's K = 10 (Chen 2023) means 11 network calls.
        "paper": Arm("paired MSE, as the paper means it", lambda: FidelityLoss(11, **paper)),
        "paired": Arm(
            "paired MSE that is followed (Jacobian-free, rate 1e-3)",
            lambda: FidelityTerm(FidelityLoss(11, **paper, gradient="jacobian_free"), lr=1e-3),
        ),
        "energy": Arm("energy distance, DDIM in 10 calls", lambda: FidelityLoss(10, **ours)),
        "energy5": Arm("energy distance, DDIM in 5 calls", lambda: FidelityLoss(5, **ours)),
    }


def trained(seed: int, iterations: int = TRAINED) -> tuple[Recipe, fs.Denoiser]:
    """Train the model that all arms start from; return the recipe and the averaged model."""
    recipe = recipe_of("swirl", seed=seed)
    return recipe, recipe.trainer(None, seed=seed).run(iterations)


def trainer_of(recipe: Recipe, base: fs.Denoiser, arm: Arm, seed: int) -> Trainer:
    """Make an arm's trainer on a copy of a trained model; `recipe` is for training further."""
    denoiser = copy.copy(base)
    denoiser.model = copy.deepcopy(base.model).requires_grad_()  # type: ignore[attr-defined]
    loss = VDMLoss.of(denoiser, levels=swirl_data().levels)
    own = replace(recipe, denoiser=denoiser, loss=loss)
    fidelity = None if arm.fidelity is None else arm.fidelity()
    return own.trainer(fidelity, seed=seed, **arm.options)


# ---- Distances between samples and true points.

_FRESH = 12345


class Judge:
    """Compares samples with fresh points of the swirl, encoded like the training set."""

    def __init__(self, count: int = 4096) -> None:
        self.fresh = swirl_data(count, _FRESH).x0
        self.directions = random_directions(128, 2, torch.Generator().manual_seed(0))

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """Return energy distance, sliced W2, nearest-neighbour distances, standard deviation."""
        away = torch.cdist(samples, self.fresh[:2048])
        return {
            "ed": float(energy_distance(samples, self.fresh)),
            "sw2": float(sliced_wasserstein(samples, self.fresh, self.directions)) ** 0.5,
            "precision": float(away.min(1).values.mean()),
            "coverage": float(away.min(0).values.mean()),
            "sd": float(samples.var(0).mean().sqrt()),
        }


def judged(judge: Judge, model: fs.Denoiser, steps: Any, **options: Any) -> dict[str, float]:
    """Return the mean distances over the sampling seeds, which all arms share."""
    distances: list[dict[str, float]] = []
    for seed in SAMPLING_SEEDS:
        if options.get("grid") == "random":
            options["grid_seed"] = seed
        x = fs.sample(model, steps, num_samples=SAMPLES, seed=seed, **options)
        distances.append(judge(x))
    return {name: sum(one[name] for one in distances) / len(distances) for name in distances[0]}


def known_samplers(model: fs.Denoiser, steps: int) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return (label, steps, options) of every method on every grid for continuous schedules."""
    samplers: list[tuple[str, Any, dict[str, Any]]] = []
    for grid in ("uniform", "quadratic", "log_snr", "karras"):
        try:
            GRIDS[grid](model.schedule, steps)
        except ValueError:
            continue
        for method in METHODS:
            if method == "fastdpm":  # It needs a discrete schedule.
                continue
            samplers.append((f"{method}, {grid}", steps, {"method": method, "grid": grid}))
        samplers.append((f"dpm++ 3, {grid}", steps, {"method": "dpm++", "grid": grid, "order": 3}))
    return samplers


@torch.inference_mode()
def bits_per_dim(model: fs.Denoiser, loss: VDMLoss, draws: int = 8) -> float:
    """Estimate the bits/dim bound on the training set, with the same noise for every model."""
    data = swirl_data().x0
    generator = torch.Generator().manual_seed(7)
    total = 0.0
    for _ in range(draws):
        strata = torch.randperm(len(data), generator=generator) + torch.rand(1, generator=generator)
        total += float(loss(model, data, strata / len(data), generator=generator)["loss"].mean())
    return total / draws
