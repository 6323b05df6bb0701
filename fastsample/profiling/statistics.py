"""Defines the statistics of a model over some data: sums per time, and their means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.planning.decoder import (
    Decoders,
    DiscretizedDecoder,
    GaussianDecoder,
    decoder_log_scales,
)
from fastsample.plans.rows import Prediction, Variance, check_prediction
from fastsample.profiling.learned_range import chebyshev_nodes
from fastsample.profiling.trajectories import Trajectories
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition


@dataclass(frozen=True)
class Settings:
    """Holds the settings of a measurement; only profiles with equal settings can be added.

    Attributes:
        prediction: what the network predicts.
        variance: the model's reverse variance.
        clip: range that x0hat is clamped to; (-inf, inf) does not clamp.
        bin_width: distance of neighbouring data levels; None for data without bins.
        nodes: number of Chebyshev nodes per time for a learned variance; 0 without one.
        seed: seed of the noise.
    """

    prediction: Prediction
    variance: Variance
    clip: tuple[float, float]
    bin_width: float | None
    nodes: int
    seed: int


@dataclass(frozen=True, eq=False)
class Statistics:
    """Holds sums of a model's errors at every time, which `fastsample.profile` measures.

    Attributes:
        schedule: the noise levels.
        shape: shape of one sample.
        times: `(n,)` ascending.
        settings: the settings of the measurement.
        count: number of samples.
        sums: float64 sums over samples: "error", "error_square", "eps_square", "v" `(n,)`,
            "excess", "weighted" `(n, nodes)`, "nll" `(n, scales)`, "x0_square" `()`.
        trajectories: inner products along fine trajectories, or None.
        origin: identifies the run that a saved profile belongs to, so that it can be resumed; None
            for a profile that was measured without a file.
    """

    schedule: NoiseSchedule
    shape: tuple[int, ...]
    times: FloatArray
    settings: Settings
    count: int
    sums: dict[str, FloatArray]
    trajectories: Trajectories | None = None
    origin: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for array in (self.times, *self.sums.values()):
            array.setflags(write=False)

    # ---- means ----

    @property
    def dims(self) -> int:
        """Return the number of elements of a sample."""
        return math.prod(self.shape)

    @property
    def error(self) -> FloatArray:
        """Return `(n,)` ``E||x0 - x0hat_t||^2``, summed over dimensions."""
        return self.sums["error"] / self.count

    @property
    def error_standard_error(self) -> FloatArray:
        """Return the `(n,)` standard errors of `error`; NaN for a single sample."""
        mean = self.error
        spread = np.maximum(self.sums["error_square"] / self.count - mean**2, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(spread / np.float64(self.count - 1))

    @property
    def eps_square(self) -> FloatArray:
        """Return `(n,)` ``E||eps_theta||^2`` before clipping, summed over dimensions."""
        return self.sums["eps_square"] / self.count

    @property
    def prior(self) -> float:
        """Return ``E KL(q(x_t | x0) || N(0, s^2 I))`` at the last time, in nats.

        The deviation s of the noise that sampling starts from is `NoiseSchedule.start_scale`.
        """
        scale = self.schedule.start_scale(float(self.times[-1]))
        levels = self.schedule.levels(self.times[-1])
        alpha, sigma = (float(level) / scale for level in levels)
        energy = alpha**2 * float(self.sums["x0_square"]) / self.count
        return 0.5 * (energy + self.dims * (sigma**2 - 1.0 - 2.0 * math.log(sigma)))

    @property
    def has_bins(self) -> bool:
        """Return whether the decoder was measured on bins; without them it is a density."""
        return self.settings.bin_width is not None

    def decoder(self) -> Decoders:
        """Return the last step's cost from each time, as a function of the decoder's variance."""
        if not self.has_bins:
            return GaussianDecoder(self.error, self.dims)
        return DiscretizedDecoder(self.log_scales, self.sums["nll"] / self.count)

    # ---- where the sums were taken ----

    @property
    def nodes(self) -> FloatArray:
        """Return `(n, nodes)` values of ``a`` (see `learned_range`) for "excess" and "weighted"."""
        return learned_nodes(self.schedule, self.times, self.settings.nodes)

    @property
    def log_scales(self) -> FloatArray:
        """Return `(scales,)` log standard deviations of the decoder for the sums "nll"."""
        return log_scales(self.schedule, self.times, self.settings.bin_width)

    def __repr__(self) -> str:
        name = type(self).__name__
        return (
            f"{name}({self.schedule!r}, shape={self.shape}, {len(self.times)} times, "
            f"{self.count} samples{'' if self.has_bins else ', no bins'})"
        )

    def check_arrays(self) -> None:
        """Raise ValueError if times, count or sums do not fit the settings, as from a bad file."""
        if self.times.ndim != 1 or not np.all(np.diff(self.times, prepend=0.0) > 0.0):
            raise ValueError("times that do not rise from 0")
        if self.times.dtype != np.float64 or self.times[-1] > self.schedule.T:
            raise ValueError(f"times up to {self.times[-1]:g} in {self.times.dtype}")
        shape: Any = self.shape
        if not all(isinstance(size, int) and size >= 1 for size in shape) or not shape:
            raise ValueError(f"samples of shape {shape}")
        count: Any = self.count
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"{count} samples")
        check_prediction("Profile", self.settings.prediction)
        n, scales = len(self.times), len(self.log_scales)
        shapes = sum_shapes(n, self.settings.nodes, scales)
        for name, shape in shapes.items():
            if self.sums[name].shape != shape or self.sums[name].dtype != np.float64:
                raise ValueError(f"{name} of shape {self.sums[name].shape}, not {shape}")
        if self.sums.keys() != shapes.keys():
            raise ValueError(f"sums {sorted(self.sums)}")
        if not all(np.all(np.isfinite(array)) for array in self.sums.values()):
            raise ValueError("sums that are not finite")
        if np.any(self.sums["error"] < 0.0):
            raise ValueError("negative squared errors")
        if self.trajectories is not None:
            self.trajectories.check_shapes(len(self.times))


def empty_sums(
    schedule: NoiseSchedule, times: FloatArray, settings: Settings
) -> dict[str, FloatArray]:
    """Return the sums over no samples, by name: zeros of the right shapes."""
    scales = len(log_scales(schedule, times, settings.bin_width))
    shapes = sum_shapes(len(times), settings.nodes, scales)
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def sum_shapes(num_times: int, nodes: int, scales: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the sums over samples, by name."""
    vectors = ("error", "error_square", "eps_square", "v")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(vectors, (num_times,))
    shapes |= {"excess": (num_times, nodes), "weighted": (num_times, nodes)}
    return {**shapes, "nll": (num_times, scales), "x0_square": ()}


