"""Runs the commands ``fastsample profile``, ``plan`` and ``bpd``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fastsample as fs
from fastsample import plots
from fastsample._support.checks import FloatArray, check_integer
from fastsample._support.torch_files import fault_of
from fastsample.bundled.datasets import DIGITS_BIN_WIDTH, digits_data


def profile(options: argparse.Namespace) -> int:
    """Measure a model, and write the profile after every batch; returns the exit status."""
    model, x = _model_and_data(options)
    before = fs.Profile.load(options.out).count if options.out.exists() else 0
    try:
        with _counted_calls(model) as calls:
            start = time.perf_counter()
            profile = fs.profile(
                model,
                x,
                times=_even_times(model.schedule, options.times),
                trajectories=options.trajectories,
                nodes=options.nodes,
                save=options.out,
                **_measuring_arguments(model, options, bin_width="auto"),
            )
            seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last batch", file=sys.stderr)
        return 130
    earlier = f" ({before} of them from an earlier run)" if before else ""
    print(
        f"{profile.count} samples{earlier}, {len(profile.times)} times, "
        f"{len(calls)} network calls, {seconds:.2f} s: {options.out.resolve()}"
    )
    trajectories = 0 if profile.trajectories is None else profile.trajectories.count
    prior, unit = profile.prior / profile.dims, "nats/dim; data without bins"
    if profile.has_bins:
        prior, unit = prior / np.log(2), "bits/dim"
    print(f"{trajectories} trajectories, prior {prior:.4f} {unit}")
    print("  time  mean squared error of x0, per element")
    for k in sorted({round(k) for k in np.linspace(0, len(profile.times) - 1, 5).tolist()}):
        error = profile.error[k] / profile.dims
        standard_error = profile.error_standard_error[k] / profile.dims
        print(f"{profile.times[k]:6g}  {error:.4g} +- {standard_error:.1g}")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print and write the cheapest grids of a profile; returns the exit status."""
    if options.out is not None and options.out.suffix.lower() != ".json":
        raise ValueError(f"plan: out must end in .json, got {options.out}")
    if options.profile == "digits":
        profile = fs.load("digits").profile
        assert profile is not None  # The bundled model has a profile.
    else:
        profile = fs.Profile.load(options.profile)
    table = profile.costs(options.objective, variance=options.variance, decoder=options.decoder)
    objective = table.objective
    grids = table.best_grids(options.steps, at_most=options.at_most)
    named = {f"{'at most ' if options.at_most else ''}{k} steps": g for k, g in grids.items()}
    # Files are written before printing, so that no error follows a printed result.
    written: list[Path] = []
    if options.picture is not None:
        written.append(plots.save(plots.overview(table, named), options.picture))
    if options.out is not None:
        times = {str(k): [int(t) if g.integer else t for t in g] for k, g in grids.items()}
        result = {"objective": objective, "schedule": profile.schedule.to_dict(), "grids": times}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result) + "\n")
        written.append(options.out.resolve())
    print(f"{profile}\n{table}")
    for name, grid in named.items():
        taken = f" ({len(grid)} taken)" if options.at_most else ""
        print(f"{name}{taken}: cost {table.cost(grid):.6g}{_bound(table, grid)}")
        if len(grid) == len(profile.times):
            print("  no choice: these are all times of the profile; measure more of them")
        print("  " + " ".join(f"{t:.6g}" for t in grid))
    for path in written:
        print(path)
    return 0


def bpd(options: argparse.Namespace) -> int:
    """Print the bound on the bits (or nats) per dimension of data; returns the exit status."""
    model, x = _model_and_data(options)
    with _counted_calls(model) as calls:
        start = time.perf_counter()
        bits = fs.bits_per_dim(
            model,
            x,
            options.steps,
            grid=options.grid,
            variance=options.variance,
            **_measuring_arguments(model, options, bin_width=2 / 255),
        )
        seconds = time.perf_counter() - start
    print(f"{bits.total:.4f} +- {bits.standard_error:.4f} {bits.unit}/dim")
    print(f"prior {bits.prior:.4f}, kl {bits.kl:.4f}, decoder {bits.decoder:.4f}")
    if options.terms:
        for t, s, term in zip(bits.grid.times, bits.grid.times[1:], bits.terms, strict=False):
            print(f"{t:8.6g} -> {s:<8.6g} {term:.6f}")
    print(
        f"{bits.count} samples, {len(bits.grid)} steps, {len(calls)} network calls, {seconds:.2f} s"
    )
    return 0


