"""Times one sampler step: the fused kernel, plain torch, torch.compile and diffusers in one run.

    python -m benchmarks.bench_step [--device cuda] [--dtype bfloat16] [--quick] [--no-compile]

Prints, per size: microseconds, ratios to diffusers' schedulers, GB/s of the bytes a step must move
and their share of a copy measured in the same run. Writes
benchmarks/results/step-<device>-<dtype>.json.

"fused" writes into the tensor it reads, as `fastsample.sample` does. "fused, new tensor" allocates
its result, as every other candidate must.
"""

from __future__ import annotations

import argparse
import functools
import statistics

import torch

import fastsample as fs
from benchmarks.timing import facts, host_cost, in_turns, summary, write
from fastsample import ops
from fastsample.ops import reference

SIZES = [(64, 3, 32, 32), (16, 3, 256, 256), (64, 3, 256, 256)]
GPU_SIZES = [(256, 3, 32, 32), (64, 3, 256, 256), (256, 3, 256, 256), (64, 4, 1024, 1024)]
ROW = 3  # The timed row is neither the first nor the last of ten.


def make_plans() -> dict[str, fs.Plan]:
    schedule, grid = fs.NoiseSchedule.linear(), fs.grids.ddim(1000, 10)
    return {
        "deterministic": fs.ddim(schedule, grid, clip=1.0),
        "noisy": fs.ancestral(schedule, grid, clip=1.0),
        "learned": fs.ancestral(schedule, grid, variance="learned_range", clip=1.0),
    }


