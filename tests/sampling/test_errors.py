"""What `sample` refuses: `<function>: <argument> must <rule>, got <value>`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers.networks import LINEAR, denoiser, halve
from tests.helpers.refusals import MODEL, START, bare, check_refusal, refusals, sample

COSINE, FLOW = fs.NoiseSchedule.cosine(), fs.NoiseSchedule.flow()
GRID = grids.uniform(1000, 3)

STEPS = {
    "0 steps": (sample(steps=0), ValueError, r"sample: steps must be in \[1, 1000\], got 0"),
    "steps > T": (sample(steps=1001), ValueError, r"steps must be in \[1, 1000\], got 1001"),
    "float": (sample(steps=10.0), TypeError, r"sample: steps must be an integer, got 10\.0"),
    "bool": (sample(steps=True), TypeError, r"sample: steps must be an integer, got True"),
    "text": (sample(steps="10"), TypeError, r"sample: steps must be an integer, got '10'"),
    "empty": (sample(steps=[]), ValueError, r"Grid: times must .*, got shape \(0,\)"),
    "one time": (sample(steps=[10]), ValueError, r"Grid: times must hold at least 2 times, got 1"),
    "repeated": (
        sample(steps=[9, 5, 5, 0]),
        ValueError,
        r"Grid: times must be strictly decreasing \(noisiest first\), got 5 then 5 at position 1",
    ),
    "increasing": (sample(steps=[0, 5, 9]), ValueError, r"strictly decreasing .*, got 0 then 5"),
    "not to 0": (sample(steps=[9, 5, 1]), ValueError, r"Grid: times must end at 0 .*, got 1; app"),
    "NaN": (sample(steps=[np.nan, 0]), ValueError, r"Grid: times must be finite, got nan"),
    "words": (sample(steps=["a", "b"]), TypeError, r"Grid: times must hold real numbers, got "),
    "above T": (
        sample(steps=[2000, 5, 0]),
        ValueError,
        r"unipc: grid must start at or below T = 1000, got 2000",
    ),
    "unknown grid": (
        sample(grid="even"),
        ValueError,
        r"sample: grid must be one of \['auto', .*'ddim', .*'uniform'\], got 'even'",
    ),
    "grid no name": (sample(grid=[3, 0]), ValueError, r"sample: grid must be one of .*, got \[3, "),
    "discrete grid": (
        bare(schedule=FLOW, grid="trailing"),
        ValueError,
        r"schedule must have whole steps, got NoiseSchedule\.flow\(\)",
    ),
}
PLANS = {
    "prediction": (
        sample(steps=fs.ddim(LINEAR, GRID, prediction="v")),
        ValueError,
        r"sample: steps must fit the model's prediction 'epsilon', got a plan for 'v'",
    ),
    "schedule": (
        sample(steps=fs.ddim(COSINE, GRID)),
        ValueError,
        r"steps must fit the model's schedule NoiseSchedule\.linear\(.*\), "
        r"got .* NoiseSchedule\.cosine",
    ),
    "T": (
        sample(
            denoiser(halve, 2, schedule=fs.NoiseSchedule.linear(500)),
            fs.Plan(
                *(getattr(fs.ddim(LINEAR, GRID), n) for n in ("nodes", "rows", "alphas", "sigmas"))
            ),
        ),
        ValueError,
        r"sample: steps must fit the model's times up to T = 500\.0, got a plan for 1000\.0",
    ),
    "learned variance": (
        sample(steps=fs.ancestral(LINEAR, GRID, variance="learned_range")),
        ValueError,
        r'sample: variance must not be "learned_range" for a model without one',
    ),
    "inverting": (
        sample(steps=fs.ddim_inversion(LINEAR, GRID)),
        ValueError,
        r"sample: steps must end at 0, got ddim_inversion, which inverts",
    ),
}
KNOBS = {
    "method": (
        sample(method="euler"),
        ValueError,
        r"method must be one of \['auto', 'ddim', .*\], got 'euler'",
    ),
    "eta": (sample(eta=1.5), ValueError, r"ddim: eta must be in \[0, 1\], got 1\.5"),
    "eta, ancestral": (
        sample(method="ancestral", eta=0.5),
        ValueError,
        r'sample: eta must be left out with method="ancestral", got 0\.5; its knobs are .*variance',
    ),
    "variance": (
        sample(method="ancestral", variance="huge"),
        ValueError,
        r'ancestral: variance must be "small", .*, got \'huge\'',
    ),
    "learned variance": (
        sample(method="ancestral", variance="learned_range"),
        ValueError,
        r'sample: variance must not be "learned_range" for a model without one',
    ),
    "clip": (sample(clip=-1.0), ValueError, r"unipc: clip must be positive, got -1"),
    "clip text": (sample(clip="yes"), TypeError, r"unipc: clip must be a real number, got 'yes'"),
    "epsilon without signal": (
        bare(schedule=FLOW),
        ValueError,
        r"unipc: prediction must determine x0 at every level, got 'epsilon' where alpha = 0",
    ),
    "graph on the CPU": (
        sample(graph=True),
        ValueError,
        r"sample: graph must be False on cpu, got True; CUDA graphs need a GPU",
    ),
    "graph and callback": (
        sample(graph=True, callback=print),
        ValueError,
        r"sample: graph must be False with gradients, a callback, return_states, .*, got True",
    ),
    "graph and gradients": (
        sample(graph=True, start=START.clone().requires_grad_()),
        ValueError,
        r"sample: graph must be False with gradients",
    ),
}
SAMPLES = {
    "fewer than none": (sample(num_samples=-1), ValueError, r"num_samples must be at least 0, got"),
    "a fraction": (sample(num_samples=2.0), TypeError, r"num_samples must be an integer, got 2\.0"),
    "not agreed": (
        sample(num_samples=2, seed=[1, 2, 3]),
        ValueError,
        r"sample: num_samples must be one number, got \{'num_samples': 2, 'seed': 3\}",
    ),
    "start's shape": (
        sample(start=torch.ones(2, 3, 3)),
        ValueError,
        r"sample: start must have shape \(2, 2, 3\), got \(2, 3, 3\)",
    ),
    "start without batch": (
        sample(start=torch.ones(2, 3)),
        ValueError,
        r"sample: start must have shape \(2, 2, 3\), got \(2, 3\)",
    ),
    "start's dtype": (
        sample(start=START.double(), dtype=torch.float32),
        TypeError,
        r"sample: start must be torch\.float32, got torch\.float64",
    ),
    "start's device": (
        sample(start=START.to("meta")),
        ValueError,
        r"sample: start must be on cpu, got meta",
    ),
    "start no tensor": (sample(start=[1.0]), TypeError, r"start must be a tensor, got list"),
    "start not finite": (
        sample(start=START * torch.nan),
        ValueError,
        r"sample: start must be finite, got NaN",
    ),
    "noise's shape": (
        sample(start=START, noise=torch.ones(2, 2, 2, 3)),
        ValueError,
        r"sample: noise must have shape \(3, 2, 2, 3\), got \(2, 2, 2, 3\)",
    ),
    "noise's dtype": (
        sample(start=START, noise=torch.ones(3, 2, 2, 3).half()),
        TypeError,
        r"sample: noise must be torch\.float32, got torch\.float16",
    ),
    "noise not finite": (
        sample(eta=1.0, start=START, noise=torch.full((3, 2, 2, 3), torch.inf)),
        ValueError,
        r"sample: x must be finite, got infinity in row 0 of 3 \(t = 1000\)",
    ),
    "dtype": (sample(dtype=torch.int32), TypeError, r"dtype must be .*, got torch\.int32"),
    "seed below 0": (sample(seed=-1), ValueError, r"sample: seed must be in \[0, 1844.*\], got -1"),
    "seed of 65 bits": (
        sample(seed=2**64),
        ValueError,
        r"seed must be in .*, got 18446744073709551616",
    ),
    "seeds out of range": (sample(seed=[0, 2**64]), ValueError, r"sample: seed must be in \[0, "),
    "seed float": (sample(seed=1.0), TypeError, r"sample: seed must be an integer, got 1\.0"),
    "seed bool": (sample(seed=True), TypeError, r"sample: seed must be an integer, got True"),
    "seed bools": (sample(seed=[True, False]), TypeError, r"seed must be an integer, got True"),
    "seed text": (sample(seed="1"), TypeError, r"sample: seed must be an integer, got '1'"),
    "index below 0": (
        sample(sample_index=-1),
        ValueError,
        r"sample_index must be in \[0, .*got -1",
    ),
    "indices below 0": (
        sample(sample_index=[3, -1]),
        ValueError,
        r"sample: sample_index must be in \[0, 9223372036854775807\], got -1",
    ),
    "index float": (sample(sample_index=1.5), TypeError, r"sample_index must be an integer, got 1"),
    "indices float": (
        sample(sample_index=[1.5]),
        TypeError,
        r"sample: sample_index must be an integer, got 1\.5",
    ),
    "indices 2-D": (
        sample(sample_index=[[1, 2]]),
        ValueError,
        r"sample: sample_index must be a number or a vector, got 2 dims",
    ),
}


@refusals(steps=STEPS, plans=PLANS, knobs=KNOBS, samples=SAMPLES)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_errors_in_the_arguments_come_before_any_call():
    def never(x, t, **_):
        raise AssertionError("called")

    for options in (
        {"steps": 0},
        {"steps": [5, 6]},
        {"start": torch.ones(3, 2)},
        {"noise": torch.ones(1, 1, 3)},
        {"seed": -1},
        {"guidance": 2.0},
        {"graph": True},
        {"cond": {"y": [1, 2]}, "num_samples": 3},
    ):
        with pytest.raises(ValueError, match=" must "):
            fs.sample(never, **{"steps": 3, **options}, shape=(3,))


def test_numbers_of_numpy_and_torch_are_numbers():
    expected = fs.sample(MODEL, 3, num_samples=2, seed=5, eta=0.5)
    for integer in (np.int64, np.uint8, torch.tensor):
        got = fs.sample(
            MODEL,
            integer(3),
            num_samples=integer(2),
            seed=integer(5),
            eta=np.float32(0.5),
            sample_index=integer(0),
        )
        assert torch.equal(got, expected)
    got = fs.sample(
        MODEL, 3, num_samples=torch.tensor(2), seed=[5, 5], sample_index=[0, 1], eta=0.5
    )
    assert torch.equal(got, expected)
