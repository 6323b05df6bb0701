"""Parses the options of the command line without importing torch, so that help is fast."""

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
    """Make the parser of all commands.

    The parsed options have an attribute `run`: (module of `fastsample.cli`, function). The function
    runs the command with these options.
    """
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
    """Prints the version, and looks it up only then, since that takes time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"fastsample {fastsample.__version__}")
        parser.exit()


def _add_sampling(add: Callable[..., argparse.ArgumentParser]) -> None:
    demo = add("demo", help="draw handwritten digits in 10 network calls")
    _add_sampling_options(demo, out="fastsample-demo.png")
    demo.set_defaults(run=("sampling", "demo"))

    sample = add("sample", help="draw samples and save them")
    sample.add_argument("model", help='"digits", "mnist", or a model file')
    _add_sampling_options(sample, out="samples.png")
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
        help="an option of the method, such as order=3 or approximation=var; may be repeated",
    )
    sample.add_argument(
        "--whole", action="store_true", help="round the times to whole ones, and drop repeats"
    )
    sample.add_argument("--index", type=int, default=0, help="global index of the first sample")
    sample.add_argument(
        "--label", type=int, choices=range(10), help="draw this digit", metavar="0..9"
    )
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    sample.set_defaults(run=("sampling", "sample"))


def _add_sampling_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options that `demo` and `sample` share."""
    parser.add_argument("--steps", type=int, default=10, help="network calls (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="64-bit seed (default 0)")
    parser.add_argument("--device", help="device to run on (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"file to write ({out})")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_planning(add: Callable[..., argparse.ArgumentParser]) -> None:
    profile = add("profile", help="measure what a model gets wrong at every time")
    _add_measuring_options(profile)
    profile.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="profile to write; one that was interrupted is continued",
    )
    _option(profile, "--times N", int, None, "number of even times, with 1 and T (default: all)")
    _option(profile, "--trajectories M", int, 64, "number of DDIM trajectories (default 64)")
    _option(profile, "--nodes n", int, 16, "quadrature nodes of a learned variance (default 16)")
    profile.set_defaults(run=("planning", "profile"))

    plan = add("plan", help="find the cheapest steps for a profile")
    plan.add_argument("profile", help='a file of "fastsample profile", or "digits"')
    plan.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[5, 10, 20],
        metavar="K",
        help="numbers of network calls (default 5 10 20)",
    )
    plan.add_argument(
        "--objective",
        choices=["trajectory", "elbo", "mse"],
        help="cost to minimise (default: trajectory if it was measured, else mse)",
    )
    variances = "small, large, learned_range, analytic (default: the model's)"
    _option(plan, "--variance NAME", str, None, variances)
    decoders = "optimal (default), forward, posterior or respaced"
    _option(plan, "--decoder NAME", str, "optimal", decoders)
    plan.add_argument("--at-most", action="store_true", help="fewer steps if they cost less")
    _option(plan, "--out FILE", Path, None, "JSON file to write the grids to")
    _option(plan, "--picture FILE", Path, None, "figure of the costs and the grids to write")
    plan.set_defaults(run=("planning", "plan"))

    bpd = add("bpd", help="bound on the bits per dimension of data")
    _add_measuring_options(bpd)
    _option(bpd, "--steps K", _steps, None, 'number of steps, or "all" (default)')
    _option(bpd, "--grid NAME", str, "uniform", "times, as for sample (default uniform)")
    _option(bpd, "--variance NAME", str, None, variances.replace(", analytic", ""))
    bpd.add_argument("--terms", action="store_true", help="print every step's term")
    bpd.set_defaults(run=("planning", "bpd"))


