"""The entries of the quality benchmark: every method x grid here, and diffusers' schedulers.

Some combinations are left out. FastDPM chooses its own times. On the digits, whose network takes
most of the time, stochastic methods and the corrected 3M run on a few grids (`DIGITS_FEW`), random
times run only with the shortcut method, which they were made for, and some settings of diffusers do
not run. `ddim(eta=1)` and `ddim(sigma_hat=True)` are left out, because their rows equal those of
`ancestral(variance="small")` and `ancestral(variance="large")`.

"auto" are the best times for the trajectory objective on the model's profile. Equal plans, such as
those of "trailing" and "uniform" if K divides T, run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.contestants import Contestant, Ours, Peer, Tuned
from benchmarks.models import Model
from fastsample.evaluation import diffusers_schedulers

ALL_GRIDS = (
    "uniform",
    "quadratic",
    "log_snr",
    "karras",
    "trailing",
    "leading",
    "linspace",
    "ddim_quadratic",
    "random",
    "auto",
)
DIGITS_FEW = ("uniform", "leading", "linspace", "auto")
DIGITS_GRIDS = (*DIGITS_FEW, "quadratic", "log_snr", "karras", "ddim_quadratic")


def contestants(model: Model) -> list[Contestant]:
    """All entries for a model."""
    learned = model.denoiser.variance == "learned_range"
    digits = model.labelled is not None
    return [Tuned(), *_ours(learned, digits), *_peers(learned, digits)]


def _ours(learned: bool, digits: bool) -> list[Contestant]:
    several = DIGITS_GRIDS if digits else ALL_GRIDS
    few = DIGITS_FEW if digits else ALL_GRIDS
    crossed: list[tuple[str, str, dict[str, Any], Sequence[str]]] = [
        ("DDIM", "ddim", {}, several),
        ("DPM-Solver++ 2M", "dpm++", {"order": 2}, several),
        ("DPM-Solver++ 3M", "dpm++", {"order": 3}, several),
        ("DPM-Solver++ 3M", "dpm++", {"order": 3, "corrected": True}, few),
        ("UniPC", "unipc", {"order": 2}, several),
        ("SDE 2M", "dpm++", {"order": 2, "stochastic": True}, few),
        ("DDPM", "ancestral", {"variance": "small"}, few),
        ("DDPM", "ancestral", {"variance": "large"}, few),
        ("shortcut", "shortcut", {}, (*few, "random") if digits else few),
    ]
    if learned:
        crossed.append(("DDPM", "ancestral", {"variance": "learned_range"}, few))
    entries: list[Contestant] = [
        Ours(family, method, knobs, grid)
        for family, method, knobs, names in crossed
        for grid in names
    ]
    for approximation in ("steps", "var"):
        for spacing in ("linear", "quadratic"):
            knobs = {"approximation": approximation, "spacing": spacing}
            grid = f"{approximation} {spacing}"
            entries.append(Ours("FastDPM", "fastdpm", knobs, grid))
            extended = {**knobs, "extended": True}
            entries.append(Ours("FastDPM", "fastdpm", extended, f"{grid} extended"))
    return entries


def _peers(learned: bool, digits: bool) -> list[Contestant]:
    samplers = [
        *diffusers_schedulers.deterministic_samplers(),
        *diffusers_schedulers.stochastic_samplers(learned=learned),
    ]
    if digits:
        samplers = [
            peer for peer in samplers if _affordable(peer)
        ] + diffusers_schedulers.unclipped_samplers()
    return [Peer(**vars(peer)) for peer in samplers]


def _affordable(peer: diffusers_schedulers.DiffusersSampler) -> bool:
    """Whether it runs on the digits, where the network takes most of the time."""
    if peer.family == "DDPM":
        return peer.grid != "linspace"
    third = peer.options.get("solver_order") == 3
    return peer.grid not in ("exponential", "beta") and not (third and peer.grid == "karras")