# ---- Functions that `profile` and `bpd` share.


def _model_and_data(options: argparse.Namespace) -> tuple[fs.Denoiser, Tensor]:
    """Load the model and the data `(N, *shape)` that the options name."""
    name, data = options.command, options.data
    if data in ("digits", "digits-test"):
        train, _, test, _ = digits_data()
        x = (train if data == "digits" else test).numpy()
    else:
        x = _open_array(name, Path(data))
    if options.num is not None:
        x = x[: check_integer(name, "num", options.num, 1, len(x))]
    # The samples in use are copied, since the memory map is read-only.
    return fs.load(options.model, device=options.device), torch.tensor(np.array(x, np.float32))


def _open_array(function: str, path: Path) -> npt.NDArray[Any]:
    """Return the array of a .npy or .pt file as a memory map, after checking that it holds data."""
    kind = path.suffix.lower()
    if kind not in (".npy", ".pt") or not path.is_file():
        raise FileNotFoundError(
            f'{function}: data must be "digits", "digits-test" or a .npy or .pt file, got {path}'
        )
    try:
        x = np.load(path, mmap_mode="r") if kind == ".npy" else _load_tensor(path)
    except UnpicklingError as error:
        raise ValueError(
            f"{function}: data must be a {kind} file of numbers, got {path}, "
            f"{fault_of(path, error)}"
        ) from None
    except (ValueError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{function}: data must be a {kind} file of numbers, got {path} "
            f"({' '.join(str(error).split()):.120})"
        ) from None
    if x.dtype.kind != "f" or x.ndim < 2:
        raise ValueError(
            f"{function}: data must be floats (N, *shape), got {x.dtype} {x.shape} in {path}; "
            "8-bit images are x / 127.5 - 1"
        )
    return x


def _load_tensor(path: Path) -> npt.NDArray[Any]:
    """Return the tensor of a .pt file as an array; bfloat16, which NumPy lacks, as float32."""
    x: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(x, Tensor):
        raise ValueError(f"holds a {type(x).__name__}, no tensor")
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def _bound(table: fs.CostTable, grid: fs.Grid) -> str:
    """Return the bound that an "elbo" table has for a grid, with its unit, to append to a line."""
    if table.objective != "elbo":
        return ""
    if table.density:
        return f", {table.nats_per_dim(grid):.4f} nats/dim"
    return f", {table.bits_per_dim(grid):.4f} bits/dim"


def _measuring_arguments(
    model: fs.Denoiser, options: argparse.Namespace, bin_width: float | str
) -> dict[str, Any]:
    """Return the arguments that `fs.profile` and `fs.bits_per_dim` share.

    Args:
        model: the model.
        options: the parsed options.
        bin_width: the default for a file of data.
    """
    default = DIGITS_BIN_WIDTH if options.data in ("digits", "digits-test") else bin_width
    return {
        "batch_size": options.batch_size,
        # An option that is not given has no attribute here, since None is one of its values.
        "bin_width": getattr(options, "bin_width", default),
        "cond": model.uncond,  # The data come without labels.
        "seed": options.seed,
        "progress": not options.quiet,
    }


@contextmanager
def _counted_calls(model: fs.Denoiser) -> Generator[list[None], None, None]:
    """Give a list that grows by one entry with every network call inside the context."""
    calls: list[None] = []
    assert isinstance(model.model, torch.nn.Module)  # True for every model of `load`.

    def count_call(*_: Any) -> None:
        calls.append(None)

    hook = model.model.register_forward_hook(count_call)
    try:
        yield calls
    finally:
        hook.remove()


def _even_times(schedule: fs.NoiseSchedule, count: int | None) -> FloatArray | None:
    """Return `count` evenly spaced times up to T, from 1 for discrete schedules; None for None."""
    if count is None:
        return None
    if schedule.num_steps is None:
        return np.linspace(0.0, schedule.T, check_integer("profile", "times", count, 1) + 1)[1:]
    check_integer("profile", "times", count, 2, schedule.num_steps)
    return np.floor(np.linspace(1.0, schedule.num_steps, count) + 0.5)