def _add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `profile` and `bpd` share."""
    parser.add_argument("model", help='"digits", "mnist", or a model file')
    parser.add_argument(
        "data", help='"digits" (trained on), "digits-test", or a .npy or .pt file (N, *shape)'
    )
    _option(parser, "--num N", int, None, "only the first samples (default: all)")
    _option(parser, "--batch-size B", int, 256, "samples per network call (default 256)")
    bin_widths = (
        "distance of the data's levels in [-1, 1], or none for latents, whose bound is in nats "
        "(default 2/255; 1/8 for the digits; profile: none for data on other levels)"
    )
    _option(parser, "--bin-width W", _bin_width, argparse.SUPPRESS, bin_widths)
    _option(parser, "--seed S", int, 0, "seed of the noise (default 0)")
    _option(parser, "--device D", str, None, "device to run on (default: cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_tuning(add: Callable[..., argparse.ArgumentParser]) -> None:
    tune = add("tune", help="find the best sampler of K network calls for a model")
    tune.add_argument("model", help='"digits", "mnist", or a model file')
    tune.add_argument(
        "--steps", type=_numbers, required=True, metavar="K,K,...", help="numbers of network calls"
    )
    tune.add_argument(
        "--out",
        type=Path,
        required=True,
        help="JSON file of plans; those that it holds are not tuned again",
    )
    tune.add_argument(
        "--picture",
        type=Path,
        help="figure to write: errors of the plans, of all other methods and, if diffusers is "
        "installed, of its schedulers",
    )
    tune.add_argument("--samples", type=int, default=1024, help="starting noises (default 1024)")
    tune.add_argument("--objective", choices=["endpoint", "robust"], default="endpoint")
    tune.add_argument(
        "--max-runs", type=int, default=60, help="candidates for the times (default 60)"
    )
    tune.add_argument(
        "--gradient-steps",
        type=int,
        default=0,
        help="steps of Adam on the rows at the end (default 0)",
    )
    tune.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    tune.add_argument("--device", help="device to run on (default: cpu)")
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
        help=f"folder for checkpoints, the log and {MODEL_FILE}",
    )
    train.add_argument(
        "--resume", action="store_true", help="go on from the folder's newest checkpoint"
    )
    train.add_argument(
        "--iterations", type=int, help="total number of iterations (default: the recipe's)"
    )
    train.add_argument(
        "--batch-size", type=int, help="samples per iteration (default: the recipe's)"
    )
    train.add_argument("--lr", type=float, help="learning rate (default: the recipe's)")
    train.add_argument("--ema", type=float, help="decay of the moving average (default 0.999)")
    train.add_argument(
        "--precision", choices=["bfloat16"], help="precision of the network, by autocast"
    )
    train.add_argument(
        "--save-every", type=int, default=100, help="iterations between checkpoints (default 100)"
    )
    train.add_argument(
        "--seed", type=int, default=0, help="seed of weights and random numbers (default 0)"
    )
    train.add_argument("--device", help="device to train on (default: cpu)")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    term = train.add_argument_group("fidelity loss (with --steps)")
    term.add_argument(
        "--steps",
        type=_numbers,
        metavar="K,K,...",
        help="network calls of the chain; one of several is drawn in every iteration",
    )
    term.add_argument("--method", choices=method_names(), help="sampler (default auto)")
    term.add_argument("--grid", choices=grid_names(), help="times (default auto)")
    term.add_argument(
        "--distance", choices=DISTANCES, help="distance between samples and data (default energy)"
    )
    term.add_argument("--start", choices=STARTS, help="where chains start (default prior)")
    term.add_argument(
        "--gradient", choices=GRADIENTS, help="path of the gradient (default: the recipe's)"
    )
    term.add_argument("--last-rows", type=int, help='rows of --gradient "last" (default 1)')
    term.add_argument(
        "--checkpoint",
        action="store_const",
        const=True,
        help="save memory: run the network again in the backward pass",
    )
    term.add_argument("--subset", type=int, help="samples of the batch that start chains")
    term.add_argument("--fidelity-lr", type=float, help="learning rate of its own optimiser")
    train.set_defaults(run=("training", "train"))


# ---- Functions that turn the text of an option into its value.


def _numbers(text: str) -> list[int]:
    """Return the integers of a text that separates them by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like 5,8,10, got {text!r}") from None


def _knob(text: str) -> tuple[str, object]:
    """Return (name, value) from NAME=VALUE; a value that is no Python literal is a string."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"must look like order=3, got {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _option(parser: Any, flag: str, convert: Any, default: Any, text: str) -> None:
    """Add an option; the flag is "--name METAVAR"."""
    name, metavar = flag.split()
    parser.add_argument(name, metavar=metavar, type=convert, default=default, help=text)


def _bin_width(text: str) -> float | None:
    """Return a number from a decimal or a fraction; None for the text "none"."""
    if text.lower() == "none":
        return None
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must look like 2/255 or none, got {text!r}") from None


def _steps(text: str) -> int | None:
    """Return an integer; None for the text "all"."""
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be a number or "all", got {text!r}') from None
