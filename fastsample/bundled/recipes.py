"""Gives the data, losses and settings that train the bundled models well."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fastsample.bundled.checkpoint import save_checkpoint
from fastsample.bundled.datasets import DIGITS_BIN_WIDTH, digits_data, swirl_data
from fastsample.bundled.digits import DigitsUNet
from fastsample.bundled.load import load
from fastsample.bundled.swirl import SwirlNet
from fastsample.denoiser.denoiser import Denoiser
from fastsample.training.fidelity.loss import FidelityLoss
from fastsample.training.losses.diffusion import DiffusionLoss
from fastsample.training.losses.vdm import VDMLoss
from fastsample.training.trainer.fidelity_term import FidelityTerm
from fastsample.training.trainer.objective import Loss
from fastsample.training.trainer.optimizer import Optimizer
from fastsample.training.trainer.trainer import Trainer


@dataclass(frozen=True, eq=False)
class Recipe:
    """Bundles a model with data, a loss and settings that are known to train it well.

    Attributes:
        denoiser: the model to train, or to train further.
        data: training data `(N, *shape)` on the CPU.
        loss: the diffusion loss.
        iterations: number of iterations to train it for.
        optimizer: settings of the optimiser.
        options: further arguments of `Trainer`.
        fidelity: arguments of `FidelityLoss`, besides the steps.
        fidelity_lr: learning rate of the fidelity term's own optimiser, as in `FidelityTerm`.
        cond: keyword arguments of the network, one entry per sample of the data.
        decays: whether the learning rate falls to 0 over the iterations.
    """

    denoiser: Denoiser
    data: Tensor
    loss: Loss
    iterations: int
    optimizer: Optimizer
    options: dict[str, Any]
    fidelity: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    fidelity_lr: float | None = None
    cond: dict[str, Any] | None = None
    decays: bool = False

    def trainer(
        self,
        fidelity: FidelityLoss | FidelityTerm | None,
        *,
        iterations: int | None = None,
        optimizer: Optimizer | None = None,
        **options: Any,
    ) -> Trainer:
        """Make a trainer with this recipe's settings.

        Args:
            fidelity: the fidelity loss, used at the recipe's learning rate; or a term with its own
                settings; or None.
            iterations: number of iterations that it is going to `run`, over which the learning
                rate falls; None is the recipe's.
            optimizer: settings of the optimiser; None is the recipe's.
            **options: arguments of `Trainer`, instead of the recipe's.
        """
        if isinstance(fidelity, FidelityLoss):
            fidelity = FidelityTerm(fidelity, lr=self.fidelity_lr)
        optimizer = self.optimizer if optimizer is None else optimizer
        if self.decays and optimizer.decay is None:
            optimizer = replace(optimizer, decay=max(iterations or self.iterations, 1))
        return Trainer(
            self.denoiser,
            self.data,
            loss=self.loss,
            fidelity=fidelity,
            optimizer=optimizer,
            cond=self.cond,
            **{**self.options, **options},
        )

    def save(self, path: str | os.PathLike[str], denoiser: Denoiser) -> None:
        """Write a trained model to a file that `fastsample.load` opens, with schedule and plans.

        Args:
            path: a file ending in ``.safetensors``.
            denoiser: a model with this recipe's network, such as `Trainer.averaged`.
        """
        network: Any = denoiser.model
        metadata = {
            "model": type(network).__name__,
            "config": network.config,
            "shape": list(denoiser.shape),
            "prediction": denoiser.prediction,
            "variance": denoiser.variance,
            "clip": denoiser.clip,
            "schedule": denoiser.schedule.to_dict(),
            "plans": [json.loads(plan.to_json()) for plan in denoiser.plans.values()],
        }
        if isinstance(network, DigitsUNet):
            metadata |= {
                "data_range": [-1.0, 1.0],
                "num_classes": network.num_classes,
                "null_class": network.null_class,
                "bin_width": DIGITS_BIN_WIDTH,
                "training": {"data": "scikit-learn digits", "train_size": len(self.data)},
            }
        save_checkpoint(path, network, metadata, dtype=torch.float32)


def recipe_of(
    model: str | os.PathLike[str], *, seed: int = 0, device: torch.device | str | None = None
) -> Recipe:
    """Return the recipe that trains a bundled model or a model file.

    Args:
        model: "swirl", a new network; "digits", the bundled model, to be trained further; or a file
            of `Recipe.save` or `examples/train_digits.py`, to be trained further.
        seed: seed of the initial weights of a new network.
        device: device to train on; None is the CPU.

    Raises:
        FileNotFoundError: `model` is neither of these names nor a file.
    """
    if model == "swirl":
        return _new_swirl(seed, device)
    if model != "digits" and not Path(model).is_file():
        raise FileNotFoundError(
            f'train: model must be "swirl", "digits" or a file, got {os.fspath(model)!r}'
        )
    denoiser = load(model, device=device)
    return _swirl(denoiser) if isinstance(denoiser.model, SwirlNet) else _digits(denoiser)


def _new_swirl(seed: int, device: torch.device | str | None) -> Recipe:
    """Return the recipe of a new swirl model, with the published settings (arXiv:2107.00630)."""
    data = swirl_data()
    # torch does not annotate the arguments of fork_rng and manual_seed: hence the ignores.
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        network = SwirlNet()
    loss = VDMLoss(levels=data.levels)
    denoiser = Denoiser(network, loss.schedule(), (2,), time="log_snr", device=device)
    return Recipe(
        denoiser,
        data.x0,
        loss.to(denoiser.device),
        iterations=3000,
        optimizer=Optimizer(lr=3e-3, weight_decay=1e-4, clip=None),
        options={"batch_size": len(data.x0)},
    )


def _swirl(denoiser: Denoiser) -> Recipe:
    data = swirl_data()
    loss = VDMLoss.of(denoiser, levels=data.levels).to(denoiser.device)
    return Recipe(
        denoiser,
        data.x0,
        loss,
        iterations=300,
        optimizer=Optimizer(lr=3e-4, weight_decay=1e-4, clip=None),
        options={"batch_size": len(data.x0)},
        fidelity={"gradient": "jacobian_free", "subset": 256},
        fidelity_lr=7e-5,
    )


def _digits(denoiser: Denoiser) -> Recipe:
    x, y, *_ = digits_data()
    loss = DiffusionLoss.of(denoiser, kind="hybrid", bin_width=DIGITS_BIN_WIDTH)
    return Recipe(
        denoiser,
        x,
        loss,
        iterations=300,
        # Warm-up: Adam's first steps have full length in a direction that is mostly noise.
        optimizer=Optimizer(lr=2e-4, warmup=20),
        options={"batch_size": 256, "cond_dropout": 0.2},
        # Without "subset", as many samples are drawn as the batch has: half were too noisy to help.
        fidelity={"features": _digit_features},
        fidelity_lr=3e-4,
        cond={"y": y},
        decays=True,
    )


def _digit_features(x: Tensor, y: Tensor) -> Tensor:
    """Return pixels and one-hot label `(B, 75)`, for distances of images with their labels."""
    # With the factor 4, two different labels are about as far apart as two images.
    labels = 4.0 * one_hot(y, 11).to(x)
    return torch.cat([x.flatten(1), labels], dim=1)
