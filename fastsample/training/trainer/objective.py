"""Computes a batch's diffusion loss and gradient, with micro-batches, bfloat16 and processes."""

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
from fastsample.training.losses.diffusion import DiffusionLoss
from fastsample.training.losses.vdm import VDMLoss
from fastsample.training.randomness import RandomStreams
from fastsample.training.trainer.data import Batch
from fastsample.training.trainer.fidelity_term import FidelityTerm

Loss: TypeAlias = DiffusionLoss | VDMLoss
Precision: TypeAlias = Literal["bfloat16"]


class DiffusionObjective:
    """Computes the mean diffusion loss of a batch, and adds its gradient to ``p.grad``.

    Args:
        denoiser: the model.
        loss: the diffusion loss.
        precision: "bfloat16" runs the network under autocast; None leaves it as it is.
        parts: number of parts that the loss sees one after the other, to save memory.
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
        # Autocast the network only, because the sampler and the distance compute in float32.
        self.denoiser = copy.copy(denoiser)
        if precision == "bfloat16":
            self.denoiser.model = _Autocast(network_of(denoiser))
        self.loss, self.parts = loss, parts
        self.rank, self.world = process
        self._module: nn.Module = _NetworkAndLoss(self.denoiser, loss)
        if self.world > 1:
            self._module = DistributedDataParallel(
                self._module, find_unused_parameters=find_unused_parameters
            )

    def backward(self, batch: Batch, streams: RandomStreams) -> Tensor:
        """Add the batch's gradient to ``p.grad``, and return this process's mean loss, detached.

        The gradients are those of the mean over the samples of all processes.
        """
        device, count = batch.x0.device, len(batch.x0)
        total_count = count * self.world
        generator = streams.generator("times")
        # Times are stratified over the samples of all processes (Kingma et al. 2021,
        # arXiv:2107.00630, App. I.1), which lowers the variance of the loss.
        strata = (generator.permutation(total_count) + generator.random()) / total_count
        times = self.loss.times(strata[self.rank :: self.world])
        index = torch.arange(self.rank, total_count, self.world)
        cuts = np.linspace(0, count, min(self.parts, count) + 1).astype(int).tolist()
        parts = [slice(*ends) for ends in itertools.pairwise(cuts)]
        dtype = torch.promote_types(batch.x0.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=device)
        for part in parts:
            x0 = batch.x0[part]
            cond = batch.cond.select(part).arguments
            noises = {"noise": _noise(streams.key("noise"), index[part], x0)}
            if isinstance(self.loss, VDMLoss):
                noises["decoder_noise"] = _noise(streams.key("decoder"), index[part], x0)
            with self._without_synchronisation(part is not parts[-1]):
                loss = self._module(x0, times[part], noises, cond) * (len(x0) / count)
                loss.backward()
            total += loss.detach()
        return total

    def _without_synchronisation(self, wanted: bool) -> AbstractContextManager[Any]:
        """Keep processes from sharing gradients inside, if wanted: the last part shares the sum."""
        if wanted and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return nullcontext()


def network_of(denoiser: Denoiser) -> nn.Module:
    """Return the network of a denoiser, after a check that it can be trained."""
    if not isinstance(denoiser, Denoiser):  # pyright: ignore[reportUnnecessaryIsInstance]
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


def check_losses(denoiser: Denoiser, loss: Any, term: FidelityTerm | None) -> None:
    """Raise for losses of other types, or that do not fit the model or each other."""
    if not isinstance(loss, DiffusionLoss | VDMLoss):
        raise TypeError(
            f"Trainer: loss must be a DiffusionLoss, a VDMLoss or None, got {loss!r:.60}"
        )
    loss.current(denoiser)
    has_plan = term is not None and isinstance(term.loss.plans.steps, Plan)
    if has_plan and isinstance(loss, VDMLoss):
        raise ValueError(
            "Trainer: fidelity must not have a Plan with VDMLoss, whose schedule moves away from "
            "the plan's; pass a number of steps or times"
        )


class _NetworkAndLoss(nn.Module):
    """Joins network and loss in one module, which `DistributedDataParallel` can wrap."""

    def __init__(self, denoiser: Denoiser, loss: Any) -> None:
        super().__init__()
        self.network, self.denoiser, self.loss = network_of(denoiser), denoiser, loss

    def forward(self, x0: Tensor, times: Any, noises: Mapping[str, Tensor], cond: Any) -> Tensor:
        t = torch.as_tensor(times)  # stays on the CPU, where losses check it
        return self.loss(self.denoiser, x0, t, **noises, **cond)["loss"].mean()


class _Autocast(nn.Module):
    """Wraps a network and runs it under bfloat16 autocast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x, t, **cond)


def _noise(key: int, index: Tensor, x0: Tensor) -> Tensor:
    """Make normal noise, shaped like the data, from the key and the samples' indices alone."""
    identity = make_identity("Trainer", key, index, len(index), x0.device)
    return ops.noise(*identity, x0.shape[1:], dtype=x0.dtype)
