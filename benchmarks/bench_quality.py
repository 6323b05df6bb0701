"""Measures sample quality over network calls: every method x grid here and diffusers' schedulers.

    python -m benchmarks.bench_quality            # all models, about 20 minutes on two cores
    python -m benchmarks.bench_quality --quick    # a minute or two, writes nothing
    python -m benchmarks.bench_quality --render   # only tables and plot, from quality.json

Computes distances of samples to true data (`benchmarks.quality`) for K = 5, 8, 10, 15, 20 and 50
network calls, on models that predict the exact noise and on the digits (`benchmarks.models`), for
the entries of `benchmarks.lineup`. K = 10 has three seeds, the other K have one, and at K = 10 the
best entry of this package and the best of diffusers have twenty more. All entries of a seed share
the starting noise and the true data. Deterministic ones are also compared with their limit: the
1000-step DDIM result of the same noise. Writes benchmarks/results/quality.json, .md and .png;
`--models` keeps the results of the other models in the JSON.
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
from benchmarks import quality_plot, quality_report, quality_results
from benchmarks.contestants import Contestant
from benchmarks.lineup import contestants
from benchmarks.models import MODELS, Model, generator
from benchmarks.quality import Classifier, Judge, rmse, train_classifier
from benchmarks.timing import RESULTS, facts

STEPS = (5, 8, 10, 15, 20, 50)
SEVERAL = quality_results.VERDICT_AT  # This number of calls is run with several seeds.
LIMIT_STEPS = 1000
NAME = "quality.json"


class Trial:
    """Runs samplers on one model and seed, and keeps the noise, the judge and the results."""

    def __init__(
        self, model: Model, count: int, seed: int, classifier: Classifier | None = None
    ) -> None:
        self.model, self.seed = model, seed
        self.judge = Judge(model, count, seed, classifier)
        source = generator("start", seed)
        self.start = torch.randn(count, *model.denoiser.shape, generator=source)
        self.limit: Tensor | None = None
        self._results: dict[Hashable, tuple[str, dict[str, Any]]] = {}

    def find_limit(self, steps: int) -> dict[str, float]:
        """Draw the samples that deterministic samplers converge to, and return their distances."""
        schedule = self.model.denoiser.schedule
        grid = fs.grids.uniform(int(schedule.T), steps)
        self.limit = fs.sample(self.model.denoiser, grid, method="ddim", start=self.start)
        return self.judge(self.limit)

    def run(self, entry: Contestant, steps: int) -> dict[str, Any]:
        """Measure an entry's distances and calls; `same_as` names an entry with equal samples."""
        key = entry.key(self.model, steps, self.seed)
        if key in self._results:
            name, result = self._results[key]
            return {**result, "same_as": name}
        network = self.model.network
        network.calls = 0
        samples = entry.draw(self.model, steps, self.start, self.seed)
        result: dict[str, Any] = {"calls": network.calls}
        if not torch.isfinite(samples).all():
            return {**result, "refused": "the samples are not finite"}
        result |= self.judge(samples)
        if self.limit is not None and entry.deterministic(self.model, steps):
            result["rmse"] = rmse(samples, self.limit)
        self._results[key] = f"{entry.label}, {entry.grid}", result
        return result


