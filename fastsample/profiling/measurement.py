"""Makes the network calls of a profile and sums the errors of a batch at every time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.denoiser.at_times import AtTimes
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.ops.draws import PROFILE_DRAW
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.rows import eps_terms, x0_terms
from fastsample.profiling.statistics import Settings, learned_nodes, log_scales
from fastsample.profiling.trajectories import Trajectories
from fastsample.samplers.ddim import ddim
from fastsample.sampling.loop import Step, run
from fastsample.sampling.noise import Identity

_MAX_TRAJECTORY_ELEMENTS = 2**28  # limits what is held at once to 1 GB of float32
_MAX_FLOAT64_ELEMENTS = 2**24  # limits the float64 copies that the Gram matrices are made from


class Measurement:
    """Calls a network at every time and sums the errors that a profile keeps over samples.

    Args:
        denoiser: the model.
        times: `(n,)` ascending.
        settings: the settings of the profile.
        on_call: called after every network call.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: FloatArray,
        settings: Settings,
        on_call: Callable[[], object],
    ) -> None:
        schedule, device = denoiser.schedule, denoiser.device
        self.denoiser, self.times, self.settings, self.on_call = denoiser, times, settings, on_call
        self.model = AtTimes(denoiser, times, function="profile", on_call=lambda _: on_call())
        self.alpha, self.sigma = self.model.alpha, self.model.sigma
        terms = (
            function("profile", settings.prediction, self.alpha, self.sigma)
            for function in (x0_terms, eps_terms)
        )
        self.x0_terms, self.eps_terms = ([*zip(*pair, strict=True)] for pair in terms)
        self.nodes = torch.as_tensor(learned_nodes(schedule, times, settings.nodes), device=device)
        scales = log_scales(schedule, times, settings.bin_width)
        self.log_scales = torch.as_tensor(scales, device=device)
        self._dtype = history_dtype(torch.empty(0, dtype=denoiser.dtype))
        self._width = 4 + 2 * settings.nodes + len(scales)

    def errors(
        self, x0: Tensor, identity: Identity, conditions: Conditions
    ) -> dict[str, FloatArray]:
        """Return the network's errors at each time, summed over a batch `(B, *shape)`, by name."""
        clean = x0.to(self._dtype)
        eps = ops.noise(*identity, self.denoiser.shape, draw=PROFILE_DRAW, dtype=self._dtype)
        table = eps.new_empty(len(self.times), self._width, dtype=torch.float64)
        for k in range(len(self.times)):
            x = torch.add(clean * float(self.alpha[k]), eps, alpha=float(self.sigma[k]))
            x = self.model.rounded(x)
            output, _ = self.model.output(x, k, conditions)
            sums = ops.elbo_sums(
                clean,
                x,
                output,
                x0_terms=self.x0_terms[k],
                eps_terms=self.eps_terms[k],
                clip=self.settings.clip,
                nodes=self.nodes[k] if self.settings.nodes else None,
                log_scales=self.log_scales,
                bin_width=self.settings.bin_width or 1.0,
            )
            torch.sum(sums.table, 0, out=table[k, 1:])
            torch.dot(sums.error, sums.error, out=table[k, 0])
        named = self._named_sums(table.cpu().numpy())
        named["x0_square"] = np.array(float(clean.double().square().sum()))
        return named

    def _named_sums(self, table: FloatArray) -> dict[str, FloatArray]:
        """Split the table that `errors` makes into the sums of a profile, by name."""
        self._check_finite(table, self.times)
        n = self.settings.nodes
        columns = {"error_square": 0, "error": 1, "eps_square": 2, "v": 3}
        vectors = {name: np.array(table[:, i]) for name, i in columns.items()}
        rest = np.split(table[:, len(columns) :], [n, 2 * n], axis=1)
        return vectors | dict(zip(("excess", "weighted", "nll"), rest, strict=True))

    def trajectories(self, identity: Identity, count: int, conditions: Conditions) -> Trajectories:
        """Return sums of inner products along DDIM trajectories from the first `count` noises."""
        size = int(np.prod(self.denoiser.shape))
        chunk = max(1, _MAX_TRAJECTORY_ELEMENTS // (2 * size * len(self.times)))
        total = Trajectories.empty(len(self.times))
        for first in range(0, count, chunk):
            part = slice(first, min(first + chunk, count))
            part_identity = Identity(identity.seeds, identity.index[part])
            total = total + self._trajectories(part_identity, conditions.select(part))
        return total

    def _trajectories(self, identity: Identity, conditions: Conditions) -> Trajectories:
        """Return the sums of `trajectories` for a part of the samples, small enough for memory.

        The trajectories are those of Song et al. 2021 (arXiv:2010.02502), eq. 12 with eta = 0.
        """
        n = len(self.times)
        x = ops.noise(*identity, self.denoiser.shape, draw=PROFILE_DRAW + 1, dtype=self._dtype)
        x = x * self.denoiser.schedule.start_scale(float(self.times[-1]))
        states, estimates = x.new_empty(n + 1, *x.shape), x.new_empty(n, *x.shape)
        states[n] = x

        def remember(step: Step) -> None:
            k = n - 1 - step.row  # because a plan's rows descend in time
            states[k], estimates[k] = step.x, step.x0
            self.on_call()

        plan = ddim(
            self.denoiser.schedule,
            Grid(np.append(self.times[::-1], 0.0)),
            clip=None if np.isinf(self.settings.clip).any() else self.settings.clip,
            prediction=self.settings.prediction,
        )
        run(self.denoiser, plan, x, conditions=conditions, callback=remember)
        gram = states.new_zeros(n + 1, n + 1, dtype=torch.float64)
        cross = states.new_zeros(n, n + 1, dtype=torch.float64)
        products = states.new_zeros(n, n, dtype=torch.float64)
        columns = max(1, _MAX_FLOAT64_ELEMENTS // (n + 1))
        for x_part, x0_part in zip(
            torch.split(states.flatten(1), columns, dim=1),
            torch.split(estimates.flatten(1), columns, dim=1),
            strict=True,
        ):
            x_wide, x0_wide = x_part.double(), x0_part.double()
            gram += x_wide @ x_wide.T
            cross += x0_wide @ x_wide.T
            products += x0_wide @ x0_wide.T
        arrays = [t.cpu().numpy() for t in (gram, cross, products)]
        # Once an estimate is NaN, all later ones are: the noisiest NaN is where the model failed.
        self._check_finite(np.diagonal(arrays[2])[::-1, None], self.times[::-1])
        return Trajectories(len(identity.index), *arrays)

    def _check_finite(self, table: FloatArray, times: FloatArray) -> None:
        """Raise ValueError, naming the first bad time, if a table `(n, ...)` is not finite."""
        bad = ~np.isfinite(table).all(axis=1)
        if bad.any():
            raise ValueError(
                "profile: the model's output must be finite, got NaN or infinity at "
                f"t = {times[int(np.argmax(bad))]:g}"
            )
