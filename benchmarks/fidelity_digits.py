"""The bundled digits model, fine-tuned so that 4 and 8 network calls are enough."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

import fastsample as fs
from benchmarks.contestants import Ours, Tuned
from benchmarks.lineup import contestants
from benchmarks.models import MODELS
from benchmarks.quality import train_classifier
from fastsample.training import FidelityLoss
from fastsample.training.recipes import recipe_of

CALLS = (4, 8)
SAMPLES, SEEDS = 1000, (201, 202, 203)
TRAINING_SEEDS = {4: (0, 1, 2), 8: (0,)}


class Judge:
    """Frechet distance of digits drawn with even labels, or without, to all 1797."""

    def __init__(self, count: int) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.model = MODELS["digits-labels"]()
        assert self.model.labelled is not None
        images, _ = self.model.labelled
        classifier, _ = train_classifier(*self.model.labelled)
        self.distance = FrechetInceptionDistance(classifier, reset_real_features=False)
        with torch.inference_mode():
            self.distance.update(images, real=True)
        self.labels = {"labels": torch.arange(count) % 10, "free": torch.full((count,), 10)}
        self.count = count

    def __call__(self, samples: Tensor) -> float:
        """The distance of one set."""
        with torch.inference_mode():
            self.distance.update(samples, real=False)
            found = float(self.distance.compute())
        self.distance.reset()
        return found

    def of(self, denoiser: fs.Denoiser, plan: fs.Plan, kind: str, seeds: Any) -> list[float]:
        """One distance per seed; `kind` is "labels" or "free"."""
        cond = {"y": self.labels[kind]}
        return [
            self(fs.sample(denoiser, plan, cond=cond, num_samples=self.count, seed=seed))
            for seed in seeds
        ]


def run(*, quick: bool = False) -> dict[str, Any]:
    """The best training-free sampler of each number of calls, and the fine-tuned models."""
    count, seeds = (40, SEEDS[:1]) if quick else (SAMPLES, SEEDS)
    judge = Judge(count)
    bundled = fs.load("digits")
    found: dict[str, Any] = {"samples": count, "seeds": list(seeds), "calls": {}}
    for K in CALLS[:1] if quick else CALLS:
        plans = _known(judge, K)
        free = {
            kind: {label: judge.of(bundled, plan, kind, seeds[:1]) for label, plan in plans.items()}
            for kind in judge.labels
        }
        best = {}
        for kind, rows in free.items():
            # The best three by the first seed, then by all.
            able = sorted(rows, key=lambda label, rows=rows: rows[label][0])[:3]
            full = {label: judge.of(bundled, plans[label], kind, seeds) for label in able}
            label = min(full, key=lambda label, full=full: sum(full[label]))
            best[kind] = {"label": label, "frechet": full[label], "of": len(rows)}
            print(f"{K} calls, {kind}: {label} {full[label]}", flush=True)
        tuned = []
        for seed in TRAINING_SEEDS[K][: 1 if quick else None]:
            tuned.append(_fine_tuned(judge, K, seed, seeds, 2 if quick else None))
            print(f"{K} calls, fine-tuned: {tuned[-1]}", flush=True)
        found["calls"][str(K)] = {"free": best, "fine_tuned": tuned}
    return found


def _known(judge: Judge, steps: int) -> dict[str, fs.Plan]:
    """Every sampler of this package that is run on the digits, without training."""
    found: dict[str, fs.Plan] = {}
    for entry in contestants(judge.model):
        if not isinstance(entry, Ours | Tuned):
            continue
        try:
            plan = entry.plan(judge.model, steps, 0) if isinstance(entry, Ours) else None
            plan = entry.plan(judge.model, steps) if isinstance(entry, Tuned) else plan
        except ValueError:  # no plan of so many steps
            continue
        if plan is not None and len(plan) == steps:
            found[f"{entry.label}, {entry.grid}"] = plan
    return found


def _fine_tuned(
    judge: Judge, steps: int, seed: int, seeds: Any, iterations: int | None
) -> dict[str, Any]:
    began = time.perf_counter()
    recipe = recipe_of("digits")
    fidelity = FidelityLoss(steps, seed=seed, **recipe.fidelity)
    trainer = recipe.trainer(fidelity, iterations=iterations, seed=seed)
    model = trainer.run(iterations or recipe.iterations)
    plan = model.plans[steps]
    result: dict[str, Any] = {"seed": seed, "iterations": trainer.iteration}
    result["seconds"] = round(time.perf_counter() - began, 1)
    fine = fs.ddim(model.schedule, fs.grids.uniform(1000, 50), clip=model.clip)
    for kind in judge.labels:
        result[kind] = judge.of(model, plan, kind, seeds)
        result[f"{kind}_ddim50"] = judge.of(model, fine, kind, seeds[:1])
    return result
