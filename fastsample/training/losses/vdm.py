"""Implements the loss of variational diffusion models, which also trains the noise schedule."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fastsample._support.checks import FloatArray, check_real
from fastsample.denoiser.denoiser import Denoiser
from fastsample.likelihood.bound import normal_kl
from fastsample.plans.rows import Prediction
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training.losses.level_decoder import checked_levels, level_nats
from fastsample.training.losses.times import unit_numbers

__all__ = ["VDMLoss"]


class VDMLoss(nn.Module):
    r"""Computes the variational bound in continuous time, with learned end points of the schedule.

    Kingma et al. 2021, "Variational Diffusion Models" (arXiv:2107.00630): with
    ``gamma(u) = |w| u + b``, the negative log SNR at u in [0, 1], ``alpha^2 = sigmoid(-gamma)`` and
    ``sigma^2 = sigmoid(gamma)``, the bound (Sec. 3.5) has the terms

        diffusion        1/2 gamma'(u) |eps - eps_hat|^2,  u ~ U(0, 1)               (Sec. 5)
        prior            KL(N(alpha_1 x0, sigma_1^2) || N(0, 1))
        reconstruction   -log p(x0 | z_0), p a softmax of N(z_0 / alpha_0; level, e^gamma(0))

    For data without levels, such as latents, p is the density N(x0; z_0 / alpha_0, e^gamma(0)), and
    the reconstruction is its mean over z_0, ``D / 2 (1 + log(2 pi) + gamma(0))`` nats. Without this
    term a learned gamma(0) would rise without end, since a shorter schedule costs less.

    The scalars w and b are trained with the network, and get a gradient through its input gamma
    too. This gamma is linear in u, as in the paper's published two-dimensional example; the
    paper's monotone network for gamma is not implemented. Optimise ``loss.parameters()`` along
    with the network's. `current` gives the denoiser with the learned schedule, to sample from.

    Args:
        gamma_min: gamma(0) at the start of training, in [-700, 700].
        gamma_max: gamma(1) at the start of training, above gamma_min.
        levels: the values that an element of the data can take, `(V,)`, or `(D, V)` with a row for
            each of the D elements of a sample in C order; "density" for real numbers of any range;
            None sets the reconstruction term to 0, which does for a schedule that is not trained.
        learn: whether w and b are trained.

    Raises:
        TypeError: levels that are no floating tensor.
        ValueError: gamma_max not above gamma_min, or levels of another shape or name.
    """

    def __init__(
        self,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        *,
        levels: Tensor | Literal["density"] | None = None,
        learn: bool = True,
    ) -> None:
        super().__init__()
        low = check_real("VDMLoss", "gamma_min", gamma_min, -700.0, 700.0)
        high = check_real("VDMLoss", "gamma_max", gamma_max, -700.0, 700.0)
        if not low < high:
            raise ValueError(f"VDMLoss: gamma_max must be above gamma_min = {low:g}, got {high:g}")
        self.w = nn.Parameter(torch.tensor(high - low, dtype=torch.float32), requires_grad=learn)
        self.b = nn.Parameter(torch.tensor(low, dtype=torch.float32), requires_grad=learn)
        self.levels: Tensor | None
        # The levels are not in the state dict, because they belong to the data and are not trained.
        self.density = isinstance(levels, str) and levels == "density"
        checked = None if self.density else checked_levels("VDMLoss", levels)
        self.register_buffer("levels", checked, persistent=False)

    @classmethod
    def of(cls, denoiser: Denoiser, **options: Any) -> VDMLoss:
        """Make the loss with a schedule that starts as that of a denoiser.

        Args:
            denoiser: the model; its schedule is a `NoiseSchedule.vdm`.
            **options: `levels`, `learn`.

        Raises:
            ValueError: a denoiser of another schedule or convention.
        """
        _check_denoiser(denoiser)
        arguments: dict[str, Any] = dict(denoiser.schedule.arguments)
        return cls(**arguments, **options)

    def extra_repr(self) -> str:
        """Describe for the repr the shape of the levels and whether the end points are trained."""
        shape = None if self.levels is None else tuple(self.levels.shape)
        shape = "density" if self.density else shape
        return f"levels={shape}, learn={self.w.requires_grad}"

    def gamma(self, u: Tensor) -> Tensor:
        """Return the negative log-SNR at u in [0, 1], shaped like u, differentiable in w and b."""
        return self.w.abs().to(u) * u + self.b.to(u)

    def schedule(self) -> NoiseSchedule:
        """Return the schedule as learned so far; reading w and b waits for their device."""
        low = self.b.item()
        return NoiseSchedule.vdm(low, low + abs(self.w.item()))

    def current(self, denoiser: Denoiser) -> Denoiser:
        """Return the same network under the schedule learned so far, without profile and plans."""
        _check_denoiser(denoiser)
        model = copy.copy(denoiser)
        model.schedule, model.profile, model.plans = self.schedule(), None, {}
        return model

    def times(self, u: npt.ArrayLike) -> FloatArray:
        """Return uniform numbers u in [0, 1) as training times, which they are already.

        Stratified numbers such as ``(randperm(B) + rand(B)) / B`` give the diffusion term less
        variance than independent ones. Without the permutation, a sample that has the same
        position in every batch would be trained at one noise level only.
        """
        return unit_numbers("VDMLoss.times", u)

    def forward(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        decoder_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> dict[str, Tensor]:
        """Compute the bound of a batch: ``loss(model, x0)["loss"].mean().backward()`` trains on it.

        Args:
            denoiser: the model, with a `NoiseSchedule.vdm` and time "log_snr" (the network's
                timestep is then -gamma, with gradient) or "fraction" (u). The noise levels are
                those of this loss, not of the denoiser's schedule.
            x0: data `(B, *shape)`, float32 or float64; with `levels`, every element is one of them.
            t: times u `(B,)` in [0, 1]; None draws them uniformly.
            noise: noise of the diffusion term in the shape of `x0`; None draws it.
            decoder_noise: noise of the reconstruction term in the shape of `x0`; None draws it.
                It is not used without `levels`.
            generator: random numbers for all that is drawn, on the device of `x0`.
            **cond: keyword arguments of the network.

        Returns:
            `diffusion`, `prior`, `reconstruction` and their sum `loss`, in bits per dimension (of
            a density: nats divided by log(2), perhaps negative); each `(B,)`. The reconstruction
            term has a gradient in b, not in `x0`.

        Raises:
            TypeError: data of another dtype.
            ValueError: a denoiser of another schedule or convention, times out of [0, 1], or
                shapes that do not fit.
        """
        _check_denoiser(denoiser)
        if x0.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"VDMLoss: x0 must be float32 or float64, got {x0.dtype}")
        if t is None:
            t = torch.rand(x0.shape[0], dtype=x0.dtype, device=x0.device, generator=generator)
        u, eps = _checked_times(t, x0), _checked_noise("noise", noise, x0, generator)
        diffusion = self._diffusion(denoiser, x0, u, eps, cond)
        zero, one = x0.new_zeros(()), x0.new_ones(())
        gamma_0, gamma_1 = self.gamma(zero), self.gamma(one)
        alpha_1 = torch.sigmoid(-gamma_1).sqrt()
        prior = normal_kl(alpha_1 * x0, logsigmoid(gamma_1), zero, zero).flatten(1).sum(1)
        if self.density:
            # The mean over z_0 needs no noise: that of |x0 - z_0 / alpha_0|^2 is e^gamma(0) D.
            dims = math.prod(x0.shape[1:])
            nats = 0.5 * dims * (1.0 + math.log(2.0 * math.pi) + gamma_0)
            reconstruction = nats.to(prior).expand_as(prior)
        elif self.levels is None:
            reconstruction = torch.zeros_like(prior)
        else:
            decoder_eps = _checked_noise("decoder_noise", decoder_noise, x0, generator)
            reconstruction = level_nats(x0, decoder_eps, self.levels, gamma_0)
        terms = {"diffusion": diffusion, "prior": prior, "reconstruction": reconstruction}
        nats_per_bit = max(math.prod(x0.shape[1:]), 1) * math.log(2.0)  # per dimension
        bits = {name: value / nats_per_bit for name, value in terms.items()}
        return {"loss": bits["diffusion"] + bits["prior"] + bits["reconstruction"], **bits}

    def _diffusion(
        self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        """Return the diffusion term `(B,)` in nats: ``1/2 gamma' |eps - eps_hat|^2``."""
        gamma = self.gamma(u)
        broadcast = gamma.reshape(-1, *[1] * (x0.ndim - 1))
        # Do not use sigma^2 = 1 - alpha^2, which at gamma = -13.3 keeps only 4 digits in float32.
        alpha, sigma = torch.sigmoid(-broadcast).sqrt(), torch.sigmoid(broadcast).sqrt()
        timestep = -gamma if denoiser.time == "log_snr" else u
        output = denoiser.at_timestep(alpha * x0 + sigma * eps, timestep, cond)
        error = _noise_error(denoiser.prediction, output, x0, eps, alpha, sigma)
        return 0.5 * self.w.abs() * error.square().flatten(1).sum(1)


