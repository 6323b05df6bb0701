"""Tuned plans among all other deterministic samplers: errors on noise that tuning has not seen."""

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
from fastsample.evaluation import diffusers_schedulers as peers
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

FINE_STEPS = 200  # of the run that the others are compared with: twice tuning's teacher
_BATCH = 256


@dataclass(frozen=True)
class Entry:
    """The errors of one sampler with its settings.

    Attributes:
        side: whose it is.
        family: what kind of sampler.
        name: with its settings and the name of its times.
        errors: root mean square difference per element to the fine run, by network calls.
    """

    side: Side
    family: str
    name: str
    errors: Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        entries: the tuned plans first.
        steps: numbers of network calls, rising.
        samples: starting noises.
        seed: of the noise.
        fine_steps: network calls of the run that all are compared with.
        missing: why schedulers of diffusers were left out; None where none was.
    """

    entries: tuple[Entry, ...]
    steps: tuple[int, ...]
    samples: int
    seed: int
    fine_steps: int
    missing: str | None = None

    def of(self, side: Side) -> list[Entry]:
        """The entries of one side."""
        return [entry for entry in self.entries if entry.side == side]

    def best(self, side: Side, steps: int) -> Entry | None:
        """The entry of the least error at so many calls; None if there is none."""
        able = [entry for entry in self.of(side) if steps in entry.errors]
        return min(able, key=lambda entry: entry.errors[steps], default=None)

    def table(self) -> str:
        """Tuned plan and best of either side at each number of calls, for printing."""
        rows: list[tuple[str, ...]] = [
            ("calls", "tuned", "best known here", "best of diffusers", "tuned / best")
        ]
        for steps in self.steps:
            found = [self.best(side, steps) for side in ("tuned", "fastsample", "diffusers")]
            errors = [math.inf if entry is None else entry.errors[steps] for entry in found]
            texts = [
                "none" if entry is None else f"{error:.3g}" + (f"  {entry.name}" if i else "")
                for i, (entry, error) in enumerate(zip(found, errors, strict=True))
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
    """Errors of tuned plans and of every known deterministic sampler, from the same fresh noise.

    Known are every deterministic method of this package on all grids that `tune` starts from, and
    every deterministic multistep scheduler of diffusers with its choices of times, where diffusers
    is installed and runs such a model. The reference is a run of order 3 in `FINE_STEPS` calls.

    Args:
        denoiser: the model.
        plans: unguided plans for it.
        samples: starting noises, of the least seed that no plan was tuned with.
        cond: keyword arguments for the network, one entry per sample or a number for all.
        tick: called after every run of a sampler.

    Raises:
        ValueError: no plans, plans for another model, or a network that returns NaN.
    """
    chosen = denoiser.with_plans(plans).plans
    if not chosen:
        raise ValueError("compare: plans must hold at least one, got none")
    count = check_integer("compare", "samples", samples, 1)
    conditions = Conditions("compare", cond, batch=count)
    notes = [plan.provenance or {} for plan in chosen.values()]
    seen = {note.get("seed") for note in notes}
    seed = next(number for number in range(len(seen) + 1) if number not in seen)
    identity = make_identity("compare", seed, torch.arange(count), count, denoiser.device)
    start = ops.noise(*identity, denoiser.shape, dtype=torch.float32)
    fine = _fine_plan(denoiser)

    def run(draw: Draw) -> Tensor:
        parts = start.split(_BATCH)
        return torch.cat([draw(x, conditions.part(i * _BATCH, x)) for i, x in enumerate(parts)])

    wanted = run(_drawing(denoiser, fine))
    steps = tuple(sorted(chosen))
    left_out: set[str] = set()
    found: dict[tuple[Side, str, str], dict[int, float]] = {}
    for K in steps:
        tuned = Runner("tuned", "tuned", "tuned plan", _drawing(denoiser, chosen[K]))
        for runner in (tuned, *_known(denoiser, K), *_peers(denoiser, K, left_out)):
            error = _rmse(run(runner.draw), wanted)
            if math.isfinite(error):
                found.setdefault((runner.side, runner.family, runner.name), {})[K] = error
            if tick is not None:
                tick()
    entries = tuple(Entry(*names, errors) for names, errors in found.items())
    missing = "\n".join(sorted(left_out)) or None
    return Comparison(entries, steps, count, seed, len(fine), missing)


Draw: TypeAlias = Callable[[Tensor, Conditions], Tensor]


@dataclass(frozen=True)
class Runner:
    """A sampler of some number of calls: ``draw(start, conditions)``."""

    side: Side
    family: str
    name: str
    draw: Draw


def _fine_plan(denoiser: Denoiser) -> Plan:
    schedule = denoiser.schedule
    most = FINE_STEPS if schedule.num_steps is None else min(FINE_STEPS, schedule.num_steps)
    knobs = {"order": 3, "corrected": True} if most >= 3 else {"order": most}
    return _make(dpm_solver, denoiser, quadratic(noisiest(schedule), most), knobs)


def _known(denoiser: Denoiser, steps: int) -> Iterator[Runner]:
    """The deterministic methods of this package on every grid."""
    for grid_name, grid in starting_grids(denoiser, steps).items():
        for method, entry in METHODS.items():
            for setting in entry.deterministic:
                if setting.knobs.get("order", 1) <= steps:
                    plan = _make(entry.make, denoiser, grid, setting.knobs)
                    name = f"{peers.call_text(method, setting.knobs)}, {grid_name}"
                    yield Runner("fastsample", setting.family, name, _drawing(denoiser, plan))


def _peers(denoiser: Denoiser, steps: int, left_out: set[str]) -> Iterator[Runner]:
    """The deterministic schedulers of diffusers that run this model; why others do not."""
    if not peers.installed():
        left_out.add("diffusers is not installed: without its schedulers")
        return
    reason = peers.refusal(denoiser)
    if reason is not None:
        left_out.add(f"without the schedulers of diffusers: the model must {reason}")
        return
    for peer in peers.deterministic_peers():

        def draw(start: Tensor, cond: Conditions, peer: peers.Peer = peer) -> Tensor:
            return peer.run(denoiser, steps, start, cond=cond)

        try:
            peer.make(denoiser)
        except (ImportError, ValueError) as error:  # another clip range; times that need SciPy
            left_out.add(f"without some schedulers of diffusers: {error}")
            continue
        yield Runner("diffusers", peer.family, f"{peer.short_label}, {peer.grid}", draw)


def _make(
    sampler: Callable[..., Plan], denoiser: Denoiser, grid: Grid, knobs: Mapping[str, Any]
) -> Plan:
    given = {"clip": denoiser.clip, "prediction": denoiser.prediction, **knobs}
    return sampler(denoiser.schedule, grid, **given)


def _drawing(denoiser: Denoiser, plan: Plan) -> Draw:
    return lambda start, cond: sample(denoiser, plan, start=start, cond=cond.mapping)


def _rmse(x: Tensor, y: Tensor) -> float:
    return float((x - y).double().square().mean().sqrt())
