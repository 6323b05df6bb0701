"""Warns of runs from noise whose first time is one at which samples are mostly data."""

from __future__ import annotations

import numpy as np

from fastsample._support.checks import warn_user
from fastsample.plans.plan import Plan
from fastsample.schedules.schedule import NoiseSchedule

_MOST_SIGNAL = 0.5  # more than in any list that starts below T on purpose, such as DDIM's at 0.8 T
_LESS_SIGNAL = 0.5  # at T, as a share of that at the first node: else the schedule is not noisier


def signal_at_start(schedule: NoiseSchedule, plan: Plan) -> str | None:
    """Return a warning if a plan begins where a trained model expects mostly data, else None.

    A run of it from noise gives no error, and bad samples. Its cause is a list of times of another
    schedule: flow times from 1 to 0, sigmas, or the steps of a model with another T. The share of
    the signal is ``alpha / sqrt(alpha^2 + sigma^2)``. A schedule that itself ends near there is
    left alone.

    Args:
        schedule: the model's noise levels.
        plan: the plan, which is to start from generated noise.
    """
    first = float(plan.nodes[0])
    alpha, sigma = schedule.levels(np.array([first, schedule.T]))
    share = alpha / np.hypot(alpha, sigma)
    if share[0] <= _MOST_SIGNAL or share[1] > _LESS_SIGNAL * share[0]:
        return None
    return (
        f"steps should begin near pure noise where no start= is passed, got t = {first:g} of T = "
        f"{schedule.T:g}, where alpha = {alpha[0]:.3g} and sigma = {sigma[0]:.3g}; times fall from "
        "T to 0 (fs.grids.from_sigmas turns sigmas into times), and start= takes samples of "
        "another level"
    )


def warn_of_signal(function: str, schedule: NoiseSchedule, plan: Plan) -> None:
    """Warn, in the name of a function, of a plan with `signal_at_start`."""
    warning = signal_at_start(schedule, plan)
    if warning:
        warn_user(f"{function}: {warning}")
