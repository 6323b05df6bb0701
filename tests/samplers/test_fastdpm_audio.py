"""A network with the inputs of published vocoders: sampled, tuned and profiled like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastsample as fs
from fastsample.schedules.schedule import NoiseSchedule
from tests.samplers.test_fastdpm_variances import DIFFWAVE

T50 = NoiseSchedule.linear(50, 1e-4, 0.05)
FRAMES, HOP = 6, 8
SAMPLES = FRAMES * HOP


class Vocoder(nn.Module):
    """Takes ``(B, samples)`` and gives ``(B, 1, samples)``; one fractional step for a whole batch.

    lmnt's DiffWave looks whole steps up in its table and interpolates fractional ones, where its
    interpolation broadcasts over the embedding: more steps than one fail or mix.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.sin(torch.arange(50.0)[:, None] * torch.ones(1, 4)))
        self.mel = nn.Conv1d(80, 2, 1)
        self.out = nn.Conv1d(3, 1, 3, padding=1)

    def forward(self, audio: Tensor, step: Tensor, spectrogram: Tensor) -> Tensor:
        if step.is_floating_point():
            low = step.floor().long()
            entry = torch.lerp(self.table[low], self.table[step.ceil().long()], step - low)
        else:
            entry = self.table[step]
        upsampled = self.mel(spectrogram).repeat_interleave(HOP, 2)
        x = torch.cat((audio[:, None], upsampled), 1)
        return 0.3 * torch.tanh(self.out(x)) * (1.5 + entry.mean(1)[:, None, None])


@pytest.fixture(scope="module")
def vocoder():
    torch.manual_seed(0)
    return Vocoder().eval()


def denoiser(network, shape):
    if shape == (SAMPLES,):  # a lambda adapts the shapes, and passes the step once
        return fs.Denoiser(lambda x, t, mel: network(x, t[:1], mel).squeeze(1), T50, shape)
    return fs.Denoiser(lambda x, t, mel: network(x.squeeze(1), t[:1], mel), T50, shape)


SHAPES = pytest.mark.parametrize("shape", [(SAMPLES,), (1, SAMPLES)])


@SHAPES
def test_a_sound_is_the_same_in_any_batch(vocoder, shape):
    model = denoiser(vocoder, shape)
    mel = torch.rand(5, 80, FRAMES, generator=torch.Generator().manual_seed(1))
    options = {"variances": DIFFWAVE, "kappa": 1.0, "seed": 4}
    together = fs.sample(model, 6, cond={"mel": mel}, **options)
    assert together.shape == (5, *shape)
    alone = fs.sample(model, 6, cond={"mel": mel[3:4]}, sample_index=3, **options)
    halves = fs.sample(model, 6, cond={"mel": mel}, batch_size=2, **options)
    # The network's own convolutions may round differently; the noise is the same.
    torch.testing.assert_close(alone[0], together[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(halves, together, rtol=0, atol=1e-6)
    other = fs.sample(model, 6, cond={"mel": mel.flip(0)}, **options)
    assert not torch.allclose(other, together, atol=1e-3)
    # The two layouts hold the same elements of a sample, and so the same noise.
    flat = fs.sample(denoiser(vocoder, (SAMPLES,)), 6, cond={"mel": mel}, **options)
    torch.testing.assert_close(together.flatten(1), flat, rtol=0, atol=1e-6)


@SHAPES
def test_sounds_are_tuned_for(vocoder, shape):
    mel = torch.rand(16, 80, FRAMES, generator=torch.Generator().manual_seed(2))
    model = denoiser(vocoder, shape)
    plan = fs.tune(model, 4, samples=16, teacher_steps=24, max_runs=4, cond={"mel": mel})
    assert plan.calls == 4
    assert fs.sample(model, plan, cond={"mel": mel}, seed=0).shape == (16, *shape)


@SHAPES
def test_sounds_are_profiled(vocoder, shape):
    generator = torch.Generator().manual_seed(3)
    data = 0.2 * torch.randn(8, *shape, generator=generator)
    cond = {"mel": torch.rand(8, 80, FRAMES, generator=generator)}
    profile = fs.profile(denoiser(vocoder, shape), data, bin_width=None, cond=cond, trajectories=4)
    for objective in ("elbo", "mse", "trajectory"):
        grid = profile.costs(objective).best_grid(6)
        assert len(grid) == 6
        assert grid.times[0] == 50
    louder = fs.profile(
        denoiser(vocoder, shape), 10 * data, bin_width=None, cond=cond, trajectories=4
    )
    assert np.isfinite(louder.costs("trajectory").best_grid(6).times).all()
