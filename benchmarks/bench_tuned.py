"""Compares tuned plans with every scheduler of diffusers, on noise unused in tuning.

    python -m benchmarks.bench_tuned            # about half an hour of one idle core
    python -m benchmarks.bench_tuned --quick    # fewer measurements, writes nothing
    python -m benchmarks.bench_tuned --render   # only the tables, from tuned.json

Compares `fs.tune` at K = 5, 8, 10 and 20 calls, on the models of `benchmarks.models`, with all
samplers of `fastsample.evaluation.diffusers_schedulers`, here called peers. Measures the RMSE to
the 1000-step DDIM result of the same noise over three seeds, and the distances to true samples
(`benchmarks.quality`) over ten more. `bench_quality` uses other seeds.

The comparison favours the peers: the best one for a model and number of calls is chosen by its mean
RMSE over the same seeds that are shown, or, for distances, from two finalists that were chosen on
other seeds. Also shown are the distances of the plan's limit, the fine deterministic run that it
was tuned to follow: if that is far from the data, so is a plan without error. Writes
benchmarks/results/tuned.json and tuned.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fastsample as fs
from benchmarks import tuned_report
from benchmarks.bench_quality import LIMIT_STEPS, Trial
from benchmarks.contestants import Peer, Tuned
from benchmarks.models import MODELS, Model
from benchmarks.quality import train_classifier
from benchmarks.timing import RESULTS, facts
from fastsample import grids
from fastsample.evaluation import diffusers_schedulers

STEPS = (5, 8, 10, 20)
SEEDS = range(100, 103)
FINAL_SEEDS = range(200, 210)
FINALISTS = 2
FINE_STEPS = 100  # At order 3 these end closer to the limit than 1000 DDIM steps.
NAME = "tuned.json"


def run_model(
    model: Model,
    *,
    count: int | None = None,
    steps: Sequence[int] = STEPS,
    seeds: Sequence[int] = SEEDS,
    final_seeds: Sequence[int] = FINAL_SEEDS,
    limit_steps: int = LIMIT_STEPS,
    entries: Sequence[Peer] | None = None,
) -> dict[str, Any]:
    """Run the tuned plans and all peers on a model, and return all results."""
    begin = time.perf_counter()
    count = count or model.samples
    known = facts(torch.device("cpu")) | {"diffusers": version("diffusers")}
    result: dict[str, Any] = {"title": model.title, "count": count, "facts": known}
    classifier = None
    if model.labelled is not None:
        classifier, _ = train_classifier(*model.labelled)
    plans = {K: Tuned().plan(model, K) for K in steps}
    result["tuning"] = {
        str(K): {key: plan.provenance[key] for key in ("samples", "chosen", "seed")}
        for K, plan in plans.items()
        if plan.provenance is not None
    }
    trials = [Trial(model, count, seed, classifier) for seed in seeds]
    for trial in trials:
        trial.find_limit(limit_steps)
    result["limit_steps"], result["seeds"] = limit_steps, list(seeds)
    if entries is None:
        entries = lineup(model)
    cells = result["cells"] = {}
    finalists: dict[int, dict[str, list[Peer]]] = {}
    for K in steps:
        tuned = _joined([trial.run(Tuned(), K) for trial in trials])
        rows = []
        for peer in entries:
            run = _joined([trial.run(peer, K) for trial in trials])
            rows.append({**_named(peer), "stochastic": peer.is_stochastic, **run})
        cells[str(K)] = {"tuned": tuned, "peers": rows}
        finalists[K] = _finalists(rows, entries, K)
        print(f"{model.name}, {K} calls: {tuned_report.best_line(cells[str(K)], K)}", flush=True)
    trials = [Trial(model, count, seed, classifier) for seed in final_seeds]
    result["floor"] = _joined([trial.judge.floor() for trial in trials])
    result["limit"] = _limits(model, trials)
    result["final_seeds"] = list(final_seeds)
    finals = result["finals"] = {}
    for K in steps:
        rows = {}
        for group, chosen in finalists[K].items():
            rows[group] = [
                {**_named(peer), **_joined([trial.run(peer, K) for trial in trials])}
                for peer in chosen
            ]
        finals[str(K)] = {"tuned": _joined([trial.run(Tuned(), K) for trial in trials]), **rows}
    result["seconds"] = round(time.perf_counter() - begin, 1)
    return result


def lineup(model: Model) -> list[Peer]:
    """Return all peers; if the model clips x0, some of them without clipping too."""
    learned = model.denoiser.variance == "learned_range"
    samplers = [
        *diffusers_schedulers.deterministic_samplers(),
        *diffusers_schedulers.stochastic_samplers(learned=learned),
    ]
    if model.denoiser.clip is not None:
        samplers += diffusers_schedulers.unclipped_samplers()
    return [Peer(**vars(peer)) for peer in samplers]


def _finalists(
    rows: Sequence[dict[str, Any]], entries: Sequence[Peer], K: int
) -> dict[str, list[Peer]]:
    """Return the best peers by each distance, among the deterministic ones and among all."""
    finalists: dict[str, list[Peer]] = {}
    for metric in ("sw2", "frechet"):
        for group in ("deterministic", "any"):
            candidates = [
                (statistics.fmean(row[metric]), i)
                for i, row in enumerate(rows)
                if metric in row
                and row["calls"] <= K
                and not (group == "deterministic" and row["stochastic"])
            ]
            if candidates:
                finalists[f"{metric} {group}"] = [
                    entries[i] for _, i in sorted(candidates)[:FINALISTS]
                ]
    return finalists


def _limits(model: Model, trials: Sequence[Trial]) -> dict[str, Any]:
    """Measure the distances of the fine deterministic run that the plans were tuned to follow."""
    schedule = model.denoiser.schedule
    plan = fs.dpm_solver(
        schedule,
        grids.quadratic(int(schedule.T), FINE_STEPS),
        order=3,
        clip=model.denoiser.clip,
        prediction=model.denoiser.prediction,
    )
    return _joined(
        [trial.judge(fs.sample(model.denoiser, plan, start=trial.start)) for trial in trials]
    )


def _named(peer: Peer) -> dict[str, str]:
    return {"method": peer.label, "grid": peer.grid}


def _joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the runs of several seeds: distances and errors become lists, a value per seed."""
    for run in runs:
        if "refused" in run:
            return run
    joined: dict[str, Any] = {}
    for name, value in runs[0].items():
        several = name in ("sw2", "frechet", "rmse")
        joined[name] = [float(f"{run[name]:.4g}") for run in runs] if several else value
    return joined


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write tuned.json, one line per entry, and the tables."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(result)
    for key in ('{"method"', '"cells"', '"finals"'):
        text = text.replace(f" {key}", f"\n{key}")
    (folder / NAME).write_text(text + "\n")
    render(folder)


def render(folder: Path) -> None:
    """Write tuned.md beside tuned.json."""
    result = json.loads((folder / NAME).read_text())
    (folder / "tuned.md").write_text(tuned_report.markdown(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="fewer measurements; writes nothing")
    parser.add_argument("--render", action="store_true", help="only render what is in the JSON")
    options = parser.parse_args()
    if options.render:
        render(options.out)
        return
    quick: dict[str, Any] = {}
    if options.quick:
        quick = {"count": 60, "steps": (5,), "seeds": (100,), "final_seeds": (200, 201)}
        quick["limit_steps"] = 50
    path = options.out / NAME
    keeps = path.exists() and not options.quick
    result: dict[str, Any] = json.loads(path.read_text()) if keeps else {}
    for name in options.models:
        result[name] = run_model(MODELS[name](), **quick)
        if not options.quick:
            write(options.out, {name: result[name] for name in MODELS if name in result})
    if options.quick:
        print(tuned_report.markdown(result))


if __name__ == "__main__":
    main()
