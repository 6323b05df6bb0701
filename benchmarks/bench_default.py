"""Measures the default sampler and times against DDIM on even times and against diffusers.

    python -m benchmarks.bench_default            # under ten minutes on two cores
    python -m benchmarks.bench_default --quick    # a few targets and calls, writes nothing

The candidate is what `fs.sample` does by default: UniPC of order 2 on `grids.blended`. For each
target of `benchmarks.default_targets` and number of calls K this prints its RMSE and that of DDIM
on even times, divided by that of the best deterministic setting of diffusers. The RMSE is to the
limit: a fine run from the same starting noise. The best setting is chosen for each cell by the very
figure that is shown, among all settings that make at most K calls, which favours diffusers. The
candidate was chosen on the targets that are marked so and on others like them, but on none of the
rest. Writes benchmarks/results/default.json and default.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

import fastsample as fs
from benchmarks.default_peers import diffusers_samples, label, samplers
from benchmarks.default_targets import Target, targets
from benchmarks.quality import rmse
from benchmarks.timing import RESULTS, facts, write
from fastsample.grids.registry import GRIDS

STEPS = (3, 5, 10, 20, 50)
FINE_STEPS = 1000


def run_target(target: Target, steps: Sequence[int]) -> dict[str, Any]:
    """Measure the candidate, DDIM on even times and all settings of diffusers on a target."""
    model, schedule = target.denoiser, target.denoiser.schedule
    options: dict[str, Any] = {"clip": model.clip, "prediction": model.prediction}
    fine = fs.dpm_solver(schedule, GRIDS["uniform"](schedule, FINE_STEPS), order=2, **options)
    limit = fs.sample(model, fine, start=target.start)
    cells: dict[str, Any] = {}
    for K in (K for K in steps if target.most >= K):
        plans = {
            "default": fs.unipc(schedule, fs.grids.blended(schedule, K), **options),
            "ddim": fs.ddim(schedule, GRIDS["uniform"](schedule, K), **options),
        }
        cell: dict[str, Any] = {
            name: rmse(fs.sample(model, plan, start=target.start), limit)
            for name, plan in plans.items()
        }
        peers: dict[str, float] = {}
        for sampler in samplers(target):
            try:
                error = rmse(diffusers_samples(target, sampler, K), limit)
            except (ValueError, NotImplementedError, IndexError, TypeError):
                continue  # The setting does not exist for this model or number of calls.
            if math.isfinite(error):
                peers[label(sampler)] = error
        best = min(peers, key=peers.__getitem__)
        cells[str(K)] = {**cell, "best": best, "diffusers": peers[best], "settings": len(peers)}
        print(target.name, K, _text(cells[str(K)]), flush=True)
    return {"chosen": target.chosen, "cells": cells}


def _text(cell: dict[str, Any]) -> str:
    ours, even = (cell[name] / cell["diffusers"] for name in ("default", "ddim"))
    return f"{ours:.2f} ({even:.2f})"


def markdown(result: dict[str, Any]) -> str:
    """Return the table of ratios, with their geometric means."""
    known, rows = result["facts"], result["targets"]
    steps = [str(K) for K in STEPS]
    lines = [
        "# The default sampler and times against DDIM and diffusers",
        "",
        "Made by `python -m benchmarks.bench_default`: RMSE to the limit of the same noise, divided"
        " by that of the best deterministic setting of diffusers for the cell. First UniPC of order"
        " 2 on `grids.blended`, in brackets DDIM on even times.",
        "",
        f"{known['cpu']}, {known['threads']} thread, torch {known['torch']}, diffusers "
        f"{known['diffusers']}, {known['date']}.",
        "",
        f"| target | {' | '.join(f'{K} calls' for K in steps)} |",
        f"|---|{'---|' * len(steps)}",
    ]
    for name, row in rows.items():
        texts = [_text(row["cells"][K]) if K in row["cells"] else "" for K in steps]
        lines.append(f"| {name}{' (chosen on)' if row['chosen'] else ''} | {' | '.join(texts)} |")
    lines.append("")
    for title, chosen in (("held out", False), ("chosen on", True)):
        cells = [
            c for row in rows.values() if row["chosen"] is chosen for c in row["cells"].values()
        ]
        if not cells:
            continue
        ratios, even = (
            [cell[name] / cell["diffusers"] for cell in cells] for name in ("default", "ddim")
        )
        worse = sum(cell["default"] > cell["ddim"] for cell in cells)
        lines.append(
            f"- {title}, {len(cells)} cells: geometric mean "
            f"**{statistics.geometric_mean(ratios):.2f}**, largest {max(ratios):.2f}; DDIM "
            f"{statistics.geometric_mean(even):.2f}, with the smaller error in {worse} cells"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few targets; writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # diffusers calls deprecated functions.
    begin, rows = time.perf_counter(), {}
    known = facts(torch.device("cpu")) | {"diffusers": version("diffusers")}
    for make in list(targets())[3:5] if options.quick else targets():
        target = make()
        with torch.inference_mode():
            rows[target.name] = run_target(target, (3, 5) if options.quick else STEPS)
    result = {"facts": known, "seconds": round(time.perf_counter() - begin, 1), "targets": rows}
    text = markdown(result)
    if not options.quick:
        write("default", result)
        (RESULTS / "default.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
