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
# The shortlist too needs many samples: the Frechet distance of few mostly reflects their number.
SHORTLISTED, SHORTLIST_SEED = 1000, 200
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
            distance = float(self.distance.compute())
        self.distance.reset()
        return distance

    def of(
        self, denoiser: fs.Denoiser, plan: fs.Plan, conditioning: str, seeds: Any, count: int
    ) -> list[float]:
        """One distance per seed; `conditioning` is "labels" or "free" (without labels)."""
        labels = torch.arange(count) % 10 if conditioning == "labels" else torch.full((count,), 10)
        return [self(fs.sample(denoiser, plan, cond={"y": labels}, seed=seed)) for seed in seeds]


CONDITIONINGS = ("labels", "free")


def run(*, calls: Sequence[int] = CALLS, quick: bool = False) -> dict[str, Any]:
    """The best training-free sampler of each number of calls, and the fine-tuned models."""
    count, short, seeds = (40, 40, SEEDS[:1]) if quick else (SAMPLES, SHORTLISTED, SEEDS)
    judge = Judge()
    bundled = fs.load("digits")
    results: dict[str, Any] = {"samples": count, "seeds": list(seeds), "calls": {}}
    for K in calls:
        tuned = []
        for seed in TRAINING_SEEDS[K][: 1 if quick else None]:
            tuned.append(_fine_tuned(judge, K, seed, seeds, count, 2 if quick else None))
            print(f"{K} calls, fine-tuned: {tuned[-1]}", flush=True)
        plans = _known(judge, K)
        best = {}
        for conditioning in CONDITIONINGS:
            first = {
                label: judge.of(bundled, plan, conditioning, [SHORTLIST_SEED], short)[0]
                for label, plan in plans.items()
            }
            shortlist = sorted(first, key=lambda label, first=first: first[label])[:3]
            full = {
                label: judge.of(bundled, plans[label], conditioning, seeds, count)
                for label in shortlist
            }
            label = min(full, key=lambda label, full=full: sum(full[label]))
            best[conditioning] = {"label": label, "frechet": full[label], "of": len(first)}
            print(f"{K} calls, {conditioning}: {label} {full[label]}", flush=True)
        results["calls"][str(K)] = {"free": best, "fine_tuned": tuned}
    return results


def _known(judge: Judge, steps: int) -> dict[str, fs.Plan]:
    """Plans of every sampler of this package that runs on the digits, by name."""
    plans: dict[str, fs.Plan] = {}
    for entry in contestants(judge.model):
        if not isinstance(entry, Ours | Tuned):
            continue
        try:
            plan = entry.plan(judge.model, steps, 0) if isinstance(entry, Ours) else None
            plan = entry.plan(judge.model, steps) if isinstance(entry, Tuned) else plan
        except ValueError:  # there is no plan of this number of steps
            continue
        if plan is not None and len(plan) == steps:
            plans[f"{entry.label}, {entry.grid}"] = plan
    return plans


def _fine_tuned(
    judge: Judge, steps: int, seed: int, seeds: Any, count: int, iterations: int | None
) -> dict[str, Any]:
    begin = time.perf_counter()
    recipe = recipe_of("digits")
    fidelity = FidelityLoss(steps, seed=seed, **recipe.fidelity)
    trainer = recipe.trainer(fidelity, iterations=iterations, seed=seed)
    model = trainer.run(iterations or recipe.iterations)
    plan = model.plans[steps]
    result: dict[str, Any] = {"seed": seed, "iterations": trainer.iteration}
    result["seconds"] = round(time.perf_counter() - begin, 1)
    fine = fs.ddim(model.schedule, fs.grids.uniform(1000, 50), clip=model.clip)
    for conditioning in CONDITIONINGS:
        result[conditioning] = judge.of(model, plan, conditioning, seeds, count)
        result[f"{conditioning}_ddim50"] = judge.of(
            model, fine, conditioning, seeds[:1], min(count, 1000)
        )
    return result
