"""Times whole sampling loops around a network that costs nothing, against other programs' loops.

    python -m benchmarks.bench_loop [--quick] [--seconds S] [--device cuda]

What is left is the sampler's own cost: that of a call, of a row on the host, and of the kernel.
Candidates of one size and method take turns in one process: a `Sampler`, `sample` as users call it,
and diffusers' scheduler of the same method with `set_timesteps`. Where they can be imported, the
loops of k-diffusion and of DPM-Solver's authors run beside. Writes results/loop-<device>.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import torch

import fastsample as fs

from .timing import facts, host_cost, in_turns, summary, write

K = 10
SIZES = [(1, 16, 2), (1, 4, 64, 64), (8, 4, 64, 64), (16, 3, 256, 256)]
METHODS = ("ddim", "dpm++", "unipc", "ancestral")
SCHEDULE = fs.NoiseSchedule.linear()
PEERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ancestral": ("DDPMScheduler", {"clip_sample": False}),
}

Loop = Callable[[int], object]


def free_network(x: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Return a network that gives the same output in every call, at no cost."""
    output = 0.1 * x
    return lambda x, t: output


def ours(method: str, x: torch.Tensor) -> dict[str, Loop]:
    """Return this package's loops from given starting noise."""
    model = fs.Denoiser(free_network(x), SCHEDULE, x.shape[1:])
    sampler = fs.Sampler(model, K, method=method, grid="leading", device=x.device)
    return {
        "fs.Sampler": lambda _: sampler(start=x),
        "fs.sample": lambda _: fs.sample(
            model, K, method=method, grid="leading", start=x, device=x.device
        ),
    }


def diffusers(method: str, x: torch.Tensor) -> dict[str, Loop]:
    """Return the loop that users of diffusers write, or nothing without diffusers."""
    if importlib.util.find_spec("diffusers") is None:
        return {}
    import diffusers as package

    name, settings = PEERS[method]
    scheduler = getattr(package, name)(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        **settings,
    )
    network = free_network(x)

    def loop(_: int) -> torch.Tensor:
        scheduler.set_timesteps(K, device=x.device)
        sample = x
        for t in scheduler.timesteps:
            sample = scheduler.step(network(sample, t), t, sample).prev_sample
        return sample

    return {f"diffusers {name}": loop}


def k_diffusion(method: str, x: torch.Tensor) -> dict[str, Loop]:
    """Return k-diffusion's loop of the same order, or nothing without k-diffusion."""
    names = {
        "ddim": "sample_euler",
        "dpm++": "sample_dpmpp_2m",
        "ancestral": "sample_euler_ancestral",
    }
    if method not in names or importlib.util.find_spec("k_diffusion") is None:
        return {}
    from k_diffusion import sampling

    sigmas = sampling.get_sigmas_karras(K, 0.03, 80.0, device=x.device)
    network, noisy = free_network(x), 80.0 * x
    function = getattr(sampling, names[method])

    def loop(_: int) -> torch.Tensor:
        return function(lambda x, sigma: network(x, sigma), noisy, sigmas, disable=True)

    return {f"k-diffusion {names[method]}": loop}


def dpm_solver(method: str, x: torch.Tensor) -> dict[str, Loop]:
    """Return the loop of DPM-Solver's authors, or nothing without their module."""
    if method != "dpm++" or importlib.util.find_spec("dpm_solver_pytorch") is None:
        return {}
    from dpm_solver_pytorch import DPM_Solver, NoiseScheduleVP

    betas = torch.linspace(1e-4, 0.02, 1000)
    schedule = NoiseScheduleVP("discrete", betas=betas)
    network = free_network(x)

    def loop(_: int) -> torch.Tensor:
        solver = DPM_Solver(network, schedule, algorithm_type="dpmsolver++")
        return solver.sample(x, steps=K, order=2, skip_type="time_uniform", method="multistep")

    return {"DPM-Solver": loop}


def run(device: torch.device, sizes: list[tuple[int, ...]], seconds: float) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for shape in sizes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        for method in METHODS:
            loops = ours(method, x)
            for peers in (diffusers, k_diffusion, dpm_solver):
                loops |= peers(method, x)
            with torch.no_grad():
                times = in_turns(loops, device=device, seconds=seconds)
            medians = {name: statistics.median(values) for name, values in times.items()}
            result = {
                "method": method,
                "shape": list(shape),
                "times": {name: summary(values) for name, values in times.items()},
                "ratio_sampler": _ratios(medians, "fs.Sampler"),
                "ratio_sample": _ratios(medians, "fs.sample"),
            }
            results.append(result)
            print(
                f"{method:10}{shape!s:20}", *(f"{n} {m * 1e6:.0f} us" for n, m in medians.items())
            )
            for ours_name in ("sampler", "sample"):
                print(f"{'':30}over {ours_name}:", result[f"ratio_{ours_name}"])
    return results


def _ratios(medians: dict[str, float], base: str) -> dict[str, float]:
    """Return the times of the other programs divided by one of ours."""
    return {
        name: round(value / medians[base], 2)
        for name, value in medians.items()
        if not name.startswith("fs.")
    }


def host_costs(device: torch.device) -> dict[str, dict[str, float]]:
    """Return microseconds of host time per row, and per call beside its rows, by method.

    They follow from runs of 10 and 50 rows on samples so small that the kernel takes no time.
    """
    x = torch.randn(1, 16, 2).to(device)
    costs: dict[str, dict[str, float]] = {}
    for method in METHODS:
        model = fs.Denoiser(free_network(x), SCHEDULE, x.shape[1:])
        totals: list[float] = []
        for steps in (10, 50):
            sampler = fs.Sampler(model, steps, method=method, grid="leading", device=x.device)
            totals.append(host_cost(lambda s=sampler: s(1, seed=0), calls=100))
        row = (totals[1] - totals[0]) / 40
        costs[method] = {"row": round(row, 2), "call": round(totals[0] - 10 * row, 1)}
    print("host time in us:", costs)
    return costs


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
        "benchmark": "loop",
        "device": str(device),
        "steps": K,
        "facts": facts(device),
        "host_us": host_costs(device),
        "results": run(
            device,
            SIZES[:1] if options.quick else SIZES,
            0.05 if options.quick else options.seconds,
        ),
    }
    if not options.quick:
        print(write(f"loop-{device.type}", result))


if __name__ == "__main__":
    main()
