"""The linear betas of other projects for any number of steps."""

from __future__ import annotations

from fastsample.schedules.schedule import NoiseSchedule

FEWEST_STEPS = 21
"""The last beta is 20 / T, so that fewer steps have no such schedule."""


def linear_betas(num_steps: int) -> NoiseSchedule:
    """Return the schedule of the linear betas of Ho et al. 2020 (arXiv:2006.11239) times 1000 / T.

    improved-diffusion, guided-diffusion and denoising-diffusion-pytorch have it.

    Args:
        num_steps: T, at least `FEWEST_STEPS`.
    """
    scale = 1000 / num_steps
    return NoiseSchedule.linear(num_steps, scale * 0.0001, scale * 0.02)
