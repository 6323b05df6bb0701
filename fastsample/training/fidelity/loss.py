"""Implements `FidelityLoss`, which measures how far K-step samples are from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastsample._support.checks import check_bool, check_integer
from fastsample._support.distributed import process
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.leaves import repeat
from fastsample.distances.discrepancy import Discrepancy, Features
from fastsample.distances.names import DISTANCES, Distance
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.sampling.resolve import Steps
from fastsample.training.fidelity.chain import GradientPath, run_chain, starting_points
from fastsample.training.fidelity.chain_plans import ChainPlans
from fastsample.training.fidelity.checks import check_combination, check_plan, starting_count
from fastsample.training.fidelity.names import GRADIENTS, STARTS, Gradient, Start
from fastsample.training.randomness import RandomStreams


class FidelityResult(NamedTuple):
    """Holds the fidelity loss of a batch, and the samples that it was computed from."""

    loss: Tensor
    """The loss is a scalar, differentiable in the network's weights."""
    samples: Tensor
    """Samples of this process `(n, *shape)`, without gradient."""
    data: Tensor
    """Data of this process `(m, *shape)` that the samples were compared with."""
    plan: Plan
    """Sampler plan that made the samples."""
    calls: int
    """Number of samples in all network calls, rows times samples; without those of inversion."""


