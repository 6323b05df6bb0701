"""``fastsample train``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from fastsample.bundled.recipes import recipe_of
from fastsample.cli.parser import MODEL_FILE
from fastsample.distances.names import PAIRED
from fastsample.training import FidelityLoss

_TERM = (
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
    """Train a model and save it."""
    recipe = recipe_of(options.model, seed=options.seed, device=options.device)
    given = {name: getattr(options, name) for name in ("batch_size", "lr", "ema", "fidelity_lr")}
    total = recipe.iterations if options.iterations is None else options.iterations
    trainer = recipe.trainer(
        _fidelity(options, recipe.fidelity),
        iterations=total,
        folder=options.out,
        resume=options.resume,
        precision=options.precision,
        save_every=options.save_every,
        seed=options.seed,
        progress=not options.quiet,
        **{name: value for name, value in given.items() if value is not None},
    )
    first, began = trainer.iteration, time.perf_counter()
    averaged = trainer.run(total)
    path = options.out / MODEL_FILE
    recipe.save(path, averaged)
    seconds = time.perf_counter() - began
    print(
        f"{trainer.iteration} iterations ({seconds:.0f} s for {trainer.iteration - first}): {path}"
    )
    return 0


def _fidelity(options: argparse.Namespace, own: dict[str, Any]) -> FidelityLoss | None:
    given = {name: getattr(options, name) for name in (*_TERM, "fidelity_lr")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.steps is None:
        for name in given:
            flag = name.replace("_", "-")
            raise ValueError(f"train: --steps must be given with --{flag}, got none")
        return None
    given.pop("fidelity_lr", None)
    chosen = {**own, **given}
    paired = options.distance in PAIRED
    if options.subset is None and options.batch_size is not None and "subset" in chosen:
        # Sets that start from x0 are compared with the rest of the batch.
        apart = options.start not in (None, "prior") and not paired
        most = options.batch_size // 2 if apart else options.batch_size
        chosen["subset"] = max(min(chosen["subset"], most), 1)
    if paired:
        chosen.pop("features", None)  # x against its own x0
    steps = options.steps[0] if len(options.steps) == 1 else tuple(options.steps)
    return FidelityLoss(steps, seed=options.seed, **chosen)
