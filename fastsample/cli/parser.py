"""The command line's options, read without importing torch: help comes at once."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import fastsample
from fastsample.distances.names import DISTANCES
from fastsample.grids.registry import grid_names
from fastsample.samplers.registry import method_names
from fastsample.training.fidelity.names import GRADIENTS, STARTS

MODEL_FILE = "model.safetensors"


def make_parser() -> argparse.ArgumentParser:
    """The parser; ``options.run`` names the module of `fastsample.cli` and its function to call."""
    parser = argparse.ArgumentParser(
        prog="fastsample", description="Few-step sampling of trained diffusion models."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_sampling, _add_planning, _add_tuning, _add_training):
        add(commands.add_parser)
    info = commands.add_parser("info", help="how this copy was built and what it runs on")
    info.set_defaults(run=("sampling", "info"))
    return parser


class _Version(argparse.Action):
    """Prints the version, which is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"fastsample {fastsample.__version__}")
        parser.exit()


def _add_sampling(add: Callable[..., argparse.ArgumentParser]) -> None:
    demo = add("demo", help="draw handwritten digits in 10 network calls")
    _add_drawing(demo, out="fastsample-demo.png")
    demo.set_defaults(run=("sampling", "demo"))

    sample = add("sample", help="draw samples and save them")
    sample.add_argument("model", help='"digits", or a checkpoint of examples/train_digits.py')
    _add_drawing(sample, out="samples.png")
    sample.add_argument("--num", type=int, default=16, help="number of samples (default 16)")
    sample.add_argument("--method", choices=method_names(), default="auto")
    sample.add_argument("--grid", choices=grid_names(), default="auto")
    sample.add_argument("--eta", type=float, help="DDIM's share of fresh noise, 0..1")
    sample.add_argument(
        "--knob",
        action="append",
        type=_knob,
        default=[],
        metavar="NAME=VALUE",
        help="a knob of the method, as order=3 or approximation=var; may be repeated",
    )
    sample.add_argument("--index", type=int, default=0, help="global index of the first sample")
    sample.add_argument(
        "--label", type=int, choices=range(10), help="draw this digit", metavar="0..9"
    )
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    sample.set_defaults(run=("sampling", "sample"))


def _add_drawing(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--steps", type=int, default=10, help="network calls (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="64-bit seed (default 0)")
    parser.add_argument("--device", help="where to run (default: the CPU)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"file to write ({out})")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_planning(add: Callable[..., argparse.ArgumentParser]) -> None:
    profile = add("profile", help="measure what a model gets wrong at every time")
    _add_measuring(profile)
    profile.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="to write, or to go on with"
    )
    _option(profile, "--times N", int, None, "even times, 1 and T among them (default: all)")
    _option(profile, "--trajectories M", int, 64, "DDIM trajectories besides (default 64)")
    _option(profile, "--nodes n", int, 16, "of a learned variance (default 16)")
    profile.set_defaults(run=("planning", "profile"))

    plan = add("plan", help="find the cheapest steps for a profile")
    plan.add_argument("profile", help='a file of "fastsample profile", or "digits"')
    budgets = {"type": int, "nargs": "+", "default": [5, 10, 20], "metavar": "K"}
    plan.add_argument("--steps", help="numbers of network calls (default 5 10 20)", **budgets)
    plan.add_argument(
        "--objective",
        choices=["trajectory", "elbo", "mse"],
        help="what is to be small (default: trajectory if it was measured, else mse)",
    )
    variances = "small, large, learned_range, analytic (default: the model's)"
    _option(plan, "--variance NAME", str, None, variances)
    decoders = "optimal (default), forward, posterior or respaced"
    _option(plan, "--decoder NAME", str, "optimal", decoders)
    plan.add_argument("--at-most", action="store_true", help="fewer steps where that costs less")
    _option(plan, "--out FILE", Path, None, "JSON file for the grids")
    _option(plan, "--picture FILE", Path, None, "picture of the costs and the grids")
    plan.set_defaults(run=("planning", "plan"))

    bpd = add("bpd", help="bound on the bits per dimension of data")
    _add_measuring(bpd)
    _option(bpd, "--steps K", _steps, None, 'number of steps, or "all" (default)')
    _option(bpd, "--grid NAME", str, "uniform", "as for sample (default uniform)")
    _option(bpd, "--variance NAME", str, None, variances.replace(", analytic", ""))
    bpd.add_argument("--terms", action="store_true", help="print every step's term")
    bpd.set_defaults(run=("planning", "bpd"))


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help='"digits", or a checkpoint of examples/train_digits.py')
    parser.add_argument(
        "data", help='"digits" (trained on), "digits-test", or a .npy file (N, *shape) in [-1, 1]'
    )
    _option(parser, "--num N", int, None, "only the first samples (default: all)")
    _option(parser, "--batch-size B", int, 256, "per network call (default 256)")
    widths = "distance of the data's levels, or none (default 2/255; 1/8 for the digits)"
    _option(parser, "--bin-width W", _width, argparse.SUPPRESS, widths)
    _option(parser, "--seed S", int, 0, "of the noise (default 0)")
    _option(parser, "--device D", str, None, "where to run (default: the CPU)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_tuning(add: Callable[..., argparse.ArgumentParser]) -> None:
    tune = add("tune", help="find the best sampler of K network calls for a model")
    tune.add_argument("model", help='"digits", or a checkpoint of examples/train_digits.py')
    tune.add_argument(
        "--steps", type=_numbers, required=True, metavar="K,K,...", help="numbers of network calls"
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
    tune.set_defaults(run=("tuning", "tune"))


def _add_training(add: Callable[..., argparse.ArgumentParser]) -> None:
    train = add("train", help="train a model, or fine-tune it so that its K-step samples are good")
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
        type=_numbers,
        metavar="K,K,...",
        help="network calls of the chain; of several one is drawn in every iteration",
    )
    term.add_argument("--method", choices=method_names(), help="(default auto)")
    term.add_argument("--grid", choices=grid_names(), help="(default auto)")
    term.add_argument("--distance", choices=DISTANCES, help="(default energy)")
    term.add_argument("--start", choices=STARTS, help="(default prior)")
    term.add_argument("--gradient", choices=GRADIENTS, help="default: the recipe's own")
    term.add_argument("--last-rows", type=int, help='of --gradient "last" (default 1)')
    term.add_argument(
        "--checkpoint", action="store_const", const=True, help="save memory, run rows twice"
    )
    term.add_argument("--subset", type=int, help="samples of the batch that start chains")
    term.add_argument("--fidelity-lr", type=float, help="learning rate of the term's optimiser")
    train.set_defaults(run=("training", "train"))


# ---- kinds of arguments


def _numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like 5,8,10, got {text!r}") from None


def _knob(text: str) -> tuple[str, object]:
    """(name, value) of NAME=VALUE; a value that is no Python literal is a string."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"must look like order=3, got {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _option(parser: Any, flag: str, kind: Any, default: Any, text: str) -> None:
    name, metavar = flag.split()
    parser.add_argument(name, metavar=metavar, type=kind, default=default, help=text)


def _width(text: str) -> float | None:
    """A number, a fraction, or none."""
    if text.lower() == "none":
        return None
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must look like 2/255 or none, got {text!r}") from None


def _steps(text: str) -> int | None:
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be a number or "all", got {text!r}') from None
