"""The best K-step sampler for one model: measure the end error, and make it small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from fastsample._support.checks import check_bool, check_integer, check_real
from fastsample._support.distributed import process
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.tuning.baselines import check_methods, maker_of, starting_grids
from fastsample.tuning.regression import Objective
from fastsample.tuning.report import Stage, TuneReport, fingerprint
from fastsample.tuning.runner import Runner
from fastsample.tuning.split import Shares
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
    """Plan of `steps` network calls whose results are nearest to a fine run's, for this model.

    A fine deterministic run (the teacher) is remembered at many times. Then times are searched one
    by one; every candidate gets the best rows for its times, each a regression of the teacher's
    next state on x, x0 and two earlier x0's (where x0 is clipped, the last row is x0 itself). What
    is best on held-out noise becomes the plan: of the fitted results and the three best known
    samplers, so that it is never worse there than those. Related: S4S (Frankel et al.
    2025, arXiv:2502.17423) and LD3 (Tong et al. 2025, arXiv:2405.15506), which learn coefficients
    or times by gradients.

    Under `torch.distributed` every process takes its share of the samples, and all find the plan
    that one would, up to the rounding of sums.

    Args:
        denoiser: the model.
        steps: K, 2 or more.
        methods: deterministic samplers to start from; None is all that the registry has.
        samples: starting noises; a quarter is held out. On targets with many modes few samples
            mislead: 1000 or more.
        rows: fit rows; False chooses times and sampler only.
        objective: "endpoint" is the root mean square difference of the results; "robust" lets
            samples count less that end in another mode.
        features: what results are compared by, ``(B, *shape) -> (B, ...)``, say activations of a
            network; None is the samples themselves. Times and the plan are chosen by it; rows stay
            regressions of the samples.
        teacher_steps: of the fine run; its times are the candidates.
        max_runs: candidates to try, besides the starting times.
        gradient_steps: of Adam on the best rows at the end, through the network; each takes about 3
            K calls with 64 samples. 200 took another tenth off the error of two mixtures.
        guidance: classifier-free guidance scale the plan is for; it becomes part of it.
        cond: keyword arguments for the network, one entry per sample or a number for all.
        uncond: the same for "no condition"; None is the model's own.
        clip: range x0 is held in; "auto" is the model's own.
        batch_size: samples per network call.
        seed: of the noise; that of `sample` with another seed is fresh.
        progress: show a progress bar.

    Returns:
        A plan, to be used as ``steps=`` or, without guidance, with `Denoiser.with_plans`.
        ``print(plan.describe())`` shows the error after every stage and what it took. Holds
        ``samples x (teacher_steps + 3 steps)`` samples in memory.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a stochastic method, one step, too few samples, or a network that returns NaN
            (the message names the time).
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"tune: denoiser must be a Denoiser, got {type(denoiser).__name__}")
    count = check_integer("tune", "samples", samples, 16 * process()[1])
    fine = check_integer("tune", "teacher_steps", teacher_steps, 4)
    times = teacher_times(denoiser.schedule, fine)
    K = check_integer("tune", "steps", steps, 2, len(times) // 2)
    first = check_integer("tune", "seed", seed, 0, 2**64 - 1)
    check_bool("tune", "progress", progress)
    names = check_methods(methods)
    fits = check_bool("tune", "rows", rows)
    limit = check_integer("tune", "max_runs", max_runs, 1)
    descent = check_integer("tune", "gradient_steps", gradient_steps, 0)
    if objective not in ("endpoint", "robust"):
        raise ValueError(f'tune: objective must be "endpoint" or "robust", got {objective!r}')
    if features is not None and not callable(features):
        raise TypeError(f"tune: features must be callable or None, got {features!r}")
    scale = None if guidance is None else check_real("tune", "guidance", guidance)
    absent = denoiser.uncond if uncond is None else uncond
    if scale is not None and absent is None:
        raise ValueError("tune: uncond must be given with guidance, got None")
    if scale is None and uncond is not None:
        raise ValueError("tune: guidance must be given with uncond, got None")
    shares = Shares.of(count, denoiser.device)
    bound = denoiser.clip_for(clip)
    conditions = Conditions("tune", cond, None if scale is None else absent, batch=count)
    runner = Runner(
        denoiser,
        conditions.select(shares.index).to(denoiser.device),
        clip=bound,
        guidance=scale,
        batch_size=check_integer("tune", "batch_size", batch_size, 1),
    )

    with torch.inference_mode(), tqdm(disable=not progress, desc="tune", unit="run") as bar:
        teacher = Teacher(runner, times, shares, first)
        grids = starting_grids(denoiser, K)
        stages = Stages(
            teacher,
            grids,
            objective=objective,
            features=features,
            tick=bar.update,
        )
        known = stages.known(names)
        entries: list[tuple[Stage, Plan]] = known[:1]
        if fits:
            fitted = stages.fitted(limit)
            entries += fitted
            if fitted and descent:
                best = min(fitted, key=lambda entry: entry[0].validation)
                entries.append(stages.polished(best, descent))
        else:
            best = known[0][1]
            entries += stages.moved(best, maker_of(denoiser, best, names, bound), limit)
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
    note = {
        "made_by": "fastsample.tune",
        "model": fingerprint(denoiser.model),
        "shape": list(denoiser.shape),
        "clip": list(bound) if isinstance(bound, tuple) else bound,
        "guidance": scale,
        "seed": first,
        "objective": objective,
    }
    return plan.with_provenance({**note, **report.to_dict()})
