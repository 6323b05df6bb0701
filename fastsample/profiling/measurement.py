"""The network's side of a profile: one batch, every time."""

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
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.rows import eps_terms, x0_terms
from fastsample.profiling.statistics import Settings, learned_nodes, log_scales
from fastsample.profiling.trajectories import Trajectories
from fastsample.samplers.ddim import ddim
from fastsample.sampling.loop import Step, run
from fastsample.sampling.noise import Identity

_MOST_HELD = 2**28  # elements of trajectories kept at once: 1 GB of float32
_WIDENED = 2**24  # elements of the Gram matrices' factors that are in float64 at once


class Measurement:
    """Calls a network at every time and adds up what the planner needs.

    Args:
        denoiser: the model.
        times: `(n,)` ascending.
        settings: of the profile.
        called: is told after every network call.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: FloatArray,
        settings: Settings,
        called: Callable[[], object],
    ) -> None:
        schedule, device = denoiser.schedule, denoiser.device
        self.denoiser, self.times, self.settings, self.called = denoiser, times, settings, called
        self.model = AtTimes(denoiser, times, function="profile", on_call=lambda _: called())
        self.alpha, self.sigma = self.model.alpha, self.model.sigma
        terms = (
            function("profile", settings.prediction, self.alpha, self.sigma)
            for function in (x0_terms, eps_terms)
        )
        self.x0_terms, self.eps_terms = ([*zip(*pair, strict=True)] for pair in terms)
        self.nodes = torch.from_numpy(learned_nodes(schedule, times, settings.nodes)).to(device)
        scales = log_scales(schedule, times, settings.bin_width)
        self.log_scales = torch.from_numpy(scales).to(device)
        self._dtype = history_dtype(torch.empty(0, dtype=denoiser.dtype))  # of the arithmetic
        self._width = 4 + 2 * settings.nodes + len(scales)

    def errors(
        self, x0: Tensor, identity: Identity, conditions: Conditions
    ) -> dict[str, FloatArray]:
        """A profile's sums over one batch."""
        clean = x0.to(self._dtype)
        eps = ops.noise(*identity, self.denoiser.shape, dtype=self._dtype)
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
        found = self._named(table.cpu().numpy())
        found["x0_square"] = np.array(float(clean.double().square().sum()))
        return found

    def _named(self, table: FloatArray) -> dict[str, FloatArray]:
        """A profile's sums from the columns of `errors`."""
        self._check_finite(table, self.times)
        n = self.settings.nodes
        columns = {"error_square": 0, "error": 1, "eps_square": 2, "v": 3}
        found = {name: table[:, i].copy() for name, i in columns.items()}
        rest = np.split(table[:, len(columns) :], [n, 2 * n], axis=1)
        return found | dict(zip(("excess", "weighted", "nll"), rest, strict=True))

    def trajectories(self, identity: Identity, count: int, conditions: Conditions) -> Trajectories:
        """Sums along the DDIM trajectories of the first samples of a batch."""
        size = int(np.prod(self.denoiser.shape))
        held = max(1, _MOST_HELD // (2 * size * len(self.times)))
        lines = Trajectories.empty(len(self.times))
        for first in range(0, count, held):
            part = slice(first, min(first + held, count))
            chosen = Identity(identity.seeds, identity.index[part])
            lines = lines + self._trajectories(chosen, conditions.select(part))
        return lines

    def _trajectories(self, identity: Identity, conditions: Conditions) -> Trajectories:
        """Song et al. 2021 (arXiv:2010.02502), eq. 12 with eta = 0, on all the times."""
        n = len(self.times)
        x = ops.noise(*identity, self.denoiser.shape, dtype=self._dtype)
        states, estimates = x.new_empty(n + 1, *x.shape), x.new_empty(n, *x.shape)
        states[n] = x

        def remember(step: Step) -> None:
            k = n - 1 - step.row  # the times ascend
            states[k], estimates[k] = step.x, step.x0
            self.called()

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
        columns = max(1, _WIDENED // (n + 1))
        for left, right in zip(
            states.flatten(1).split(columns, dim=1),
            estimates.flatten(1).split(columns, dim=1),
            strict=True,
        ):
            left, right = left.double(), right.double()
            gram += left @ left.T
            cross += right @ left.T
            products += right @ right.T
        arrays = [t.cpu().numpy() for t in (gram, cross, products)]
        # What comes after NaN is NaN: the first call that gave it is the noisiest.
        self._check_finite(np.diag(arrays[2])[::-1, None], self.times[::-1])
        return Trajectories(len(identity.index), *arrays)

    def _check_finite(self, table: FloatArray, times: FloatArray) -> None:
        """Refuse NaN and infinity, by the first row `(n, ...)` that has one."""
        bad = ~np.isfinite(table).all(axis=1)
        if bad.any():
            raise ValueError(
                "profile: the model's output must be finite, got NaN or infinity at "
                f"t = {times[int(np.argmax(bad))]:g}"
            )
