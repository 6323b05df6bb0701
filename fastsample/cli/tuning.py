"""Runs the command ``fastsample tune``."""

from __future__ import annotations

import argparse
import time

from tqdm import tqdm

import fastsample as fs
from fastsample import plots
from fastsample.evaluation.compare import compare
from fastsample.plans.files import load_plans, save_plans

_MAX_COMPARED = 128  # starting noises in the comparison, at most


def tune(options: argparse.Namespace) -> int:
    """Tune plans, and write the file after each of them; returns the exit status."""
    if options.out.suffix != ".json":
        raise ValueError(f"tune: out must end in .json, got {options.out}")
    plans = load_plans(options.out) if options.out.exists() else {}
    model = fs.load(options.model, device=options.device)
    model.with_plans(plans)  # This raises for plans of another schedule.
    cond = model.uncond or {}
    for steps in options.steps:
        if steps in plans:
            print(f"{steps} steps: {options.out} has a plan already")
            continue
        start = time.perf_counter()
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
        print(f"{steps} steps, {time.perf_counter() - start:.1f} s: {options.out.resolve()}\n")
    if options.picture is not None:
        _draw(model, {steps: plans[steps] for steps in options.steps}, options)
    return 0


def _draw(model: fs.Denoiser, plans: dict[int, fs.Plan], options: argparse.Namespace) -> None:
    """Compare the plans with other samplers, print a table, and write the figure."""
    count = min(options.samples, _MAX_COMPARED)
    with tqdm(disable=options.quiet, desc="compare", unit="run") as bar:
        comparison = compare(model, plans, samples=count, cond=model.uncond, tick=bar.update)
    print(comparison.table())
    print(plots.save(plots.tuned_errors(comparison), options.picture))
