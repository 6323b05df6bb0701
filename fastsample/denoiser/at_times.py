"""A model at fixed times, for those who call it there again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.rows import Clip, clip_bounds, row_table, x0_terms


class AtTimes:
    """A model's outputs and its x0 at numbered times, in batches.

    Args:
        denoiser: the model.
        times: `(n,)` project times.
        function: the caller's name, for messages.
        clip: range of x0.
        guidance: classifier-free guidance scale; None is none.
        batch_size: samples per network call; None is all at once.
        called: told the number of samples of every network call, both halves of a guided one.

    Attributes:
        times: `(n,)`.
        alpha: signal levels at the times.
        sigma: noise levels at the times.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: FloatArray,
        *,
        function: str,
        clip: Clip = None,
        guidance: float | None = None,
        batch_size: int | None = None,
        called: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.denoiser, self.times, self.called = denoiser, times, called
        self.alpha, self.sigma = denoiser.schedule.levels(times)
        self._function, self._batch_size = function, batch_size
        self._bounds = clip_bounds(function, clip)
        self._scale = 1.0 if guidance is None else guidance
        with torch.inference_mode(False):  # they may come to be part of a graph
            self._timesteps = denoiser.network_times(times)
        self._dtype = denoiser.network_dtype

    def seen(self, x: Tensor) -> Tensor:
        """The samples as the network sees them: rounded to its dtype, in their own."""
        return x if self._dtype is None else x.to(self._dtype).to(x.dtype)

    def output(self, x: Tensor, k: int, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """The network's (conditional, unconditional or None) output for ``x (n, *shape)``.

        The network sees x in its own dtype; the outputs come back in that of x.
        """
        outputs = [self._call(*part, k) for part in self._parts(x, conditions)]
        if len(outputs) == 1:
            return outputs[0]
        conditional, unconditional = zip(*outputs, strict=True)
        guided = conditions.guided
        return torch.cat(conditional), torch.cat(unconditional) if guided else None  # type: ignore[arg-type]

    def x0(self, x: Tensor, k: int, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x0, conditional output, unconditional output or None) of ``x (n, *shape)``.

        The guided, clamped x0 is computed by the sampler's own kernel, in arithmetic precision.
        """
        output, uncond = self.output(x, k, conditions)
        rows, numbers = self._uploaded
        return ops.step_x0(x, output, rows, numbers[k], uncond=uncond)[1], output, uncond

    @cached_property
    def rows(self) -> FloatArray:
        """`(n, 13)` rows whose result is x0 itself."""
        p, q = x0_terms(self._function, self.denoiser.prediction, self.alpha, self.sigma)
        low, high = self._bounds
        return row_table(len(self.times), p=p, q=q, lo=low, hi=high, w=self._scale, b=1.0)

    @cached_property
    def _uploaded(self) -> tuple[Tensor, Tensor]:
        """The rows and their numbers on the device."""
        device = self.denoiser.device
        with torch.inference_mode(False):
            rows = torch.as_tensor(self.rows, dtype=ops.rows_dtype(device), device=device)
            return rows, torch.arange(len(rows), device=device)

    def _parts(self, x: Tensor, conditions: Conditions) -> Iterator[tuple[Tensor, Conditions]]:
        size = self._batch_size
        if size is None or len(x) <= size:
            yield x, conditions
            return
        for first in range(0, len(x), size):
            part = x[first : first + size]
            yield part, conditions.part(first, part)

    def _call(self, x: Tensor, conditions: Conditions, k: int) -> tuple[Tensor, Tensor | None]:
        fed = conditions.doubled(x if self._dtype is None else x.to(self._dtype))
        timestep = self._timesteps[k].expand(len(fed))
        output = self.denoiser.at_timestep(fed, timestep, conditions.arguments)
        self.called(len(fed))
        return conditions.split(output.to(x.dtype))
