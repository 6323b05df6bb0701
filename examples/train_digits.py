"""Train the digits model that comes with fastsample, from random weights, on a CPU.

    python examples/train_digits.py                          # the bundled model, 12 to 20 minutes
    python examples/train_digits.py --minutes 2 --out quick.safetensors

The data are scikit-learn's 1797 digits of 8 x 8 pixels and 17 grey levels (0..16), mapped to
[-1, 1]. Neighbouring levels are 1/8 apart, so the decoder's bins are 1/8 wide: bits per dimension
are those of the 17-level data (uniform levels give log2 17 = 4.09), not of 8-bit images.

Choices, and why:
- Cosine schedule: the linear one spends half its steps below alpha_bar = 0.08, where little is left
  of so small an image. Its betas are capped at 0.05 instead of 0.999, so that alpha(T) is 0.02
  instead of 5e-5. The prior then costs 3e-4 bits/dim, and x0 = (x - sigma eps) / alpha is accurate
  enough at t = T, where few-step samplers take their first and longest step.
- 10% of the labels are replaced by the null class, so that one network serves with and without
  guidance (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv:2207.12598).
- No augmentation: flips and shifts of digits this small leave the distribution.
- The times of a batch are stratified (arXiv:2107.00630, App. I.1), for a less noisy gradient.

With --steps the result depends on the seed, the machine and the number of threads only. With
--minutes it depends on the speed too. An interrupt stops early and saves the model so far.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastsample.bundled.checkpoint import save_checkpoint
from fastsample.bundled.datasets import DIGITS_BIN_WIDTH, SPLIT_SEED, TRAIN_SIZE, digits_data
from fastsample.bundled.digits import DigitsUNet
from fastsample.likelihood.bound import posterior_table, prior_bits_per_dim, vlb_terms
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import DiffusionLoss


def stratified_times(batch: int, num_steps: int, generator: torch.Generator) -> Tensor:
    """Draw `batch` integer times in 1..T, one from each of `batch` strata, in random order."""
    strata = torch.randperm(batch, generator=generator) + torch.rand(1, generator=generator)
    return (strata * (num_steps / batch)).long().clamp(max=num_steps - 1) + 1


@torch.inference_mode()
def bits_per_dim(
    model: DigitsUNet, schedule: NoiseSchedule, x: Tensor, y: Tensor | None, draws: int, seed: int
) -> float:
    """Estimate the bound in bits/dim by Monte Carlo, with the times of each draw stratified.

    The term of the last step (the decoder) is computed for every image: drawn as one of T steps,
    it would dominate the noise of the estimate.
    """
    generator = torch.Generator().manual_seed(seed)
    num_steps = int(schedule.num_steps)
    table = torch.from_numpy(posterior_table(schedule)[::-1].copy()).float().to(x.device)
    total = prior_bits_per_dim(schedule, x).double().mean()
    for draw in range(draws + 1):
        if draw == 0:
            t, weight = torch.ones(len(x), dtype=torch.long, device=x.device), 1.0
        else:
            t = stratified_times(len(x), num_steps - 1, generator).to(x.device) + 1
            weight = (num_steps - 1) / draws
        rows = table[t - 1]
        alpha, sigma = (rows[:, i].reshape(-1, 1, 1, 1) for i in (0, 1))
        x_t = alpha * x + sigma * torch.randn(x.shape, generator=generator).to(x.device)
        output = model(x_t, t - 1, y)
        vb, _ = vlb_terms(output, x, x_t, rows, clip=1.0, bin_width=DIGITS_BIN_WIDTH)
        total += weight * vb.double().mean()
    return float(total)


@torch.inference_mode()
def draw_samples(
    model: DigitsUNet, schedule: NoiseSchedule, y: Tensor | None, count: int, seed: int
) -> Tensor:
    """Sample by DDIM in 10 even steps with clipped x0; `fastsample.sample` can do this too."""
    generator = torch.Generator().manual_seed(seed)
    times = np.linspace(schedule.num_steps, 0, 11).round()
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    for k, t in enumerate(times[:-1]):
        noise = model(x, torch.tensor(int(t) - 1), y)[:, :1]
        x0 = ((x - sigmas[k] * noise) / alphas[k]).clamp(-1, 1)
        noise = (x - alphas[k] * x0) / sigmas[k]
        x = alphas[k + 1] * x0 + sigmas[k + 1] * noise
    return x.float()


def write_picture(path: Path, images: Tensor, columns: int = 10, zoom: int = 6) -> None:
    """Write a PNG of the images in rows of `columns`, a pixel apart, enlarged without blur."""
    from PIL import Image

    padded = torch.nn.functional.pad(images[:, 0], (0, 1, 0, 1), value=-1.0)
    sheet = padded.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)
    levels = ((sheet + 1.0) * 127.5).round().clamp(0, 255).byte().numpy()
    Image.fromarray(levels.repeat(zoom, 0).repeat(zoom, 1)).save(path)


def train(args: argparse.Namespace) -> tuple[DigitsUNet, NoiseSchedule, int, float]:
    """Train, and return (averaged model, schedule, number of steps, mean of the last losses)."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    noise = generator if args.device == "cpu" else torch.Generator(args.device)
    noise.manual_seed(args.seed)
    x, y, *_ = (part.to(args.device) for part in digits_data())
    schedule = NoiseSchedule.cosine(num_steps=1000, max_beta=args.max_beta)
    loss_of = DiffusionLoss(
        schedule, kind=args.loss, variance="learned_range", bin_width=DIGITS_BIN_WIDTH
    )
    # channels_last trains 1.5 times faster than the default (2 cores with AVX-512).
    model = DigitsUNet(args.channels, dropout=args.dropout)
    model = model.to(args.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = list(model.parameters())
    print(f"{sum(p.numel() for p in parameters):,} parameters")
    optimizer = torch.optim.AdamW(
        parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True
    )

    started, step, smooth = time.perf_counter(), 0, math.nan
    bar = tqdm(total=None if args.minutes else args.steps, unit="step", mininterval=2.0)
    try:
        while True:
            elapsed = (time.perf_counter() - started) / 60
            progress = elapsed / args.minutes if args.minutes else step / args.steps
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = (
                    args.lr * min(1.0, step / 500) * 0.5 * (1 + math.cos(math.pi * progress))
                )
            pick = torch.randint(len(x), (args.batch,), generator=generator).to(args.device)
            keep = torch.rand(args.batch, generator=generator).to(args.device) >= 0.1
            labels = torch.where(keep, y[pick], model.null_class)
            t = stratified_times(args.batch, schedule.num_steps, generator).to(args.device)
            loss = loss_of(model, x[pick], t, generator=noise, y=labels)["loss"].mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            # The average has a short memory at first, since the earliest weights are bad.
            decay = min(args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
            step += 1
            value = loss.item()
            smooth = value if math.isnan(smooth) else 0.995 * smooth + 0.005 * value
            bar.update()
            if step % 100 == 0:
                bar.set_postfix(loss=f"{smooth:.4f}")
    except KeyboardInterrupt:
        print("interrupted: saving what there is")
    bar.close()
    return average, schedule, step, smooth


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=4000, help="length of the run")
    add("--minutes", type=float, help="length of the run by the clock instead (not reproducible)")
    add("--loss", choices=["simple", "hybrid", "vlb"], default="hybrid")
    add("--seed", type=int, default=0)
    add(
        "--out",
        type=Path,
        default=Path("digits.safetensors"),
        help="file to write; a PNG is written beside it",
    )
    add("--device", default="cpu", help="where to train; only the CPU gives the bundled bits")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--channels", type=int, default=48)
    add("--batch", type=int, default=128)
    add("--lr", type=float, default=3e-3)
    add("--dropout", type=float, default=0.2)
    add("--weight-decay", type=float, default=0.01)
    add("--ema", type=float, default=0.999)
    add("--max-beta", type=float, default=0.05)
    return parser.parse_args()


def main() -> None:
    """Train, measure and save the model, and draw samples."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    model, schedule, steps, loss = train(args)
    print(f"{steps} steps, training loss {loss:.4f}")

    x_train, _, x_test, y_test = (part.to(args.device) for part in digits_data())
    # The test set is small: more draws give both estimates a standard error near 0.01.
    bits = {
        "train": bits_per_dim(model, schedule, x_train, None, draws=20, seed=1),
        "test": bits_per_dim(model, schedule, x_test, None, draws=100, seed=1),
        "test_with_label": bits_per_dim(model, schedule, x_test, y_test, draws=100, seed=1),
    }
    for name, value in bits.items():
        print(f"{value:.3f} bits/dim {name} (17-level bins, all {schedule.num_steps} steps)")

    metadata = {
        "model": "DigitsUNet",
        "config": {**model.config, "dropout": 0.0},
        "shape": [1, 8, 8],
        "data_range": [-1.0, 1.0],
        "clip": 1.0,
        "prediction": "epsilon",
        "variance": "learned_range",
        "schedule": schedule.to_dict(),
        "num_classes": model.num_classes,
        "null_class": model.null_class,
        "bin_width": DIGITS_BIN_WIDTH,
        "training": {
            "data": "scikit-learn digits",
            "train_size": TRAIN_SIZE,
            "split_seed": SPLIT_SEED,
            "loss": args.loss,
            "steps": steps,
            "batch": args.batch,
            "seed": args.seed,
            "bits_per_dim": bits,
        },
    }
    model = model.cpu()
    save_checkpoint(args.out, model, metadata)
    free = draw_samples(model, schedule, None, 50, seed=0)
    given = draw_samples(model, schedule, torch.arange(10).repeat(5), 50, seed=1)
    picture = args.out.with_suffix(".png")
    write_picture(picture, torch.cat([free, given]))
    print(f"wrote {args.out} and {picture} (5 rows free, 5 rows by label, 10-step DDIM)")


if __name__ == "__main__":
    main()
