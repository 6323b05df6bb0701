"""Fine-tune the bundled digits model so that few network calls are enough.

    python examples/finetune_digits.py --steps 4      # about 5 minutes on two cores
    python examples/finetune_digits.py --steps 8
    python examples/finetune_digits.py --iterations 3 --out quick

The network is trained through its own K-step sampler, the tuned plan that comes with the model, so
that the energy distance between samples and digits becomes small. Training with the diffusion loss
goes on, so that sampling in many steps stays as good. An interrupted run resumes. Writes
model.safetensors, which holds the plan and which `fastsample.load` opens, and before-after.png,
with samples of both models from the same noise and labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fastsample as fs
from fastsample.bundled.datasets import digits_data
from fastsample.bundled.recipes import recipe_of
from fastsample.distances.distances import energy_distance
from fastsample.plots.images import save_grid
from fastsample.training import FidelityLoss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4, help="network calls (4)")
    parser.add_argument("--iterations", type=int, help="iterations of fine-tuning (300)")
    parser.add_argument("--out", type=Path, default=Path("finetuned-digits"), help="folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    recipe = recipe_of("digits")
    total = recipe.iterations if options.iterations is None else options.iterations
    trainer = recipe.trainer(
        FidelityLoss(options.steps, seed=options.seed, **recipe.fidelity),
        iterations=total,
        folder=options.out,
        resume=True,
        seed=options.seed,
        save_every=50,
        progress=True,
    )
    after = trainer.run(total)
    recipe.save(options.out / "model.safetensors", after)

    before = fs.load("digits")
    labels = torch.arange(500) % 10
    images = []
    _, _, held_out, _ = digits_data()
    for name, model in (("before", before), ("after", after)):
        drawn = fs.sample(model, options.steps, cond={"y": labels}, seed=1)
        images += [drawn[:20], drawn[20:40]]
        distance = float(energy_distance(drawn, held_out))
        print(f"{name:6} {options.steps} calls: energy distance to held-out digits {distance:.4f}")
    path = save_grid(torch.cat(images), options.out / "before-after.png", columns=20, scale=5)
    print(f"two rows before, two after: {path}")


if __name__ == "__main__":
    main()