def _noise_error(
    prediction: Prediction, output: Tensor, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Return ``eps - eps_hat`` up to its sign, as a multiple of the output's error.

    To compute eps_hat from the output and subtract it would lose digits near the data, where x and
    the output nearly cancel.
    """
    if prediction == "epsilon":
        return eps - output
    if prediction == "x0":
        return alpha / sigma * (x0 - output)
    if prediction == "v":
        return alpha * (alpha * eps - sigma * x0 - output)
    return alpha / (alpha + sigma) * (eps - x0 - output)


def _checked_noise(
    name: str, value: Tensor | None, x0: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return the noise in the dtype of the data; draw it if it is None."""
    if value is None:
        return torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)
    if value.shape != x0.shape:
        raise ValueError(
            f"VDMLoss: {name} must have the shape of x0 {tuple(x0.shape)}, got {tuple(value.shape)}"
        )
    return value.to(x0)


def _check_denoiser(denoiser: Denoiser) -> None:
    """Raise for a model that the learned schedule does not fit."""
    if not isinstance(denoiser, Denoiser):  # pyright: ignore[reportUnnecessaryIsInstance]
        got = type(denoiser).__name__
        raise TypeError(f"VDMLoss: denoiser must be a fastsample.Denoiser, got {got}")
    if denoiser.schedule.kind != "vdm":
        raise ValueError(
            f"VDMLoss: denoiser must have a NoiseSchedule.vdm, got {denoiser.schedule!r}"
        )
    if denoiser.time not in ("log_snr", "fraction"):
        raise ValueError(
            "VDMLoss: denoiser must have time='log_snr' or 'fraction', "
            f"got {denoiser.time!r}; no gradient passes a callable"
        )
    if denoiser.variance == "learned_range":
        raise ValueError(
            "VDMLoss: denoiser must have a fixed variance, got 'learned_range'; "
            "in continuous time there is nothing to learn about it"
        )


def _checked_times(t: Tensor, x0: Tensor) -> Tensor:
    """Return the times in the data's dtype; check their range on the CPU only, without a wait."""
    if t.shape != x0.shape[:1]:
        raise ValueError(f"VDMLoss: t must have the shape ({x0.shape[0]},), got {tuple(t.shape)}")
    if t.device.type == "cpu" and t.numel() and not 0 <= t.min() <= t.max() <= 1:
        raise ValueError(f"VDMLoss: t must be in [0, 1], got {t.min():g}..{t.max():g}")
    return t.to(x0.device, x0.dtype)
