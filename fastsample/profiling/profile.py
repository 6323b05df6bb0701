"""Defines `Profile`, which can be saved, merged, and turned into cost tables and variances."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid
from fastsample.planning.cost_table import CostTable, Objective
from fastsample.planning.multistep_path import MOST_TIMES, SecondOrderTable
from fastsample.profiling.analytic_variance import analytic_variance
from fastsample.profiling.file import FORMAT, settings_from_header, settings_to_header
from fastsample.profiling.objectives import DecoderChoice, cost_table
from fastsample.profiling.statistics import Settings, Statistics, check_same, empty_sums
from fastsample.profiling.trajectories import Trajectories, sum_of_trajectories
from fastsample.schedules.schedule import NoiseSchedule


@dataclass(frozen=True, eq=False, repr=False)
class Profile(Statistics):
    """Holds a model's errors at every time, as `fastsample.profile` measures them.

    Its attributes are those of `fastsample.profiling.statistics.Statistics`.
    """

    _tables: dict[Any, CostTable | SecondOrderTable] = field(
        default_factory=dict[Any, CostTable | SecondOrderTable], init=False, repr=False
    )

    @classmethod
    def empty(
        cls,
        schedule: NoiseSchedule,
        shape: tuple[int, ...],
        times: FloatArray,
        settings: Settings,
        trajectories: bool,
    ) -> Profile:
        """Make the profile of zero samples, to which others are added.

        Args:
            schedule: the noise levels.
            shape: shape of one sample.
            times: `(n,)` ascending.
            settings: the settings of the profiles to be added.
            trajectories: whether those profiles have trajectories.
        """
        sums = empty_sums(schedule, times, settings)
        products = Trajectories.empty(len(times)) if trajectories else None
        return cls(schedule, shape, times, settings, 0, sums, products)

    def arrays(self) -> dict[str, FloatArray]:
        """Return all sums over samples by name, without the count."""
        products = {} if self.trajectories is None else self.trajectories.to_arrays()
        return {**self.sums, **products}

    def with_arrays(self, arrays: dict[str, FloatArray]) -> Profile:
        """Return the same profile with other sums, under the names that `arrays` gives."""
        sums = dict(arrays)
        trajectories = Trajectories.from_arrays(sums)
        return replace(self, sums=sums, trajectories=trajectories)

    def without_bins(self) -> Profile:
        """Return the profile that ``bin_width=None`` measures, without the decoder on bins.

        It can be added to a profile of data without bins, such as latents.
        """
        settings = replace(self.settings, bin_width=None)
        sums = {**self.sums, "nll": np.empty((len(self.times), 0))}
        return replace(self, settings=settings, sums=sums)

    def check_model(self, model: Any) -> None:
        """Raise ValueError unless schedule, shape, prediction and variance are the model's.

        Args:
            model: a `Denoiser`.
        """
        for name, expected, actual in (
            ("schedule", model.schedule, self.schedule),
            ("shape", model.shape, self.shape),
            ("prediction", model.prediction, self.settings.prediction),
            ("variance", model.variance, self.settings.variance),
        ):
            if expected != actual:
                raise ValueError(
                    f"with_profile: profile must have the model's {name} {expected!r}, "
                    f"got {actual!r}"
                )

    @property
    def default_objective(self) -> Objective:
        """Return the objective that `costs` and ``grid="auto"`` use: the best one for samples.

        It is "trajectory", or "mse" for a profile without trajectories. Not "elbo", which is about
        likelihood and whose grids make worse samples than even ones.
        """
        return "trajectory" if self.trajectories and self.trajectories.count else "mse"

    def best_grid(
        self, steps: int, objective: Objective | None = None, **options: Any
    ) -> Grid | None:
        """Return the best grid of `steps` network calls; the cost table is made once and kept.

        Args:
            steps: the number K of network calls.
            objective: as for `costs`; None is `default_objective`.
            **options: further arguments of `costs`, hashable.

        Returns:
            The grid, or None if the profile has too few times for K steps of this objective.

        Raises:
            ValueError: an objective that the profile has no statistics for.
        """
        if steps > len(self.times) or (options.get("decoder") == "respaced" and steps < 2):
            return None
        objective = objective or self.default_objective
        key = (objective, *sorted(options.items()))
        if key not in self._tables:
            self._tables[key] = self.costs(objective, **options)
        return self._tables[key].best_grid(steps)

    def sampling_grid(self, steps: int, order: int) -> Grid | None:
        """Return the times that ``grid="auto"`` means for a sampler of this model.

        A multistep sampler gets the times that are best for steps of second order; for more than
        256 times, where that table would be too large, those of DDIM. Without trajectories it gets
        none, because the objective "mse" chose worse times for it than its own grid.

        Args:
            steps: the number K of network calls.
            order: the number of network outputs that the sampler combines in a step.

        Returns:
            The grid, or None if the sampler's own grid is better, or the profile has too few times.
        """
        if order == 1:
            return self.best_grid(steps)
        if self.default_objective != "trajectory":
            return None
        if len(self.times) <= MOST_TIMES:
            return self.best_grid(steps, "trajectory", method="dpm++")
        return self.best_grid(steps, "trajectory")

    @overload
    def costs(
        self,
        objective: Literal["trajectory"],
        *,
        variance: None = None,
        decoder: Literal["optimal"] = "optimal",
        method: Literal["dpm++"],
    ) -> SecondOrderTable: ...

    @overload
    def costs(
        self,
        objective: Objective | None = None,
        *,
        variance: Literal["small", "large", "learned_range", "analytic"] | None = None,
        decoder: DecoderChoice = "optimal",
        method: Literal["ddim"] = "ddim",
    ) -> CostTable: ...

    def costs(
        self,
        objective: Objective | None = None,
        *,
        variance: Literal["small", "large", "learned_range", "analytic"] | None = None,
        decoder: DecoderChoice = "optimal",
        method: Literal["ddim", "dpm++"] = "ddim",
    ) -> CostTable | SecondOrderTable:
        """Return the costs of the steps between all pairs of times.

        - "elbo": the step's term of the bound in nats, which Watson et al. 2021 (arXiv:2106.03802)
          minimise. Best for likelihood; its grids crowd near the data, and samples suffer. The last
          step is a probability of bins, or for a profile without bins a Gaussian density, whose
          nats may be negative.
        - "mse": ``(t - s) / T E||x0 - x0hat_t||^2``, their reweighted objective.
        - "trajectory": mean squared distance of one DDIM step from a fine DDIM trajectory. Best
          for samples of deterministic samplers in few steps. Its grids may start below T, where
          x is still nearly the noise.

        Args:
            objective: the cost of a step, from the list above; None is "elbo" if `variance` or
                `decoder` is passed, which no other objective takes, and else `default_objective`.
            variance: reverse variance of the steps, "elbo" only; None is the model's. "analytic" is
                the best single variance of each step (Bao et al. 2022, arXiv:2201.06503) for the
                measured errors.
            decoder: variance of the last step, "elbo" only. "optimal": the variance of the least
                cost at each time. "forward": ``1 - alpha_bar_t``. "posterior": the same, but at the
                first time the posterior variance of the two first times (Analytic-DPM).
                "respaced": the posterior variance of the step before it in the chosen grid, the
                convention of improved-diffusion and `fastsample.bits_per_dim` (with a learned
                variance those interpolate from there by v, up to 0.1 bits/dim away); grids then
                have 2 steps or more. Or `(n,)` variances in squared data units, such as
                `CostTable.decoder_variance` of another profile.
            method: sampler of the steps of "trajectory". "dpm++" is DPM-Solver++ 2M, whose steps
                depend on the step before; it takes at most 256 times.

        Returns:
            Costs between all pairs of times, time 0 first; a `SecondOrderTable` for "dpm++".

        Raises:
            ValueError: a combination that the profile has no statistics for.
        """
        if objective is None:
            elbo = variance is not None or not (isinstance(decoder, str) and decoder == "optimal")
            objective = "elbo" if elbo else self.default_objective
        return cost_table(self, objective, variance, decoder, method)

    def analytic_variance(
        self, grid: Grid, *, estimate: Literal["error", "eps"] = "error"
    ) -> FloatArray:
        """Return the best scalar variance of each step, for ``fastsample.ancestral(variance=...)``.

        It is ``beta-tilde + c1^2 E||x0 - x0hat||^2 / D`` of Bao et al. 2022 (arXiv:2201.06503): the
        posterior variance, and the error of x0hat times the squared weight c1 of x0 in the mean.

        Args:
            grid: K steps on times of the profile.
            estimate: "error" uses the measured error, right for any network; "eps" is the paper's
                estimate from ``E||eps_theta||^2``, right for a Bayes-optimal network, for which
                the two agree.

        Returns:
            Variances `(K,)`, noisiest step first, in squared units of the noisy samples; 0 for the
            last step, whose result is x0hat.

        Raises:
            TypeError: other times than a `Grid`.
            ValueError: a grid with a time that the profile lacks, or an unknown estimate.
        """
        return analytic_variance(self, grid, estimate)

    def merge(self, other: Profile) -> Profile:
        """Return the profile of two disjoint sets of data together.

        Args:
            other: the profile of the other set, of the same model and measured alike.

        Raises:
            TypeError: anything but a profile.
            ValueError: a profile of another schedule, shape, times or settings.
        """
        if not isinstance(other, Profile):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"merge: other must be a Profile, got {type(other).__name__}")
        check_same("merge", self, other)
        sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        return replace(
            self,
            count=self.count + other.count,
            sums=sums,
            trajectories=sum_of_trajectories(self.trajectories, other.trajectories),
        )

    def save(self, path: str | Path) -> Path:
        """Write the profile as safetensors, atomically: a reader never sees half a file.

        Args:
            path: the file.

        Returns:
            The path of the file.

        Raises:
            OSError: the file cannot be written.
        """
        header = {
            "schedule": self.schedule.to_dict(),
            "shape": list(self.shape),
            "count": self.count,
            "origin": self.origin,
            "settings": settings_to_header(vars(self.settings)),
        }
        arrays = {"times": self.times, **self.arrays()}
        # Do not use `ascontiguousarray`, which would turn 0-dimensional arrays into vectors.
        packed = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        return FORMAT.save(path, header, packed)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile that `save` wrote.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is damaged, truncated or no profile.
        """
        header, arrays = FORMAT.load(path)
        with FORMAT.reading(path):
            settings = Settings(**settings_from_header(header["settings"]))
            profile = cls(
                NoiseSchedule.from_dict(header["schedule"]),
                tuple(header["shape"]),
                arrays.pop("times"),
                settings,
                header["count"],
                {},
                origin=header.get("origin"),
            ).with_arrays(arrays)
            profile.check_arrays()
            return profile
