"""Published lists of times as plans: their numbers, interpolation, origin and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.samplers.registry import METHODS
from tests.helpers.networks import Spy
from tests.helpers.refusals import check_refusal, refusals

SD = fs.NoiseSchedule.scaled_linear(1000, 0.00085, 0.012)
NAMES = ["ays-sd15", "ays-sdxl", "ays-svd", "gits-cifar10", "oss-flux", "oss-wan"]
LAST = {"ays-svd": 0.002, "gits-cifar10": 0.002, "oss-flux": 0.001, "oss-wan": 0.001}
"""The published levels below the last step; those of index lists are the levels of index 0."""

names = pytest.mark.parametrize("name", NAMES)


def test_the_names_are_listed_with_what_they_are():
    listed = fs.plans.published()
    assert list(listed) == NAMES
    assert listed["ays-sd15"].startswith("Stable Diffusion 1.5, 10 steps, epsilon: Sabour et al.")
    assert {*NAMES} <= {*listed}
    assert dir(fs.plans) == ["load", "published"]
    with pytest.raises(AttributeError, match=r"'fastsample\.plans' has no attribute 'lode'"):
        fs.plans.lode  # noqa: B018


# ---- the numbers


@pytest.mark.parametrize(
    ("name", "timesteps", "sigmas"),
    [
        ("ays-sd15", "StableDiffusionTimesteps", "StableDiffusionSigmas"),
        ("ays-sdxl", "StableDiffusionXLTimesteps", "StableDiffusionXLSigmas"),
        ("ays-svd", None, "StableDiffusionVideoSigmas"),
    ],
)
def test_align_your_steps_is_that_of_diffusers(name, timesteps, sigmas):
    lists = pytest.importorskip("diffusers.schedulers.scheduling_utils").AysSchedules
    plan = fs.plans.load(name)
    if timesteps is None:
        np.testing.assert_allclose(plan.to_sigmas(), lists[sigmas], rtol=1e-12)
        return
    assert plan.to_timesteps().tolist() == lists[timesteps]
    # Their sigmas have three digits, and are not always those of their own timesteps.
    np.testing.assert_allclose(plan.to_sigmas(), lists[sigmas], rtol=2e-2)


def test_align_your_steps_for_stable_diffusion():
    """The eleven sigmas of NVIDIA's page, of which the last is only interpolated to."""
    assert fs.plans.load("ays-sd15").to_timesteps().tolist() == [
        *(999, 850, 736, 645, 545, 455, 343, 233, 124, 24)
    ]
    page = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    np.testing.assert_allclose(fs.plans.load("ays-sd15").to_sigmas(), page, rtol=5e-3)


def test_the_other_lists():
    gits = [80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.0]
    np.testing.assert_allclose(fs.plans.load("gits-cifar10").to_sigmas(), gits, rtol=1e-12)
    flux = fs.plans.load("oss-flux")
    assert flux.to_sigmas().tolist() == [
        *(0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.0)
    ]
    wan = fs.plans.load("oss-wan").to_sigmas()
    assert len(wan) == 21
    assert wan[[0, 1, -3, -2, -1]].tolist() == [1.0, 0.997, 0.539, 0.208, 0.0]


# ---- interpolation


@names
@pytest.mark.parametrize("steps", [1, 3, 7, 20, 50])
def test_other_numbers_of_steps_are_interpolated_in_log_sigma(name, steps):
    published = fs.plans.load(name)
    alpha, sigma = SD.levels(1.0)
    last = LAST.get(name, sigma / alpha)
    levels = np.log([*published.to_sigmas()[:-1], last])
    place = np.arange(steps) * (len(levels) - 1) / steps  # a position in the published list
    before = np.minimum(place.astype(int), len(levels) - 2)
    share = place - before
    want = np.exp((1 - share) * levels[before] + share * levels[before + 1])
    plan = fs.plans.load(name, steps)
    assert plan.calls == steps
    np.testing.assert_allclose(plan.to_sigmas(), [*want, 0.0], rtol=1e-9)
    assert plan.provenance is not None
    old = published.calls if steps != published.calls else None
    assert plan.provenance["interpolated from steps"] == old


# ---- what a plan is


