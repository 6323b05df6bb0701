"""What one pass over data leaves of a model: sums per time, and their means."""

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
    """What two profiles must share to be added.

    Attributes:
        prediction: what the network predicts.
        variance: the model's reverse variance.
        clip: range of x0hat, (-inf, inf) without.
        bin_width: distance of neighbouring data levels, None for continuous data.
        nodes: Chebyshev nodes per time of a learned variance, else 0.
        seed: of the noise.
    """

    prediction: Prediction
    variance: Variance
    clip: tuple[float, float]
    bin_width: float | None
    nodes: int
    seed: int


@dataclass(frozen=True, eq=False)
class Statistics:
    """A model's errors at every time; `fastsample.profile` measures them.

    Attributes:
        schedule: the noise levels.
        shape: of one sample.
        times: `(n,)` ascending.
        settings: under which it was measured.
        count: samples seen.
        sums: over samples, float64: "error", "error_square", "eps_square", "v" `(n,)`, "excess",
            "weighted" `(n, nodes)`, "nll" `(n, scales)`, "x0_square" `()`.
        trajectories: inner products along fine trajectories, or None.
        origin: which run it belongs to, for one that goes on; None without a file.
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
        """Elements of a sample."""
        return math.prod(self.shape)

    @property
    def error(self) -> FloatArray:
        """`(n,)` ``E||x0 - x0hat_t||^2``, summed over dimensions."""
        return self.sums["error"] / self.count

    @property
    def error_standard_error(self) -> FloatArray:
        """`(n,)` standard error of `error` over samples; NaN for a single sample."""
        mean = self.error
        spread = np.maximum(self.sums["error_square"] / self.count - mean**2, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(spread / np.float64(self.count - 1))

    @property
    def eps_square(self) -> FloatArray:
        """`(n,)` ``E||eps_theta||^2`` before clipping, summed over dimensions."""
        return self.sums["eps_square"] / self.count

    @property
    def prior(self) -> float:
        """``E KL(q(x_T | x0) || N(0, I))`` at the last time, nats."""
        alpha, sigma = (float(level) for level in self.schedule.levels(self.times[-1]))
        energy = alpha**2 * float(self.sums["x0_square"]) / self.count
        return 0.5 * (energy + self.dims * (sigma**2 - 1.0 - 2.0 * math.log(sigma)))

    def decoder(self) -> Decoders:
        """The last step's cost from each time, as a function of the variance."""
        if self.settings.bin_width is None:
            return GaussianDecoder(self.error, self.dims)
        return DiscretizedDecoder(self.log_scales, self.sums["nll"] / self.count)

    # ---- where the sums were taken ----

    @property
    def nodes(self) -> FloatArray:
        """`(n, nodes)` values of a for "excess" and "weighted"."""
        return learned_nodes(self.schedule, self.times, self.settings.nodes)

    @property
    def log_scales(self) -> FloatArray:
        """`(scales,)` log standard deviations for "nll"."""
        return log_scales(self.schedule, self.times, self.settings.bin_width)

    def __repr__(self) -> str:
        name = type(self).__name__
        return (
            f"{name}({self.schedule!r}, shape={self.shape}, {len(self.times)} times, "
            f"{self.count} samples)"
        )

    def check_arrays(self) -> None:
        """ValueError unless times, count and sums are what the settings say."""
        if self.times.ndim != 1 or not np.all(np.diff(self.times, prepend=0.0) > 0.0):
            raise ValueError("times that do not rise from 0")
        if self.times.dtype != np.float64 or self.times[-1] > self.schedule.T:
            raise ValueError(f"times up to {self.times[-1]:g} in {self.times.dtype}")
        if not all(isinstance(n, int) and n >= 1 for n in self.shape) or not self.shape:
            raise ValueError(f"samples of shape {self.shape}")
        if not isinstance(self.count, int) or self.count < 0:
            raise ValueError(f"{self.count} samples")
        check_prediction("Profile", self.settings.prediction)
        n, scales = len(self.times), 0 if self.settings.bin_width is None else len(self.log_scales)
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
    """Sums over no samples."""
    scales = len(log_scales(schedule, times, settings.bin_width))
    shapes = sum_shapes(len(times), settings.nodes, scales)
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def sum_shapes(num_times: int, nodes: int, scales: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a profile's sums."""
    vectors = ("error", "error_square", "eps_square", "v")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(vectors, (num_times,))
    shapes |= {"excess": (num_times, nodes), "weighted": (num_times, nodes)}
    return {**shapes, "nll": (num_times, scales), "x0_square": ()}


def learned_nodes(schedule: NoiseSchedule, times: FloatArray, count: int) -> FloatArray:
    """`(n, count)` nodes at which a profile takes the sums of a learned variance."""
    return chebyshev_nodes(schedule.levels(times)[1] ** 2, count)


def log_scales(schedule: NoiseSchedule, times: FloatArray, bin_width: float | None) -> FloatArray:
    """`(m,)` log standard deviations at which a profile measures the decoder."""
    if bin_width is None:
        return np.empty(0)
    alpha, sigma = schedule.levels(times)
    pair = transition(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    return decoder_log_scales(bin_width, pair.posterior_variance)
