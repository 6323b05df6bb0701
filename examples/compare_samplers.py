"""Compare all methods, from the same starting noise, with the same number of network calls.

    python examples/compare_samplers.py                     # 10 calls, compare.png
    python examples/compare_samplers.py --steps 5 --digit 3

Writes one row of images per method, and in the last row the deterministic result of 500 calls.
Deterministic methods approach the last row; stochastic ones draw other digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fastsample as fs
from fastsample.plots.images import save_grid

ROWS: dict[str, dict] = {
    "tuned plan, if there is one": {},
    "ddim": {"method": "ddim", "grid": "uniform"},
    "ddim, log_snr": {"method": "ddim", "grid": "log_snr"},
    "unipc": {"method": "unipc"},
    "fastdpm, steps": {"method": "fastdpm"},
    "fastdpm, variances": {"method": "fastdpm", "approximation": "var", "extended": True},
    "dpm++ 2M, log_snr": {"method": "dpm++", "grid": "log_snr"},
    "dpm++ 3M, log_snr": {"method": "dpm++", "order": 3, "grid": "log_snr"},
    "unipc, log_snr": {"method": "unipc", "grid": "log_snr"},
    "dpm++ SDE 2M": {"method": "dpm++", "stochastic": True, "grid": "log_snr"},
    "ancestral, learned variance": {"method": "ancestral"},
    "shortcut": {"method": "shortcut"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10, help="network calls (default 10)")
    parser.add_argument("--digit", type=int, choices=range(10), help="draw this digit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("compare.png"))
    options = parser.parse_args()

    model, columns = fs.load("digits"), 12
    cond = None if options.digit is None else {"y": [options.digit] * columns}
    arguments = {"num_samples": columns, "seed": options.seed, "cond": cond}
    target = fs.sample(model, 500, method="ddim", **arguments)
    drawn = []
    for name, knobs in ROWS.items():
        x = fs.sample(model, options.steps, **arguments, **knobs)
        drawn.append(x)
        distance = (x - target).square().mean().sqrt().item()
        print(f"{name:28} distance to 500 deterministic calls {distance:.3f}")
    path = save_grid(torch.cat([*drawn, target]), options.out, columns=columns, scale=5)
    print(f"rows in this order, the last one 500 calls: {path}")


if __name__ == "__main__":
    main()
