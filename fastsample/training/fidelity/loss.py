"""The fidelity loss: how far the K-step samples of a model are from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastsample._support.checks import check_bool, check_integer, warn_user
from fastsample._support.distributed import process
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.trees import repeat
from fastsample.distances.discrepancy import Discrepancy, Features
from fastsample.distances.names import DISTANCES, PAIRED, Distance
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.samplers.registry import METHODS
from fastsample.sampling.resolve import Steps
from fastsample.training.fidelity.chain import GradientPath, run_chain, starting_points
from fastsample.training.fidelity.chain_plans import ChainPlans
from fastsample.training.fidelity.names import GRADIENTS, STARTS, Gradient, Start
from fastsample.training.randomness import Draws


class Fidelity(NamedTuple):
    """What the loss found."""

    loss: Tensor
    """A number, differentiable in the weights."""
    samples: Tensor
    """`(n, *shape)` of this process, without gradient."""
    data: Tensor
    """`(m, *shape)` that they were compared with, of this process."""
    plan: Plan
    """The chain of this iteration."""
    calls: int
    """Samples that the network has seen, without those of an inversion."""


class FidelityLoss:
    """Distance of a model's K-step samples from data, differentiable through the sampler.

    The idea of Chen 2023 (arXiv:2301.01206, eq. 9). The paper's own loss is ``distance="mse"``,
    ``start="paired"``, ``method="shortcut"``, ``grid="random"``; its minimum is the mean of the
    data given z_T, so that samples collapse when it is followed, and the released code never
    trained the network with it (its gradient was zero). The default compares distributions: the
    energy distance between samples from noise and the batch, zero only where they are equal
    (Szekely and Rizzo 2013). Nearest published relative: MMD-DDM (Aiello et al. 2023,
    arXiv:2301.07969).

    Under `torch.distributed` samples and data of all processes are compared, with the times of the
    chain the same in each; the sum of the processes' gradients is that of one process.

    Args:
        steps: K, or several rising ones to draw from in each iteration; or times, falling to 0, or
            an unguided `Plan` (which then decides `method`, its knobs, `grid` and `clip`).
        method: the chain's sampler, as for `fastsample.sample`: "auto" is the model's own plan of
            so many steps, else DDIM.
        grid: how its times are spread, as for `fastsample.sample`; "random" draws them anew in
            every iteration.
        distance: "energy", "mmd" or "sliced_wasserstein" compare distributions; "mse" and "huber"
            compare each sample with its own x0.
        start: "prior" from noise; "paired" from x0 noised to the first time; "noised" the same at
            one of the chain's later times, drawn in every iteration, with the rest of the chain;
            "inverted" from the noise that DDIM inversion finds for x0. Of "noised" chains with
            method "auto" the rest is DDIM.
        gradient: "full", "last" (the last `last_rows` rows) or "jacobian_free" (the network's
            input detached). Through many steps the full gradient can explode, where the last is
            stable; not with multistep methods, whose weights of earlier x0's are negative.
        last_rows: for "last".
        checkpoint: run the network again in the backward pass instead of keeping activations.
        subset: samples of the batch to start chains for (of all processes together); None is all.
            Sets of samples that start from x0 are compared with the rest of the batch: None is
            then half of it.
        chains: per x0. Two or more with distance "energy" and start "paired" or "noised" make the
            energy score: chains of one noised x0 against that x0, strictly proper.
        features: ``(x (n, *shape), **cond) -> (n, ...)`` that the distance looks at; None is x.
        projections: directions of "sliced_wasserstein", drawn anew in every iteration.
        clip: range x0 is held in; "auto" is the model's own.
        seed: of the draws.
        **knobs: of the method, as for `fastsample.sample`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an unknown name, or a combination that has no meaning.
    """

    def __init__(
        self,
        steps: Steps = 10,
        *,
        method: str = "auto",
        grid: str = "auto",
        distance: Distance = "energy",
        start: Start = "prior",
        gradient: Gradient = "full",
        last_rows: int = 1,
        checkpoint: bool = False,
        subset: int | None = None,
        chains: int = 1,
        features: Features | None = None,
        projections: int = 128,
        clip: Clip | Literal["auto"] = "auto",
        seed: int = 0,
        **knobs: Any,
    ) -> None:
        for name, value, known in (
            ("distance", distance, DISTANCES),
            ("start", start, STARTS),
            ("gradient", gradient, GRADIENTS),
        ):
            if value not in known:
                raise ValueError(f"FidelityLoss: {name} must be one of {known}, got {value!r}")
        if features is not None and not callable(features):
            raise TypeError(f"FidelityLoss: features must be callable or None, got {features!r}")
        late, fewest = start == "noised", 2 if chains != 1 else 1
        self.plans = ChainPlans(steps, method, grid, clip, dict(knobs), late, fewest)
        self.start: Start = start
        self.path = GradientPath(
            gradient,
            check_integer("FidelityLoss", "last_rows", last_rows, 1),
            check_bool("FidelityLoss", "checkpoint", checkpoint),
        )
        self.subset = None if subset is None else check_integer("FidelityLoss", "subset", subset, 1)
        self.chains = check_integer("FidelityLoss", "chains", chains, 1)
        scored = chains if distance == "energy" and start != "prior" else 1
        directions = check_integer("FidelityLoss", "projections", projections, 1)
        self.discrepancy = Discrepancy(distance, features, scored, directions)
        self.seed = check_integer("FidelityLoss", "seed", seed, 0, 2**64 - 1)
        self._check_meaning()

    def _check_meaning(self) -> None:
        distance = self.discrepancy.distance
        if distance in PAIRED and self.start == "prior":
            raise ValueError(
                f'FidelityLoss: start must come from x0 with distance="{distance}", got "prior", '
                "where a sample has nothing to do with the x0 that it is compared with: the best "
                'chain gives the mean of the data; use distance="energy", or start="noised"'
            )
        if distance in PAIRED and self.chains > 1:
            raise ValueError(
                f'FidelityLoss: chains must be 1 with distance="{distance}", got {self.chains}'
            )
        if self.start == "noised" and isinstance(self.plans.steps, Plan):
            raise ValueError(
                'FidelityLoss: steps must be a number, or times, with start="noised", whose chains '
                "begin at one of several times, got a Plan"
            )
        if isinstance(self.plans.steps, Plan) and self.plans.steps.is_guided:
            raise ValueError(
                "FidelityLoss: steps must be an unguided Plan, got a guided one; the chain is "
                "trained as conditions are given"
            )
        chosen = METHODS.get(self.plans.method)
        if self.start == "noised" and chosen is not None and chosen.chooses_times:
            raise ValueError(
                f'FidelityLoss: method must not be "{self.plans.method}" with start="noised", '
                "whose chains begin at one of several times"
            )
        if self.chains > 1 and self.start == "inverted":
            raise ValueError(
                f'FidelityLoss: chains must be 1 with start="inverted", got {self.chains}'
            )

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        *,
        iteration: int = 0,
        cond: Mapping[str, Any] | None = None,
    ) -> Fidelity:
        """The loss of one batch; ``loss(model, x0, iteration=i).loss.backward()``.

        Args:
            denoiser: the model.
            x0: data `(B, *shape)` of this process, in random order.
            iteration: chooses times and noise; the same number gives the same ones.
            cond: keyword arguments of the network, one entry per sample or a number for all.
        """
        if not isinstance(denoiser, Denoiser):
            raise TypeError(
                f"FidelityLoss: denoiser must be a Denoiser, got {type(denoiser).__name__}"
            )
        if not isinstance(x0, Tensor) or x0.dim() < 2:
            raise TypeError(f"FidelityLoss: x0 must be a tensor (B, *shape), got {x0!r:.60}")
        shape = (x0.shape[0], *denoiser.shape)
        check_tensor("x0", x0, shape, x0.dtype, denoiser.device, "FidelityLoss")
        draws = Draws(self.seed, check_integer("FidelityLoss", "iteration", iteration, 0))
        rank, world = process()
        count = self._own_share(x0.shape[0], world)
        plan = self.plan(denoiser, draws)
        all_cond = Conditions("FidelityLoss", cond, batch=len(x0), device=x0.device)
        own_cond = all_cond.select(slice(0, count))
        chain_cond = own_cond.repeat(self.chains)
        # Numbers by position in the whole batch, which processes share by turns.
        place = torch.arange(count) * world + rank
        index = torch.cat([place + chain * count * world for chain in range(self.chains)])
        own = x0[:count]
        if self.start == "prior":
            begin = starting_points(
                denoiser, plan, repeat(own, self.chains), "prior", index=index, draws=draws
            )
        else:  # chains of one x0 begin at one point
            one = starting_points(
                denoiser, plan, own, self.start, index=place, draws=draws, cond=own_cond
            )
            begin = repeat(one, self.chains)
        samples = run_chain(
            denoiser, plan, begin, index=index, draws=draws, path=self.path, cond=chain_cond
        )
        data, data_cond = x0, all_cond
        if self.discrepancy.is_paired:
            data, data_cond = own, own_cond
        elif self.start != "prior":
            # Others: a set that holds each sample's own x0 makes copies look best.
            data, data_cond = x0[count:], all_cond.select(slice(count, None))
        loss = self.discrepancy(
            samples, data, chain_cond.arguments, data_cond.arguments, draws.key("directions")
        )
        return Fidelity(loss, samples.detach(), data, plan, len(plan) * len(samples))

    def plan(self, denoiser: Denoiser, draws: Draws) -> Plan:
        """The chain of one iteration."""
        plan = self.plans.of(denoiser, draws)
        self._check_plan(plan)
        return plan

    def _check_plan(self, plan: Plan) -> None:
        if self.chains > 1 and self.start != "prior" and not plan.is_stochastic:
            raise ValueError(
                f"FidelityLoss: chains must be 1 where they begin at one point and {plan.method} "
                f"of {len(plan)} steps adds no noise, got {self.chains}; pass eta=1.0 or "
                'method="ancestral", and 2 steps or more'
            )
        if self.path.gradient == "jacobian_free" and plan.needs_history:
            warn_user(
                f"FidelityLoss: the jacobian_free gradient of the multistep {plan.method} led away "
                "from the data where it was tried: its weights of earlier x0's are negative; use "
                'gradient="full", or a method of one step such as "ddim"'
            )
        if self.start == "inverted" and plan.is_stochastic:
            raise ValueError(
                'FidelityLoss: method must be deterministic with start="inverted", '
                f"got {plan.method}"
            )

    def check(self, denoiser: Denoiser, batch: int, world: int = 1) -> None:
        """Refuse a model, or a batch of all processes, that the loss cannot have.

        Args:
            denoiser: the model.
            batch: samples.
            world: processes.
        """
        for plan in self.plans.check(denoiser):
            self._check_plan(plan)
        self._own_share(batch // world, world)

    def _own_share(self, batch: int, world: int) -> int:
        """Samples of this process to start chains for."""
        others = self.start != "prior" and not self.discrepancy.is_paired
        whole = batch // 2 * world if others else batch * world
        wanted = whole if self.subset is None else self.subset
        if others and not 0 < wanted <= (batch - 1) * world:
            raise ValueError(
                f'FidelityLoss: subset must leave samples to compare with for start="{self.start}" '
                f"and a batch of {batch * world}, got {wanted}"
            )
        if wanted % world or wanted > batch * world:
            raise ValueError(
                f"FidelityLoss: subset must be a multiple of the {world} processes and at most the "
                f"batch of {batch * world}, got {wanted}"
            )
        if not self.discrepancy.is_paired and wanted * self.chains < 2:
            raise ValueError(
                f"FidelityLoss: subset must be at least 2 to compare sets, got {wanted}"
            )
        return wanted // world

    def __repr__(self) -> str:
        # All that decides about gradients: a run is only taken up with an equal text.
        chain = self.plans
        others: dict[str, Any] = dict(chain.knobs)
        steps = chain.steps
        if isinstance(steps, Plan):
            steps, others["times"] = steps.method, Grid(steps.nodes)
        if not isinstance(chain.clip, str):
            others["clip"] = chain.clip
        if self.path.gradient == "last":
            others["last_rows"] = self.path.last
        if self.discrepancy.distance == "sliced_wasserstein":
            others["projections"] = self.discrepancy.projections
        seen = self.discrepancy.features
        if seen is not None:
            others["features"] = getattr(seen, "__qualname__", type(seen).__name__)
        more = "".join(f", {name}={value!r}" for name, value in others.items())
        return (
            f"FidelityLoss({steps!r}, method={chain.method!r}, grid={chain.grid!r}, "
            f"distance={self.discrepancy.distance!r}, start={self.start!r}, "
            f"gradient={self.path.gradient!r}, "
            f"subset={self.subset}, chains={self.chains}, seed={self.seed}{more})"
        )
