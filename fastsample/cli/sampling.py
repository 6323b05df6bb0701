"""Runs the commands ``fastsample demo``, ``sample`` and ``info``."""

from __future__ import annotations

import argparse
import time
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from fastsample.plots.images import save_grid
from fastsample.samplers.registry import methods_with

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"}


def demo(options: argparse.Namespace) -> int:
    """Draw a hundred digits into an image; returns the exit status."""
    model = fs.load("digits", device=options.device)
    labels = list(range(10)) * 10  # The image has a column per digit.
    sampler = fs.Sampler(model, options.steps)
    seconds, images = _timed(sampler, options, cond={"y": torch.tensor(labels)})
    path = save_grid(images, options.out, columns=10, scale=6)
    print(f"{len(labels)} digits, {sampler.plan.calls} network calls, {seconds:.2f} s: {path}")
    return 0


def sample(options: argparse.Namespace) -> int:
    """Draw samples and write them to a file; returns the exit status."""
    suffix = options.out.suffix.lower()
    if suffix not in _IMAGE_SUFFIXES | {".npy"}:
        known = sorted(_IMAGE_SUFFIXES | {".npy"})
        raise ValueError(f"sample: out must end in one of {known}, got {options.out}")
    if options.num < 1:
        raise ValueError(f"sample: num must be at least 1, got {options.num}")
    if options.guidance is not None and options.label is None:
        raise ValueError("sample: label must be given with guidance, got none")
    knobs = dict(options.knob)
    names = [name for name, _ in options.knob]
    for name in knobs:
        if names.count(name) > 1:
            values = [value for other, value in options.knob if other == name]
            raise ValueError(f"sample: knob {name} must be given once, got the values {values}")
        if not methods_with(name):
            raise ValueError(f"sample: knob must be one of a method, got {name}")
    if options.eta is not None:
        if "eta" in knobs:
            raise ValueError(
                f"sample: eta must be given once, got {options.eta} as --eta and {knobs['eta']} as "
                "--knob eta"
            )
        knobs["eta"] = options.eta
    model = fs.load(options.model, device=options.device)
    sampler = fs.Sampler(
        model,
        options.steps,
        method=options.method,
        grid=options.grid,
        grid_seed=options.seed if options.grid == "random" else None,
        whole=options.whole,
        guidance=options.guidance,
        **knobs,
    )
    seconds, samples = _timed(
        sampler,
        options,
        num_samples=options.num,
        sample_index=options.index,
        cond=None if options.label is None else {"y": options.label},
    )
    if suffix == ".npy":
        path = options.out.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, samples.float().cpu().numpy())
    else:
        path = save_grid(samples, options.out, columns=max(1, round(options.num**0.5)), scale=6)
    print(f"{options.num} samples, {sampler.plan.calls} network calls, {seconds:.2f} s: {path}")
    return 0


def _timed(sampler: fs.Sampler, options: argparse.Namespace, **batch: Any) -> tuple[float, Tensor]:
    """Sample once, and return (seconds, samples)."""
    start = time.perf_counter()
    samples = sampler(seed=options.seed, progress=not options.quiet, **batch)
    if samples.is_cuda:
        torch.cuda.synchronize(samples.device)
    return time.perf_counter() - start, samples


def info(options: argparse.Namespace) -> int:
    """Print how this package was built and what it runs on; returns the exit status."""
    del options
    facts: dict[str, Any] = {**fs.build_info()}
    facts["torch"] = torch.__version__
    facts["torch threads"] = torch.get_num_threads()
    count = torch.cuda.device_count()
    facts["GPUs"] = ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none"
    facts["bundled models"] = "digits"
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(cast("list[str]", value)) if isinstance(value, list) else value
        print(f"{name:<{width}}  {text}")
    return 0
