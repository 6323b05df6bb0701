"""Tuned plans against every scheduler of diffusers, on noise that no tuning has seen.

    python -m benchmarks.bench_tuned            # about half an hour of one idle core
    python -m benchmarks.bench_tuned --quick    # a look at it, nothing is written
    python -m benchmarks.bench_tuned --render   # the tables again, from tuned.json

`fs.tune` at K = 5, 8, 10, 20 on the models of `benchmarks.models` against all peers of
`fastsample.evaluation.diffusers_schedulers`: the RMSE to the 1000-step DDIM result of the same
noise over three seeds, and
the distances to true samples (`benchmarks.quality`) over ten more. The seeds are none of
`bench_quality`'s.

Peers are favoured: the best one of a cell is chosen by its mean over the very seeds of the test
(RMSE), or of two finalists chosen on other seeds by theirs (distances). Distances are also those of
the plan's own limit, the fine deterministic run that it was tuned to follow: where that is far from
the data, so is a plan without error. Writes benchmarks/results/tuned.json and tuned.md.
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
FINE_STEPS = 100  # of the third order, for the limit's distance: nearer to it than DDIM's 1000
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
    """All figures of a model."""
    began = time.perf_counter()
    count = count or model.samples
    known = facts(torch.device("cpu")) | {"diffusers": version("diffusers")}
    found: dict[str, Any] = {"title": model.title, "count": count, "facts": known}
    classifier = None
    if model.labelled is not None:
        classifier, _ = train_classifier(*model.labelled)
    plans = {K: Tuned().plan(model, K) for K in steps}
    found["tuning"] = {
        str(K): {key: plan.provenance[key] for key in ("samples", "chosen", "seed")}
        for K, plan in plans.items()
        if plan.provenance is not None
    }
    trials = [Trial(model, count, seed, classifier) for seed in seeds]
    for trial in trials:
        trial.find_limit(limit_steps)
    found["limit_steps"], found["seeds"] = limit_steps, list(seeds)
    if entries is None:
        entries = lineup(model)
    cells = found["cells"] = {}
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
    found["floor"] = _joined([trial.judge.floor() for trial in trials])
    found["limit"] = _limits(model, trials)
    found["final_seeds"] = list(final_seeds)
    finals = found["finals"] = {}
    for K in steps:
        rows = {}
        for kind, chosen in finalists[K].items():
            rows[kind] = [
                {**_named(peer), **_joined([trial.run(peer, K) for trial in trials])}
                for peer in chosen
            ]
        finals[str(K)] = {"tuned": _joined([trial.run(Tuned(), K) for trial in trials]), **rows}
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def lineup(model: Model) -> list[Peer]:
    """All peers; those that know clipping under another name also without it."""
    learned = model.denoiser.variance == "learned_range"
    found = [
        *diffusers_schedulers.deterministic_samplers(),
        *diffusers_schedulers.stochastic_samplers(learned=learned),
    ]
    if model.denoiser.clip is not None:
        found += diffusers_schedulers.unclipped_samplers()
    return [Peer(**vars(peer)) for peer in found]


def _finalists(
    rows: Sequence[dict[str, Any]], entries: Sequence[Peer], K: int
) -> dict[str, list[Peer]]:
    """The best peers by each distance, of the deterministic ones and of all."""
    found: dict[str, list[Peer]] = {}
    for metric in ("sw2", "frechet"):
        for kind in ("deterministic", "any"):
            able = [
                (statistics.fmean(row[metric]), i)
                for i, row in enumerate(rows)
                if metric in row
                and row["calls"] <= K
                and not (kind == "deterministic" and row["stochastic"])
            ]
            if able:
                found[f"{metric} {kind}"] = [entries[i] for _, i in sorted(able)[:FINALISTS]]
    return found


def _limits(model: Model, trials: Sequence[Trial]) -> dict[str, Any]:
    """Distances of what the plans were tuned to follow."""
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
    """One entry per seed for what seeds change."""
    for run in runs:
        if "refused" in run:
            return run
    joined: dict[str, Any] = {}
    for name, value in runs[0].items():
        several = name in ("sw2", "frechet", "rmse")
        joined[name] = [float(f"{run[name]:.4g}") for run in runs] if several else value
    return joined


def write(folder: Path, result: dict[str, Any]) -> None:
    """The JSON, one line per entry, and the tables."""
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
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="little of everything, none written")
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
