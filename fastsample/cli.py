"""The command line: ``fastsample demo | sample | profile | plan | bpd | tune | train | info``."""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import fastsample as fs
from fastsample import cli_planning, cli_training, cli_tuning
from fastsample.images import save_grid
from fastsample.methods import GRIDS, METHODS

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for a wrong argument, as argparse)."""
    parser = argparse.ArgumentParser(
        prog="fastsample", description="Few-step sampling of trained diffusion models."
    )
    parser.add_argument("--version", action="version", version=f"fastsample {fs.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="draw handwritten digits in 10 network calls")
    _add_drawing(demo, out="fastsample-demo.png")
    demo.set_defaults(run=_demo)

    sample = commands.add_parser("sample", help="draw samples and save them")
    sample.add_argument("model", help='"digits", or a checkpoint of examples/train_digits.py')
    _add_drawing(sample, out="samples.png")
    sample.add_argument("--num", type=int, default=16, help="number of samples (default 16)")
    sample.add_argument("--method", choices=["auto", *METHODS], default="auto")
    sample.add_argument("--grid", choices=sorted([*GRIDS, "auto", "random"]), default="auto")
    sample.add_argument("--eta", type=float, default=0.0, help="DDIM's share of fresh noise, 0..1")
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
    sample.set_defaults(run=_sample)

    cli_planning.add_commands(commands)
    cli_tuning.add_tuning(commands)
    cli_training.add_training(commands)

    info = commands.add_parser("info", help="how this copy was built and what it runs on")
    info.set_defaults(run=_info)

    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"fastsample {options.command}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, TypeError)) else 1


def _add_drawing(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--steps", type=int, default=10, help="network calls (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="64-bit seed (default 0)")
    parser.add_argument("--device", help="where to run (default: the CPU)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"file to write ({out})")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


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


def _demo(options: argparse.Namespace) -> int:
    model = fs.load("digits", device=options.device)
    labels = list(range(10)) * 10  # ten rows, each 0..9
    seconds, calls, images = _timed(
        model, options, num_samples=len(labels), cond={"y": torch.tensor(labels)}
    )
    path = save_grid(images, options.out, columns=10, scale=6)
    print(f"{len(labels)} digits, {calls} network calls, {seconds:.2f} s: {path}")
    return 0


def _sample(options: argparse.Namespace) -> int:
    suffix = options.out.suffix.lower()
    if suffix not in _IMAGE_SUFFIXES | {".npy"}:
        known = sorted(_IMAGE_SUFFIXES | {".npy"})
        raise ValueError(f"sample: out must end in one of {known}, got {options.out}")
    if options.num < 1:
        raise ValueError(f"sample: num must be at least 1, got {options.num}")
    if options.guidance is not None and options.label is None:
        raise ValueError("sample: label must be given with guidance, got none")
    method = "ddim" if options.method == "auto" else options.method
    knobs, known = dict(options.knob), METHODS[method].knobs
    for name in knobs:
        if name not in known:
            raise ValueError(
                f"sample: knob must be one of {list(known) or 'none'} with method "
                f'"{options.method}", got {name}'
            )
    model = fs.load(options.model, device=options.device)
    seconds, calls, samples = _timed(
        model,
        options,
        num_samples=options.num,
        method=options.method,
        grid=options.grid,
        sample_index=options.index,
        guidance=options.guidance,
        cond=None if options.label is None else {"y": options.label},
        **{"eta": options.eta, **knobs},
    )
    if suffix == ".npy":
        path = options.out.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, samples.float().cpu().numpy())
    else:
        path = save_grid(samples, options.out, columns=max(1, round(options.num**0.5)), scale=6)
    print(f"{options.num} samples, {calls} network calls, {seconds:.2f} s: {path}")
    return 0


def _timed(model: fs.Denoiser, options: argparse.Namespace, **arguments):
    """(seconds, network calls, samples) of one run; some grids hold more or fewer times than K."""
    rows: list[int] = []
    began = time.perf_counter()
    samples = fs.sample(
        model,
        options.steps,
        seed=options.seed,
        progress=not options.quiet,
        callback=lambda step: rows.append(step.row),
        **arguments,
    )
    if samples.is_cuda:
        torch.cuda.synchronize(samples.device)
    return time.perf_counter() - began, len(rows), samples


def _info(options: argparse.Namespace) -> int:
    del options
    facts = fs.build_info()
    facts["torch"] = torch.__version__
    facts["torch threads"] = torch.get_num_threads()
    count = torch.cuda.device_count()
    facts["GPUs"] = ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none"
    facts["bundled models"] = "digits"
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {text}")
    return 0
