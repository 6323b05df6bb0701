"""Measure the digits model's bundled profile, from which ``grid="auto"`` takes its times.

    python examples/profile_digits.py            # a minute on two cores

The profile is measured on all 1500 training digits without labels, at 129 of the 1000 times. That
is enough for grids of up to 64 steps, and small enough for a wheel. Then it prints grids, and the
errors of the best and of the even times at 5 steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fastsample as fs
from fastsample.bundled.datasets import DIGITS_BIN_WIDTH, digits_data

TIMES = [1, 2, 4, 6, *range(8, 1001, 8)]


def main() -> None:
    """Measure and save the profile, and print the grids and costs that follow from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("digits-profile.safetensors"))
    parser.add_argument("--num", type=int, help="only the first of the 1500 digits")
    args = parser.parse_args()

    model = fs.load("digits")
    x, *_ = digits_data()
    profile = fs.profile(
        model,
        x[: args.num],
        times=TIMES,
        batch_size=500,
        bin_width=DIGITS_BIN_WIDTH,
        trajectories=256,
        cond={"y": 10},  # The null class, "no label".
        progress=True,
    )
    print(f"wrote {profile.save(args.out)}: {profile}")

    model = model.with_profile(profile)
    table = profile.costs("trajectory")
    for steps, grid in table.best_grids([5, 10, 20]).items():
        print(f"{steps:3} steps: {grid.times.astype(int).tolist()}")

    fine = fs.sample(model, 200, num_samples=64, seed=1)
    for grid in ("uniform", "auto"):
        error = (fs.sample(model, 5, grid=grid, num_samples=64, seed=1) - fine).square().mean()
        print(f"5 steps, {grid}: {float(error) ** 0.5:.3f} from the result of 200 steps")


if __name__ == "__main__":
    main()
