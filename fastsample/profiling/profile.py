"""A model's profile: saved, merged, and turned into cost tables and variances."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid, positions_in
from fastsample.planning.cost_table import CostTable, Objective
from fastsample.planning.multistep_path import SecondOrderTable
from fastsample.profiling import file as profile_file
from fastsample.profiling.objectives import DecoderChoice, cost_table
from fastsample.profiling.statistics import Settings, Statistics, empty_sums
from fastsample.profiling.trajectories import Trajectories
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition


@dataclass(frozen=True, eq=False, repr=False)
class Profile(Statistics):
    """A model's errors at every time, and what is made of them; `fastsample.profile` measures one.

    Its attributes are those of `fastsample.profiling.statistics.Statistics`.
    """

    _tables: dict[Any, CostTable | SecondOrderTable] = field(
        default_factory=dict, init=False, repr=False
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
        """The profile of no samples: what others are added to."""
        sums = empty_sums(schedule, times, settings)
        lines = Trajectories.empty(len(times)) if trajectories else None
        return cls(schedule, shape, times, settings, 0, sums, lines)

    def arrays(self) -> dict[str, FloatArray]:
        """Everything that adds up over samples, but the count."""
        lines = {} if self.trajectories is None else self.trajectories.to_arrays()
        return {**self.sums, **lines}

    def with_arrays(self, arrays: dict[str, FloatArray]) -> Profile:
        """The same profile with other sums, named as by `arrays`."""
        sums = dict(arrays)
        lines = Trajectories.from_arrays(sums)
        return replace(self, sums=sums, trajectories=lines)

    def check_model(self, model: Any) -> None:
        """ValueError unless it was measured of such a model: schedule, shape, outputs.

        Args:
            model: a `Denoiser`.
        """
        for name, mine, theirs in (
            ("schedule", model.schedule, self.schedule),
            ("shape", model.shape, self.shape),
            ("prediction", model.prediction, self.settings.prediction),
            ("variance", model.variance, self.settings.variance),
        ):
            if mine != theirs:
                raise ValueError(
                    f"with_profile: profile must have the model's {name} {mine!r}, got {theirs!r}"
                )

    @property
    def default_objective(self) -> Objective:
        """What `costs` and ``grid="auto"`` make small unless told: an objective about samples.

        "trajectory", or "mse" for a profile without trajectories. ("elbo" is about likelihood, and
        its grids make worse samples than even ones.)
        """
        return "trajectory" if self.trajectories and self.trajectories.count else "mse"

    def best_grid(
        self, steps: int, objective: Objective | None = None, **options: Any
    ) -> Grid | None:
        """The best grid of `steps` network calls; the table of costs is made once and kept.

        Args:
            steps: K.
            objective: as for `costs`; None is `default_objective`.
            **options: further arguments of `costs`, hashable.

        Returns:
            None where the profile has too few times for K steps of this objective.
        """
        if steps > len(self.times) or (options.get("decoder") == "respaced" and steps < 2):
            return None
        objective = objective or self.default_objective
        key = (objective, *sorted(options.items()))
        if key not in self._tables:
            self._tables[key] = self.costs(objective, **options)
        return self._tables[key].best_grid(steps)

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
        """Costs of every step between two of the times.

        - "elbo": the step's term of the bound, in nats: what Watson et al. 2021 (arXiv:2106.03802)
          minimise. Best for likelihood; its grids crowd near the data, and samples suffer.
        - "mse": ``(t - s) / T E||x0 - x0hat_t||^2``, their reweighted objective.
        - "trajectory": mean squared distance of one DDIM step from a fine DDIM trajectory. Best
          for samples of deterministic samplers in few steps. Its grids may start below T, where
          x is still nearly the noise.

        Args:
            objective: what is to be small; None is "elbo" when `variance` or `decoder` is given,
                which no other objective has, and else `default_objective`.
            variance: of the reverse steps, "elbo" only; None is the model's own. "analytic" is the
                best single variance of each step (Bao et al. 2022, arXiv:2201.06503) for the
                measured errors.
            decoder: variance of the last step, "elbo" only. "optimal": the one that costs least
                here at each time. "forward": ``1 - alpha_bar_t``. "posterior": the same, but for
                the first time the posterior variance of the two first times (Analytic-DPM).
                "respaced": the posterior variance of the step before it in the chosen grid, the
                convention of improved-diffusion and `fastsample.bits_per_dim` (which with a learned
                variance go on from there by v, up to 0.1 bits/dim away); grids then have 2 steps or
                more. Or `(n,)` variances, as another profile's
                `CostTable.decoder_variance`.
            method: whose steps "trajectory" is about. "dpm++" is DPM-Solver++ 2M, whose steps look
                back, and gives a `SecondOrderTable`: at most 256 times.

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
        """Best single variance of each step of a grid, for ``fastsample.ancestral(variance=...)``.

        Bao et al. 2022 (arXiv:2201.06503). The posterior's variance plus what the error of x0hat
        adds: ``beta-tilde + c1^2 E||x0 - x0hat||^2 / D``, c1 the weight of x0 in the mean.

        Args:
            grid: K steps on times of the profile.
            estimate: "error" uses the measured error, right for any network; "eps" is the paper's
                own, which gets the error from ``E||eps_theta||^2`` as a Bayes-optimal network has
                it. The two agree for such a network.

        Returns:
            `(K,)`, noisiest step first, in the sample's own scale; the last, which lands on x0,
            is 0.

        Raises:
            ValueError: a grid off the profile's times.
        """
        times = np.append(0.0, self.times)
        positions = positions_in("analytic_variance", grid, times, "profile")[:-1] - 1
        alpha, sigma = self.schedule.levels(grid.times)
        if estimate == "error":
            error = self.error[positions] / self.dims
        elif estimate == "eps":
            share = np.maximum(1.0 - self.eps_square[positions] / self.dims, 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                error = share * (sigma[:-1] / alpha[:-1]) ** 2
            # Without any signal epsilon is x itself and says nothing of x0.
            error = np.where(alpha[:-1] == 0.0, self.error[positions] / self.dims, error)
        else:
            raise ValueError(
                f'analytic_variance: estimate must be "error" or "eps", got {estimate!r}'
            )
        pair = transition(alpha[1:], sigma[1:], alpha[:-1], sigma[:-1])
        weight = alpha[1:] * pair.variance / sigma[:-1] ** 2
        variance = pair.posterior_variance + weight**2 * error
        variance[-1] = 0.0
        return variance

    def merge(self, other: Profile) -> Profile:
        """The profile of both sets of data together, which must be disjoint.

        Raises:
            ValueError: profiles of another schedule, shape, times or settings.
        """
        if not isinstance(other, Profile):
            raise TypeError(f"merge: other must be a Profile, got {type(other).__name__}")
        _check_same("merge", self, other)
        sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        return replace(
            self,
            count=self.count + other.count,
            sums=sums,
            trajectories=_sum(self.trajectories, other.trajectories),
        )

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors; a reader never sees half a file."""
        header = {
            "schedule": self.schedule.to_dict(),
            "shape": list(self.shape),
            "count": self.count,
            "origin": self.origin,
            "settings": profile_file.settings_to_header(vars(self.settings)),
        }
        return profile_file.write(path, header, {"times": self.times, **self.arrays()})

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is cut off, or no profile.
        """
        header, arrays = profile_file.read(path)
        try:
            settings = Settings(**profile_file.settings_from_header(header["settings"]))
            found = cls(
                NoiseSchedule.from_dict(header["schedule"]),
                tuple(header["shape"]),
                arrays.pop("times"),
                settings,
                header["count"],
                {},
                origin=header.get("origin"),
            ).with_arrays(arrays)
            found.check_arrays()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Profile.load: path must be a fastsample profile, got {path} ({error})"
            ) from None
        return found


def _sum(one: Trajectories | None, other: Trajectories | None) -> Trajectories | None:
    """Of what one of them may not have."""
    if one is None or other is None:
        return one or other
    return one + other


def _check_same(function: str, one: Profile, other: Profile) -> None:
    """Refuse to add profiles that were not measured alike."""
    pairs: dict[str, tuple[Any, Any]] = {
        "schedule": (one.schedule, other.schedule),
        "shape": (one.shape, other.shape),
        "settings": (one.settings, other.settings),
    }
    for name, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise ValueError(f"{function}: {name} must be {mine!r}, got {theirs!r}")
    if not np.array_equal(one.times, other.times):
        raise ValueError(
            f"{function}: times must be the same {len(one.times)}, got {len(other.times)} others"
        )
