"""Data that are not on the decoder's bins: their bits per dimension are several times wrong."""

from __future__ import annotations

import warnings

import pytest
import torch

import fastsample as fs
from fastsample.training import DiffusionLoss
from tests.helpers.networks import LINEAR, denoiser, halve, halve_wide

LEVELS = torch.randint(0, 17, (8, 3, 4), generator=torch.Generator().manual_seed(0)) / 8.0 - 1.0
BYTES = torch.randint(0, 256, (8, 3, 4), generator=torch.Generator().manual_seed(0))
MODEL = denoiser(halve, 3, 4)


def bits(x, **options):
    return fs.bits_per_dim(MODEL, x, 4, **options)


def profile(x, **options):
    return fs.profile(MODEL, x, times=[1, 1000], trajectories=0, **options)


REAL = torch.rand(8, 3, 4, generator=torch.Generator().manual_seed(1)) - 0.5

each_use = pytest.mark.parametrize("use", [bits, profile])


@each_use
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (
            LEVELS,
            {},
            r"[78]\d.*% of the values between them; their levels are 0\.125 apart: pass "
            r"bin_width=0\.125",
        ),
        (
            (LEVELS + 1) / 2,
            {"bin_width": 1 / 8},
            r"\d.*% .*; they are in \[0, 1\]: scale data in "
            r"\[0, 1\] by 2 x - 1",
        ),
        (BYTES / 255.0, {}, r"[45]\d.*% .*; they are in \[0[\d., ]+\]: scale data in"),
    ],
    ids=["levels", "levels in [0, 1]", "bytes in [0, 1]"],
)
def test_a_warning_names_the_likely_mistake(use, x, options, message):
    with pytest.warns(UserWarning, match=r": data must be on the decoder's bins, .*got " + message):
        use(x, **options)


@each_use
@pytest.mark.parametrize(
    ("x", "options"),
    [
        (LEVELS, {"bin_width": 1 / 8}),
        (BYTES / 127.5 - 1.0, {}),
        (BYTES.double() / 255.0 * 2.0 - 1.0, {}),
        ((BYTES / 255.0 - 0.5) / 0.5, {}),
        ((BYTES / 127.5 - 1.0).bfloat16(), {}),
        ((BYTES / 127.5 - 1.0).half(), {}),
    ],
    ids=["levels", "bytes", "float64", "normalised", "bfloat16", "float16"],
)
def test_data_on_the_bins_are_not_warned_of(use, x, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(x, **options)


def test_real_numbers_have_no_bits_per_dimension():
    """A profile of them is good for anything but the bound, so that it says nothing."""
    with pytest.warns(UserWarning, match=r"got \d.*% .*; round them to the bins$"):
        bits(REAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile(REAL)
        profile(LEVELS, bin_width=None)


# ---- latents under the bound


@pytest.mark.parametrize("kind", ["vlb", "hybrid"])
def test_a_bound_on_latents_is_refused(kind):
    loss = DiffusionLoss(LINEAR, kind=kind)
    x0 = torch.full((1, 4, 2, 2), 3.0)
    with pytest.raises(
        ValueError,
        match=r"^DiffusionLoss: data must be in \[-1, 1\], where the decoder's bins lie, got "
        '3 to 3; latents and other data without bins need bin_width=None, or kind="simple"$',
    ):
        loss(halve_wide, x0, torch.tensor([1]))
    assert loss(halve_wide, x0 / 3.0, torch.tensor([1]))["loss"].shape == (1,)


def test_the_simple_loss_takes_latents():
    loss = DiffusionLoss(LINEAR, kind="simple")
    x0 = torch.full((1, 4, 2, 2), 3.0)
    assert torch.isfinite(loss(halve_wide, x0)["loss"]).all()
