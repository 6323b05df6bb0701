"""Models that are refused, before the first call or for what they answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastsample as fs
from tests.helpers.networks import denoiser, halve, halve_wide, per_sample
from tests.helpers.refusals import bare, check_refusal, refusals, sample, wrap

COSINE = fs.NoiseSchedule.cosine()

MODELS = {
    "text": (
        sample("digits"),
        TypeError,
        r"sample: model must be a Denoiser or a callable .*got str",
    ),
    "pipeline": (
        sample(SimpleNamespace(unet=halve, scheduler=object())),
        TypeError,
        r"sample: model must be a Denoiser .*, got the pipeline SimpleNamespace; pass "
        r"fastsample.integrations.diffusers.denoiser\(pipe\)",
    ),
    "no shape": (
        sample(halve),
        ValueError,
        r"sample: shape must be given for a bare callable, got",
    ),
    "another shape": (
        sample(shape=(3, 3)),
        ValueError,
        r"sample: shape must be the model's \(2, 3\), got \(3, 3\)",
    ),
    "another schedule": (
        sample(schedule=COSINE),
        ValueError,
        r"sample: schedule must be the model's NoiseSchedule\.linear\(.*\), got .*cosine",
    ),
    "schedule by name": (
        bare(schedule="linear"),
        TypeError,
        r"Denoiser: schedule must be a NoiseSchedule, got 'linear'",
    ),
    "betas": (
        bare(schedule=np.linspace(1e-4, 0.02, 50)),
        TypeError,
        r"Denoiser: schedule must be a NoiseSchedule, got array",
    ),
    "shape a number": (bare(shape=3), TypeError, r"shape must be a sequence of sizes, got 3"),
    "shape empty": (bare(shape=[]), ValueError, r"shape must have at least one dimension, got"),
    "shape of 0": (bare(shape=(0, 3)), ValueError, r"Denoiser: shape must be at least 1, got 0"),
    "shape of floats": (bare(shape=(2.0,)), TypeError, r"shape must be an integer, got 2\.0"),
    "not callable": (wrap(3), TypeError, r"Denoiser: model must be callable, got int"),
    "prediction": (wrap(prediction="noise"), ValueError, r"prediction must be one of .*'noise'"),
    "variance": (
        wrap(variance="learned"),
        ValueError,
        r"variance must be one of .*, got 'learned'",
    ),
    "time": (
        wrap(time="t"),
        ValueError,
        r"Denoiser: time must be one of .* or a callable, got 't'",
    ),
    "time a list": (wrap(time=[1]), ValueError, r"Denoiser: time must be one of .*, got \[1\]"),
    "clip": (wrap(clip="auto"), TypeError, r"Denoiser: clip must be a real number, got 'auto'"),
}
OUTPUTS = {
    "another shape": (
        bare(lambda x, t: x[:, :1]),
        ValueError,
        r"Denoiser: the model's output must have shape \(1, 2, 3\) for x .*, got \(1, 1, 3\)",
    ),
    "2C without learned variance": (
        bare(halve_wide),
        ValueError,
        r"\(1, 2, 3\), got \(1, 4, 3\); if its second half .*pass variance=\"learned_range\"",
    ),
    "C with learned variance": (
        sample(denoiser(halve, 2, 3, variance="learned_range")),
        ValueError,
        r"must have shape \(1, 4, 3\) for x .*, got \(1, 2, 3\); a variance=\"learned_range\"",
    ),
    "integers": (
        bare(lambda x, t: x.long()),
        TypeError,
        r"the model's output must be a floating tensor, got torch\.int64",
    ),
    "complex": (bare(lambda x, t: x + 0j), TypeError, r"a floating tensor, got torch\.complex64"),
    "device": (
        bare(lambda x, t: x.to("meta")),
        ValueError,
        r"Denoiser: the model's output must be on cpu, got meta",
    ),
    "nothing": (bare(lambda x, t: None), TypeError, r"output must be a tensor, got NoneType"),
    "NumPy": (bare(lambda x, t: x.numpy()), TypeError, r"output must be a tensor, got ndarray"),
    "empty tuple": (bare(lambda x, t: ()), TypeError, r"output must be a tensor, got tuple"),
    "other keys": (bare(lambda x, t: {"eps": x}), TypeError, r"output must be a tensor, got dict"),
    "NaN": (
        bare(lambda x, t: torch.where(per_sample(t, x) < 600, torch.nan, x), method="ddim"),
        ValueError,
        r"sample: the model's output must be finite, got NaN in row 2 of 3 \(t = 333\)",
    ),
    "infinity": (
        bare(lambda x, t: torch.where(per_sample(t, x) < 900, torch.inf, x), method="ddim"),
        ValueError,
        r"sample: the model's output must be finite, got infinity in row 1 of 3 \(t = 667\)",
    ),
    "overflow": (
        bare(lambda x, t: 60000 * x.sign(), dtype=torch.float16, num_samples=4),
        ValueError,
        r"sample: x must be finite, got infinity in row 0 of 3 \(t = 1000\)",
    ),
}


@refusals(models=MODELS, outputs=OUTPUTS)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_a_diffusers_pipeline_is_told_how_to_be_wrapped():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        layers_per_block=1,
    )
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    with pytest.raises(TypeError, match=r"got the pipeline DDPMPipeline; pass fastsample"):
        fs.sample(pipeline, 3)


def test_a_model_that_is_not_deterministic_is_named():
    calls = []

    def fickle(x, t):
        calls.append(t)
        return x * torch.nan if len(calls) == 2 else x

    with pytest.raises(ValueError, match=r"sample: samples must be finite, .*not deterministic"):
        fs.sample(fickle, 3, shape=(2,))