def buffers(shape, dtype, device, channels=1):
    """Make (x, output) pairs, several on a GPU so that repeated calls do not hit its cache."""
    size = torch.Size(shape).numel() * torch.finfo(dtype).bits // 8
    count = 1 if device.type == "cpu" else max(2, min(8, int(2**28 // size)))
    wide = (shape[0], shape[1] * channels, *shape[2:])
    generator = torch.Generator(device).manual_seed(0)
    new = functools.partial(torch.randn, dtype=dtype, device=device, generator=generator)
    return [(new(shape), new(wide)) for _ in range(count)]


def peers(job: str):
    """Return the equivalent step of diffusers, {name: function of (output, x)}."""
    try:
        from diffusers import DDIMScheduler, DDPMScheduler
    except ImportError:
        return {}
    if job == "deterministic":
        scheduler = DDIMScheduler(clip_sample=True)
    else:
        variance = "learned_range" if job == "learned" else "fixed_small"
        scheduler = DDPMScheduler(clip_sample=True, variance_type=variance)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[ROW]
    return {f"diffusers {type(scheduler).__name__}": lambda out, x: scheduler.step(out, t, x)}


def candidates(job: str, plan: fs.Plan, shape, dtype, device, compiled: bool):
    channels = 2 if job == "learned" else 1
    pairs = buffers(shape, dtype, device, channels)
    stochastic = plan.is_stochastic
    rows = torch.as_tensor(plan.rows.copy(), device=device)
    row = torch.tensor(ROW, device=device)
    identity = {}
    if stochastic:
        identity = {
            "seeds": torch.tensor([0], device=device),
            "index": torch.arange(shape[0], device=device),
        }
    seeds, index = identity.get("seeds"), identity.get("index")
    target = torch.empty(shape, dtype=dtype, device=device)

    def at(i):
        return pairs[i % len(pairs)]

    def plain(out, x):
        # Noise comes from torch's generator: the Philox here would be slower in plain torch.
        noise = torch.randn_like(x) if stochastic else None
        return reference.step_x0(x, out, rows, row, noise=noise)[0]

    functions = {
        "torch.add(out=)": lambda i: torch.add(at(i)[0], at(i)[1][:, : shape[1]], out=target),
        "copy": lambda i: target.copy_(at(i)[0]),
        "fused": lambda i: ops.step(at(i)[0], at(i)[1], rows, row, target=at(i)[0], **identity),
        "fused, other buffer": lambda i: ops.step(*at(i), rows, row, target=target, **identity),
        "fused, new tensor": lambda i: ops.step(*at(i), rows, row, seeds=seeds, index=index),
        "plain torch": lambda i: plain(at(i)[1], at(i)[0]),
    }
    if compiled:
        fast = torch.compile(plain, dynamic=False)
        functions["torch.compile"] = lambda i: fast(at(i)[1], at(i)[0])
    for name, function in peers(job).items():
        functions[name] = lambda i, f=function: f(at(i)[1], at(i)[0])
    return functions


def moved_bytes(job: str, shape, dtype) -> int:
    operands = 4 if job == "learned" else 3
    return operands * torch.Size(shape).numel() * torch.finfo(dtype).bits // 8


def run(device: torch.device, dtype: torch.dtype, sizes, compiled: bool, seconds: float) -> list:
    results = []
    for job, plan in make_plans().items():
        for shape in sizes:
            torch.compiler.reset()  # Compile every size and job on its own.
            with torch.inference_mode():
                times = in_turns(
                    candidates(job, plan, shape, dtype, device, compiled),
                    device=device,
                    seconds=seconds,
                )
            medians = {name: statistics.median(values) for name, values in times.items()}
            size = moved_bytes(job, shape, dtype)
            element = torch.finfo(dtype).bits // 8
            copy = 2 * torch.Size(shape).numel() * element / medians["copy"]
            results.append(
                {
                    "kind": job,
                    "shape": list(shape),
                    "megabytes": round(size / 1e6, 2),
                    "times": {name: summary(values) for name, values in times.items()},
                    "gb_per_s": round(size / medians["fused"] / 1e9, 2),
                    "share_of_copy": round(size / medians["fused"] / copy, 3),
                    "share_of_add": round(medians["torch.add(out=)"] / medians["fused"], 3),
                    "ratio": {
                        name: round(value / medians["fused"], 2) for name, value in medians.items()
                    },
                    "ratio_new_tensor": {
                        name: round(value / medians["fused, new tensor"], 2)
                        for name, value in medians.items()
                    },
                }
            )
            show(results[-1])
    return results


def show(result: dict) -> None:
    print(
        f"\n{result['kind']} {tuple(result['shape'])}: {result['gb_per_s']} GB/s, "
        f"{result['share_of_copy']:.2f} of a copy, {result['share_of_add']:.2f} of torch.add"
    )
    for name, times in result["times"].items():
        print(
            f"  {name:26} {times['median_us']:10.1f} us  "
            f"[{times['low_us']:.1f}, {times['high_us']:.1f}]  {result['ratio'][name]:7.2f} x fused"
            f"  {result['ratio_new_tensor'][name]:7.2f} x fused, new tensor"
        )


def overhead(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure host microseconds per call, on tensors so small that the kernel takes no time."""
    plans = make_plans()
    x, out = (torch.randn(1, 16, device=device, dtype=dtype) for _ in range(2))
    row = torch.tensor(ROW, device=device)
    tables = {k: torch.as_tensor(p.rows.copy(), device=device) for k, p in plans.items()}
    seeds, index = (
        torch.tensor([0], device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )
    with torch.inference_mode():
        costs = {
            "ops.step": host_cost(lambda: ops.step(x, out, tables["deterministic"], row)),
            "ops.step, target": host_cost(
                lambda: ops.step(x, out, tables["deterministic"], row, target=x)
            ),
            "ops.step, noise": host_cost(
                lambda: ops.step(x, out, tables["noisy"], row, seeds=seeds, index=index, target=x)
            ),
            "torch.add": host_cost(lambda: torch.add(x, out)),
        }
        for function in peers("deterministic").values():
            costs["diffusers DDIMScheduler"] = host_cost(lambda f=function: f(out, x), 200)
    print("\nhost cost per call, us:", {name: round(value, 2) for name, value in costs.items()})
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quick", action="store_true", help="a second instead of minutes")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each candidate and size")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    sizes = GPU_SIZES if device.type == "cuda" else SIZES
    if options.quick:
        sizes = sizes[:1]
    result = {
        "benchmark": "step",
        "device": str(device),
        "dtype": options.dtype,
        "facts": facts(device),
        "overhead_us": overhead(device, dtype),
        "results": run(
            device,
            dtype,
            sizes,
            not options.no_compile,
            0.05 if options.quick else options.seconds,
        ),
    }
    if not options.quick:
        print("\n" + str(write(f"step-{device.type}-{options.dtype}", result)))


if __name__ == "__main__":
    main()
