"""Times profiling: the kernel of its sums, the table of costs, and a whole profile.

    python -m benchmarks.bench_profile [--device cuda] [--quick]

1. `ops.elbo_sums`: time per element and node, per element and decoder scale, with the share of the
   arithmetic limit on a GPU (float32 instructions of the compiled loop, issued one a clock).
2. The table of a learned variance at T = 1000: plain torch at every pair (timed on a few times and
   scaled), the kernel at every pair, the kernel at 16 nodes with interpolation.
3. `fastsample.profile` of the bundled digits model against its network calls alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import fastsample as fs
from benchmarks.timing import facts, in_turns, write
from fastsample import ops
from fastsample.planning.elbo import vp_levels
from fastsample.profiling.learned_range import chebyshev_nodes, learned_range_costs, log_ratios

TERMS = {"x0_terms": (1.2, -0.6), "eps_terms": (0.0, 1.0), "clip": (-1.0, 1.0)}


def operands(batch: int, dims: int, dtype: torch.dtype, device: torch.device):
    """Data, noisy data, and an output whose variance v is spread over [0, 1]."""
    x0 = (torch.randint(0, 256, (batch, 1, dims), device=device) / 127.5 - 1.0).to(dtype)
    x = (x0 + 0.5 * torch.randn_like(x0)).to(dtype)
    eps = torch.randn_like(x0)
    raw = 2 * torch.rand_like(x0) - 1
    return x0, x, torch.cat([eps, raw], dim=1)


def kernel(device: torch.device, seconds: float) -> list[dict[str, object]]:
    """Rates of the kernel alone."""
    batch, dims = (256, 3072) if device.type == "cpu" else (4096, 12288)
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        inputs = operands(batch, dims, dtype, device)
        nodes = torch.linspace(0.1, 9.0, 16, dtype=torch.float64, device=device)
        scales = torch.linspace(-5.0, 0.0, 48, dtype=torch.float64, device=device)
        cases: dict[str, Callable[[int], object]] = {
            "read": lambda i, g=inputs: ops.elbo_sums(*g, **TERMS),
            "16 nodes": lambda i, g=inputs, n=nodes: ops.elbo_sums(*g, **TERMS, nodes=n),
            "48 scales": lambda i, g=inputs, s=scales: ops.elbo_sums(*g, **TERMS, log_scales=s),
        }
        times = in_turns(cases, device=device, seconds=seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        elements = batch * dims
        moved = sum(t.numel() * t.element_size() for t in inputs)
        row = {
            "dtype": str(dtype).removeprefix("torch."),
            "elements": elements,
            "milliseconds": {name: 1e3 * value for name, value in medians.items()},
            "read_gb_per_s": moved / medians["read"] / 1e9,
            "ns_per_element_and_node": 1e9 * medians["16 nodes"] / elements / 16,
            "ns_per_element_and_scale": 1e9 * medians["48 scales"] / elements / 48,
        }
        rows.append(row)
        print(row)
    return rows


def plain_column(v: torch.Tensor, error2: torch.Tensor, a: torch.Tensor, drop: torch.Tensor):
    """Costs of every step from one time, in plain torch."""
    x = a[:, None, None] * v
    decay = torch.exp(-x)
    return 0.5 * (x - 1 + decay + drop[:, None, None] * error2 * decay).sum(2).mean(1)


def tables(device: torch.device, batch: int, dims: int, plain_times: int) -> dict[str, object]:
    """Seconds for the table of T = 1000 in three ways, and how far the results are apart."""
    schedule = fs.NoiseSchedule.cosine(1000)
    times = np.arange(1.0, 1001.0)
    alpha_bar, noise = vp_levels(schedule, times)
    ratios = log_ratios(noise)
    drops = (alpha_bar[None, :] - alpha_bar[:, None]) / (noise[None, :] * noise[:, None])
    x0, x, out = operands(batch, dims, torch.float64, device)
    v = ((out[:, 1:] + 1) / 2).flatten(1)
    p, q = TERMS["x0_terms"]
    error2 = ((x0 - (p * x + q * out[:, :1]).clamp(-1, 1)) ** 2).flatten(1)
    every = torch.from_numpy(ratios).to(device)
    nodes_np = chebyshev_nodes(noise, 16)
    nodes = torch.from_numpy(nodes_np).to(device)

    def timed(function):
        _synchronise(device)
        begin = time.perf_counter()
        result = function()
        _synchronise(device)
        return time.perf_counter() - begin, result

    sample = np.linspace(1, 999, plain_times).astype(int)

    def plain():
        pieces = []
        for t in sample:
            a, drop = every[t, :t], torch.from_numpy(drops[t, :t].copy()).to(device)
            # Blocks of s: the whole product would not fit in memory.
            block = max(1, 2**24 // (batch * dims))
            pieces.append(
                torch.cat(
                    [
                        plain_column(v, error2, *both)
                        for both in zip(a.split(block), drop.split(block), strict=True)
                    ]
                )
            )
        return pieces

    def exact():
        table = np.full((1000, 1000), np.inf)
        for t in range(1, 1000):
            sums = ops.elbo_sums(x0, x, out, **TERMS, nodes=every[t, :t])
            means = torch.stack([sums.excess.mean(0), sums.weighted.mean(0)]).cpu().numpy()
            table[t, :t] = 0.5 * (means[0] + drops[t, :t] * means[1])
        return table

    def few():
        means = []
        for t in range(1000):
            sums = ops.elbo_sums(x0, x, out, **TERMS, nodes=nodes[t])
            means.append(torch.stack([sums.excess.mean(0), sums.weighted.mean(0)]))
        excess, weighted = torch.stack(means, 1).cpu().numpy()
        return learned_range_costs((alpha_bar, noise), noise, nodes_np, excess, weighted)

    few()
    plain_seconds, pieces = timed(plain)
    share = sum(int(t) for t in sample) / (1000 * 999 / 2)
    exact_seconds, exact_table = timed(exact)
    few_seconds, few_table = timed(few)
    lower = np.tri(1000, k=-1, dtype=bool)
    apart = np.abs(few_table[lower] / exact_table[lower] - 1).max()
    # Only far from the diagonal: near it the plain formula loses its digits.
    far = [(t, p) for t, p in zip(sample, pieces, strict=True) if t > 10]
    plain_apart = max(
        float(np.abs(exact_table[t, : t // 2] / p[: t // 2].cpu().numpy() - 1).max())
        for t, p in far
    )
    result = {
        "batch": batch,
        "dims": dims,
        "plain_torch_s": plain_seconds / share,
        "plain_torch_timed_share": share,
        "kernel_every_pair_s": exact_seconds,
        "kernel_16_nodes_s": few_seconds,
        "times_faster_exact": plain_seconds / share / exact_seconds,
        "times_faster_nodes": plain_seconds / share / few_seconds,
        "nodes_relative_error": float(apart),
        "plain_relative_difference": plain_apart,
    }
    print(result)
    return result


def overhead(device: torch.device, samples: int, num_times: int) -> dict[str, float]:
    """Seconds of a profile of the digits model and of its network calls alone, in turns."""
    model = fs.load("digits", device=device)
    x = torch.randint(0, 17, (samples, *model.shape)).float() / 8 - 1
    times = np.linspace(1, 1000, num_times).round()
    y = torch.full((samples,), 10, device=device)
    timesteps = model.network_times(times)

    def calls(_):
        with torch.inference_mode():
            noisy = x.to(device)
            for k in range(num_times):
                model.at_timestep(noisy, timesteps[k].expand(samples), {"y": y})

    def profiled(_):
        fs.profile(
            model,
            x,
            times=times,
            batch_size=samples,
            bin_width=1 / 8,
            trajectories=0,
            cond={"y": y},
        )

    times_by_name = in_turns(
        {"calls": calls, "profile": profiled}, device=torch.device("cpu"), seconds=0.0
    )
    medians = {name: statistics.median(values) for name, values in times_by_name.items()}
    result = {**medians, "ratio": medians["profile"] / medians["calls"]}
    print(result)
    return result


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer measurements; writes nothing")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    batch, dims = (16, 3072) if device.type == "cpu" else (64, 3072)
    result = {
        "benchmark": "profile",
        "facts": facts(device),
        "kernel": kernel(device, 0.05 if options.quick else 1.0),
        "tables": tables(device, batch, dims, 3 if options.quick else 12),
        "overhead": overhead(device, 128, 4 if options.quick else 50),
    }
    if not options.quick:
        print(write(f"profile-{device.type}", result))


if __name__ == "__main__":
    main()
