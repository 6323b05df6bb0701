"""What the bundled models are trained with: for the examples and the command line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
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
from fastsample.training.trainer.objective import Loss
from fastsample.training.trainer.trainer import Trainer


@dataclass(frozen=True, eq=False)
class Recipe:
    """A model with its data, its loss and settings that work.

    Attributes:
        denoiser: the model, as far as it is trained.
        data: `(N, *shape)` on the CPU.
        loss: the diffusion loss.
        iterations: that do, from here on.
        options: for `Trainer`.
        fidelity: for `FidelityLoss`, besides the steps.
        cond: keyword arguments of the network, one entry per sample of the data.
        falls: whether the learning rate is to fall to 0 over the iterations.
    """

    denoiser: Denoiser
    data: Tensor
    loss: Loss
    iterations: int
    options: dict[str, Any]
    fidelity: dict[str, Any] = field(default_factory=dict)
    cond: dict[str, Any] | None = None
    falls: bool = False

    def trainer(
        self, fidelity: FidelityLoss | None, *, iterations: int | None = None, **options: Any
    ) -> Trainer:
        """The trainer of this recipe; ``run(iterations)`` it.

        Args:
            fidelity: the term, or None.
            iterations: that are planned; None is the recipe's own number.
            **options: of `Trainer`, instead of the recipe's.
        """
        chosen = {**self.options, **options}
        if fidelity is None:
            chosen.pop("fidelity_lr", None)
        if self.falls:
            chosen.setdefault("decay", max(iterations or self.iterations, 1))
        return Trainer(
            self.denoiser,
            self.data,
            loss=self.loss,
            fidelity=fidelity,
            cond=self.cond,
            **chosen,
        )

    def save(self, path: str | os.PathLike[str], denoiser: Denoiser) -> None:
        """Write trained weights so that `fastsample.load` finds model, schedule and plans.

        Args:
            path: a file ending in ``.safetensors``.
            denoiser: with this recipe's kind of network, `Trainer.averaged` say.
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
    """The recipe for a model.

    Args:
        model: "swirl", a network to be trained from nothing; "digits", the bundled model; or a
            file of `Recipe.save` or `examples/train_digits.py`, to be trained further.
        seed: of the weights of a new network.
        device: where to train; None is the CPU.

    Raises:
        FileNotFoundError: neither a name nor a file.
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
    """Variational diffusion from nothing, with the settings of its published example."""
    data = swirl_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SwirlNet()
    loss = VDMLoss(levels=data.levels)
    denoiser = Denoiser(network, loss.schedule(), (2,), time="log_snr", device=device)
    options = {"batch_size": len(data.x0), "lr": 3e-3, "weight_decay": 1e-4, "clip": None}
    return Recipe(denoiser, data.x0, loss.to(denoiser.device), 3000, options)


def _swirl(denoiser: Denoiser) -> Recipe:
    data = swirl_data()
    loss = VDMLoss.of(denoiser, levels=data.levels).to(denoiser.device)
    options = {"batch_size": len(data.x0), "lr": 3e-4, "weight_decay": 1e-4, "clip": None}
    options |= {"fidelity_lr": 7e-5}
    fidelity = {"gradient": "jacobian_free", "subset": 256}
    return Recipe(denoiser, data.x0, loss, 300, options, fidelity)


def _digits(denoiser: Denoiser) -> Recipe:
    x, y, *_ = digits_data()
    loss = DiffusionLoss.of(denoiser, kind="hybrid", bin_width=DIGITS_BIN_WIDTH)
    options = {"batch_size": 256, "lr": 2e-4, "cond_dropout": 0.2, "fidelity_lr": 3e-4}
    options |= {"warmup": 20}  # Adam begins with full steps in noise's direction
    # As many chains as the batch has: with half of them the distance's noise hid the gain.
    fidelity = {"features": _digit_features}
    return Recipe(denoiser, x, loss, 300, options, fidelity, {"y": y}, falls=True)


def _digit_features(x: Tensor, y: Tensor) -> Tensor:
    """Pixels and label: the distance is that of images together with what they were asked to be."""
    # Two labels are then about as far apart as two digits are.
    asked = 4.0 * one_hot(y, 11).to(x)
    return torch.cat([x.flatten(1), asked], dim=1)
