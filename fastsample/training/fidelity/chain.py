"""The K-step chain that the fidelity loss looks through: its start, its noise, its gradient."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.sampling.diffuse import diffuse
from fastsample.sampling.invert import invert
from fastsample.sampling.loop import run
from fastsample.sampling.noise import make_identity
from fastsample.training.fidelity.names import Gradient, Start
from fastsample.training.randomness import Draws


class GradientPath(NamedTuple):
    """How gradients leave the chain.

    Attributes:
        gradient: "full" is exact; "last" sees `last` rows only (DRaFT-K, Clark et al. 2024,
            arXiv:2309.17400); "jacobian_free" detaches the network's input and keeps the sampler's
            own linear path.
        last: rows that "last" sees.
        checkpoint: keep no activations, run the network again in the backward pass. The chain's
            noise is a function of the sample and the row: nothing has to be replayed.
    """

    gradient: Gradient = "full"
    last: int = 1
    checkpoint: bool = False


class _Network(nn.Module):
    """A network whose calls let gradients through as a `GradientPath` says."""

    def __init__(self, model: Any, path: GradientPath, calls: int) -> None:
        super().__init__()
        self.model, self.path = model, path
        self.blind = calls - path.last if path.gradient == "last" else 0
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        self.calls += 1
        if self.calls <= self.blind:
            with torch.no_grad():
                return self.model(x, t, **cond)
        if self.path.gradient == "jacobian_free":
            x = x.detach()
        if self.path.checkpoint:
            return checkpoint(self.model, x, t, use_reentrant=False, **cond)
        return self.model(x, t, **cond)


def run_chain(
    denoiser: Denoiser,
    plan: Plan,
    start: Tensor,
    *,
    index: Tensor,
    draws: Draws,
    path: GradientPath,
    cond: Conditions | None = None,
) -> Tensor:
    """Samples `(B, *shape)` of a plan, differentiable in the network's weights.

    Args:
        denoiser: the model.
        plan: the rows; exactly as many network calls, and as many again in the backward pass with
            checkpoints.
        start: x at the plan's first time `(B, *shape)`, without gradient.
        index: `(B,)` int64, global numbers of the samples in the iteration.
        draws: of the iteration; noise is fresh in every row and iteration.
        path: how gradients leave.
        cond: keyword arguments of the network for these samples.
    """
    seen = copy.copy(denoiser)
    seen.model = _Network(denoiser.model, path, len(plan))
    identity = make_identity(
        "FidelityLoss", draws.key("chain noise"), index, len(index), start.device
    )
    return run(seen, plan, start, identity=identity, conditions=cond)


def starting_points(
    denoiser: Denoiser,
    plan: Plan,
    x0: Tensor,
    kind: Start,
    *,
    index: Tensor,
    draws: Draws,
    cond: Conditions | None = None,
) -> Tensor:
    """Samples at the plan's first time `(B, *shape)`, without gradient.

    "prior" is noise alone, as in sampling; "paired" and "noised" are x0 noised to that time (the
    plan's grid says which); "inverted" is the noise that DDIM inversion finds for x0.
    """
    seed = draws.key("chain start")
    if kind == "inverted":
        return invert(denoiser, x0.detach(), Grid(plan.nodes), cond=cond and cond.mapping).detach()
    if kind == "prior":
        identity = make_identity("FidelityLoss", seed, index, len(index), x0.device)
        return ops.noise(*identity, x0.shape[1:], dtype=x0.dtype)
    return diffuse(
        x0.detach(), denoiser.schedule, float(plan.times[0]), seed=seed, sample_index=index
    )