@names
def test_a_plan_is_the_method_on_the_times_of_the_list(name):
    plan = fs.plans.load(name)
    assert plan.schedule is not None
    grid = fs.Grid(plan.nodes)
    knobs = {"prediction": plan.prediction}
    make = fs.ddim if name.startswith("oss") else fs.dpm_solver
    assert np.array_equal(plan.rows, make(plan.schedule, grid, **knobs).rows)
    assert plan.method.endswith(f" on {name}")
    assert name in repr(plan)
    unipc = fs.plans.load(name, method="unipc", order=1, last=float(plan.nodes[-2]) / 2, clip=1.0)
    assert unipc.nodes[-1] > 0.0
    assert unipc.column("hi").max() == 1.0


@names
def test_a_plan_says_where_its_numbers_are_from(name):
    plan = fs.plans.load(name)
    note = json.loads(json.dumps(plan.provenance))
    assert note["published"] == name
    assert "arXiv" in note["source"]
    assert "https://" in note["source"]
    assert note["licence"]
    assert note["source"] in plan.describe()
    again = fs.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.provenance == plan.provenance


def test_a_model_samples_with_it():
    spy = Spy(lambda x, t: 0.1 * x)
    model = fs.Denoiser(spy, SD, (4, 8, 8))
    x = fs.sample(model, fs.plans.load("ays-sd15"), num_samples=2)
    assert x.shape == (2, 4, 8, 8)
    assert torch.stack(spy.told)[:, 0].tolist() == fs.plans.load("ays-sd15").to_timesteps().tolist()


def test_a_model_of_another_table_of_betas_has_the_same_timesteps():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float32).astype(float) ** 2
    schedule = fs.NoiseSchedule.from_betas(betas)
    plan = fs.plans.load("ays-sd15", schedule=schedule, prediction="v")
    assert plan.schedule == schedule
    assert plan.prediction == "v"
    assert plan.to_timesteps().tolist() == fs.plans.load("ays-sd15").to_timesteps().tolist()
    wide = fs.NoiseSchedule.vdm(-20.0, 20.0)
    video = fs.plans.load("ays-svd", schedule=wide)
    np.testing.assert_allclose(video.to_sigmas(), fs.plans.load("ays-svd").to_sigmas(), rtol=1e-9)


@refusals(
    load={
        "name": (
            lambda: fs.plans.load("ays"),
            ValueError,
            r"^plans.load: name must be one of \['ays-sd15', .*\], got 'ays'",
        ),
        "kind": (lambda: fs.plans.load(10), ValueError, "name must be one of .*, got 10"),
        "steps": (
            lambda: fs.plans.load("ays-sd15", 0),
            ValueError,
            "steps must be at least 1, got 0",
        ),
        "method": (
            lambda: fs.plans.load("ays-sd15", method="euler"),
            ValueError,
            "method must be one of .*, got 'euler'",
        ),
        "fastdpm": (
            lambda: fs.plans.load("ays-sd15", method="fastdpm"),
            ValueError,
            r"method must be one of \['ddim', .*\], which take times, got 'fastdpm'",
        ),
        "knob": (
            lambda: fs.plans.load("ays-sd15", eta=0.5),
            ValueError,
            'eta must be left out with method="dpm[+][+]", got 0.5',
        ),
        "schedule": (
            lambda: fs.plans.load("ays-sd15", schedule="linear"),
            TypeError,
            "schedule must be a NoiseSchedule, got 'linear'",
        ),
        "steps of the schedule": (
            lambda: fs.plans.load("ays-sd15", schedule=fs.NoiseSchedule.linear(50)),
            ValueError,
            'schedule must have 1000 whole steps for the indices of "ays-sd15", got ',
        ),
        "flow": (
            lambda: fs.plans.load("oss-flux", schedule=SD),
            ValueError,
            r'schedule must be one like NoiseSchedule\.flow\(\) for the sigmas of "oss-flux"',
        ),
        "too little noise": (
            lambda: fs.plans.load("ays-svd", schedule=SD),
            ValueError,
            r"sigmas must be at most 14\.6146, that of the schedule at T, got 700",
        ),
    },
)
def test_bad_input_is_refused(call, error, match):
    check_refusal(call, error, match)


def test_methods_that_take_times_all_load():
    for method, entry in METHODS.items():
        if not entry.chooses_times:
            assert fs.plans.load("ays-sdxl", method=method).calls == 10
    assert grids.from_sigmas(SD, fs.plans.load("ays-sdxl").to_sigmas()).times[0] == 1000.0
