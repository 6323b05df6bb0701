"""The thresholding and the last level of a model, which its samplers take as their defaults."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample.sampling.guidance import dynamic_threshold
from tests.helpers.networks import LINEAR, denoiser, halve
from tests.helpers.refusals import check_refusal, refusals, sample, wrap

SHAPE = (2, 3, 4)
OPTIONS = {"method": "ddim", "num_samples": 3, "seed": 0, "dtype": torch.float64}


def steep(x, t):
    """An epsilon whose x0 is far outside the data's range."""
    return 0.3 * torch.sin(3.0 * x) - 0.4 * x


THRESHOLDED = denoiser(steep, *SHAPE, clip=1.0, threshold=(0.9, 1.5))
PLAIN = denoiser(steep, *SHAPE, clip=1.0)


@pytest.mark.parametrize("maximum", [1.0, 1.5, 100.0])
@pytest.mark.parametrize("ratio", [0.5, 0.95, 1.0])
def test_the_largest_bound_is_that_of_diffusers(ratio, maximum):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=maximum
    )
    x0 = 3.0 * torch.randn(4, 3, 16, 16) * torch.tensor([0.1, 0.4, 1.0, 3.0]).view(4, 1, 1, 1)
    expected = scheduler._threshold_sample(x0)
    torch.testing.assert_close(dynamic_threshold(x0, 1.0, ratio, maximum), expected)
    if maximum == 1.0:
        assert torch.equal(expected, x0.clamp(-1.0, 1.0))


def test_without_a_largest_bound_it_is_the_papers():
    x0 = 3.0 * torch.randn(4, 3, 16, 16)
    assert torch.equal(dynamic_threshold(x0, 1.0, 0.9), dynamic_threshold(x0, 1.0, 0.9, 1e6))


def test_a_models_threshold_is_the_default():
    explicit = fs.sample(PLAIN, 5, threshold=(0.9, 1.5), **OPTIONS)
    assert not torch.equal(explicit, fs.sample(PLAIN, 5, **OPTIONS))
    assert torch.equal(fs.sample(THRESHOLDED, 5, **OPTIONS), explicit)
    assert not torch.equal(fs.sample(PLAIN, 5, threshold=0.9, **OPTIONS), explicit)
    sampler = fs.Sampler(THRESHOLDED, 5, method="ddim", dtype=torch.float64)
    assert torch.equal(sampler(3, seed=0), explicit)


def test_it_goes_with_the_models_clip_and_with_plans_that_are_made_here():
    without = fs.sample(PLAIN, 5, **OPTIONS)
    assert torch.equal(fs.sample(THRESHOLDED, 5, threshold=None, **OPTIONS), without)
    assert torch.equal(fs.sample(THRESHOLDED, 5, clip=1.0, **OPTIONS), without)
    plan = fs.ddim(LINEAR, fs.grids.uniform(1000, 5), clip=1.0)
    options = {name: value for name, value in OPTIONS.items() if name != "method"}
    assert torch.equal(fs.sample(THRESHOLDED, plan, **options), without)
    tuned = THRESHOLDED.with_plans([plan])
    assert torch.equal(fs.sample(tuned, 5, **options), without)
    explicit = fs.sample(THRESHOLDED, plan, threshold=(0.9, 1.5), **options)
    assert torch.equal(explicit, fs.sample(THRESHOLDED, 5, **OPTIONS))


def test_stopped_runs_and_inpainting_take_it_too():
    stopped = fs.sample(PLAIN, 5, threshold=(0.9, 1.5), stop=300.0, **OPTIONS)
    assert torch.equal(fs.sample(THRESHOLDED, 5, stop=300.0, **OPTIONS), stopped)
    known, mask = torch.zeros(2, *SHAPE), torch.zeros(4)
    explicit = fs.inpaint(PLAIN, known, mask, 5, threshold=(0.9, 1.5), seed=1)
    assert torch.equal(fs.inpaint(THRESHOLDED, known, mask, 5, seed=1), explicit)
    assert not torch.equal(fs.inpaint(PLAIN, known, mask, 5, seed=1), explicit)


FIRST = denoiser(steep, *SHAPE, last="first")
DATA = denoiser(steep, *SHAPE)


