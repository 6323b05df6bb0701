"""Implements `DiffusionLoss`: L_simple, L_hybrid and L_vlb, one value per sample.

A time `t` is 0 at the data, and 1..T (a step) or in (0, T] (continuous) at noise. A `Denoiser`
turns it into its network's timestep by its own convention; any other network is called with
t - 1, or on a continuous schedule with t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray, check_real
from fastsample.denoiser.batches import check_bin_width, check_data_range
from fastsample.denoiser.denoiser import Denoiser
from fastsample.likelihood.bound import posterior_table, vlb_terms
from fastsample.plans.rows import Prediction, Variance, output_terms
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training.losses.times import TrainingTimes
from fastsample.training.losses.weighting import Weighting, output_weights

__all__ = ["DiffusionLoss"]

LossKind: TypeAlias = Literal["simple", "hybrid", "vlb"]

_CHOICES = {
    "kind": get_args(LossKind),
    "variance": get_args(Variance),
    "prediction": get_args(Prediction),
    "weighting": (None, *get_args(Weighting)),
}


class DiffusionLoss:
    """Computes L_simple, L_hybrid or L_vlb of a diffusion model, one value per sample.

    The losses are those of Nichol and Dhariwal 2021 (arXiv:2102.09672). "simple" is eq. 14, the
    mean squared error. "vlb" is the variational bound, estimated as T times the term of a random
    step. "hybrid" is eq. 16, ``L_simple + vlb_weight * L_vlb``, where the bound trains the
    variance only, because the prediction is detached in it. Times are drawn uniformly, without the
    importance sampling of Sec. 3.3. "simple" gives a learned variance no gradient. The bound in
    continuous time is `VDMLoss`.

    Args:
        schedule: noise levels with integer steps 1..T; "simple" also takes a continuous schedule.
        kind: "simple", "hybrid" or "vlb".
        variance: reverse variance: "small", "large" or "learned_range", which needs a network with
            twice the channels.
        prediction: what the network predicts: "epsilon", "x0", "v" or "flow".
        vlb_weight: weight of the bound in "hybrid", in units of a bit per dimension. With bits
            instead of nats the default equals RESCALED_MSE of the released code.
        bin_width: distance of neighbouring data levels in [-1, 1], in data units: 2/255 for 8-bit
            images. None for data without bins, such as latents, of any range: the bound's last
            step is then a Gaussian density. "simple" does not read it.
        weighting: for kind "simple", a weight of the squared error of x0: "snr", "snr+1",
            "truncated_snr" or "min_snr" (see `output_weights`). None weighs the error of the
            network's output equally at all times.
        gamma: bound on the SNR in "min_snr", positive.

    Raises:
        ValueError: an unknown name, "hybrid" without a learned variance, a bound on a continuous
            schedule, or a weighting together with a bound or infinite at the schedule's end.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        kind: LossKind = "hybrid",
        variance: Variance = "learned_range",
        prediction: Prediction = "epsilon",
        vlb_weight: float = 1e-3,
        bin_width: float | None = 2 / 255,
        weighting: Weighting | None = None,
        gamma: float = 5.0,
    ) -> None:
        names = {"kind": kind, "variance": variance, "prediction": prediction}
        for name, value in {**names, "weighting": weighting}.items():
            if value not in _CHOICES[name]:
                raise ValueError(
                    f"DiffusionLoss: {name} must be one of {_CHOICES[name]}, got {value!r}"
                )
        if kind == "hybrid" and variance != "learned_range":
            raise ValueError(
                "DiffusionLoss: variance must be 'learned_range' with kind 'hybrid', "
                f"got {variance!r}; a fixed variance has nothing to learn from the bound"
            )
        if kind != "simple" and weighting is not None:
            raise ValueError(
                f"DiffusionLoss: weighting must be None with kind {kind!r}, got {weighting!r}"
            )
        if kind != "simple" and schedule.num_steps is None:
            raise ValueError(
                f"DiffusionLoss: schedule must have integer steps, got {schedule}; "
                "pass kind='simple', or use VDMLoss"
            )
        if not check_real("DiffusionLoss", "gamma", gamma) > 0.0:
            raise ValueError(f"DiffusionLoss: gamma must be positive, got {gamma:g}")
        self.schedule = schedule
        self.kind: LossKind = kind
        self.variance: Variance = variance
        self.prediction: Prediction = prediction
        self.vlb_weight = vlb_weight
        self.bin_width = None if bin_width is None else check_bin_width("DiffusionLoss", bin_width)
        self.weighting: Weighting | None = weighting
        self.gamma = gamma
        self.num_steps = schedule.num_steps
        self._times = TrainingTimes(schedule)
        # Row t - 1 belongs to time t. The table is in float64, and is rounded once per dtype and
        # device. A continuous schedule has a row for T only, which raises if a weight is infinite.
        steps = np.arange(1.0, self.num_steps + 1) if self.num_steps else np.array([schedule.T])
        table = self._levels(steps)
        if kind != "simple":
            bound = posterior_table(schedule, prediction=prediction)[::-1]
            table = np.concatenate([table, bound], axis=1)
        self._table = torch.as_tensor(table)
        self._range_was_checked = False
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def of(
        cls, denoiser: Denoiser, *, kind: LossKind | None = None, **options: Any
    ) -> DiffusionLoss:
        """Make the loss with the schedule, prediction and variance of a denoiser.

        Args:
            denoiser: the model.
            kind: "simple", "hybrid" or "vlb"; None is "hybrid" for a learned variance, else
                "simple". A latent model with a learned variance, such as DiT, also needs
                ``bin_width=None``.
            **options: `vlb_weight`, `bin_width`, `weighting`, `gamma`.
        """
        if kind is None:
            kind = "hybrid" if denoiser.variance == "learned_range" else "simple"
        variance, prediction = denoiser.variance, denoiser.prediction
        return cls(
            denoiser.schedule, kind=kind, variance=variance, prediction=prediction, **options
        )

    def times(self, u: npt.ArrayLike) -> npt.NDArray[Any]:
        """Turn uniform numbers u in [0, 1) into training times of the same shape.

        The times are steps 1..T (int64), or on a continuous schedule ``(1 - u) T`` in (0, T].
        """
        return self._times.from_uniform("DiffusionLoss.times", u)

    def current(self, denoiser: Denoiser) -> Denoiser:
        """Return the denoiser unchanged, after a check that it fits: no schedule is trained."""
        self._check_denoiser(denoiser)
        return denoiser

    def __repr__(self) -> str:
        return (
            f"DiffusionLoss({self.schedule!r}, kind={self.kind!r}, variance={self.variance!r}, "
            f"prediction={self.prediction!r}, vlb_weight={self.vlb_weight}, "
            f"bin_width={self.bin_width}, weighting={self.weighting!r}, gamma={self.gamma})"
        )

    def __call__(
        self,
        model: Denoiser | Callable[..., Tensor],
        x0: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch: ``loss(model, x0)["loss"].mean().backward()`` trains on it.

        Args:
            model: a `Denoiser` of this schedule, prediction and variance; or a callable, called as
                `model(x_t, t - 1, **cond)`, on a continuous schedule as `model(x_t, t, **cond)`
                with t in float32.
            x0: data `(B, C, ...)`, floating; in [-1, 1] for a bound with a `bin_width`, of any
                range for kind "simple" or without one.
            t: times `(B,)`: integers in 1..T, or real numbers in (0, T] on a continuous schedule;
                None draws them uniformly. Real times are read on the CPU: if they are there
                already, nothing waits for a GPU.
            noise: standard normal noise in the shape of `x0`; None draws it.
            generator: random numbers for `t` and `noise`, on the device of `x0`.
            **cond: keyword arguments of the network, such as labels.

        Returns:
            `loss`; `mse`, the squared error of the output without a weight; and, unless the kind
            is "simple", `vb`, the bound's term of the drawn step in bits per dimension (`loss`
            holds it times T; for a density, its nats divided by log(2)). Each is `(B,)`.

        Raises:
            ValueError: times out of range, an output that does not fit `x0`, or a denoiser of
                another schedule, prediction or variance.
            TypeError: real times with a discrete schedule.
        """
        if isinstance(model, Denoiser):
            self._check_denoiser(model)
        if t is None:
            t = self._times.draw(x0.shape[0], x0.device, generator)
        else:
            self._times.check("DiffusionLoss", t, x0.shape[0])
        if noise is None:
            noise = torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)
        if self.kind != "simple" and self.bin_width is not None:
            self._check_range(x0)
        rows, timesteps = self._rows(t, x0), self._times.timesteps(model, t, x0.device)
        alpha, sigma, mx, me = (rows[:, i].reshape(-1, *[1] * (x0.ndim - 1)) for i in range(4))
        x_t = alpha * x0 + sigma * noise
        if isinstance(model, Denoiser):
            output = model.at_timestep(x_t, timesteps, cond)
        else:
            output = model(x_t, timesteps, **cond)
        channels = x0.shape[1] * (2 if self.variance == "learned_range" else 1)
        expected = (x0.shape[0], channels, *x0.shape[2:])
        if output.shape != expected:
            raise ValueError(
                f"DiffusionLoss: output must have the shape {expected} with variance "
                f"{self.variance!r}, got {tuple(output.shape)}"
            )
        prediction = output[:, : x0.shape[1]]
        mse = ((mx * x0 + me * noise - prediction) ** 2).flatten(1).mean(1)
        if self.kind == "simple":
            return {"loss": mse if self.weighting is None else rows[:, 4] * mse, "mse": mse}
        if self.kind == "hybrid":
            # The bound's noisy gradient must not reach the prediction (arXiv:2102.09672, Sec. 3.1).
            output = torch.cat([prediction.detach(), output[:, x0.shape[1] :]], dim=1)
        vb, _ = vlb_terms(
            output,
            x0,
            x_t,
            rows[:, 5:],
            variance=self.variance,
            bin_width=self.bin_width,
        )
        bound = len(self._table) * vb
        loss = bound if self.kind == "vlb" else mse + self.vlb_weight * bound
        return {"loss": loss, "mse": mse, "vb": vb}

    def _levels(self, times: FloatArray) -> FloatArray:
        """Return `(n, 5)` rows (alpha, sigma, mx, me, weight); the target is ``mx x0 + me eps``."""
        alpha, sigma = self.schedule.levels(times)
        weight = np.ones_like(alpha)
        if self.weighting is not None:
            weight = output_weights(
                "DiffusionLoss", self.weighting, self.prediction, alpha, sigma, gamma=self.gamma
            )
        target = output_terms(self.prediction, alpha, sigma)
        return np.stack([alpha, sigma, *target, weight], axis=1)

    def _rows(self, t: Tensor, x0: Tensor) -> Tensor:
        """Return the coefficient rows of times t, on the device and in the dtype of the data."""
        if self.num_steps is None:
            table = self._levels(t.detach().cpu().double().numpy())
            return torch.as_tensor(table).to(x0.device, x0.dtype)
        key = (x0.device, x0.dtype)
        if key not in self._tables:
            self._tables[key] = self._table.to(x0.device, x0.dtype)
        return self._tables[key][t.to(x0.device) - 1]

    def _check_range(self, x0: Tensor) -> None:
        """Raise ValueError for data outside the decoder's bins; a GPU's only in the first call.

        The check waits for the GPU.
        """
        if torch.compiler.is_compiling() or not x0.numel():
            return
        if x0.device.type == "cpu" or not self._range_was_checked:
            self._range_was_checked = True
            remedy = '; latents and other data without bins need bin_width=None, or kind="simple"'
            check_data_range("DiffusionLoss", x0.detach(), remedy)

    def _check_denoiser(self, denoiser: Denoiser) -> None:
        """Raise ValueError for a model of another schedule, prediction or variance."""
        for name in ("schedule", "prediction", "variance"):
            expected, actual = getattr(self, name), getattr(denoiser, name)
            if expected is not actual and expected != actual:
                raise ValueError(
                    f"DiffusionLoss: model must have the loss's {name} {expected!r}, "
                    f"got {actual!r}; DiffusionLoss.of(denoiser) takes it over"
                )
