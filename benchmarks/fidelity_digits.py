"""The bundled digits model, fine-tuned so that 4 and 8 network calls are enough."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastsample as fs
from benchmarks.contestants import Ours, Tuned
from benchmarks.lineup import contestants
from benchmarks.models import MODELS
from benchmarks.quality import train_classifier
from fastsample.bundled.recipes import recipe_of
from fastsample.training import FidelityLoss

CALLS = (4, 8)
SAMPLES, SEEDS = 3000, (201, 202)
SHORTLISTED, SHORTLIST_SEED = 1000, 200  # the distance of few samples is mostly their number
TRAINING_SEEDS = {4: (0, 1), 8: (0,)}


class Judge:
    """Frechet distance of digits drawn with even labels, or without, to all 1797."""

    def __init__(self) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.model = MODELS["digits-labels"]()
        assert self.model.labelled is not None
        images, _ = self.model.labelled
        classifier, _ = train_classifier(*self.model.labelled)
        self.distance = FrechetInceptionDistance(classifier, reset_real_features=False)
        with torch.inference_mode():
            self.distance.update(images, real=True)

    def __call__(self, samples: Tensor) -> float:
        """The distance of one set."""
        with torch.inference_mode():
            self.distance.update(samples, real=False)
            found = float(self.distance.compute())
        self.distance.reset()
        return found

    def of(
        self, denoiser: fs.Denoiser, plan: fs.Plan, kind: str, seeds: Any, count: int
    ) -> list[float]:
        """One distance per seed; `kind` is "labels" or "free"."""
        labels = torch.arange(count) % 10 if kind == "labels" else torch.full((count,), 10)
        return [self(fs.sample(denoiser, plan, cond={"y": labels}, seed=seed)) for seed in seeds]


KINDS = ("labels", "free")


def run(*, calls: Sequence[int] = CALLS, quick: bool = False) -> dict[str, Any]:
    """The best training-free sampler of each number of calls, and the fine-tuned models."""
    count, short, seeds = (40, 40, SEEDS[:1]) if quick else (SAMPLES, SHORTLISTED, SEEDS)
    judge = Judge()
    bundled = fs.load("digits")
    found: dict[str, Any] = {"samples": count, "seeds": list(seeds), "calls": {}}
    for K in calls:
        tuned = []
        for seed in TRAINING_SEEDS[K][: 1 if quick else None]:
            tuned.append(_fine_tuned(judge, K, seed, seeds, count, 2 if quick else None))
            print(f"{K} calls, fine-tuned: {tuned[-1]}", flush=True)
        plans = _known(judge, K)
        best = {}
        for kind in KINDS:
            first = {
                label: judge.of(bundled, plan, kind, [SHORTLIST_SEED], short)[0]
                for label, plan in plans.items()
            }
            able = sorted(first, key=lambda label, first=first: first[label])[:3]
            full = {label: judge.of(bundled, plans[label], kind, seeds, count) for label in able}
            label = min(full, key=lambda label, full=full: sum(full[label]))
            best[kind] = {"label": label, "frechet": full[label], "of": len(first)}
            print(f"{K} calls, {kind}: {label} {full[label]}", flush=True)
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
    judge: Judge, steps: int, seed: int, seeds: Any, count: int, iterations: int | None
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
    for kind in KINDS:
        result[kind] = judge.of(model, plan, kind, seeds, count)
        result[f"{kind}_ddim50"] = judge.of(model, fine, kind, seeds[:1], min(count, 1000))
    return result
