"""The class `Batch`: the checked arguments of one call of a sampler that belong to its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.training_mode import warn_of_training_mode
from fastsample.ops.dtypes import DTYPE_CODES
from fastsample.sampling.noise import Identity, agreed_batch, make_identity


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples to be drawn: where they start, their noise and their conditions.

    Attributes:
        denoiser: the model.
        size: the number of samples B.
        device: the device of the samples.
        dtype: the dtype of the samples.
        identity: seeds and global indices; None if no noise is generated.
        conditions: extra arguments of the network.
        start: x at the first node `(B, *shape)`, or None for generated noise.
        noise: the noise of the rows `(K', B, *shape)`, or None for generated noise.
        needs_grad: whether a gradient is asked for.
        start_scale: the factor of the standard normal noise that a run starts from.
    """

    denoiser: Denoiser
    size: int
    device: torch.device
    dtype: torch.dtype
    identity: Identity | None
    conditions: Conditions
    start: Tensor | None
    noise: Tensor | None
    needs_grad: bool
    start_scale: float = 1.0

    @classmethod
    def of(
        cls,
        function: str,
        denoiser: Denoiser,
        rows: int,
        *,
        num_samples: Any,
        seed: Any,
        sample_index: Any,
        start: Tensor | None,
        noise: Tensor | None,
        cond: Mapping[str, Any] | None,
        uncond: Mapping[str, Any] | None,
        device: torch.device | None,
        dtype: torch.dtype | None,
        draws_noise: bool = True,
        start_scale: float = 1.0,
    ) -> Batch:
        """Check the arguments of a call, and that they agree on the number of samples.

        Args:
            function: the caller's name, for messages.
            denoiser: the model.
            rows: the number of rows K' of the plan.
            num_samples: as for `sample`, like the arguments that follow.
            seed: seed or seeds; None if the run needs none.
            sample_index: global indices, or the first one.
            start: x at the first node.
            noise: the noise of the rows.
            cond: conditions.
            uncond: conditions that mean "no condition"; None without guidance.
            device: the device of the samples; None is the model's.
            dtype: the dtype of the samples; None is that of `start`, else the model's.
            draws_noise: whether any row of the plan draws noise.
            start_scale: see `NoiseSchedule.start_scale`.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: arguments out of range, or for different numbers of samples.
        """
        warn_of_training_mode(function, denoiser.model)
        size = agreed_batch(function, num_samples, start, noise, cond, sample_index, seed)
        device, model_dtype = denoiser.device_and_dtype(function, device)
        dtype = dtype or (model_dtype if start is None else start.dtype)
        check_dtype(function, dtype)
        identity = None
        if seed is not None or sample_index is not None:
            first = 0 if seed is None else seed
            identity = make_identity(function, first, sample_index, size, device)
        conditions = Conditions(function, cond, uncond, size, device)
        check_tensor("start", start, (size, *denoiser.shape), dtype, device, function)
        check_tensor("noise", noise, (rows, size, *denoiser.shape), dtype, device, function)
        if noise is not None and not draws_noise:
            raise ValueError(
                f"{function}: noise must be left out with a plan whose rows draw none, got "
                f"{_described(noise)}; the starting noise is start=, and eta=1.0, for one, draws "
                "noise in the rows"
            )
        inputs = [t for t in (start, noise, *conditions.tensors()) if t is not None]
        if inputs and ops.has_tangent(inputs):
            raise ValueError(
                f"{function}: start, noise and conditions must have no forward-mode tangent, got "
                "one; use reverse mode, or fastsample.sampling.loop.run"
            )
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        tensors = (conditions, start, noise, needs_grad)
        return cls(denoiser, size, device, dtype, identity, *tensors, start_scale)

    def make_start(self) -> Tensor:
        """Return the samples at the first node; a run may overwrite those that were generated."""
        if self.start is None:
            assert self.identity is not None, "a run that makes its start has a seed"
            if torch.is_inference_mode_enabled():
                # A tensor made there would not count the writes of a network to it.
                with torch.inference_mode(False):
                    return self._generated(self.identity)
            return self._generated(self.identity)
        return self.start if self.needs_grad else self.start.detach()

    def _generated(self, identity: Identity) -> Tensor:
        x = ops.noise(*identity, self.denoiser.shape, dtype=self.dtype)
        return x if self.start_scale == 1.0 else x * self.start_scale

    def parts(self, size: int | None) -> list[Batch]:
        """Return batches of at most `size` samples that make up this one; None is one batch."""
        if size is None or size >= self.size:
            return [self]
        return [
            self._part(slice(first, min(first + size, self.size)))
            for first in range(0, self.size, size)
        ]

    def _part(self, part: slice) -> Batch:
        identity = None
        if self.identity is not None:
            seeds, index = self.identity
            identity = Identity(seeds if seeds.shape[0] == 1 else seeds[part], index[part])
        return Batch(
            self.denoiser,
            part.stop - part.start,
            self.device,
            self.dtype,
            identity,
            self.conditions.select(part),
            None if self.start is None else self.start[part],
            None if self.noise is None else self.noise[:, part],
            self.needs_grad,
            self.start_scale,
        )


def _described(value: Any) -> str:
    """Return the shape of a tensor, or the type of anything else, for messages."""
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_dtype(function: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of samples; TypeError unless the kernels compute with it."""
    name: Any = dtype
    remedy = f"; pass torch.{name}" if f"torch.{name}" in map(str, DTYPE_CODES) else ""
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPE_CODES:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{function}: dtype must be one of {[str(known) for known in DTYPE_CODES]}, "
            f"got {dtype}{remedy}"
        )
    return dtype
