"""Runs the K-step sampler chain that the fidelity loss differentiates."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,  # pyright: ignore[reportUnknownVariableType]  # annotated in part
)

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.training_mode import training_meant
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.sampling.diffuse import diffuse
from fastsample.sampling.invert import invert
from fastsample.sampling.loop import run
from fastsample.sampling.noise import make_identity
from fastsample.training.fidelity.names import Gradient, Start
from fastsample.training.randomness import RandomStreams


class GradientPath(NamedTuple):
    """Says how gradients flow back through the chain.

    Attributes:
        gradient: "full" is exact; "last" goes through the last rows only (DRaFT-K, Clark et al.
            2024, arXiv:2309.17400); "jacobian_free" detaches the network's input and keeps the
            linear path of the sampler's rows.
        last_rows: number of rows that "last" goes through.
        checkpoint: keep no activations, and run the network again in the backward pass. The
            chain's noise is a function of sample and row, so that no random state is replayed.
    """

    gradient: Gradient = "full"
    last_rows: int = 1
    checkpoint: bool = False


class _NetworkWithGradientPath(nn.Module):
    """Wraps a network, and lets gradients through its calls as a `GradientPath` says."""

    def __init__(self, model: Any, path: GradientPath, calls: int) -> None:
        super().__init__()
        self.model, self.path = model, path
        self.calls_without_gradient = calls - path.last_rows if path.gradient == "last" else 0
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        self.calls += 1
        if self.calls <= self.calls_without_gradient:
            with torch.no_grad():
                return self.model(x, t, **cond)
        if self.path.gradient == "jacobian_free":
            x = x.detach()
        if self.path.checkpoint:
            return cast("Any", checkpoint(self.model, x, t, use_reentrant=False, **cond))
        return self.model(x, t, **cond)


def run_chain(
    denoiser: Denoiser,
    plan: Plan,
    start: Tensor,
    *,
    index: Tensor,
    streams: RandomStreams,
    path: GradientPath,
    cond: Conditions | None = None,
) -> Tensor:
    """Run a plan and return samples `(B, *shape)`, differentiable in the network's weights.

    The network is called once per row of the plan, and with activation checkpoints once more in
    the backward pass.

    Args:
        denoiser: the model.
        plan: the rows of the chain.
        start: samples at the plan's first time `(B, *shape)`, without gradient.
        index: `(B,)` int64, indices of the samples in the iteration, over all processes.
        streams: random numbers of the iteration; every row draws fresh noise.
        path: how gradients flow back.
        cond: keyword arguments of the network for these samples.
    """
    differentiated = copy.copy(denoiser)
    differentiated.model = _NetworkWithGradientPath(denoiser.model, path, plan.calls)
    identity = make_identity(
        "FidelityLoss", streams.key("chain noise"), index, len(index), start.device
    )
    return run(differentiated, plan, start, identity=identity, conditions=cond)


def starting_points(
    denoiser: Denoiser,
    plan: Plan,
    x0: Tensor,
    start: Start,
    *,
    index: Tensor,
    streams: RandomStreams,
    cond: Conditions | None = None,
) -> Tensor:
    """Make `(B, *shape)` samples at the plan's first time, without gradient.

    Args:
        denoiser: the model.
        plan: the rows of the chain.
        x0: data `(B, *shape)`.
        start: "prior" is noise alone, as in sampling; "paired" and "noised" are x0 noised to the
            plan's first time; "inverted" is the noise that DDIM inversion gives for x0.
        index: `(B,)` int64, indices of the samples in the iteration, over all processes.
        streams: random numbers of the iteration.
        cond: keyword arguments of the network for these samples; only "inverted" uses them.
    """
    seed = streams.key("chain start")
    if start == "inverted":
        with training_meant():
            noise = invert(denoiser, x0.detach(), Grid(plan.nodes), cond=cond and cond.mapping)
        return noise.detach()
    if start == "prior":
        identity = make_identity("FidelityLoss", seed, index, len(index), x0.device)
        noise = ops.noise(*identity, x0.shape[1:], dtype=x0.dtype)
        return noise * denoiser.schedule.start_scale(float(plan.nodes[0]))
    return diffuse(
        x0.detach(), denoiser.schedule, float(plan.times[0]), seed=seed, sample_index=index
    )
