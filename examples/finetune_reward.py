"""Fine-tune the bundled digits model for a reward of its samples, by policy gradient.

    python examples/finetune_reward.py                    # about a minute on one core
    python examples/finetune_reward.py --seeds 0 1 2
    python examples/finetune_reward.py --iterations 2 --out quick

The reward is the mean brightness of an image, in [-1, 1]. Sampling in 10 calls of stochastic DDIM
is a policy whose steps are Gaussian (DDPO, Black et al. 2023, arXiv:2305.13301). Each iteration
draws a batch with all its states, normalises the rewards to mean 0 and deviation 1, and maximises
the clipped objective of PPO, with the ratios of densities that `fastsample.log_prob` gives. The
reward is lowered by a multiple of the log ratio to the original network, whose mean is the KL
divergence of the two policies: without that (--penalty 0), the digits become white blobs.

Prints the reward of held-out noise without training and in the course of it, and the KL divergence;
writes reward.png with the curves, and before-after.png with samples of the same noise.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import fastsample as fs
from fastsample.plots.images import save_grid

STEPS = 10
HELD_OUT = 2**40  # the first sample index of the images that rewards are reported for


def reward_of(images: Tensor) -> Tensor:
    """Return the mean brightness of each image, `(B,)`, in [-1, 1]."""
    return images.clamp(-1.0, 1.0).flatten(1).mean(1)


def evaluate(sampler: fs.Sampler, count: int) -> tuple[float, Tensor]:
    """Return the mean reward of samples from held-out noise, and the samples."""
    images = sampler(count, seed=0, sample_index=HELD_OUT)
    return float(reward_of(images).mean()), images


def train(
    options: argparse.Namespace, seed: int
) -> tuple[list[tuple[int, float]], float, Tensor, Tensor]:
    """Fine-tune the network; return the curve, the last KL in nats, samples before and after."""
    model, original = fs.load("digits"), fs.load("digits")
    # DDPM-like DDIM draws noise in every row but the last.
    plan = fs.ddim(model.schedule, fs.grids.uniform(1000, STEPS), eta=1.0, clip=model.clip)
    sampler, network = fs.Sampler(model, plan), model.model
    noisy = [row for row in range(len(plan)) if plan.column("d")[row] > 0]
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=0.0)
    reward, before = evaluate(sampler, options.held_out)
    curve, after, divergence = [(0, reward)], before, 0.0
    for iteration in range(1, options.iterations + 1):
        states = sampler(
            options.batch, seed=seed, sample_index=iteration * options.batch, return_states=True
        )
        # All noisy rows of all samples are one batch here, since rows may differ between samples.
        x = states[noisy].flatten(0, 1)
        x_next = states[[row + 1 for row in noisy]].flatten(0, 1)
        rows = torch.tensor(noisy).repeat_interleave(options.batch)
        with torch.no_grad():
            old = fs.log_prob(model, plan, x, x_next, rows)
            reference = fs.log_prob(original, plan, x, x_next, rows)
        log_ratio = (old - reference).reshape(len(noisy), -1).sum(0)
        divergence = float(log_ratio.mean())
        rewards = reward_of(states[-1]) - options.penalty * log_ratio
        advantage = ((rewards - rewards.mean()) / rewards.std()).clamp(-5.0, 5.0)
        weight = advantage.repeat(len(noisy))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(iteration))
        for part in order.chunk(options.parts):
            new = fs.log_prob(model, plan, x[part], x_next[part], rows[part])
            ratio = torch.exp(new - old[part])
            clipped = ratio.clamp(1.0 - options.clip, 1.0 + options.clip)
            loss = -torch.minimum(ratio * weight[part], clipped * weight[part]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        if iteration % options.every == 0 or iteration == options.iterations:
            reward, after = evaluate(sampler, options.held_out)
            curve.append((iteration, reward))
    return curve, divergence, before, after


def draw_curves(curves: dict[int, list[tuple[int, float]]], path: Path) -> None:
    """Write a figure of the rewards over the iterations; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for seed, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", label=f"seed {seed}")
    untrained = next(iter(curves.values()))[0][1]
    axes.axhline(untrained, color="grey", linestyle="--", label="no training")
    axes.set(xlabel="iteration", ylabel="mean brightness of held-out samples")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="runs (0)")
    parser.add_argument("--iterations", type=int, default=25, help="batches of each run (25)")
    parser.add_argument("--batch", type=int, default=64, help="samples per iteration (64)")
    parser.add_argument("--parts", type=int, default=4, help="updates per iteration (4)")
    parser.add_argument("--lr", type=float, default=3e-5, help="learning rate (3e-5)")
    parser.add_argument("--clip", type=float, default=0.2, help="range of the ratio (0.2)")
    parser.add_argument(
        "--penalty", type=float, default=0.01, help="reward per nat of KL that is taken off (0.01)"
    )
    parser.add_argument("--every", type=int, default=5, help="iterations between reports (5)")
    parser.add_argument("--held-out", type=int, default=256, help="samples of a report (256)")
    parser.add_argument("--out", type=Path, default=Path("finetuned-reward"), help="folder")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    curves: dict[int, list[tuple[int, float]]] = {}
    images: list[Tensor] = []
    for seed in options.seeds:
        start = time.perf_counter()
        curves[seed], divergence, before, after = train(options, seed)
        images += [after[:20]] if images else [before[:20], after[:20]]
        values = " ".join(f"{reward:+.3f}" for _, reward in curves[seed])
        seconds = time.perf_counter() - start
        print(f"seed {seed}: brightness {values}, KL {divergence:.1f} nats ({seconds:.0f} s)")
    path = save_grid(torch.cat(images), options.out / "before-after.png", columns=20, scale=5)
    print(f"first row before, the others after training: {path}")
    try:
        draw_curves(curves, options.out / "reward.png")
    except ImportError:
        print("reward.png needs matplotlib")
    else:
        print(f"the curves: {options.out / 'reward.png'}")


if __name__ == "__main__":
    main()
