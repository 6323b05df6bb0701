"""Tuned plans at the edges: ranges, other noises, conditions, networks that fail, two processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.tuning.split import Split
from fastsample.tuning.teacher import teacher_times
from tests.helpers.mixture import mixture
from tests.helpers.networks import LINEAR, denoiser
from tests.helpers.refusals import check_refusal, refusals

SMALL = {"samples": 96, "teacher_steps": 32, "max_runs": 8}


def test_results_stay_in_the_range_of_the_data():
    model = mixture(clip=1.0)
    plan = fs.tune(model, 4, **SMALL)
    x = fs.sample(model, plan, num_samples=200)
    assert float(x.abs().max()) <= 1.0
    assert plan.provenance["clip"] == 1.0


def test_features_choose():
    """One coordinate alone: the other's error no longer counts."""
    options = {**SMALL, "samples": 256, "max_runs": 20}
    one = fs.tune(mixture(), 3, features=lambda x: x[:, :1], **options)
    both = fs.tune(mixture(), 3, **options)
    error = [
        min(s["validation"] for s in plan.provenance["stages"] + plan.provenance["starts"])
        for plan in (one, both)
    ]
    assert error[0] != error[1]
    assert one.provenance["starts"][0]["validation"] != both.provenance["starts"][0]["validation"]


def test_plans_know_the_weights_they_were_tuned_for():
    class Net(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(scale))

        def forward(self, x, t):
            return self.scale * x

    notes = [
        fs.tune(denoiser(Net(scale), 2), 3, **SMALL).provenance["model"]
        for scale in (0.5, 0.5, 0.6)
    ]
    assert notes[0] == notes[1] != notes[2]
    assert len(notes[0]) == 64
    assert fs.tune(mixture(), 3, **SMALL).provenance["model"] is None


def test_seeds_of_any_integer_kind():
    assert fs.tune(mixture(), 3, seed=np.int64(2), **SMALL) == fs.tune(
        mixture(), 3, seed=2, **SMALL
    )


def test_the_split_does_not_follow_the_order_of_conditions():
    split = Split.of(400, torch.device("cpu"))
    labels = np.arange(10).repeat(40)[split.index]
    for part in (split.calibration, split.held_out, split.searched):
        assert len(set(labels[part])) == 10
    assert sorted(split.index) == list(range(400))


def test_conditions_without_and_with_guidance_may_be_per_sample():
    options = {"cond": {"y": torch.ones(96)}, "guidance": 2.0, **SMALL}
    one = fs.tune(mixture(), 3, uncond={"y": torch.zeros(96)}, **options)
    two = fs.tune(mixture(), 3, uncond={"y": 0.0}, **options)
    np.testing.assert_allclose(one.rows, two.rows, rtol=1e-6, atol=1e-6)


def test_a_sampler_that_fails_is_left_out():
    """The network is fine on the teacher's times and nowhere else."""
    times = teacher_times(LINEAR, 32)
    good = mixture()

    def network(x, t):
        out = good.model(x, t)
        return out if float(t[0]) + 1 in times else out * torch.nan

    with pytest.raises(ValueError, match="must be finite, got NaN or infinity in every known"):
        fs.tune(denoiser(network, 2), 4, **SMALL)


def test_a_threshold_or_guidance_is_not_what_plans_were_tuned_for():
    model = mixture(clip=1.0, uncond={"y": 0.0})
    own = model.with_plans([fs.tune(mixture(clip=1.0), 4, **SMALL)])
    for asked in ({"threshold": 0.9}, {"guidance": 2.0, "cond": {"y": 1.0}}):
        asked |= {"num_samples": 5, "seed": 0}
        assert torch.equal(fs.sample(own, 4, **asked), fs.sample(model, 4, **asked))