def run_model(
    model: Model,
    *,
    count: int | None = None,
    steps: Sequence[int] = STEPS,
    seeds: int = 3,
    final_seeds: int = 20,
    limit_steps: int = LIMIT_STEPS,
    entries: Sequence[Contestant] | None = None,
    known_rows: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Measure all entries on a model, except those in `known_rows`."""
    begin = time.perf_counter()
    count = count or model.samples
    known = facts(torch.device("cpu"))
    known |= {name: version(name) for name in ("diffusers", "torchmetrics")}
    result: dict[str, Any] = {"facts": known, "title": model.title, "count": count}
    result["limit_steps"] = limit_steps
    classifier = None
    if model.labelled is not None:
        classifier, accuracy = train_classifier(*model.labelled)
        result["classifier_accuracy"] = round(accuracy, 4)
    trials = [Trial(model, count, seed, classifier) for seed in range(seeds)]
    result["floor"] = _joined([trial.judge.floor() for trial in trials])
    result["limit"] = _joined([trials[0].find_limit(limit_steps)])
    entries = contestants(model) if entries is None else entries
    rows = result["rows"] = []
    measured = {(row["method"], row["grid"], row["peer"]): row for row in known_rows}
    for i, entry in enumerate(entries):
        before = measured.get((entry.label, entry.grid, entry.peer))
        if before is not None:
            rows.append(before)
            continue
        runs: dict[str, Any] = {}
        for K in steps:
            chosen = trials if K == SEVERAL else trials[:1]
            try:
                entry.key(model, K, 0)
            except ValueError as error:  # The method has no plan for K.
                runs[str(K)] = {"refused": str(error)}
                continue
            runs[str(K)] = _joined([trial.run(entry, K) for trial in chosen])
        rows.append(
            {
                "method": entry.label,
                "grid": entry.grid,
                "family": entry.family,
                "peer": entry.peer,
                "runs": runs,
            }
        )
        show(f"{model.name} {i + 1}/{len(entries)}", rows[-1])
    if SEVERAL in steps:
        trials = [
            Trial(model, count, seed, classifier) for seed in range(seeds, seeds + final_seeds)
        ]
        result["finals"] = _finals(result, entries, trials)
    result["seconds"] = round(time.perf_counter() - begin, 1)
    return result


def _finals(
    result: dict[str, Any], entries: Sequence[Contestant], trials: Sequence[Trial]
) -> dict[str, Any]:
    """Measure the best of this package and of diffusers by each metric again, with fresh seeds.

    The best of many noisy figures is too good: the more entries, the luckier the best of them.
    """
    finals: dict[str, Any] = {}
    for metric in quality_results.metrics(result):
        for peer in (False, True):
            best = quality_results.best(result, metric, SEVERAL, peer=peer)
            entry = entries[result["rows"].index(best)]
            runs = _joined([trial.run(entry, SEVERAL) for trial in trials])
            finals.setdefault(metric, {})["diffusers" if peer else "fastsample"] = {
                "method": entry.label,
                "grid": entry.grid,
                "peer": peer,
                metric: runs[metric],
            }
    return finals


def _joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the runs of several seeds: each distance becomes a list with a value per seed."""
    joined: dict[str, Any] = {}
    refused = [one for one in runs if "refused" in one]
    if refused:
        return refused[0]
    for name, value in runs[0].items():
        if name in ("sw2", "frechet"):
            joined[name] = [float(f"{one[name]:.4g}") for one in runs]
        else:
            joined[name] = float(f"{value:.4g}") if name == "rmse" else value
    return joined


def show(progress: str, row: dict[str, Any]) -> None:
    """Print the mean distance of an entry at each number of calls."""
    texts = []
    for K, run in row["runs"].items():
        values = run.get("frechet", run.get("sw2"))
        texts.append(f"{K}: {sum(values) / len(values):.3g}" if values else f"{K}: none")
    print(f"{progress} {row['method']}, {row['grid']}  {'  '.join(texts)}", flush=True)


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write quality.json, one line per entry."""
    folder.mkdir(exist_ok=True)
    models = []
    for name, model in result.items():
        head = json.dumps({key: value for key, value in model.items() if key != "rows"})
        rows = ",\n  ".join(json.dumps(row) for row in model["rows"])
        models.append(f'"{name}": {head[:-1]}, "rows": [\n  {rows}\n ]}}')
    (folder / NAME).write_text("{\n" + ",\n".join(models) + "\n}\n")


def render(folder: Path) -> None:
    """Write quality.md and quality.png beside quality.json."""
    result = json.loads((folder / NAME).read_text())
    (folder / "quality.md").write_text(quality_report.markdown(result))
    quality_plot.plot(result, folder / "quality.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, metavar="K")
    parser.add_argument("--seeds", type=int, default=3, help=f"number of seeds at K = {SEVERAL}")
    parser.add_argument(
        "--final-seeds", type=int, default=20, help="number of seeds for the best of either side"
    )
    parser.add_argument("--count", type=int, help="number of samples (default: the model's)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a minute; writes nothing")
    parser.add_argument(
        "--add", action="store_true", help="measure only entries that the JSON lacks"
    )
    parser.add_argument("--render", action="store_true", help="only render what is in the JSON")
    options = parser.parse_args()
    if options.render:
        render(options.out)
        return
    limit_steps = LIMIT_STEPS
    if options.quick:
        options.steps, options.seeds, options.count, limit_steps = (10,), 1, 60, 50
        options.final_seeds = 2
    path = options.out / NAME
    keeps = path.exists() and not options.quick
    result: dict[str, Any] = json.loads(path.read_text()) if keeps else {}
    for name in options.models:
        result[name] = run_model(
            MODELS[name](),
            count=options.count,
            steps=options.steps,
            seeds=options.seeds,
            final_seeds=options.final_seeds,
            limit_steps=limit_steps,
            known_rows=result.get(name, {}).get("rows", ()) if options.add else (),
        )
        if not options.quick:
            write(options.out, {name: result[name] for name in MODELS if name in result})
    if options.quick:
        print(quality_report.markdown(result))
    else:
        render(options.out)


if __name__ == "__main__":
    main()
