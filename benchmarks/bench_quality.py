"""Quality against network calls: every method x grid here and diffusers' schedulers, in one run.

    python -m benchmarks.bench_quality            # all models, about 20 minutes on two cores
    python -m benchmarks.bench_quality --quick    # a minute, nothing is written
    python -m benchmarks.bench_quality --render   # tables and plot again, from quality.json

Distances of samples to true data (`benchmarks.quality`) for K in 5, 8, 10, 15, 20, 50, on models
with exact noise and on the digits (`benchmarks.models`), for the entries of
`benchmarks.contestants`; of three seeds at K = 10, of one elsewhere. All entries of a seed share
the starting noise and the true data. Deterministic ones are also compared with their limit: the
1000-step DDIM result of the same noise. Writes benchmarks/results/quality.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Hashable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastsample as fs
from benchmarks import quality_report
from benchmarks.contestants import Contestant, contestants
from benchmarks.models import MODELS, Model
from benchmarks.quality import PROJECTIONS, Classifier, Judge, rmse, train_classifier
from benchmarks.timing import RESULTS, facts

STEPS = (5, 8, 10, 15, 20, 50)
SEVERAL = 10  # the K that is run with several seeds
LIMIT_STEPS = 1000


class Trial:
    """One model, one seed: the starting noise, the judge, and the results found so far."""

    def __init__(
        self, model: Model, count: int, seed: int, classifier: Classifier | None = None
    ) -> None:
        self.model, self.seed = model, seed
        self.judge = Judge(model, count, seed, classifier)
        generator = torch.Generator().manual_seed(seed)
        self.start = torch.randn(count, *model.denoiser.shape, generator=generator)
        self.limit: Tensor | None = None
        self._found: dict[Hashable, tuple[str, dict[str, Any]]] = {}

    def find_limit(self, steps: int) -> dict[str, float]:
        """Draw the result that deterministic samplers converge to, and judge it."""
        schedule = self.model.denoiser.schedule
        grid = fs.grids.uniform(int(schedule.T), steps)
        self.limit = fs.sample(self.model.denoiser, grid, start=self.start)
        return self.judge(self.limit)

    def run(self, entry: Contestant, steps: int) -> dict[str, Any]:
        """Distances and calls of an entry; `same_as` names an equal one that was run before."""
        key = entry.key(self.model, steps, self.seed)
        if key in self._found:
            name, found = self._found[key]
            return {**found, "same_as": name}
        network = self.model.network
        network.calls = 0
        samples = entry.draw(self.model, steps, self.start, self.seed)
        found: dict[str, Any] = {"calls": network.calls, **self.judge(samples)}
        if self.limit is not None and entry.deterministic(self.model, steps):
            found["rmse"] = rmse(samples, self.limit)
        self._found[key] = entry.name, found
        return found


def run_model(
    model: Model,
    *,
    count: int,
    steps: Sequence[int] = STEPS,
    seeds: int = 3,
    limit_steps: int = LIMIT_STEPS,
    entries: Sequence[Contestant] | None = None,
) -> dict[str, Any]:
    """Measure all entries on a model."""
    began = time.perf_counter()
    found: dict[str, Any] = {"title": model.title, "count": count, "limit_steps": limit_steps}
    classifier = None
    if model.labelled is not None:
        classifier, accuracy = train_classifier(*model.labelled)
        found["classifier_accuracy"] = round(accuracy, 4)
    trials = [Trial(model, count, seed, classifier) for seed in range(seeds)]
    found["floor"] = _joined([trial.judge.floor() for trial in trials])
    found["limit"] = _joined([trials[0].find_limit(limit_steps)])
    entries = contestants(model) if entries is None else entries
    rows = found["rows"] = []
    for i, entry in enumerate(entries):
        runs: dict[str, Any] = {}
        for K in steps:
            chosen = trials if K == SEVERAL else trials[:1]
            try:
                runs[str(K)] = _joined([trial.run(entry, K) for trial in chosen])
            except ValueError as error:  # there is no such plan; a sampler that fails is no excuse
                if entry.peer:
                    raise
                entry_refuses(entry, model, K, error)
                runs[str(K)] = {"refused": str(error)}
        rows.append(
            {
                "name": entry.name,
                "family": entry.family,
                "grid": entry.grid,
                "peer": entry.peer,
                "runs": runs,
            }
        )
        show(f"{model.name} {i + 1}/{len(entries)}", rows[-1])
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found
