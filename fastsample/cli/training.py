"""Runs the command ``fastsample train``."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

from fastsample.bundled.recipes import Recipe, recipe_of
from fastsample.cli.parser import MODEL_FILE
from fastsample.distances.names import PAIRED
from fastsample.training import FidelityLoss, FidelityTerm

# These options have the names of `FidelityLoss`'s arguments and are passed on to it.
_LOSS_OPTIONS = (
    "method",
    "grid",
    "distance",
    "start",
    "gradient",
    "last_rows",
    "checkpoint",
    "subset",
)


def train(options: argparse.Namespace) -> int:
    """Train a model and save it; returns the exit status."""
    recipe = recipe_of(options.model, seed=options.seed, device=options.device)
    if options.lr is not None:
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, lr=options.lr))
    trainer_options = {name: getattr(options, name) for name in ("batch_size", "ema")}
    total = recipe.iterations if options.iterations is None else options.iterations
    trainer = recipe.trainer(
        _fidelity_term(options, recipe),
        iterations=total,
        folder=options.out,
        resume=options.resume,
        precision=options.precision,
        save_every=options.save_every,
        seed=options.seed,
        progress=not options.quiet,
        **{name: value for name, value in trainer_options.items() if value is not None},
    )
    if options.resume and trainer.iteration == 0:
        print(
            f"train: {options.out} must hold a checkpoint for --resume, got none; training begins "
            "at the first iteration",
            file=sys.stderr,
        )
    first, start = trainer.iteration, time.perf_counter()
    averaged = trainer.run(total)
    path = options.out / MODEL_FILE
    recipe.save(path, averaged)
    seconds = time.perf_counter() - start
    print(
        f"{trainer.iteration} iterations ({seconds:.0f} s for {trainer.iteration - first}): {path}"
    )
    return 0


def _fidelity_term(options: argparse.Namespace, recipe: Recipe) -> FidelityTerm | None:
    """Make the fidelity term from the options and the recipe; None without ``--steps``.

    Raises:
        ValueError: an option of the term without ``--steps``.
    """
    values = {name: getattr(options, name) for name in (*_LOSS_OPTIONS, "fidelity_lr")}
    values = {name: value for name, value in values.items() if value is not None}
    if options.steps is None:
        for name in values:
            flag = name.replace("_", "-")
            raise ValueError(f"train: --steps must be given with --{flag}, got none")
        return None
    lr = values.pop("fidelity_lr", recipe.fidelity_lr)
    arguments: dict[str, Any] = {**recipe.fidelity, **values}
    is_paired = options.distance in PAIRED
    if options.subset is None and options.batch_size is not None and "subset" in arguments:
        # Samples that start from noisy data are compared with the rest of the batch.
        needs_rest = options.start not in (None, "prior") and not is_paired
        largest = options.batch_size // 2 if needs_rest else options.batch_size
        arguments["subset"] = max(min(arguments["subset"], largest), 1)
    if is_paired:
        arguments.pop("features", None)  # A paired distance compares pixels.
    steps = options.steps[0] if len(options.steps) == 1 else tuple(options.steps)
    return FidelityTerm(FidelityLoss(steps, seed=options.seed, **arguments), lr=lr)
