"""The command line's ``fastsample tune``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

import fastsample as fs
from fastsample import plots
from fastsample.cli_arguments import numbers
from fastsample.comparison import compare
from fastsample.plan_file import load_plans, save_plans

_COMPARED = 128  # starting noises of the picture, at most


def add_tuning(commands: Any) -> None:
    """Register the command with the parser's sub-commands."""
    tune = commands.add_parser("tune", help="find the best sampler of K network calls for a model")
    tune.add_argument("model", help='"digits", or a checkpoint of examples/train_digits.py')
    tune.add_argument(
        "--steps", type=numbers, required=True, metavar="K,K,...", help="numbers of network calls"
    )
    tune.add_argument(
        "--out", type=Path, required=True, help="JSON of plans; lengths it has are not tuned again"
    )
    tune.add_argument(
        "--picture",
        type=Path,
        help="draw errors against calls, of the plans, all methods here and, where it is "
        "installed, every scheduler of diffusers",
    )
    tune.add_argument("--samples", type=int, default=1024, help="starting noises (default 1024)")
    tune.add_argument("--objective", choices=["endpoint", "robust"], default="endpoint")
    tune.add_argument("--max-runs", type=int, default=60, help="candidate times (default 60)")
    tune.add_argument(
        "--gradient-steps", type=int, default=0, help="of Adam on the rows at the end (default 0)"
    )
    tune.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    tune.add_argument("--device", help="where to run (default: the CPU)")
    tune.add_argument("--quiet", action="store_true", help="no progress bar")
    tune.set_defaults(run=_tune)


def _tune(options: argparse.Namespace) -> int:
    if options.out.suffix != ".json":
        raise ValueError(f"tune: out must end in .json, got {options.out}")
    plans = load_plans(options.out) if options.out.exists() else {}
    model = fs.load(options.model, device=options.device)
    model.with_plans(plans)  # refuses those of another model's schedule
    cond = model.uncond or {}
    for steps in options.steps:
        if steps in plans:
            print(f"{steps} steps: {options.out} has a plan already")
            continue
        began = time.perf_counter()
        plans[steps] = fs.tune(
            model,
            steps,
            samples=options.samples,
            objective=options.objective,
            max_runs=options.max_runs,
            gradient_steps=options.gradient_steps,
            cond=cond,
            seed=options.seed,
            progress=not options.quiet,
        )
        save_plans(options.out, plans.values())
        print(plans[steps].describe())
        print(f"{steps} steps, {time.perf_counter() - began:.1f} s: {options.out.resolve()}\n")
    if options.picture is not None:
        _draw(model, {steps: plans[steps] for steps in options.steps}, options)
    return 0


def _draw(model: fs.Denoiser, plans: dict[int, fs.Plan], options: argparse.Namespace) -> None:
    """The picture, and the errors in it that matter most as a table."""
    count = min(options.samples, _COMPARED)
    with tqdm(disable=options.quiet, desc="compare", unit="run") as bar:
        found = compare(model, plans, samples=count, cond=model.uncond, tick=bar.update)
    print(found.table())
    print(plots.save(plots.tuned_errors(found), options.picture))