class FidelityLoss:
    """Computes the distance of K-step samples from data, differentiable through the sampler.

    The idea is eq. 9 of Chen 2023 (arXiv:2301.01206). The paper's own loss is ``distance="mse"``,
    ``start="paired"``, ``method="shortcut"``, ``grid="random"``. It is least where each sample is
    the mean of the data given z_T, so that following it makes samples collapse; the released code
    never trained the network with it, because its gradient was zero. The default compares
    distributions: the energy distance between samples from noise and the batch, which is zero only
    where both distributions are equal (Szekely and Rizzo 2013). The closest published method is
    MMD-DDM (Aiello et al. 2023, arXiv:2301.07969).

    Under `torch.distributed` the samples and data of all processes are compared, and all processes
    draw the same times. The sum of the processes' gradients is the gradient of one process.

    Args:
        steps: number of steps K; several rising numbers, one of which is drawn in each iteration;
            times that fall to 0; or an unguided `Plan`, which then decides `method`, `knobs`,
            `grid` and `clip`.
        method: the sampler, as for `fastsample.sample`. "auto" is the model's own plan of this
            length if it has one, else DDIM.
        grid: how the times are spread, as for `fastsample.sample`; "random" draws them anew in
            every iteration.
        distance: "energy", "mmd" or "sliced_wasserstein" compare sets of samples; "mse" and "huber"
            compare each sample with its own x0.
        start: where chains start. "prior": from noise. "paired": from x0 noised to the first time.
            "noised": from x0 noised to one of the later times, drawn in every iteration, from which
            the rest of the chain is run (with method "auto" by DDIM). "inverted": from the noise
            that DDIM inversion gives for x0.
        gradient: "full"; "last", through the last `last_rows` rows only; or "jacobian_free", which
            detaches the network's input. Through many steps the full gradient can explode where
            "jacobian_free" is stable; but not with multistep methods, which weigh earlier x0's
            negatively.
        last_rows: number of rows for "last", at least 1.
        checkpoint: run the network again in the backward pass instead of keeping activations.
        subset: number of samples of the batch that start chains, of all processes together; None
            is all of them. Where sets start from x0, they are compared with the rest of the batch,
            and None is half of it.
        chains: chains per x0, at least 1. Two or more with distance "energy" and start "paired" or
            "noised" make the energy score, a strictly proper scoring rule: all chains of an x0
            start at one point, and are compared with that x0.
        features: ``(x, **cond) -> (n, ...)`` for x `(n, *shape)`, whose results are compared
            instead of x; None compares x.
        projections: number of directions of "sliced_wasserstein", drawn anew in every iteration.
        clip: range that x0 is clipped to in the chain, as for `Denoiser`; "auto" is the model's.
        seed: 64-bit seed of times and noise.
        **knobs: options of the method, as for `fastsample.sample`.

    Raises:
        TypeError: an argument of the wrong type.
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
        min_rows = 2 if chains != 1 else 1
        self.plans = ChainPlans(steps, method, grid, clip, dict(knobs), start, min_rows)
        self.start: Start = start
        self.path = GradientPath(
            gradient,
            check_integer("FidelityLoss", "last_rows", last_rows, 1),
            check_bool("FidelityLoss", "checkpoint", checkpoint),
        )
        self.subset = None if subset is None else check_integer("FidelityLoss", "subset", subset, 1)
        self.chains = check_integer("FidelityLoss", "chains", chains, 1)
        scored_chains = chains if distance == "energy" and start != "prior" else 1
        directions = check_integer("FidelityLoss", "projections", projections, 1)
        self.discrepancy = Discrepancy(distance, features, scored_chains, directions)
        self.seed = check_integer("FidelityLoss", "seed", seed, 0, 2**64 - 1)
        check_combination(self.plans, self.discrepancy, self.chains)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        *,
        iteration: int = 0,
        cond: Mapping[str, Any] | None = None,
    ) -> FidelityResult:
        """Compute the loss of a batch: ``loss(model, x0, iteration=i).loss.backward()``.

        Args:
            denoiser: the model.
            x0: data `(B, *shape)` of this process, in random order, on the model's device.
            iteration: decides times and noise; the same number gives the same ones.
            cond: keyword arguments of the network, one entry per sample or a number for all.

        Raises:
            TypeError: a model that is no `Denoiser`, or data that are no tensor.
            ValueError: data of another shape, a batch too small for `subset`, or a chain that the
                model cannot run.
        """
        if not isinstance(denoiser, Denoiser):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"FidelityLoss: denoiser must be a Denoiser, got {type(denoiser).__name__}"
            )
        if not isinstance(x0, Tensor) or x0.dim() < 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"FidelityLoss: x0 must be a tensor (B, *shape), got {x0!r:.60}")
        shape = (x0.shape[0], *denoiser.shape)
        check_tensor("x0", x0, shape, x0.dtype, denoiser.device, "FidelityLoss")
        streams = RandomStreams(self.seed, check_integer("FidelityLoss", "iteration", iteration, 0))
        rank, world = process()
        count = self._starting_count(x0.shape[0], world)
        plan = self.plan(denoiser, streams)
        batch_cond = Conditions("FidelityLoss", cond, batch=len(x0), device=x0.device)
        start_cond = batch_cond.select(slice(0, count))
        chain_cond = start_cond.repeat(self.chains)
        # Process r of w takes every w-th sample of the batch, so that a sample's index (and noise)
        # does not depend on the number of processes.
        start_index = torch.arange(count) * world + rank
        index = torch.cat([start_index + chain * count * world for chain in range(self.chains)])
        start_x0 = x0[:count]
        if self.start == "prior":
            repeated = repeat(start_x0, self.chains)
            begin = starting_points(denoiser, plan, repeated, "prior", index=index, streams=streams)
        else:  # All chains of an x0 begin at the same point.
            points = starting_points(
                denoiser,
                plan,
                start_x0,
                self.start,
                index=start_index,
                streams=streams,
                cond=start_cond,
            )
            begin = repeat(points, self.chains)
        samples = run_chain(
            denoiser, plan, begin, index=index, streams=streams, path=self.path, cond=chain_cond
        )
        data, data_cond = x0, batch_cond
        if self.discrepancy.is_paired:
            data, data_cond = start_x0, start_cond
        elif self.start != "prior":
            # Leave out the x0 that the samples started from, or copies of it would look best.
            data, data_cond = x0[count:], batch_cond.select(slice(count, None))
        loss = self.discrepancy(
            samples, data, chain_cond.arguments, data_cond.arguments, streams.key("directions")
        )
        return FidelityResult(loss, samples.detach(), data, plan, plan.calls * len(samples))

    def plan(self, denoiser: Denoiser, streams: RandomStreams) -> Plan:
        """Return the sampler plan of one iteration."""
        plan = self.plans.plan_for(denoiser, streams)
        check_plan(plan, self.start, self.path, self.chains)
        return plan

    def check(self, denoiser: Denoiser, batch: int, world: int = 1) -> None:
        """Raise for a model or a batch size that the loss cannot be computed for.

        Args:
            denoiser: the model.
            batch: samples of a batch, all processes together.
            world: number of processes.

        Raises:
            ValueError: a chain that the model cannot run, or a batch too small for `subset`.
        """
        for plan in self.plans.check(denoiser):
            check_plan(plan, self.start, self.path, self.chains)
        self._starting_count(batch // world, world)

    def _starting_count(self, batch: int, world: int) -> int:
        return starting_count(
            batch,
            world,
            subset=self.subset,
            start=self.start,
            discrepancy=self.discrepancy,
            chains=self.chains,
        )

    def __repr__(self) -> str:
        # Show all that gradients depend on, because a run resumes only with a loss of equal text.
        plans = self.plans
        options: dict[str, Any] = dict(plans.knobs)
        steps = plans.steps
        if isinstance(steps, Plan):
            steps, options["times"] = steps.method, Grid(steps.nodes)
        if not isinstance(plans.clip, str):
            options["clip"] = plans.clip
        if self.path.gradient == "last":
            options["last_rows"] = self.path.last_rows
        if self.discrepancy.distance == "sliced_wasserstein":
            options["projections"] = self.discrepancy.projections
        features = self.discrepancy.features
        if features is not None:
            options["features"] = getattr(features, "__qualname__", type(features).__name__)
        options_text = "".join(f", {name}={value!r}" for name, value in options.items())
        return (
            f"FidelityLoss({steps!r}, method={plans.method!r}, grid={plans.grid!r}, "
            f"distance={self.discrepancy.distance!r}, start={self.start!r}, "
            f"gradient={self.path.gradient!r}, "
            f"subset={self.subset}, chains={self.chains}, seed={self.seed}{options_text})"
        )
