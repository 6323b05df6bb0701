"""Tuning on latents: data of any range, without a bound on x0."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from tests.helpers.latents import RANGES


@pytest.mark.parametrize("name", RANGES)
def test_a_tuned_plan_beats_the_default_on_fresh_noise(name):
    latents = RANGES[name]
    model = latents.denoiser()
    plan = fs.tune(model, 5, samples=64, teacher_steps=40, max_runs=15)
    assert plan.calls == 5
    start = torch.randn(64, *latents.shape, generator=torch.Generator().manual_seed(9))
    fine = fs.sample(model, 200, start=start, method="dpm++")
    assert float(fine.abs().max()) > 4.0

    def miss(*arguments, **options):
        """The median, because a sample that ends in another mode outweighs all others."""
        x = fs.sample(model, *arguments, start=start, **options)
        return float((x - fine).square().flatten(1).mean(1).median().sqrt())

    tuned = miss(plan)
    assert tuned < 0.9 * miss(5)
    assert tuned < 0.5 * miss(5, method="ddim")
