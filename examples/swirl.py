"""Fine-tune a swirl model for few steps, with the loss of Chen 2023 and with a better one.

    python examples/swirl.py                   # about 3 minutes on two cores; pictures in swirl/
    python examples/swirl.py --iterations 200 --fine-tune 20 --out quick

It repeats the experiment of Chen 2023, "Fast sampling of diffusion models by shortcut MCMC"
(arXiv:2301.01206, Figs. 3 and 4): 1024 points of a spiral in 8-bit values, a network of three dense
layers on Fourier features, trained as a variational diffusion model (arXiv:2107.00630), and sampled
in K = 10 of T = 200 steps (which are 11 network calls) and in all 200. The trained model is trained
further in three ways: with the diffusion loss alone, with the paper's paired squared error, and
with the energy distance between samples from noise and the data. The squared error is least where
each sample is the mean of the data given z_T, and the samples collapse towards these means.

An interrupted run resumes. Writes fig3.png (estimates of x0 at calls k of the short chain),
fig4.png (of the long chain) and curves.png, and prints distances to 4096 fresh points.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

import fastsample as fs
from fastsample.bundled.datasets import swirl_data
from fastsample.bundled.recipes import recipe_of
from fastsample.distances.distances import energy_distance, random_directions, sliced_wasserstein
from fastsample.training import CollapseWarning, FidelityLoss, FidelityTerm
from fastsample.training.trainer.run_folder import RunLog

mpl.use("Agg")
from matplotlib import pyplot as plt

CALLS, ALL = 11, 200
SHOWN = {CALLS: (0, 2, 4, 7, 10), ALL: (20, 60, 100, 160, 200)}
ARMS = {
    "paired MSE": {
        "method": "shortcut",
        "grid": "random",
        "distance": "mse",
        "start": "paired",
        "gradient": "jacobian_free",
    },
    "energy distance": {"method": "ddim", "gradient": "jacobian_free"},
}
COLOURS = {
    "diffusion loss alone": "0.4",
    "paired MSE": "#c8471d",
    "energy distance": "#1f5fa8",
}
# At lower learning rates the squared error has no visible effect.
RATES = {"paired MSE": 1e-3, "energy distance": 7e-5}


def trained(folder: Path, iterations: int, seed: int) -> tuple[Path, Path]:
    """Train a new model, and return (its file, its log)."""
    recipe = recipe_of("swirl", seed=seed)
    trainer = recipe.trainer(None, folder=folder, resume=True, seed=seed, progress=True)
    averaged = trainer.run(iterations)
    recipe.save(folder / "model.safetensors", averaged)
    return folder / "model.safetensors", folder / "log.jsonl"


def fine_tuned(
    start: Path, folder: Path, arm: str | None, iterations: int, seed: int
) -> tuple[fs.Denoiser, Path]:
    """Train a model further, and return (the model, its log)."""
    recipe = recipe_of(start)
    options: dict[str, Any] = {"folder": folder, "resume": True, "seed": seed, "progress": True}
    fidelity = None
    if arm is not None:
        loss = FidelityLoss(CALLS, subset=256, seed=seed, **ARMS[arm])
        fidelity = FidelityTerm(loss, lr=RATES[arm])
    trainer = recipe.trainer(fidelity, **options)
    return trainer.run(iterations), folder / "log.jsonl"


def distances(samples: Tensor) -> str:
    """Return a text with distances between the samples and fresh points of the swirl."""
    fresh = swirl_data(4096, seed=12345).x0
    directions = random_directions(128, 2, torch.Generator().manual_seed(0))
    away = torch.cdist(samples, fresh[:2048])
    return (
        f"energy distance {float(energy_distance(samples, fresh)):.4f}, "
        f"sliced W2 {float(sliced_wasserstein(samples, fresh, directions)) ** 0.5:.3f}, "
        f"deviation {float(samples.var(0).mean().sqrt()):.3f}, nearest data "
        f"{away.min(1).values.mean():.3f} away, seen from data {away.min(0).values.mean():.3f}"
    )


def estimates(model: fs.Denoiser, calls: int, **options: Any) -> tuple[list[Tensor], Tensor]:
    """Draw samples, and return (estimates of x0 at every call, the samples)."""
    seen: list[Tensor] = []
    samples = fs.sample(
        model,
        calls,
        num_samples=1024,
        seed=5,
        callback=lambda step: seen.append(step.x0.clone()),
        **options,
    )
    return seen, samples


def picture(path: Path, samplers: dict[str, tuple[list[Tensor], Tensor]], calls: int) -> None:
    """Draw the estimates of x0, a row per sampler and a column per call."""
    shown = SHOWN[calls]
    size = (2.0 * len(shown) + 0.6, 2.0 * len(samplers) + 0.6)
    figure, axes = plt.subplots(len(samplers), len(shown), figsize=size, layout="constrained")
    data = swirl_data().x0
    for row, (label, (seen, samples)) in zip(axes, samplers.items(), strict=True):
        for ax, k in zip(row, shown, strict=True):
            points = seen[min(k, calls - 1)]
            ax.scatter(*data.T, s=1, color="0.85", linewidths=0)
            ax.scatter(*points.T, s=1.5, color=COLOURS["energy distance"], linewidths=0)
            ax.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=[], yticks=[], aspect=1)
        row[0].set_ylabel(f"{label}\ndeviation {samples.std():.2f}", fontsize=8)
    for ax, k in zip(axes[0], shown, strict=True):
        ax.set_title(f"k = {k}", fontsize=9)
    figure.suptitle(f"Estimates of x0, {calls} network calls (grey: data)", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(path: Path, logs: dict[str, Path]) -> None:
    """Plot the losses, and the standard deviation of the K-step samples, over the iterations."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3))
    panels = (
        ("bits/dim", "loss", tuple(logs)),
        ("paired squared error", "fidelity", ("paired MSE",)),
        ("energy distance", "fidelity", ("energy distance",)),
        ("deviation of samples / of data", "sd_ratio", tuple(ARMS)),
    )
    for ax, (title, name, labels) in zip(axes, panels, strict=True):
        for label in labels:
            values = torch.tensor([line[name] for line in RunLog.read(logs[label])])
            width = min(10, len(values))
            mean = values.unfold(0, width, 1).mean(1)
            ax.plot(range(width, len(values) + 1), mean, color=COLOURS[label], label=label)
        ax.set(title=title, xlabel="iteration of fine-tuning")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle("Means of 10 iterations", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("swirl"), help="folder (swirl)")
    parser.add_argument(
        "--iterations", type=int, default=3000, help="iterations for the new model (3000)"
    )
    parser.add_argument(
        "--fine-tune", type=int, default=300, help="iterations of further training (300)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    start, _ = trained(options.out / "base", options.iterations, options.seed)
    models, logs = {}, {}
    for arm in (None, *ARMS):
        label = arm or "diffusion loss alone"
        folder = options.out / label.replace(" ", "-")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CollapseWarning)
            result = fine_tuned(start, folder, arm, options.fine_tune, options.seed)
        models[label], logs[label] = result
        for warning in caught:
            print(f"{label}: {warning.message}")

    alone, paired, energy = models.values()
    short = {
        "VDM, ancestral": estimates(alone, CALLS, method="ancestral"),
        "VDM, DDIM": estimates(alone, CALLS, method="ddim"),
        "paired MSE, eq. (8)": estimates(
            paired, CALLS, method="shortcut", grid="random", grid_seed=5
        ),
        "energy distance, DDIM": estimates(energy, CALLS, method="ddim"),
    }
    long = {
        "VDM, ancestral": estimates(alone, ALL, method="ancestral"),
        "energy distance, ancestral": estimates(energy, ALL, method="ancestral"),
    }
    for calls, columns, name in ((CALLS, short, "fig3.png"), (ALL, long, "fig4.png")):
        picture(options.out / name, columns, calls)
        for label, (_, samples) in columns.items():
            print(f"{calls:3} calls  {label:27} {distances(samples)}")
    curves(options.out / "curves.png", logs)
    print(f"wrote fig3.png, fig4.png and curves.png in {options.out.resolve()}")


if __name__ == "__main__":
    main()