def test_inverting_and_sampling_take_the_same_times():
    x0 = torch.rand(6, 2) - 0.5
    model = mixture()
    profile = fs.profile(model, x0, times=range(20, 1001, 20), bin_width=None, trajectories=6)
    model = model.with_profile(profile).with_plans([fs.tune(model, 8, **SMALL)])
    z = fs.invert(model, x0, 9, tolerance=1e-4)
    again = fs.sample(model, 9, start=z)
    torch.testing.assert_close(again, x0, rtol=0.0, atol=2e-4)


def test_provenance_is_json():
    plan = fs.tune(mixture(), 3, **SMALL)
    assert json.loads(json.dumps(plan.provenance)) == plan.provenance
    assert plan.provenance["shape"] == [2]
    copy = plan.with_provenance(None)
    assert copy == plan
    assert copy.provenance is None
    assert copy.describe() == repr(copy)
    assert '"who": "me"' in plan.with_provenance({"who": "me"}).describe()


def plans(*given):
    return lambda: mixture().with_plans(*given)


GRID = fs.grids.uniform(1000, 3)


@refusals(
    plans={
        "one plan": (plans(fs.ddim(LINEAR, GRID)), TypeError, "plans must be several Plans, got"),
        "nothing": (plans(None), TypeError, "plans must be several Plans, got NoneType"),
        "stochastic": (
            plans([fs.ancestral(LINEAR, GRID)]),
            ValueError,
            "with_plans: plans must be deterministic, got ancestral",
        ),
        "inverting": (
            plans([fs.ddim_inversion(LINEAR, GRID)]),
            ValueError,
            r"with_plans: plans must be complete \(end at data\), got ddim_inversion of 2 calls",
        ),
        "guided": (
            plans([fs.ddim(LINEAR, GRID).with_guidance(2.0)]),
            ValueError,
            "with_plans: plans must be unguided, got",
        ),
        "two of one length": (
            plans([fs.ddim(LINEAR, GRID)] * 2),
            ValueError,
            "plans must be one of each number of network calls, got another for one of 3",
        ),
        "shape": (
            plans([fs.ddim(LINEAR, GRID).with_provenance({"shape": [3, 8, 8]})]),
            ValueError,
            r"plans must fit the model's shape \(2,\), got a plan for \(3, 8, 8\)",
        ),
    },
    tune={
        "short schedule": (
            lambda: fs.tune(mixture(schedule=fs.NoiseSchedule.linear(10)), 8, samples=32),
            ValueError,
            r"tune: steps must be in \[2, 5\], got 8",
        ),
        "conditions": (
            lambda: fs.tune(mixture(), 3, cond={"y": torch.zeros(200)}, **SMALL),
            ValueError,
            r"cond\['y'\] must have one entry per sample \(96\), got 200",
        ),
        "no mapping": (
            lambda: fs.tune(mixture(), 3, cond=5, **SMALL),
            TypeError,
            "cond must be a mapping of keyword arguments, got int",
        ),
        "features": (
            lambda: fs.tune(mixture(), 3, features=lambda x: x[:5], **SMALL),
            ValueError,
            r"features must give a tensor \(32, ...\), got \(5, 2\)",
        ),
        "features, kind": (
            lambda: fs.tune(mixture(), 3, features=3, **SMALL),
            TypeError,
            "features must be callable or None, got 3",
        ),
        "uncond alone": (
            lambda: fs.tune(mixture(), 3, uncond={"y": 0.0}, **SMALL),
            ValueError,
            "guidance must be given with uncond, got None",
        ),
        "seed": (
            lambda: fs.tune(mixture(), 3, seed=[1], **SMALL),
            TypeError,
            "seed must be an int",
        ),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_a_random_network_is_told():
    """Two calls with the same samples differ, so that the plan would be fitted to chance."""
    random = fs.Denoiser(lambda x, t: 0.5 * x + 0.2 * torch.randn_like(x), LINEAR, (4,))
    with pytest.warns(
        UserWarning,
        match=r"^tune: denoiser must be deterministic, got outputs for "
        r"the same samples that differ by .*; call model\.eval\(\)",
    ):
        fs.tune(random, 3, samples=64, teacher_steps=12, max_runs=2)
