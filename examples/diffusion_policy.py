"""Answer a robot's observations sooner: a Diffusion Policy with fewer and cheaper steps.

    pip install fastsample[diffusers]
    python examples/diffusion_policy.py                  # about 2 minutes on two cores
    python examples/diffusion_policy.py --iterations 20 --scenes 16 --chunks 3 --runs 1

Diffusion Policy (Chi et al. 2023, arXiv:2303.04137), as in lerobot, draws a chunk of actions from a
one-dimensional U-Net for every few observations: 100 training steps of the cosine schedule, clipped
to [-1, 1], and 10 DDIM steps of diffusers per chunk. This program has the same interfaces in small:
`DiffusionModel.conditional_sample` is what lerobot's policy calls, and its U-Net takes ``(x,
timestep, global_cond)``. It is trained on demonstrations of two kinds, paths that pass an obstacle
above or below it, so that the mean path is wrong.

Prints, per sampler, the median time of one chunk ``(1, 16, 2)``, the distance to the result of
DDIM in all 100 steps from the same noise, and the share of paths that reach the goal and keep clear
of the obstacle.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

import fastsample as fs
from fastsample.integrations.diffusers import FastSampleScheduler

HORIZON, RADIUS = 16, 0.25


# ---- demonstrations


def scenes(count: int, generator: torch.Generator) -> Tensor:
    """Return scenes ``(count, 6)``: the start, the goal and the middle of the obstacle."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    columns = (uniform(-0.9, -0.7), uniform(-0.3, 0.3), uniform(0.7, 0.9), uniform(-0.3, 0.3))
    return torch.stack((*columns, uniform(-0.15, 0.15), uniform(-0.1, 0.1)), 1)


def demonstrations(scene: Tensor, generator: torch.Generator) -> Tensor:
    """Return paths ``(count, 16, 2)`` around the obstacle, half of them above and half below."""
    start, goal, obstacle = scene[:, None, :2], scene[:, None, 2:4], scene[:, 4:]
    u = torch.linspace(0, 1, HORIZON)[:, None]
    straight = start + (goal - start) * u
    side = torch.randint(2, (len(scene), 1), generator=generator) * 2 - 1
    clearance = RADIUS + 0.18 + 0.1 * torch.rand(len(scene), 1, generator=generator)
    bump = torch.exp(-(((straight[..., 0] - obstacle[:, :1]) / 0.4) ** 2)) * (u * (1 - u) * 4).T
    around = obstacle[:, 1:] + side * clearance
    y = straight[..., 1] + bump.clamp(max=1) * (around - straight[..., 1])
    return torch.stack((straight[..., 0], y), 2)


def succeeds(path: Tensor, scene: Tensor) -> Tensor:
    """Return whether each path begins and ends where it should, clear of the obstacle ``(B,)``."""
    fine = F.interpolate(path.mT, scale_factor=8, mode="linear", align_corners=True).mT
    clear = (fine - scene[:, None, 4:]).norm(dim=2).amin(1) > RADIUS
    begins = (path[:, 0] - scene[:, :2]).norm(dim=1) < 0.1
    return clear & begins & ((path[:, -1] - scene[:, 2:4]).norm(dim=1) < 0.1)


# ---- the policy, with lerobot's interfaces


class ConvBlock(nn.Sequential):
    """Convolution, group norm and Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv1d(inputs, outputs, 5, padding=2), nn.GroupNorm(8, outputs), nn.Mish()
        )


class ResidualBlock(nn.Module):
    """Two convolutions, with scale and shift from the step and the observations between them."""

    def __init__(self, inputs: int, outputs: int, cond: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(inputs, outputs), ConvBlock(outputs, outputs)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return features ``(B, outputs, T)``."""
        scale, shift = self.film(cond)[..., None].chunk(2, 1)
        return self.second(self.first(x) * scale + shift) + self.skip(x)


