"""Quality against network calls: every method x grid here and diffusers' schedulers, in one run.

    python -m benchmarks.bench_quality            # all models, about 20 minutes on two cores
    python -m benchmarks.bench_quality --quick    # a minute or two, nothing is written
    python -m benchmarks.bench_quality --render   # tables and plot again, from quality.json

Distances of samples to true data (`benchmarks.quality`) for K in 5, 8, 10, 15, 20, 50, on models
with exact noise and on the digits (`benchmarks.models`), for the entries of
`benchmarks.lineup`; of three seeds at K = 10, of one elsewhere, and of twenty more for the best of
either side at K = 10. All entries of a seed share
the starting noise and the true data. Deterministic ones are also compared with their limit: the
1000-step DDIM result of the same noise. Writes benchmarks/results/quality.json, .md and .png; with
`--models` the other models in the JSON stay as they are.
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
SEVERAL = quality_results.VERDICT_AT  # the K that is run with several seeds
LIMIT_STEPS = 1000
NAME = "quality.json"


class Trial:
    """One model, one seed: the starting noise, the judge, and the results found so far."""

    def __init__(
        self, model: Model, count: int, seed: int, classifier: Classifier | None = None
    ) -> None:
        self.model, self.seed = model, seed
        self.judge = Judge(model, count, seed, classifier)
        source = generator("start", seed)
        self.start = torch.randn(count, *model.denoiser.shape, generator=source)
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
        found: dict[str, Any] = {"calls": network.calls}
        if not torch.isfinite(samples).all():
            return {**found, "refused": "the samples are not finite"}
        found |= self.judge(samples)
        if self.limit is not None and entry.deterministic(self.model, steps):
            found["rmse"] = rmse(samples, self.limit)
        self._found[key] = f"{entry.label}, {entry.grid}", found
        return found


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
    """Measure all entries on a model, but for those that are known already."""
    began = time.perf_counter()
    count = count or model.samples
    known = facts(torch.device("cpu"))
    known |= {name: version(name) for name in ("diffusers", "torchmetrics")}
    found: dict[str, Any] = {"facts": known, "title": model.title, "count": count}
    found["limit_steps"] = limit_steps
    classifier = None
    if model.labelled is not None:
        classifier, accuracy = train_classifier(*model.labelled)
        found["classifier_accuracy"] = round(accuracy, 4)
    trials = [Trial(model, count, seed, classifier) for seed in range(seeds)]
    found["floor"] = _joined([trial.judge.floor() for trial in trials])
    found["limit"] = _joined([trials[0].find_limit(limit_steps)])
    entries = contestants(model) if entries is None else entries
    rows = found["rows"] = []
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
            except ValueError as error:  # a method that has no plan of so many steps
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
        found["finals"] = _finals(found, entries, trials)
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def _finals(
    found: dict[str, Any], entries: Sequence[Contestant], trials: Sequence[Trial]
) -> dict[str, Any]:
    """The best entry of each side and metric, once more with seeds that did not choose it.

    The best of many noisy figures is too good: the more entries, the luckier their best.
    """
    finals: dict[str, Any] = {}
    for metric in quality_results.metrics(found):
        for peer in (False, True):
            best = quality_results.best(found, metric, SEVERAL, peer=peer)
            entry = entries[found["rows"].index(best)]
            runs = _joined([trial.run(entry, SEVERAL) for trial in trials])
            finals.setdefault(metric, {})["diffusers" if peer else "fastsample"] = {
                "method": entry.label,
                "grid": entry.grid,
                "peer": peer,
                metric: runs[metric],
            }
    return finals


def _joined(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One entry per seed for distances; what seeds have in common stays as it is."""
    joined: dict[str, Any] = {}
    refused = [one for one in found if "refused" in one]
    if refused:
        return refused[0]
    for name, value in found[0].items():
        if name in ("sw2", "frechet"):
            joined[name] = [float(f"{one[name]:.4g}") for one in found]
        else:
            joined[name] = float(f"{value:.4g}") if name == "rmse" else value
    return joined


def show(progress: str, row: dict[str, Any]) -> None:
    """One line per entry: the mean distance at each K."""
    texts = []
    for K, run in row["runs"].items():
        values = run.get("frechet", run.get("sw2"))
        texts.append(f"{K}: {sum(values) / len(values):.3g}" if values else f"{K}: none")
    print(f"{progress} {row['method']}, {row['grid']}  {'  '.join(texts)}", flush=True)


def write(folder: Path, result: dict[str, Any]) -> None:
    """The JSON, one line per entry."""
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
    parser.add_argument("--seeds", type=int, default=3, help=f"of K = {SEVERAL}")
    parser.add_argument("--final-seeds", type=int, default=20, help="of the best of either side")
    parser.add_argument("--count", type=int, help="samples; the default is each model's own")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="a minute; writes nothing")
    parser.add_argument(
        "--add", action="store_true", help="keep the JSON's entries, measure those it lacks"
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
