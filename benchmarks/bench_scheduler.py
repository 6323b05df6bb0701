"""Times the steps of `FastSampleScheduler` against those of the diffusers schedulers it replaces.

    python -m benchmarks.bench_scheduler [--quick] [--seconds S] [--device cuda]

A run is the loop of a pipeline around a network that costs nothing: 20 steps with `t` from
`scheduler.timesteps`, without `set_timesteps`. Candidates take turns in one process. `torch.add`
into a fresh tensor of the same size is the floor of a step that returns a new tensor. Writes
results/scheduler-<device>.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from fastsample.integrations.diffusers import FastSampleScheduler

from .timing import facts, in_turns, summary, write

K = 20
SIZES = [(1, 4, 64, 64), (2, 16, 128, 128), (16, 3, 256, 256)]
SOURCES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DDPMScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
}
OURS, THEIRS, ADD = "FastSampleScheduler", "diffusers", "torch.add"


def pipeline_loop(scheduler: Any, x: torch.Tensor, output: torch.Tensor) -> Callable[[int], object]:
    """Return what a pipeline does with a scheduler between two calls of its network."""
    scheduler.set_timesteps(K, device=x.device)
    stochastic = type(scheduler).__name__ == "DDPMScheduler"
    options = {"generator": torch.Generator(x.device).manual_seed(0)} if stochastic else {}

    def loop(_: int) -> torch.Tensor:
        # What `set_timesteps` resets; it is not part of a step.
        for name in ("_step_index", "_begin_index"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, None)
        if hasattr(scheduler, "model_outputs"):
            scheduler.model_outputs = [None] * len(scheduler.model_outputs)
            scheduler.lower_order_nums = 0
        sample = x
        for t in scheduler.timesteps:
            sample = scheduler.step(output, t, sample, **options, return_dict=False)[0]
        return sample

    return loop


def run(device: torch.device, sizes: list[tuple[int, ...]], seconds: float) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for shape in sizes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        output = 0.1 * x
        for name, config in SOURCES.items():
            source = getattr(diffusers, name)(**config)
            # DDPM's noise is the kernel's own here, and the generator's there.
            choices = {"seed": 0} if name == "DDPMScheduler" else {}
            scheduler = FastSampleScheduler.from_scheduler(source, **choices)

            def additions(_: int, x: torch.Tensor = x, output: torch.Tensor = output) -> object:
                sample = x
                for _ in range(K):
                    sample = torch.add(sample, output)
                return sample

            loops = {
                OURS: pipeline_loop(scheduler, x, output),
                THEIRS: pipeline_loop(source, x, output),
                ADD: additions,
            }
            with torch.no_grad():
                times = in_turns(loops, device=device, seconds=seconds)
            per_step = {key: [value / K for value in values] for key, values in times.items()}
            medians = {key: statistics.median(values) for key, values in per_step.items()}
            result = {
                "source": name,
                "shape": list(shape),
                "times": {key: summary(values) for key, values in per_step.items()},
                "ratio": round(medians[THEIRS] / medians[OURS], 2),
                "over_add": round(medians[OURS] / medians[ADD], 2),
            }
            results.append(result)
            print(
                f"{name:32}{shape!s:20}",
                *(f"{key} {value * 1e6:.1f} us" for key, value in medians.items()),
                f"ratio {result['ratio']}, over torch.add {result['over_add']}",
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each candidate and size")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(2)
    result = {
        "benchmark": "scheduler",
        "device": str(device),
        "steps": K,
        "facts": facts(device),
        "results": run(
            device,
            SIZES[:1] if options.quick else SIZES,
            0.05 if options.quick else options.seconds,
        ),
    }
    if not options.quick:
        print(write(f"scheduler-{device.type}", result))


if __name__ == "__main__":
    main()
