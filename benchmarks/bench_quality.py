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
                entry.key(model, K, 0)
            except ValueError as error:  # a method that has no plan of so many steps
                runs[str(K)] = {"refused": str(error)}
                continue
            runs[str(K)] = _joined([trial.run(entry, K) for trial in chosen])
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


def _joined(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One entry per seed for distances; what seeds have in common stays as it is."""
    joined: dict[str, Any] = {}
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
    print(f"{progress} {row['name']}  {'  '.join(texts)}", flush=True)


def write(folder: Path, result: dict[str, Any]) -> None:
    """The JSON, one line per entry."""
    folder.mkdir(exist_ok=True)
    lines = [f'"facts": {json.dumps(result["facts"])},\n"models": {{']
    for i, (name, model) in enumerate(result["models"].items()):
        head = {key: value for key, value in model.items() if key != "rows"}
        rows = ",\n  ".join(json.dumps(row) for row in model["rows"])
        end = "," if i + 1 < len(result["models"]) else ""
        lines.append(f' "{name}": {json.dumps(head)[:-1]}, "rows": [\n  {rows}\n ]}}{end}')
    (folder / "quality.json").write_text("{\n" + "\n".join(lines) + "\n}}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, metavar="K")
    parser.add_argument("--seeds", type=int, default=3, help=f"of K = {SEVERAL}")
    parser.add_argument("--count", type=int, default=6000, help="samples of a mixture")
    parser.add_argument("--digits-count", type=int, default=400, help="samples of the digits")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="a minute; writes nothing")
    parser.add_argument("--render", action="store_true", help="only render what is in the JSON")
    options = parser.parse_args()
    if options.render:
        quality_report.render(options.out)
        return
    limit_steps = LIMIT_STEPS
    if options.quick:
        options.steps, options.seeds, limit_steps = (10,), 1, 50
        options.count, options.digits_count = 1000, 100
    known = facts(torch.device("cpu"))
    known |= {name: version(name) for name in ("diffusers", "matplotlib", "torchmetrics")}
    known["projections"] = PROJECTIONS
    result: dict[str, Any] = {"facts": known, "models": {}}
    for name in options.models:
        count = options.digits_count if name == "digits" else options.count
        result["models"][name] = run_model(
            MODELS[name](),
            count=count,
            steps=options.steps,
            seeds=options.seeds,
            limit_steps=limit_steps,
        )
        if not options.quick:
            write(options.out, result)
    if options.quick:
        print(quality_report.markdown(result))
    else:
        quality_report.render(options.out)


if __name__ == "__main__":
    main()
