"""The entries of the quality benchmark: every method x grid here, and diffusers' schedulers.

Not crossed: FastDPM, which chooses its own times; and on the digits, whose network takes most of
the time, stochastic methods and the corrected 3M run on three grids (`DIGITS_FEW`), random times
with shortcut alone, where they come from, and fewer settings of diffusers. `ddim(eta=1)` is
`ancestral(variance="small")` and `ddim(sigma_hat=True)` is `ancestral(variance="large")`, row by
row. "auto" are the times of the trajectory objective for the model's profile. Equal tables, as
"trailing" and "uniform" where K divides T, are run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.contestants import TIMES, Contestant, Ours, Peer, Tuned
from benchmarks.models import Model

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
    """All that is compared on a model."""
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
    found: list[Contestant] = [
        Ours(family, method, knobs, grid)
        for family, method, knobs, names in crossed
        for grid in names
    ]
    for approximation in ("steps", "var"):
        for spacing in ("linear", "quadratic"):
            knobs = {"approximation": approximation, "spacing": spacing}
            grid = f"{approximation} {spacing}"
            found.append(Ours("FastDPM", "fastdpm", knobs, grid))
            extended = {**knobs, "extended": True}
            found.append(Ours("FastDPM", "fastdpm", extended, f"{grid} extended"))
    return found


def _peers(learned: bool, digits: bool) -> list[Contestant]:
    dpm, unipc = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
    spaced = ("leading", "trailing") if digits else ("leading", "trailing", "linspace")
    more = () if digits else ("exponential", "beta")
    third = ("linspace", "trailing") if digits else ("linspace", "trailing", "karras")
    crossed: list[tuple[str, str, dict[str, Any], Sequence[str]]] = [
        ("DDIM", "DDIMScheduler", {}, ("leading", "trailing", "linspace")),
        ("DPM-Solver++ 2M", dpm, {}, ("linspace", "trailing", "karras", "lu", *more)),
        ("DPM-Solver++ 3M", dpm, {"solver_order": 3}, (*third, "lu", *more)),
        ("UniPC", unipc, {}, ("linspace", "trailing", "karras", *more)),
        ("UniPC", unipc, {"solver_order": 3}, (*third, *more)),
        ("DEIS", "DEISMultistepScheduler", {}, ("linspace", "trailing", "karras", *more)),
        ("SDE 2M", dpm, {"algorithm_type": "sde-dpmsolver++"}, ("linspace", "karras", "lu")),
        ("DDPM", "DDPMScheduler", {}, spaced),
    ]
    if learned:
        crossed.append(("DDPM", "DDPMScheduler", {"variance_type": "learned_range"}, spaced))
    found: list[Contestant] = [
        Peer(family, scheduler, {**options, **TIMES[grid]}, grid)
        for family, scheduler, options, names in crossed
        for grid in names
    ]
    if digits:  # as they come, without the clipping that they know under another name
        found.append(Peer("DPM-Solver++ 2M", dpm, TIMES["linspace"], "linspace", clips=False))
        found.append(Peer("UniPC", unipc, TIMES["linspace"], "linspace", clips=False))
    return found
