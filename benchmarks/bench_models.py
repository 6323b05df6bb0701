"""Times whole sampling runs of two networks, with and without a CUDA graph, against diffusers.

    python -m benchmarks.bench_models [--device cuda] [--quick] [--seconds S]

The networks are the bundled digits and a small diffusion transformer (DiT) with random weights, at
batches of 1, 16 and 256, in 10 network calls of UniPC. diffusers' candidate is the loop of its
pipelines around the same network. Candidates take turns in one process. Writes
results/models-<device>.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastsample as fs

from .timing import facts, in_turns, summary, write

K = 10
BATCHES = (1, 16, 256)


class Block(nn.Module):
    """A transformer block whose norms are shifted and scaled by the timestep (Peebles & Xie)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return tokens `(B, N, width)` for tokens and an embedded timestep `(B, width)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(t)[:, None].chunk(6, dim=2)
        h = self.norms[0](x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(h, h, h, need_weights=False)[0]
        return x + gate2 * self.mlp(self.norms[1](x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """A diffusion transformer on latents (4, 32, 32) in patches of 2 x 2."""

    def __init__(self, width: int = 256, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, width, 2, 2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 256, width))
        self.time = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.out = nn.ConvTranspose2d(width, 4, 2, 2)
        self.register_buffer("frequencies", torch.exp(-torch.arange(64) * (9.2 / 64)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise of latents `(B, 4, 32, 32)`."""
        angles = t.float()[:, None] * self.frequencies
        time = self.time(torch.cat((angles.cos(), angles.sin()), dim=1).to(x.dtype))
        h = self.patches(x).flatten(2).mT + self.position
        for block in self.blocks:
            h = block(h, time)
        return self.out(h.mT.unflatten(2, (16, 16)))


def make_models(device: torch.device) -> dict[str, fs.Denoiser]:
    """Return the models: digits in float32, the transformer in bfloat16 on a GPU."""
    torch.manual_seed(0)
    digits = fs.load("digits")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dit = DiT().eval().requires_grad_(False).to(device, dtype)
    return {
        "digits": fs.Denoiser(
            digits.model.to(device),
            digits.schedule,
            digits.shape,
            prediction=digits.prediction,
            variance=digits.variance,
            time=digits.time,
        ),
        "DiT": fs.Denoiser(dit, fs.NoiseSchedule.scaled_linear(), (4, 32, 32)),
    }


def candidates(model: fs.Denoiser, batch: int) -> dict[str, Callable[[int], object]]:
    """Return the ways to draw a batch of samples."""
    device = model.device
    sampler = fs.Sampler(model, K, method="unipc", grid="leading")
    ways: dict[str, Callable[[int], object]] = {"fs.Sampler": lambda _: sampler(batch, seed=0)}
    if device.type == "cuda":
        graph = fs.Sampler(model, K, method="unipc", grid="leading", graph=True)
        ways["fs.Sampler, graph"] = lambda _: graph(batch, seed=0)
    if importlib.util.find_spec("diffusers") is not None:
        from diffusers import UniPCMultistepScheduler

        betas = 1.0 - (
            model.schedule.alpha_bar(torch.arange(1, 1001).numpy())
            / model.schedule.alpha_bar(torch.arange(0, 1000).numpy())
        )
        scheduler = UniPCMultistepScheduler(trained_betas=betas.tolist())

        @torch.no_grad()
        def pipeline(_: int) -> Tensor:
            scheduler.set_timesteps(K, device=device)
            x = torch.randn(batch, *model.shape, device=device, dtype=model.dtype)
            for t in scheduler.timesteps:
                output = model.model(x, t.expand(batch))[:, : model.shape[0]]
                x = scheduler.step(output, t, x).prev_sample
            return x

        ways["diffusers"] = pipeline
    return ways


def run(device: torch.device, batches: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for name, model in make_models(device).items():
        for batch in batches:
            times = in_turns(candidates(model, batch), device=device, seconds=seconds)
            medians = {way: statistics.median(values) for way, values in times.items()}
            base = medians["fs.Sampler"]
            ratios = {way: round(value / base, 3) for way, value in medians.items()}
            results.append(
                {
                    "model": name,
                    "batch": batch,
                    "dtype": str(model.dtype).removeprefix("torch."),
                    "times": {way: summary(values) for way, values in times.items()},
                    "ratio": ratios,
                }
            )
            print(
                f"{name:8}{batch:4}", *(f"{w} {m * 1e3:.2f} ms" for w, m in medians.items()), ratios
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a batch of 1 alone")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each candidate")
    options = parser.parse_args()
    device = torch.device(options.device)
    result = {
        "benchmark": "models",
        "device": str(device),
        "steps": K,
        "facts": facts(device),
        "results": run(
            device,
            BATCHES[:1] if options.quick else BATCHES,
            0.05 if options.quick else options.seconds,
        ),
    }
    if not options.quick:
        print(write(f"models-{device.type}", result))


if __name__ == "__main__":
    main()