def learned_nodes(schedule: NoiseSchedule, times: FloatArray, count: int) -> FloatArray:
    """Return `(n, count)` nodes at which the sums of a learned variance are taken."""
    return chebyshev_nodes(schedule.levels(times)[1] ** 2, count)


def log_scales(schedule: NoiseSchedule, times: FloatArray, bin_width: float | None) -> FloatArray:
    """Return `(m,)` log standard deviations at which the decoder's sums are taken."""
    if bin_width is None:
        return np.empty(0)
    alpha, sigma = schedule.levels(times)
    pair = transition(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    return decoder_log_scales(bin_width, pair.posterior_variance)


def check_same(function: str, one: Statistics, other: Statistics) -> None:
    """Raise ValueError unless two profiles were measured alike and may be added."""
    pairs: dict[str, tuple[Any, Any]] = {
        "schedule": (one.schedule, other.schedule),
        "shape": (one.shape, other.shape),
        "settings": (one.settings, other.settings),
    }
    for name, (expected, actual) in pairs.items():
        if expected != actual:
            remedy = ""
            if name == "settings" and one.has_bins != other.has_bins:
                remedy = "; without_bins() of a profile is one without bins"
            raise ValueError(f"{function}: {name} must be {expected!r}, got {actual!r}{remedy}")
    if not np.array_equal(one.times, other.times):
        raise ValueError(
            f"{function}: times must be the same {len(one.times)}, got {len(other.times)} others"
        )
