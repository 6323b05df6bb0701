"""Compares tuned plans with all other deterministic samplers, on noise unused in tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import check_integer
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.evaluation import diffusers_schedulers
from fastsample.evaluation.diffusers_schedulers import DiffusersSampler
from fastsample.grids.grid import Grid
from fastsample.grids.makers import quadratic
from fastsample.grids.registry import noisiest
from fastsample.plans.plan import Plan
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.registry import METHODS
from fastsample.sampling.noise import make_identity
from fastsample.sampling.sample import sample
from fastsample.tuning.baselines import starting_grids

Side: TypeAlias = Literal["tuned", "fastsample", "diffusers"]

FINE_STEPS = 200
"""The reference run takes this many steps, twice as many as the run that tuning follows."""
_BATCH = 256


@dataclass(frozen=True)
class Entry:
    """Holds the errors of one sampler with its settings, by number of network calls.

    Attributes:
        side: where the sampler comes from: a tuned plan, this package or diffusers.
        family: the solver that the sampler is a setting of, such as "DDIM".
        name: the sampler with its settings and the name of its time grid.
        errors: root mean square difference per element to the reference run, by the number of
            network calls.
    """

    side: Side
    family: str
    name: str
    errors: Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """Holds the errors that `compare` measured, and what it measured them on.

    Attributes:
        entries: errors of every sampler, the tuned plans first.
        steps: numbers of network calls, rising.
        samples: number of starting noises.
        seed: seed of the noise.
        fine_steps: network calls of the reference run.
        missing: why some schedulers of diffusers are missing, a sentence per line; None if none
            is.
    """

    entries: tuple[Entry, ...]
    steps: tuple[int, ...]
    samples: int
    seed: int
    fine_steps: int
    missing: str | None = None

    def of(self, side: Side) -> list[Entry]:
        """Return the entries of one origin: "tuned", "fastsample" or "diffusers"."""
        return [entry for entry in self.entries if entry.side == side]

    def best(self, side: Side, steps: int) -> Entry | None:
        """Return the entry of an origin with the least error at this number of calls, or None."""
        entries = [entry for entry in self.of(side) if steps in entry.errors]
        return min(entries, key=lambda entry: entry.errors[steps], default=None)

    def table(self) -> str:
        """Return a text table: the tuned plan and the best other samplers by number of calls.

        One column has the best sampler of this package, one the best scheduler of diffusers.
        """
        rows: list[tuple[str, ...]] = [
            ("calls", "tuned", "best known here", "best of diffusers", "tuned / best")
        ]
        for steps in self.steps:
            best = [self.best(side, steps) for side in ("tuned", "fastsample", "diffusers")]
            errors = [math.inf if entry is None else entry.errors[steps] for entry in best]
            texts = [
                "none" if entry is None else f"{error:.3g}" + (f"  {entry.name}" if i else "")
                for i, (entry, error) in enumerate(zip(best, errors, strict=True))
            ]
            rows.append((str(steps), *texts, f"{errors[0] / min(errors[1:]):.2f}"))
        if not self.of("diffusers"):
            rows = [(*row[:3], row[4]) for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        head = (
            f"root mean square difference per element to a run of {self.fine_steps} calls, "
            f"{self.samples} starting noises of seed {self.seed}, which no plan was tuned with"
        )
        return "\n".join([head, *lines, *([] if self.missing is None else [self.missing])])


def compare(
    denoiser: Denoiser,
    plans: Mapping[int, Plan] | Iterable[Plan],
    *,
    samples: int = 128,
    cond: Mapping[str, Any] | None = None,
    tick: Callable[[], object] | None = None,
) -> Comparison:
    """Measure tuned plans and all other deterministic samplers from the same starting noise.

    The other samplers are every deterministic method of this package on all grids that `tune`
    starts from, and, if diffusers is installed and supports the model, every deterministic
    scheduler of diffusers in each timestep spacing. An error is the difference to a reference run:
    DPM-Solver++ of order 3 in `FINE_STEPS` calls. The noise is that of the smallest seed that no
    plan was tuned with.

    Args:
        denoiser: the model.
        plans: unguided plans for the model.
        samples: number of starting noises, at least 1.
        cond: keyword arguments of the network, one entry per sample or a number for all.
        tick: called after every run of a sampler.

    Returns:
        Errors by sampler; entries with errors that are not finite are left out.

    Raises:
        ValueError: no plans, plans for another model, or a network that returns NaN.
    """
    chosen = denoiser.with_plans(plans).plans
    if not chosen:
        raise ValueError("compare: plans must hold at least one, got none")
    count = check_integer("compare", "samples", samples, 1)
    conditions = Conditions("compare", cond, batch=count)
    tuning_seeds = {(plan.provenance or {}).get("seed") for plan in chosen.values()}
    seed = next(number for number in range(len(tuning_seeds) + 1) if number not in tuning_seeds)
    identity = make_identity("compare", seed, torch.arange(count), count, denoiser.device)
    start = ops.noise(*identity, denoiser.shape, dtype=torch.float32)
    start = start * denoiser.schedule.start_scale(denoiser.schedule.T)
    fine = _fine_plan(denoiser)

    def run(draw: Draw) -> Tensor:
        parts = torch.split(start, _BATCH)
        return torch.cat([draw(x, conditions.part(i * _BATCH, x)) for i, x in enumerate(parts)])

    reference = run(_drawing(denoiser, fine))
    steps = tuple(sorted(chosen))
    left_out: set[str] = set()
    errors: dict[tuple[Side, str, str], dict[int, float]] = {}
    for K in steps:
        tuned = ComparedSampler("tuned", "tuned", "tuned plan", _drawing(denoiser, chosen[K]))
        others = (*_package_samplers(denoiser, K), *_diffusers_samplers(denoiser, K, left_out))
        for sampler in (tuned, *others):
            error = _rmse(run(sampler.draw), reference)
            if math.isfinite(error):
                errors.setdefault((sampler.side, sampler.family, sampler.name), {})[K] = error
            if tick is not None:
                tick()
    entries = tuple(Entry(*names, by_steps) for names, by_steps in errors.items())
    missing = "\n".join(sorted(left_out)) or None
    return Comparison(entries, steps, count, seed, len(fine), missing)


Draw: TypeAlias = Callable[[Tensor, Conditions], Tensor]


@dataclass(frozen=True)
class ComparedSampler:
    """A sampler to compare: ``draw(start, conditions)`` returns samples `(B, *shape)`."""

    side: Side
    family: str
    name: str
    draw: Draw


def _fine_plan(denoiser: Denoiser) -> Plan:
    """Return the plan of the reference run, DPM-Solver++ of order 3 in `FINE_STEPS` calls."""
    schedule = denoiser.schedule
    most = FINE_STEPS if schedule.num_steps is None else min(FINE_STEPS, schedule.num_steps)
    knobs = {"order": 3, "corrected": True} if most >= 3 else {"order": most}
    return _make(dpm_solver, denoiser, quadratic(noisiest(schedule), most), knobs)


def _package_samplers(denoiser: Denoiser, steps: int) -> Iterator[ComparedSampler]:
    """Yield every deterministic method of this package on every grid that `tune` starts from."""
    for grid_name, grid in starting_grids(denoiser, steps).items():
        for method, entry in METHODS.items():
            for setting in entry.deterministic:
                if setting.knobs.get("order", 1) <= steps:
                    plan = _make(entry.make, denoiser, grid, setting.knobs)
                    name = f"{diffusers_schedulers.call_text(method, setting.knobs)}, {grid_name}"
                    draw = _drawing(denoiser, plan)
                    yield ComparedSampler("fastsample", setting.family, name, draw)


def _diffusers_samplers(
    denoiser: Denoiser, steps: int, left_out: set[str]
) -> Iterator[ComparedSampler]:
    """Yield the deterministic schedulers of diffusers that can run this model.

    Args:
        denoiser: the model.
        steps: number of network calls.
        left_out: the reasons why others do not run are added to it.
    """
    if not diffusers_schedulers.is_installed():
        left_out.add("diffusers is not installed: without its schedulers")
        return
    reason = diffusers_schedulers.reason_unsupported(denoiser)
    if reason is not None:
        left_out.add(f"without the schedulers of diffusers: the model must {reason}")
        return
    for sampler in diffusers_schedulers.deterministic_samplers():

        def draw(start: Tensor, cond: Conditions, sampler: DiffusersSampler = sampler) -> Tensor:
            return sampler.run(denoiser, steps, start, cond=cond)

        try:
            sampler.make(denoiser)
        except (ImportError, ValueError) as error:  # SciPy is missing, or clip is not 1.
            left_out.add(f"without some schedulers of diffusers: {error}")
            continue
        name = f"{sampler.short_label}, {sampler.grid}"
        yield ComparedSampler("diffusers", sampler.family, name, draw)


def _make(
    sampler: Callable[..., Plan], denoiser: Denoiser, grid: Grid, knobs: Mapping[str, Any]
) -> Plan:
    """Return the plan that a sampler function makes for the model's schedule and prediction."""
    return sampler(
        denoiser.schedule,
        grid,
        **{"clip": denoiser.clip, "prediction": denoiser.prediction, **knobs},
    )


def _drawing(denoiser: Denoiser, plan: Plan) -> Draw:
    """Return a function that draws samples by a plan from starting noise and conditions."""
    return lambda start, cond: sample(denoiser, plan, start=start, cond=cond.mapping)


def _rmse(x: Tensor, y: Tensor) -> float:
    return float((x - y).double().square().mean().sqrt())
