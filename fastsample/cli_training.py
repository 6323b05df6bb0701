"""The command line's ``fastsample train``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from fastsample.cli_arguments import numbers
from fastsample.methods import GRIDS, METHODS
from fastsample.training import FidelityLoss
from fastsample.training.chain import GRADIENTS, STARTS
from fastsample.training.discrepancy import DISTANCES, PAIRED
from fastsample.training.recipes import recipe_of

MODEL_FILE = "model.safetensors"
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


def add_training(commands: Any) -> None:
    """Register the command with the parser's sub-commands."""
    train = commands.add_parser(
        "train", help="train a model, or fine-tune it so that its K-step samples are good"
    )
    train.add_argument(
        "model", help='"swirl" (from nothing), "digits" (the bundled model), or a model file'
    )
    train.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help=f"for checkpoints, the log and {MODEL_FILE}",
    )
    train.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    train.add_argument("--iterations", type=int, help="default: the recipe's own number")
    train.add_argument("--batch-size", type=int, help="samples of an iteration")
    train.add_argument("--lr", type=float, help="learning rate")
    train.add_argument("--ema", type=float, help="decay of the moving average (default 0.999)")
    train.add_argument("--precision", choices=["bfloat16"], help="of the network, under autocast")
    train.add_argument("--save-every", type=int, default=100, help="iterations (default 100)")
    train.add_argument("--seed", type=int, default=0, help="of weights and draws (default 0)")
    train.add_argument("--device", help="where to train (default: the CPU)")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    term = train.add_argument_group("fidelity loss (with --steps)")
    term.add_argument(
        "--steps",
        type=numbers,
        metavar="K,K,...",
        help="network calls of the chain; of several one is drawn in every iteration",
    )
    term.add_argument("--method", choices=["auto", *METHODS], help="(default auto)")
    term.add_argument("--grid", choices=sorted([*GRIDS, "auto", "random"]), help="(default auto)")
    term.add_argument("--distance", choices=DISTANCES, help="(default energy)")
    term.add_argument("--start", choices=STARTS, help="(default prior)")
    term.add_argument("--gradient", choices=GRADIENTS, help="default: the recipe's own")
    term.add_argument("--last-rows", type=int, help='of --gradient "last" (default 1)')
    term.add_argument(
        "--checkpoint", action="store_const", const=True, help="save memory, run rows twice"
    )
    term.add_argument("--subset", type=int, help="samples of the batch that start chains")
    term.add_argument("--fidelity-lr", type=float, help="learning rate of the term's optimiser")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
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
