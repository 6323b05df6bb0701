"""Implements `tune`, which fits a sampler plan of K steps to one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from fastsample._support.checks import check_bool, check_integer, check_real, warn_user
from fastsample._support.distributed import failing_together, process
from fastsample.denoiser.at_times import AtTimes
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.wrap import check_denoiser
from fastsample.ops.draws import NOISE_VERSION
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.tuning.baselines import check_methods, maker_of, starting_grids
from fastsample.tuning.regression import Objective
from fastsample.tuning.report import Stage, TuneReport, fingerprint
from fastsample.tuning.runner import Runner
from fastsample.tuning.split import Split
from fastsample.tuning.stages import Stages
from fastsample.tuning.teacher import Teacher, teacher_times


def tune(
    denoiser: Denoiser,
    steps: int,
    *,
    methods: Sequence[str] | None = None,
    samples: int = 1024,
    rows: bool = True,
    objective: Objective = "endpoint",
    features: Callable[[Tensor], Tensor] | None = None,
    teacher_steps: int = 96,
    max_runs: int = 60,
    gradient_steps: int = 0,
    guidance: float | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    clip: Clip | Literal["auto"] = "auto",
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Plan:
    """Find the plan of `steps` network calls whose results are nearest to those of a fine run.

    The states of a fine deterministic run (the teacher) are kept at many times. Then the times of
    the plan are searched one by one; every candidate gets the best rows for its times, each a
    regression of the teacher's next state on x, x0 and two earlier x0 (where x0 is clamped, the
    last row returns x0 itself). The plan is the best one on held-out noise among the fitted ones
    and the three best known samplers, so that it is never worse there than those. Related: S4S
    (Frankel et al. 2025, arXiv:2502.17423) and LD3 (Tong et al. 2025, arXiv:2405.15506), which
    learn coefficients or times by gradients.

    Under `torch.distributed` every process runs its part of the samples, and all return the plan
    that a single process would, up to the rounding of sums.

    Args:
        denoiser: the model.
        steps: the number K of network calls, 2 or more.
        methods: names of the deterministic samplers to start from; None is all of the registry.
        samples: number of starting noises, of which a quarter is held out. Targets with many modes
            need 1000 or more.
        rows: whether to fit rows; False chooses times and a known sampler only.
        objective: "endpoint" is the root mean square difference of the results; "robust" gives
            less weight to samples that end in another mode.
        features: maps results ``(B, *shape) -> (B, ...)`` to what they are compared by, such as
            activations of a network; None compares the samples themselves. Times and the plan are
            chosen by it; rows are fitted to the samples in any case.
        teacher_steps: number of steps of the fine run, 4 or more; its times are the candidates.
        max_runs: number of candidates to run, besides the starting grids.
        gradient_steps: number of steps of Adam on the best rows at the end, through the network;
            each takes about 3 K calls with 64 samples. 200 lowered the error of two mixtures by
            another tenth.
        guidance: classifier-free guidance scale of the plan; it becomes part of it.
        cond: keyword arguments for the network, one entry per sample or a number for all.
        uncond: the same arguments for "no condition"; None is the model's.
        clip: range that x0 is clamped to, in data units; "auto" is the model's.
        batch_size: samples per network call.
        seed: 64-bit seed of the noise; `sample` with another seed uses other noise.
        progress: show a progress bar.

    Returns:
        A plan, to be used as ``steps=`` or, without guidance, with `Denoiser.with_plans`.
        ``print(plan.describe())`` shows the error after every stage and the cost. Holds
        ``samples x (teacher_steps + 3 steps)`` samples in memory.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a stochastic method, one step, too few samples, or a network that returns NaN
            (the message names the time).
    """
    check_denoiser("tune", denoiser)
    count = check_integer("tune", "samples", samples, 16 * process()[1])
    num_teacher_steps = check_integer("tune", "teacher_steps", teacher_steps, 4)
    times = teacher_times(denoiser.schedule, num_teacher_steps)
    K = check_integer("tune", "steps", steps, 2, len(times) // 2)
    checked_seed = check_integer("tune", "seed", seed, 0, 2**64 - 1)
    check_bool("tune", "progress", progress)
    names = check_methods(methods)
    fit = check_bool("tune", "rows", rows)
    max_candidates = check_integer("tune", "max_runs", max_runs, 1)
    iterations = check_integer("tune", "gradient_steps", gradient_steps, 0)
    if objective not in ("endpoint", "robust"):
        raise ValueError(f'tune: objective must be "endpoint" or "robust", got {objective!r}')
    if features is not None and not callable(features):
        raise TypeError(f"tune: features must be callable or None, got {features!r}")
    scale = None if guidance is None else check_real("tune", "guidance", guidance)
    unconditional = denoiser.uncond if uncond is None else uncond
    if scale is not None and unconditional is None:
        raise ValueError("tune: uncond must be given with guidance, got None")
    if scale is None and uncond is not None:
        raise ValueError("tune: guidance must be given with uncond, got None")
    split = Split.of(count, denoiser.device)
    bound = denoiser.clip_for(clip)
    conditions = Conditions("tune", cond, None if scale is None else unconditional, batch=count)
    runner = Runner(
        denoiser,
        conditions.select(split.index).to(denoiser.device),
        clip=bound,
        guidance=scale,
        batch_size=check_integer("tune", "batch_size", batch_size, 1),
    )

    with (
        torch.inference_mode(),
        failing_together("tune", denoiser.device),
        tqdm(disable=not progress, desc="tune", unit="run") as bar,
    ):
        teacher = Teacher(runner, times, split, checked_seed)
        _warn_of_randomness(denoiser, teacher, runner.conditions)
        grids = starting_grids(denoiser, K)
        stages = Stages(
            teacher,
            grids,
            objective=objective,
            features=features,
            tick=bar.update,
        )
        known = stages.known_samplers(names)
        entries: list[tuple[Stage, Plan]] = known[:1]
        if fit:
            fitted = stages.fitted_rows(max_candidates)
            entries += fitted
            if fitted and iterations:
                best = min(fitted, key=lambda entry: entry[0].validation)
                entries.append(stages.polished(best, iterations))
        else:
            best = known[0][1]
            make = maker_of(denoiser, best, names, bound)
            entries += stages.searched_sampler(best, make, max_candidates)
    stage, plan = min(entries, key=lambda entry: entry[0].validation)
    report = TuneReport(
        starts=tuple(start for start, _ in known),
        stages=tuple(stage for stage, _ in entries[1:]),
        chosen=stage.name,
        samples=(count - count // 4, count // 4),
        teacher_steps=len(times),
        runs=stages.runs,
        network_calls=stages.calls / count,
    )
    if scale is not None:
        plan = plan.with_guidance(scale)
    provenance = {
        "made_by": "fastsample.tune",
        "model": fingerprint(denoiser.model),
        "shape": list(denoiser.shape),
        "clip": list(bound) if isinstance(bound, tuple) else bound,
        "guidance": scale,
        "seed": checked_seed,
        "noise": NOISE_VERSION,
        "objective": objective,
    }
    return plan.with_provenance({**provenance, **report.to_dict()})


def _warn_of_randomness(denoiser: Denoiser, teacher: Teacher, conditions: Conditions) -> None:
    """Warn if two calls of the network with the same few samples differ by more than rounding."""
    times = teacher.times[len(teacher.times) // 2 :][:1]
    x = teacher.start[: min(4, len(teacher.start))]
    model = AtTimes(denoiser, times, function="tune")
    first, second = (model.output(x, 0, conditions.part(0, x).conditional)[0] for _ in range(2))
    scale = float(first.abs().max())
    difference = float((first - second).abs().max())
    if difference > 1e-2 * scale:
        warn_user(
            "tune: denoiser must be deterministic, got outputs for the same samples that differ by "
            f"{difference:.2g} of {scale:.2g}; call model.eval(), or leave out the random numbers "
            "that it draws, since the plan is fitted to them"
        )
