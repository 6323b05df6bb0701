"""Measure what comes with a trained model of MNIST: profile, tuned plans and bits per dimension.

    python examples/bundle_mnist.py mnist/model.safetensors    # a quarter of an hour on two cores

Writes NAME.safetensors (the weights), NAME-profile.safetensors and NAME-plans.json into a folder,
which are the files that `fastsample.load(NAME)` opens, and NAME.png: samples of 4, 5 and 10 calls,
labelled and not, each below the other from the same noise.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

import fastsample as fs
from fastsample.bundled.datasets import MNIST_BIN_WIDTH, mnist_data
from fastsample.plots.images import save_grid

STEPS = (4, 5, 8, 10)
TIMES = [1, 2, 4, 8, *range(16, 1000, 16), 1000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a file of examples/train_mnist.py")
    parser.add_argument("--name", default="mnist")
    parser.add_argument("--out", type=Path, default=Path("mnist-bundle"), help="folder")
    parser.add_argument("--num", type=int, default=1000, help="images for the profile")
    parser.add_argument("--samples", type=int, default=256, help="samples to tune with")
    parser.add_argument("--teacher-steps", type=int, default=48)
    parser.add_argument("--runs", type=int, default=40, help="candidates of each plan")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    model = fs.load(options.model)
    shutil.copyfile(options.model, options.out / f"{options.name}.safetensors")
    x, _, x_test, _ = mnist_data()
    whole = model.schedule.num_steps is not None
    profile = fs.profile(
        model,
        x[: options.num],
        times=TIMES if whole else [t / 1000 for t in TIMES],
        bin_width=MNIST_BIN_WIDTH,
        trajectories=64,
        cond={"y": model.model.null_class},
        progress=True,
    )
    print(profile.save(options.out / f"{options.name}-profile.safetensors"))
    if whole:
        bits = fs.bits_per_dim(model, x_test[:250], 100, cond={"y": model.model.null_class})
        print(f"held-out images, 100 of 1000 steps: {bits}")

    labels = torch.arange(options.samples) % (model.model.null_class + 1)  # 10 is no label
    plans = [
        fs.tune(
            model,
            steps,
            samples=options.samples,
            teacher_steps=options.teacher_steps,
            max_runs=options.runs,
            cond={"y": labels},
            progress=True,
        )
        for steps in STEPS
    ]
    for plan in plans:
        print(plan.describe())
    fs.save_plans(options.out / f"{options.name}-plans.json", plans)

    model = model.with_plans(plans)
    rows = []
    for steps in (4, 5, 10):
        for given in (torch.arange(20) % 10, torch.full((20,), model.model.null_class)):
            rows.append(fs.sample(model, steps, cond={"y": given}, seed=0))
    print(save_grid(torch.cat(rows), options.out / f"{options.name}.png", columns=20, scale=2))


if __name__ == "__main__":
    main()
