"""The network's side of a profile: one batch, every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.denoiser.denoiser import Denoiser
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.rows import eps_terms, x0_terms
from fastsample.profiling.statistics import Settings, learned_nodes, log_scales
from fastsample.profiling.trajectories import Trajectories
from fastsample.sampling.noise import Identity
from fastsample.schedules.transition import ddim_terms

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
        self.alpha, self.sigma = schedule.levels(times)
        terms = (
            function("profile", settings.prediction, self.alpha, self.sigma)
            for function in (x0_terms, eps_terms)
        )
        self.x0_terms, self.eps_terms = ([*zip(*pair, strict=True)] for pair in terms)
        self.nodes = torch.from_numpy(learned_nodes(schedule, times, settings.nodes)).to(device)
        scales = log_scales(schedule, times, settings.bin_width)
        self.log_scales = torch.from_numpy(scales).to(device)
        with torch.inference_mode(False):  # they may come to be part of a graph
            self.told = denoiser.network_times(times)
        self._width = 4 + 2 * settings.nodes + len(scales)

    def errors(
        self, x0: Tensor, identity: Identity, arguments: Mapping[str, Any]
    ) -> dict[str, FloatArray]:
        """A profile's sums over one batch."""
        kind = history_dtype(torch.empty(0, dtype=self.denoiser.dtype))
        clean = x0.to(kind)
        eps = ops.noise(*identity, self.denoiser.shape, dtype=kind)
        table = eps.new_empty(len(self.times), self._width, dtype=torch.float64)
        for k in range(len(self.times)):
            x = torch.add(clean * float(self.alpha[k]), eps, alpha=float(self.sigma[k]))
            output, x = self._call(x, k, arguments)
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

    def trajectories(
        self, identity: Identity, count: int, arguments: Mapping[str, Any]
    ) -> Trajectories:
        """Sums along the DDIM trajectories of the first samples of a batch."""
        size = int(np.prod(self.denoiser.shape))
        held = max(1, _MOST_HELD // (2 * size * len(self.times)))
        lines = Trajectories.empty(len(self.times))
        for first in range(0, count, held):
            part = slice(first, min(first + held, count))
            some = {
                name: value[part] if isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
            chosen = Identity(identity.seeds, identity.index[part])
            lines = lines + self._trajectories(chosen, some)
        return lines

    def _trajectories(self, identity: Identity, arguments: Mapping[str, Any]) -> Trajectories:
        """Song et al. 2021 (arXiv:2010.02502), eq. 12 with eta = 0, on all the times."""
        kind = history_dtype(torch.empty(0, dtype=self.denoiser.dtype))
        n = len(self.times)
        x = ops.noise(*identity, self.denoiser.shape, dtype=kind)
        states = x.new_empty(n + 1, *x.shape)
        estimates = x.new_empty(n, *x.shape)
        for k in range(n - 1, -1, -1):
            states[k + 1] = x
            estimates[k] = x0hat = self._estimate(x, k, arguments)
            level = (self.alpha[k - 1], self.sigma[k - 1]) if k else (1.0, 0.0)
            a, b = ddim_terms(self.alpha[k], self.sigma[k], *level)
            x = float(a) * x + float(b) * x0hat
        states[0] = x
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
        found = [t.cpu().numpy() for t in (gram, cross, products)]
        # What comes after NaN is NaN: the first call that gave it is the noisiest.
        self._check_finite(np.diag(found[2])[::-1, None], self.times[::-1])
        return Trajectories(len(identity.index), *found)

    def _estimate(self, x: Tensor, k: int, arguments: Mapping[str, Any]) -> Tensor:
        """The clipped x0 at time number k."""
        output, seen = self._call(x, k, arguments)
        p, q = self.x0_terms[k]
        return torch.clamp(p * seen + q * output[:, : x.shape[1]], *self.settings.clip)

    def _call(self, x: Tensor, k: int, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(output, what the network saw) in the arithmetic of x."""
        seen = x.to(self.denoiser.dtype)
        output = self.denoiser.call(seen, self.told[k].expand(x.shape[0]), arguments)
        self.called()
        return output.to(x.dtype), seen.to(x.dtype)

    def _check_finite(self, table: FloatArray, times: FloatArray) -> None:
        """Refuse NaN and infinity, by the first row `(n, ...)` that has one."""
        bad = ~np.isfinite(table).all(axis=1)
        if bad.any():
            raise ValueError(
                "profile: the model's output must be finite, got NaN or infinity at "
                f"t = {times[int(np.argmax(bad))]:g}"
            )