class Unet1d(nn.Module):
    """Predicts the noise in actions ``(B, T, 2)`` from the timestep and the observations."""

    def __init__(self, global_cond: int, width: int = 32) -> None:
        super().__init__()
        cond = 32 + global_cond
        self.embedding = nn.Sequential(nn.Linear(32, 128), nn.Mish(), nn.Linear(128, 32))
        self.down = ResidualBlock(2, width, cond)
        self.shrink = nn.Conv1d(width, width, 3, 2, 1)
        self.middle = nn.ModuleList(
            ResidualBlock(inputs, 2 * width, cond) for inputs in (width, 2 * width)
        )
        self.grow = nn.ConvTranspose1d(2 * width, width, 4, 2, 1)
        self.up = ResidualBlock(2 * width, width, cond)
        self.last = nn.Sequential(ConvBlock(width, width), nn.Conv1d(width, 2, 1))

    def forward(self, x: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """Return the predicted noise, in the shape of ``x``."""
        frequencies = torch.exp(torch.arange(16, device=x.device) * (-math.log(10000) / 15))
        angles = timestep[:, None] * frequencies
        step = self.embedding(torch.cat((angles.sin(), angles.cos()), 1))
        cond = torch.cat((step, global_cond), 1)
        fine = self.down(x.mT, cond)
        h = self.shrink(fine)
        for block in self.middle:
            h = block(h, cond)
        return self.last(self.up(torch.cat((self.grow(h), fine), 1), cond)).mT


class DiffusionModel:
    """The part of lerobot's policy that draws actions: a U-Net and a scheduler of diffusers."""

    def __init__(self, unet: nn.Module, num_inference_steps: int) -> None:
        self.unet, self.num_inference_steps = unet, num_inference_steps
        self.noise_scheduler = DDIMScheduler(
            num_train_timesteps=100,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,
            clip_sample_range=1.0,
            prediction_type="epsilon",
        )

    @torch.no_grad()
    def conditional_sample(self, global_cond: Tensor, noise: Tensor) -> Tensor:
        """Return a chunk of actions from noise ``(B, 16, 2)``, as lerobot's loop does."""
        sample = noise
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            timestep = torch.full(sample.shape[:1], t, dtype=torch.long, device=sample.device)
            output = self.unet(sample, timestep, global_cond=global_cond)
            sample = self.noise_scheduler.step(output, t, sample).prev_sample
        return sample


def trained(iterations: int, seed: int) -> Unet1d:
    """Train on fresh demonstrations, with the squared error of the noise at random steps."""
    torch.manual_seed(seed)
    unet, generator = Unet1d(6), torch.Generator().manual_seed(seed)
    scheduler = DiffusionModel(unet, 10).noise_scheduler
    optimizer = torch.optim.AdamW(unet.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(iterations, 2))
    mean = 1.0
    for i in range(iterations):
        scene = scenes(128, generator)
        actions = demonstrations(scene, generator)
        noise = torch.randn(actions.shape, generator=generator)
        timesteps = torch.randint(100, (128,), generator=generator)
        noisy = scheduler.add_noise(actions, noise, timesteps)
        loss = F.mse_loss(unet(noisy, timesteps, scene), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        mean += (loss.item() - mean) / min(i + 1, 100)
        if (i + 1) % 500 == 0 or i + 1 == iterations:
            print(f"iteration {i + 1}: loss {mean:.4f}", flush=True)
    return unet.eval()


# ---- comparison


Draw = Callable[[Tensor, Tensor], Tensor]  # (observations, noise) -> actions


def with_sampler(sampler: fs.Sampler) -> Draw:
    """Return a function with the arguments of `conditional_sample` that runs a sampler."""
    return lambda global_cond, noise: sampler(start=noise, cond={"global_cond": global_cond})


def latencies(draws: dict[str, Draw], scene: Tensor, noise: Tensor) -> dict[str, float]:
    """Return the median time of one chunk in ms; the samplers take turns, scene by scene."""
    times: dict[str, list[float]] = {name: [] for name in draws}
    for i in range(len(scene)):
        for name, draw in draws.items():
            started = time.perf_counter()
            draw(scene[i : i + 1], noise[i : i + 1])
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: float(torch.tensor(each[1:] or each).median()) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=2000, help="of training (2000)")
    parser.add_argument("--scenes", type=int, default=512, help="of the comparison (512)")
    parser.add_argument("--chunks", type=int, default=100, help="to measure times (100)")
    parser.add_argument("--runs", type=int, default=60, help="candidates of the tuning (60)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    unet = trained(options.iterations, options.seed)
    policy = DiffusionModel(unet, 10)
    model = fs.Denoiser(unet, fs.NoiseSchedule.cosine(100), (HORIZON, 2), clip=1.0)

    generator = torch.Generator().manual_seed(options.seed + 1)
    tuning = scenes(256, generator)
    tuned = fs.tune(model, 5, samples=256, max_runs=options.runs, cond={"global_cond": tuning})
    faster, fewest = DiffusionModel(unet, 10), DiffusionModel(unet, 5)
    # In lerobot: policy.diffusion.noise_scheduler = FastSampleScheduler.from_scheduler(...)
    faster.noise_scheduler = FastSampleScheduler.from_scheduler(policy.noise_scheduler)
    fewest.noise_scheduler = FastSampleScheduler.from_scheduler(policy.noise_scheduler, plan=tuned)
    same = {"method": "ddim", "grid": "leading", "rederive": False}
    draws: dict[str, Draw] = {
        "diffusers' DDIM, 10 calls": policy.conditional_sample,
        "FastSampleScheduler, 10 calls": faster.conditional_sample,
        "the same list in fs.Sampler, 10": with_sampler(fs.Sampler(model, 10, **same)),
        "the same method, 5 calls": with_sampler(fs.Sampler(model, 5, **same)),
        "FastSampleScheduler, tuned 5 calls": fewest.conditional_sample,
        "fs.Sampler, tuned 5 calls": with_sampler(fs.Sampler(model, tuned)),
    }
    scene = scenes(options.scenes, generator)
    noise = torch.randn(options.scenes, HORIZON, 2, generator=generator)
    chunks = min(options.chunks, options.scenes)
    times = latencies(draws, scene[:chunks], noise[:chunks])
    target = DiffusionModel(unet, 100).conditional_sample(scene, noise)
    reached = succeeds(target, scene).float().mean()
    print(f"{'DDIM, 100 calls':34} {'':9}   distance 0.0000   success {reached:4.0%}")
    for name, draw in draws.items():
        actions = draw(scene, noise)
        distance = (actions - target).square().mean().sqrt()
        reached = succeeds(actions, scene).float().mean()
        print(f"{name:34} {times[name]:6.2f} ms   distance {distance:.4f}   success {reached:4.0%}")
    print(tuned)


if __name__ == "__main__":
    main()
