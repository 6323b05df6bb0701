"""The class `AtTimes`, which evaluates a model repeatedly at a fixed list of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial

import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.failures import explain
from fastsample.plans.rows import Clip, clip_bounds, row_table, x0_terms


class AtTimes:
    """Computes a model's outputs and x0 estimates at a fixed list of times, in batches.

    The times are numbered: methods take the position `k` of a time in the list.

    Args:
        denoiser: the model.
        times: `(n,)` project times.
        function: the caller's name, for messages.
        clip: range that x0 is clamped to; None does not clamp.
        guidance: classifier-free guidance scale; None is no guidance.
        batch_size: samples per network call; None runs all samples in one call.
        on_call: called after every network call with its number of samples (both halves of a
            guided batch count).

    Attributes:
        times: `(n,)`.
        alpha: `(n,)` signal levels at the times.
        sigma: `(n,)` noise levels at the times.
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
        on_call: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.denoiser, self.times, self.on_call = denoiser, times, on_call
        self.alpha, self.sigma = denoiser.schedule.levels(times)
        self._function, self._batch_size = function, batch_size
        self._bounds = clip_bounds(function, clip)
        self._scale = 1.0 if guidance is None else guidance
        # Leave inference mode, whose tensors cannot be used in a backward pass.
        with torch.inference_mode(False):
            self._timesteps = denoiser.network_times(times)

    def rounded(self, x: Tensor) -> Tensor:
        """Return `x` rounded to the network's dtype and cast back to the dtype of `x`."""
        return x.to(self.denoiser.input_dtype(x.dtype)).to(x.dtype)

    def output(self, x: Tensor, k: int, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Return the network's (conditional, unconditional or None) outputs for ``x (n, *shape)``.

        The network's input is cast to its dtype; the outputs come back in the dtype of `x`.
        """
        outputs = [self._call(*part, k) for part in self._parts(x, conditions)]
        if len(outputs) == 1:
            return outputs[0]
        conditional = torch.cat([output for output, _ in outputs])
        unconditional = [uncond for _, uncond in outputs if uncond is not None]
        return conditional, torch.cat(unconditional) if conditions.guided else None

    def x0(self, x: Tensor, k: int, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (x0, conditional output, unconditional output or None) for ``x (n, *shape)``.

        The guided, clamped x0 is computed by the sampler's own kernel, in arithmetic precision.
        """
        output, uncond = self.output(x, k, conditions)
        rows, numbers = self._device_rows
        return ops.step_x0(x, output, rows, numbers[k], uncond=uncond)[1], output, uncond

    @cached_property
    def rows(self) -> FloatArray:
        """A row of coefficients per time, `(n, 15)`, with which `ops.step` returns x0 itself."""
        p, q = x0_terms(self._function, self.denoiser.prediction, self.alpha, self.sigma)
        low, high = self._bounds
        return row_table(len(self.times), p=p, q=q, lo=low, hi=high, w=self._scale, b=1.0)

    @cached_property
    def _device_rows(self) -> tuple[Tensor, Tensor]:
        """The `rows` and the row numbers `(n,)` as tensors on the model's device."""
        device = self.denoiser.device
        with torch.inference_mode(False):
            rows = torch.as_tensor(self.rows, dtype=ops.rows_dtype(device), device=device)
            return rows, torch.arange(len(rows), device=device)

    def _parts(self, x: Tensor, conditions: Conditions) -> Iterator[tuple[Tensor, Conditions]]:
        """Yield (samples, their conditions) for each network call."""
        size = self._batch_size
        if size is None or len(x) <= size:
            yield x, conditions
            return
        for first in range(0, len(x), size):
            part = x[first : first + size]
            yield part, conditions.part(first, part)

    def _call(self, x: Tensor, conditions: Conditions, k: int) -> tuple[Tensor, Tensor | None]:
        """Call the network once; return its (conditional, unconditional or None) outputs."""
        network_input = conditions.doubled(x)
        if network_input.is_inference():
            with torch.inference_mode(False), torch.no_grad():
                network_input = network_input.clone()  # Only such tensors count writes to them.
        version = network_input._version
        timestep = self._timesteps[k].expand(len(network_input))
        place = f"at t = {self.times[k]:g}"
        try:
            output = self.denoiser.at_timestep(network_input, timestep, conditions.arguments)
        except Exception as error:
            again = partial(self.denoiser.at_timestep, network_input, cond=conditions.arguments)
            given = conditions.arguments
            explain(error, place, timestep, again, self.denoiser.model, given)
            raise
        if network_input._version != version:
            raise ValueError(
                f"Denoiser: the model must not write to x, got a change {place}; copy x in the "
                "network before writing to it"
            )
        self.on_call(len(network_input))
        return conditions.split(output)
