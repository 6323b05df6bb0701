"""The diffusion loss of a batch and its gradient, in parts, in lower precision, over processes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastsample import ops
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.plan import Plan
from fastsample.sampling.noise import make_identity
from fastsample.training.fidelity.loss import FidelityLoss
from fastsample.training.losses.diffusion import DiffusionLoss
from fastsample.training.losses.vdm import VDMLoss
from fastsample.training.randomness import Draws
from fastsample.training.trainer.data import Batch

Loss: TypeAlias = DiffusionLoss | VDMLoss
Precision: TypeAlias = Literal["bfloat16"]


class Objective:
    """Leaves the gradient of the mean diffusion loss at the parameters.

    Args:
        denoiser: the model.
        loss: of it.
        precision: of the network's arithmetic.
        parts: that a batch is cut into.
        process: (rank, number of processes).
        find_unused_parameters: as for `DistributedDataParallel`.

    Attributes:
        denoiser: the model, its network in the precision asked for.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        *,
        precision: Precision | None,
        parts: int,
        process: tuple[int, int],
        find_unused_parameters: bool = False,
    ) -> None:
        # Around the network only: the sampler's and the distance's arithmetic stays in float32.
        self.denoiser = copy.copy(denoiser)
        if precision == "bfloat16":
            self.denoiser.model = _Autocast(network_of(denoiser))
        self.loss, self.parts = loss, parts
        self.rank, self.world = process
        self._module: nn.Module = _Forward(self.denoiser, loss)
        if self.world > 1:
            self._module = DistributedDataParallel(
                self._module, find_unused_parameters=find_unused_parameters
            )

    def backward(self, batch: Batch, draws: Draws) -> Tensor:
        """The mean loss of this process's samples, detached; gradients are means over all."""
        device, count = batch.x0.device, len(batch.x0)
        size = count * self.world
        generator = draws.generator("times")
        # One time per stratum (Kingma et al. 2021, arXiv:2107.00630, App. I.1), over all processes.
        strata = (generator.permutation(size) + generator.random()) / size
        times = self.loss.times(strata[self.rank :: self.world])
        place = torch.arange(self.rank, size, self.world)
        cuts = np.linspace(0, count, min(self.parts, count) + 1).astype(int).tolist()
        parts = [slice(*ends) for ends in itertools.pairwise(cuts)]
        wide = torch.promote_types(batch.x0.dtype, torch.float32)
        whole = torch.zeros((), dtype=wide, device=device)
        for own in parts:
            x0 = batch.x0[own]
            cond = batch.cond.select(own).arguments
            noises = {"noise": _noise(draws.key("noise"), place[own], x0)}
            if isinstance(self.loss, VDMLoss):
                noises["decoder_noise"] = _noise(draws.key("decoder"), place[own], x0)
            with self._unsynchronised(own is not parts[-1]):
                loss = self._module(x0, times[own], noises, cond) * (len(x0) / count)
                loss.backward()
            whole += loss.detach()
        return whole

    def _unsynchronised(self, yes: bool) -> AbstractContextManager[Any]:
        """Gradients of parts are added up before the processes share them."""
        if yes and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return nullcontext()


def network_of(denoiser: Denoiser) -> nn.Module:
    """What is trained."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"Trainer: denoiser must be a Denoiser, got {type(denoiser).__name__}")
    network: Any = denoiser.model
    if not isinstance(network, nn.Module):
        raise TypeError(
            "Trainer: denoiser must have a torch.nn.Module as its model, "
            f"got {type(network).__name__}"
        )
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError("Trainer: denoiser must have parameters that require grad, got none")
    return network


def check_terms(denoiser: Denoiser, loss: Any, fidelity: Any, fidelity_lr: Any) -> None:
    """Refuse losses that are none, or that do not fit the model or each other."""
    if not isinstance(loss, DiffusionLoss | VDMLoss):
        raise TypeError(
            f"Trainer: loss must be a DiffusionLoss, a VDMLoss or None, got {loss!r:.60}"
        )
    if fidelity is not None and not isinstance(fidelity, FidelityLoss):
        raise TypeError(f"Trainer: fidelity must be a FidelityLoss, got {fidelity!r}")
    if fidelity is None and fidelity_lr is not None:
        raise ValueError(f"Trainer: fidelity_lr must be None without fidelity, got {fidelity_lr}")
    loss.current(denoiser)
    planned = fidelity is not None and isinstance(fidelity.plans.steps, Plan)
    if planned and isinstance(loss, VDMLoss):
        raise ValueError(
            "Trainer: fidelity must not have a Plan with VDMLoss, whose schedule moves away from "
            "the plan's; pass a number of steps or times"
        )


class _Forward(nn.Module):
    """Network and loss in one forward pass, which `DistributedDataParallel` can wrap."""

    def __init__(self, denoiser: Denoiser, loss: Any) -> None:
        super().__init__()
        self.network, self.denoiser, self.loss = network_of(denoiser), denoiser, loss

    def forward(self, x0: Tensor, times: Any, noises: Mapping[str, Tensor], cond: Any) -> Tensor:
        t = torch.as_tensor(times)  # on the CPU: losses look at real times there
        return self.loss(self.denoiser, x0, t, **noises, **cond)["loss"].mean()


class _Autocast(nn.Module):
    """A network in bfloat16 arithmetic."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x, t, **cond)


def _noise(key: int, place: Tensor, x0: Tensor) -> Tensor:
    identity = make_identity("Trainer", key, place, len(place), x0.device)
    return ops.noise(*identity, x0.shape[1:], dtype=x0.dtype)