@pytest.mark.parametrize("method", ["auto", "ddim", "dpm++", "unipc", "shortcut", "fastdpm"])
def test_a_model_tells_where_its_samplers_land(method):
    assert fs.Sampler(FIRST, 5, method=method).plan.nodes[-1] == 1.0
    assert fs.Sampler(FIRST, 5, method=method, last="data").plan.nodes[-1] == 0.0
    options = {**OPTIONS, "method": method}
    got = fs.sample(FIRST, 5, **options)
    chosen = {} if method == "auto" else {"method": method}
    explicit = {**OPTIONS, "method": "unipc", **chosen}
    assert torch.equal(got, fs.sample(DATA, 5, last="first", **explicit))


def test_tuned_plans_end_at_data():
    plan = fs.ddim(LINEAR, fs.grids.uniform(1000, 5))
    assert fs.Sampler(FIRST.with_plans([plan]), 5).plan == plan


@pytest.mark.parametrize("start", ["prior", "noised"])
def test_trained_chains_end_at_data(start):
    loss = fs.training.FidelityLoss(4, start=start)
    assert loss(FIRST, torch.rand(32, *SHAPE)).plan.nodes[-1] == 0.0


def test_inpainting_lands_there_too():
    known, mask = torch.zeros(2, *SHAPE), torch.zeros(4)
    got = fs.inpaint(FIRST, known, mask, 5, jumps=(2, 1), seed=1)
    assert torch.equal(got, fs.inpaint(DATA, known, mask, 5, jumps=(2, 1), seed=1, last="first"))
    assert not torch.equal(got, fs.inpaint(DATA, known, mask, 5, jumps=(2, 1), seed=1))


def test_inversion_begins_where_samples_end():
    model = denoiser(lambda x, t: 0.2 * torch.sin(x), *SHAPE, last="first")
    x0 = torch.randn(2, *SHAPE, dtype=torch.float64)

    def error(steps, tolerance=None):
        noise = fs.invert(model, x0, steps, tolerance=tolerance, method="ddim")
        back = fs.sample(model, steps, start=noise, method="ddim")
        return float((back - x0).abs().max())

    assert error(6, tolerance=1e-9) < 1e-9
    assert error(400) / error(200) == pytest.approx(0.5, abs=0.1)  # first order
    calls = []
    counting = denoiser(lambda x, t: (calls.append(t[0].item()), 0.2 * x)[1], *SHAPE, last="first")
    fs.invert(counting, x0, 4, method="ddim", grid="uniform")
    assert calls == [0, 249, 499, 749]


@refusals(
    model={
        "threshold without clip": (
            wrap(threshold=0.9),
            ValueError,
            r"Denoiser: clip must be a bound on \|x0\|.* with threshold, got None; pass clip=1.0",
        ),
        "threshold of a pair": (
            wrap(threshold=0.9, clip=(0.0, 1.0)),
            ValueError,
            r"Denoiser: clip must be a bound .* got \(0.0, 1.0\)",
        ),
        "threshold below the range": (
            wrap(threshold=(0.9, 0.5), clip=1.0),
            ValueError,
            r"Denoiser: threshold\[1\] must be at least the clip bound 1, got 0.5",
        ),
        "last": (wrap(last=3), ValueError, r'Denoiser: last must be "data" or "first", got 3'),
        "last of a flow": (
            wrap(halve, fs.NoiseSchedule.flow(), time="fraction", last="first"),
            ValueError,
            r'Denoiser: last must be "data" for a schedule without whole steps, got "first"',
        ),
    },
    sample={
        "three numbers": (
            sample(clip=1.0, threshold=(0.9, 1.0, 2.0)),
            ValueError,
            r"threshold must be a quantile or a pair \(quantile, largest bound\), got \(0.9, 1",
        ),
        "below the range": (
            sample(clip=1.0, threshold=(0.9, 0.5)),
            ValueError,
            r"threshold must have a largest bound of at least the clip bound 1, got 0.5",
        ),
        "a word": (
            sample(clip=1.0, threshold="high"),
            TypeError,
            r"sample: threshold must be a real number, got 'high'",
        ),
    },
)
def test_bad_input(call, error, match):
    check_refusal(call, error, match)
