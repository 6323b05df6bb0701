"""What `profile` and `Profile.merge` refuse."""

from __future__ import annotations

import math

import numpy as np
import torch

import fastsample as fs
from tests.helpers.networks import denoiser, halve, halve_wide
from tests.helpers.profile_cases import TIMES, levels
from tests.helpers.refusals import check_refusal, refusals


def profiled(data=None, network=halve, **options):
    """`profile` with a good model and one bad argument."""
    data = levels(4, 3) if data is None else data
    return lambda: fs.profile(denoiser(network, 3), data, **{"times": TIMES, **options})


def broken(at, batch=None):
    """A network that returns NaN at an index, perhaps only for one batch size."""
    return lambda x, t: (
        halve(x, t) * (math.nan if int(t[0]) == at and len(x) == (batch or len(x)) else 1.0)
    )


@refusals(
    data={
        "none": (
            profiled(torch.empty(0, 3)),
            ValueError,
            "profile: data must hold at least one sample, got none",
        ),
        "no batches": (profiled([]), ValueError, "data must hold at least one sample, got none"),
        "range": (
            profiled(2.0 * levels(4, 3), bin_width=2 / 255),
            ValueError,
            r"profile: data must be in \[-1, 1\], where the decoder's bins lie, got -.* to .*; "
            "latents and other real numbers need bin_width=None",
        ),
        "bytes": (
            profiled(torch.arange(12.0).reshape(4, 3)),
            ValueError,
            "profile: data must be scaled as the model's, got whole numbers from 0 to 11; 8-bit "
            r"images are x / 127\.5 - 1, and bin_width=None takes any numbers as they are",
        ),
        "NaN": (profiled(torch.full((2, 3), math.nan)), ValueError, "must be finite, got NaN or"),
        "infinity": (
            profiled(torch.full((2, 3), -math.inf), bin_width=None),
            ValueError,
            "profile: data must be finite, got NaN or infinity",
        ),
        "shape": (
            profiled(levels(4, 5)),
            ValueError,
            r"data must have shape \(4, 3\), got \(4, 5\)",
        ),
        "integers": (
            profiled(torch.zeros(4, 3, dtype=torch.int64)),
            TypeError,
            "data must be floating tensors, got torch.int64",
        ),
        "arrays": (profiled([np.zeros((4, 3))]), TypeError, "floating tensors, got ndarray"),
    },
    times={
        "fractions": (
            profiled(times=[1.0, 2.5]),
            ValueError,
            "profile: times must be whole steps, which the model was trained on, got 2.5",
        ),
        "not rising": (profiled(times=[5, 3]), ValueError, r"times must rise strictly, got \[5"),
        "repeated": (profiled(times=[3, 3]), ValueError, "times must rise strictly"),
        "zero": (profiled(times=[0, 5]), ValueError, r"must be in \(0, 1000\], got 0 to 5"),
        "above T": (profiled(times=[5, 1001]), ValueError, r"in \(0, 1000\], got 5 to 1001"),
        "empty": (profiled(times=[]), ValueError, "times must be a vector with at least one"),
        "NaN": (profiled(times=[math.nan]), ValueError, "times must be finite, got nan"),
        "words": (profiled(times=["a"]), TypeError, "times must hold real numbers"),
    },
    network={
        "NaN": (
            profiled(network=broken(39)),
            ValueError,
            "profile: the model's output must be finite, got NaN or infinity at t = 40",
        ),
        "infinity": (
            profiled(network=lambda x, t: halve(x, t) / (t[0] != 699)),
            ValueError,
            "must be finite, got NaN or infinity at t = 700",
        ),
        "NaN on a trajectory": (
            profiled(network=broken(299, batch=1), trajectories=1),
            ValueError,
            "must be finite, got NaN or infinity at t = 300$",
        ),
        "no Denoiser": (
            lambda: fs.profile(halve, levels(4, 3)),
            TypeError,
            "profile: denoiser must be a Denoiser, got function",
        ),
    },
    numbers={
        "bin_width": (profiled(bin_width=0.0), ValueError, r"bin_width must be in \(0, 2\], got 0"),
        "bin_width, text": (profiled(bin_width="1"), TypeError, "bin_width must be a real number"),
        "batch_size": (profiled(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        "trajectories": (profiled(trajectories=-1), ValueError, "trajectories must be at least 0"),
        "seed": (profiled(seed=-1), ValueError, r"seed must be in \[0, .*\], got -1"),
        "sample_index": (profiled(sample_index=-1), ValueError, "sample_index must be at least 0"),
        "clip": (profiled(clip=-1.0), ValueError, "profile: clip must be positive, got -1"),
        "nodes": (
            lambda: fs.profile(
                denoiser(halve_wide, 3, variance="learned_range"), levels(4, 3), nodes=1
            ),
            ValueError,
            r"profile: nodes must be in \[2, 64\], got 1",
        ),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def other(**changes):
    """A profile measured differently."""
    run = {"times": TIMES, "trajectories": 0, **changes}
    model = run.pop("model", denoiser(halve, 3))
    return fs.profile(model, levels(4, *model.shape), **run)


def merged(**changes):
    return lambda: other().merge(other(**changes))


@refusals(
    merge={
        "schedule": (
            merged(model=denoiser(halve, 3, schedule=fs.NoiseSchedule.cosine())),
            ValueError,
            r"merge: schedule must be NoiseSchedule\.linear\(.*, got NoiseSchedule\.cosine",
        ),
        "shape": (
            merged(model=denoiser(halve, 4)),
            ValueError,
            r"merge: shape must be \(3,\), got \(4,\)",
        ),
        "seed": (merged(seed=3), ValueError, r"merge: settings must be .*seed=0.*, got .*seed=3"),
        "bin_width": (
            merged(bin_width=None),
            ValueError,
            r"settings must be .*got .*bin_width=None.*; without_bins\(\) of a profile is one",
        ),
        "times": (
            merged(times=[1, 2]),
            ValueError,
            "merge: times must be the same 5, got 2 others",
        ),
        "no profile": (
            lambda: other().merge(3),
            TypeError,
            "merge: other must be a Profile, got int",
        ),
    }
)
def test_profiles_that_do_not_add_up(call, error, match):
    check_refusal(call, error, match)
