"""Training losses of diffusion models, one value per sample.

Time `t` is the project's (0 = data, 1..T); a network is handed the index t - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fastsample.bound import posterior_table, vlb_terms
from fastsample.rows import Prediction, Variance
from fastsample.schedule import NoiseSchedule

__all__ = ["DiffusionLoss"]

_CHOICES = {
    "kind": ("simple", "hybrid", "vlb"),
    "variance": ("small", "large", "learned_range"),
    "prediction": ("epsilon", "x0", "v"),
}


class DiffusionLoss:
    """L_simple, L_hybrid or L_vlb of a diffusion model, one value per sample.

    Nichol and Dhariwal 2021 (arXiv:2102.09672): "simple" is eq. 14, the mean squared error;
    "hybrid" is eq. 16, L_simple + `vlb_weight` * L_vlb, where the bound trains the variance only
    (the prediction is detached in it); "vlb" is the bound itself, T times the term of a random
    step. Steps are drawn uniformly; the importance sampling of their Sec. 3.3 is not done. With
    "simple" a learned variance gets no gradient.

    Args:
        schedule: noise levels with integer steps 1..T.
        kind: "simple", "hybrid" or "vlb".
        variance: reverse variance "small", "large" or "learned_range"; the last needs a network
            of twice the channels.
        prediction: what the network predicts: "epsilon", "x0" or "v".
        vlb_weight: lambda in the hybrid loss, per bit and dimension. Bits, not nats: the default
            equals RESCALED_MSE of the released code.
        bin_width: distance of neighbouring data levels, in data units: 2/255 for 8-bit images.

    Raises:
        ValueError: an unknown name, "hybrid" without a learned variance, or a continuous schedule.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        kind: Literal["simple", "hybrid", "vlb"] = "hybrid",
        variance: Variance = "learned_range",
        prediction: Prediction = "epsilon",
        vlb_weight: float = 1e-3,
        bin_width: float = 2 / 255,
    ) -> None:
        given = {"kind": kind, "variance": variance, "prediction": prediction}
        for name, value in given.items():
            if value not in _CHOICES[name]:
                raise ValueError(
                    f"DiffusionLoss: {name} must be one of {_CHOICES[name]}, got {value!r}"
                )
        if kind == "hybrid" and variance != "learned_range":
            raise ValueError(
                "DiffusionLoss: variance must be 'learned_range' with kind 'hybrid', "
                f"got {variance!r}; a fixed variance has nothing to learn from the bound"
            )
        if schedule.num_steps is None:
            raise ValueError(f"DiffusionLoss: schedule must have integer steps, got {schedule}")
        self.schedule = schedule
        self.kind = kind
        self.variance: Variance = variance
        self.prediction: Prediction = prediction
        self.vlb_weight = vlb_weight
        self.bin_width = bin_width
        self.num_steps = schedule.num_steps
        # "simple" needs no x0, which an epsilon output does not give at alpha = 0.
        wanted: Prediction = "x0" if kind == "simple" else prediction
        # Row t - 1 belongs to time t. Made in float64 once, rounded once per dtype and device.
        self._table = torch.from_numpy(posterior_table(schedule, prediction=wanted)[::-1].copy())
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(
        self,
        model: Callable[..., Tensor],
        x0: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> dict[str, Tensor]:
        """Loss of one batch; `loss(model, x0)["loss"].mean().backward()` is a training step.

        Args:
            model: called as `model(x_t, t - 1, **cond)`.
            x0: data `(B, C, ...)` in [-1, 1], floating.
            t: times `(B,)`, integers in 1..T; None draws them uniformly.
            noise: standard normal noise in the shape of `x0`; None draws it.
            generator: random numbers for `t` and `noise`, on the device of `x0`.
            **cond: handed to the model (labels, say).

        Returns:
            `loss`, `mse` and, unless the kind is "simple", `vb` in bits per dimension (the term
            of the sampled step, not multiplied by T); each `(B,)`.

        Raises:
            ValueError: times out of 1..T, or an output that does not fit `x0`.
            TypeError: times that are not integers.
        """
        if t is None:
            shape = (x0.shape[0],)
            t = torch.randint(1, self.num_steps + 1, shape, device=x0.device, generator=generator)
        else:
            self._check_times(t, x0.shape[0])
        if noise is None:
            noise = torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)
        rows = self._rows(x0)[t - 1]
        alpha, sigma = (rows[:, i].reshape(-1, *[1] * (x0.ndim - 1)) for i in (0, 1))
        x_t = alpha * x0 + sigma * noise
        output = model(x_t, t - 1, **cond)
        channels = x0.shape[1] * (2 if self.variance == "learned_range" else 1)
        expected = (x0.shape[0], channels, *x0.shape[2:])
        if output.shape != expected:
            raise ValueError(
                f"DiffusionLoss: output must have the shape {expected} with variance "
                f"{self.variance!r}, got {tuple(output.shape)}"
            )
        prediction = output[:, : x0.shape[1]]
        target = {"epsilon": noise, "x0": x0}.get(self.prediction, alpha * noise - sigma * x0)
        mse = ((target - prediction) ** 2).flatten(1).mean(1)
        if self.kind == "simple":
            return {"loss": mse, "mse": mse}
        if self.kind == "hybrid":
            # The bound's noisy gradient must not reach the prediction (Sec. 3.1).
            output = torch.cat([prediction.detach(), output[:, x0.shape[1] :]], dim=1)
        vb, _ = vlb_terms(
            output,
            x0,
            x_t,
            rows,
            variance=self.variance,
            bin_width=self.bin_width,
        )
        bound = self.num_steps * vb
        loss = bound if self.kind == "vlb" else mse + self.vlb_weight * bound
        return {"loss": loss, "mse": mse, "vb": vb}

    def _rows(self, x0: Tensor) -> Tensor:
        """The table on the device and in the dtype of the data."""
        key = (x0.device, x0.dtype)
        if key not in self._tables:
            self._tables[key] = self._table.to(x0.device, x0.dtype)
        return self._tables[key]

    def _check_times(self, t: Tensor, batch: int) -> None:
        """Shape and kind always; the range on the CPU only, where looking costs no wait."""
        if t.is_floating_point():
            raise TypeError(f"DiffusionLoss: t must be integer times, got {t.dtype}")
        if t.shape != (batch,):
            raise ValueError(
                f"DiffusionLoss: t must have the shape ({batch},), got {tuple(t.shape)}"
            )
        if t.device.type == "cpu" and batch and not 1 <= t.min() <= t.max() <= self.num_steps:
            raise ValueError(
                f"DiffusionLoss: t must be in 1..{self.num_steps}, "
                f"got {int(t.min())}..{int(t.max())}"
            )
