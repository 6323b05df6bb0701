"""``fastsample profile``, ``plan`` and ``bpd``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from fastsample import plots
from fastsample._support.checks import check_integer
from fastsample.bundled.datasets import DIGITS_BIN_WIDTH, digits_data


def profile(options: argparse.Namespace) -> int:
    """Measure a model; the file is written after every batch."""
    model, x = _model_and_data(options)
    before = fs.Profile.load(options.out).count if options.out.exists() else 0
    try:
        with _counted_calls(model) as calls:
            began = time.perf_counter()
            found = fs.profile(
                model,
                x,
                times=_spread_times(model.schedule, options.times),
                trajectories=options.trajectories,
                nodes=options.nodes,
                save=options.out,
                **_measuring(model, options),
            )
            seconds = time.perf_counter() - began
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last batch", file=sys.stderr)
        return 130
    earlier = f" ({before} of them from an earlier run)" if before else ""
    print(
        f"{found.count} samples{earlier}, {len(found.times)} times, {len(calls)} network calls, "
        f"{seconds:.2f} s: {options.out.resolve()}"
    )
    lines = 0 if found.trajectories is None else found.trajectories.count
    print(f"{lines} trajectories, prior {found.prior / (found.dims * np.log(2)):.4f} bits/dim")
    print("  time  mean squared error of x0, per element")
    for k in np.unique(np.linspace(0, len(found.times) - 1, 5).round().astype(int)):
        error, spread = found.error[k] / found.dims, found.error_standard_error[k] / found.dims
        print(f"{found.times[k]:6g}  {error:.4g} +- {spread:.1g}")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print and write the cheapest grids of a profile."""
    if options.out is not None and options.out.suffix.lower() != ".json":
        raise ValueError(f"plan: out must end in .json, got {options.out}")
    if options.profile == "digits":
        profile = fs.load("digits").profile
        assert profile is not None  # the bundled model has its own
    else:
        profile = fs.Profile.load(options.profile)
    objective = options.objective or profile.default_objective
    table = profile.costs(objective, variance=options.variance, decoder=options.decoder)
    grids = table.best_grids(options.steps, at_most=options.at_most)
    named = {f"{'at most ' if options.at_most else ''}{k} steps": g for k, g in grids.items()}
    # Files first: what is printed has been written.
    written: list[Path] = []
    if options.picture is not None:
        written.append(plots.save(plots.overview(table, named), options.picture))
    if options.out is not None:
        times = {str(k): [int(t) if g.integer else t for t in g] for k, g in grids.items()}
        found = {"objective": objective, "schedule": profile.schedule.to_dict(), "grids": times}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found) + "\n")
        written.append(options.out.resolve())
    print(f"{profile}\n{table}")
    for name, grid in named.items():
        real = f" ({len(grid)} taken)" if options.at_most else ""
        bits = f", {table.bits_per_dim(grid):.4f} bits/dim" if objective == "elbo" else ""
        print(f"{name}{real}: cost {table.cost(grid):.6g}{bits}")
        print("  " + " ".join(f"{t:.6g}" for t in grid))
    for path in written:
        print(path)
    return 0


def bpd(options: argparse.Namespace) -> int:
    """Print the bound on the bits per dimension of data."""
    model, x = _model_and_data(options)
    with _counted_calls(model) as calls:
        began = time.perf_counter()
        found = fs.bits_per_dim(
            model,
            x,
            options.steps,
            grid=options.grid,
            variance=options.variance,
            **_measuring(model, options),
        )
        seconds = time.perf_counter() - began
    print(f"{found.total:.4f} +- {found.standard_error:.4f} bits/dim")
    print(f"prior {found.prior:.4f}, kl {found.kl:.4f}, decoder {found.decoder:.4f}")
    if options.terms:
        for t, s, term in zip(found.grid.times, found.grid.times[1:], found.terms, strict=False):
            print(f"{t:8.6g} -> {s:<8.6g} {term:.6f}")
    print(
        f"{found.count} samples, {len(found.grid)} steps, {len(calls)} network calls, "
        f"{seconds:.2f} s"
    )
    return 0


# ---- what profile and bpd share ----


def _model_and_data(options: argparse.Namespace) -> tuple[fs.Denoiser, Tensor]:
    """The model, and as many of the samples as asked for."""
    name, data = options.command, options.data
    if data in ("digits", "digits-test"):
        train, _, test, _ = digits_data()
        x = (train if data == "digits" else test).numpy()
    else:
        x = _opened(name, Path(data))
    if options.num is not None:
        x = x[: check_integer(name, "num", options.num, 1, len(x))]
    # A copy: a memory map is read-only, and only what is used leaves the disk.
    return fs.load(options.model, device=options.device), torch.tensor(np.array(x, np.float32))


def _opened(function: str, path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file as a memory map."""
    if path.suffix.lower() != ".npy" or not path.is_file():
        raise FileNotFoundError(
            f'{function}: data must be "digits", "digits-test" or a .npy file, got {path}'
        )
    try:
        x = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{function}: data must be a .npy file of numbers, got {path} ({error})"
        ) from None
    if x.dtype.kind != "f" or x.ndim < 2:
        raise ValueError(
            f"{function}: data must be floats (N, *shape) in [-1, 1], got {x.dtype} {x.shape} in "
            f"{path}; 8-bit images are x / 127.5 - 1"
        )
    return x


def _measuring(model: fs.Denoiser, options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `fs.profile` and `fs.bits_per_dim` alike."""
    usual = DIGITS_BIN_WIDTH if options.data in ("digits", "digits-test") else 2 / 255
    return {
        "batch_size": options.batch_size,
        "bin_width": getattr(options, "bin_width", usual),  # None has a meaning
        "cond": model.uncond,  # nobody gave labels
        "seed": options.seed,
        "progress": not options.quiet,
    }


@contextmanager
def _counted_calls(model: fs.Denoiser) -> Iterator[list[None]]:
    """A list that grows by one with every network call."""
    calls: list[None] = []
    assert isinstance(model.model, torch.nn.Module)  # as every loaded one
    hook = model.model.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


def _spread_times(schedule: fs.NoiseSchedule, count: int | None) -> np.ndarray[Any, Any] | None:
    """So many even times up to T: whole steps from 1 on where the schedule has steps."""
    if count is None:
        return None
    if schedule.num_steps is None:
        return np.linspace(0.0, schedule.T, check_integer("profile", "times", count, 1) + 1)[1:]
    check_integer("profile", "times", count, 2, schedule.num_steps)
    return np.floor(np.linspace(1.0, schedule.num_steps, count) + 0.5)
