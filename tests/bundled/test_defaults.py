"""Other default dtypes and devices of torch change neither weights nor measurements."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample.bundled.datasets import digits_data

DTYPES = [torch.bfloat16, torch.float16, torch.float64]


def measured():
    """Weights of the bundled model, and what is measured of it and of a toy."""
    x = digits_data()[2][:4]
    model = fs.load("digits")
    toy = fs.Denoiser(lambda x, t: 0.5 * x, fs.NoiseSchedule.linear(), (4,))
    profile = fs.profile(model, x, times=[1, 500, 1000], bin_width=1 / 8, trajectories=2)
    plan = fs.tune(toy, 3, samples=64, teacher_steps=12, max_runs=2, gradient_steps=1)
    weights = list(model.model.state_dict().values())
    total = fs.bits_per_dim(model, x, 3, bin_width=1 / 8).total
    return weights, profile.error.tolist(), total, plan.rows.tolist()


@pytest.fixture(scope="module")
def expected():
    return measured()


def check(got, expected):
    for one, other in zip(got[0], expected[0], strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert one.device == other.device
        assert torch.equal(one, other)
    assert got[1:] == expected[1:]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_another_default_dtype(dtype, expected):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        got = measured()
    finally:
        torch.set_default_dtype(before)
    check(got, expected)


def test_another_default_device(expected):
    with torch.device("meta"):
        got = measured()
    check(got, expected)
