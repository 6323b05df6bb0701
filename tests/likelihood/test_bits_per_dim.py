"""Bits per dimension against improved-diffusion's `calc_bpd_loop`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.likelihood.bits_per_dim import bits_per_dim
from tests.helpers import oracles
from tests.helpers.networks import denoiser, halve
from tests.helpers.refusals import check_refusal, refusals
from tests.helpers.stored import stored

GOLDEN = stored("losses")
BPD = [c for c in GOLDEN["cases"] if c["kind"] == "improved_calc_bpd_loop"]
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED_RANGE": "learned_range"}


def golden_model(inputs):
    """(denoiser with one channel of 8, grid) of a golden case."""
    T, sections = inputs["T"], inputs["section_counts"]
    cosine = inputs["noise_schedule"] == "cosine"
    schedule = fs.NoiseSchedule.cosine(T) if cosine else fs.NoiseSchedule.linear(T)
    network = {"B": oracles.model_b(T), "A2": oracles.model_a2(T)}[inputs["model"]]

    def call(x, t):
        out = torch.from_numpy(network(x.numpy(), float(t[0])))
        return torch.cat(tuple(out), dim=1) if out.dim() > x.dim() else out

    variance = VARIANCES[inputs["model_var_type"]]
    model = fs.Denoiser(call, schedule, (1, 8), variance=variance, clip=1.0)
    return model, grids.respaced(T, sections)


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
@pytest.mark.parametrize("case", BPD, ids=[c["id"] for c in BPD])
def test_calc_bpd_loop(case):
    inputs, expected = case["inputs"], case["expected"]
    model, grid = golden_model(inputs)
    x0 = torch.tensor(inputs["x_start"], dtype=torch.float64).reshape(1, 1, 8)
    noise = torch.from_numpy(oracles.noise_formula(len(grid))).reshape(-1, 1, 1, 8)
    found = bits_per_dim(model, x0, grid, noise=noise)
    assert found.total == pytest.approx(np.ravel(expected["total_bpd"])[0], rel=1e-8)
    assert found.prior == pytest.approx(np.ravel(expected["prior_bpd"])[0], rel=1e-8)
    np.testing.assert_allclose(found.terms, np.ravel(expected["vb"]), rtol=1e-8)
    assert found.kl + found.decoder + found.prior == pytest.approx(found.total)


def levels(n, seed=0):
    """8-bit data."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (n, 3), generator=g) / 127.5 - 1.0).double()


def test_it_does_not_depend_on_the_batches():
    model, x0 = denoiser(halve, 3, clip=1.0), levels(23)
    whole = bits_per_dim(model, x0, 10)
    for parts in (bits_per_dim(model, x0, 10, batch_size=4), bits_per_dim(model, x0.split(7), 10)):
        assert parts.total == pytest.approx(whole.total, rel=1e-12)
        np.testing.assert_allclose(parts.terms, whole.terms, rtol=1e-12)
        assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-6)
        assert parts.count == 23
    assert bits_per_dim(model, x0, 10, seed=1).total != whole.total


def test_the_digits_model_is_near_what_its_training_reported():
    """1.64 bits/dim on training data over all 1000 steps: here 50 digits and 100 steps."""
    from sklearn.datasets import load_digits

    model = fs.load("digits")
    x = torch.from_numpy(load_digits().images[:50] / 8.0 - 1.0).float().unsqueeze(1)
    found = bits_per_dim(model, x, 100, grid="quadratic", bin_width=1 / 8)
    assert 1.5 < found.total < 2.0
    assert found.terms.shape == (100,)
    assert "100 steps, 50 samples" in repr(found)


@refusals(
    arguments={
        "no data": (
            lambda: bits_per_dim(denoiser(halve, 3), levels(0)),
            ValueError,
            "bits_per_dim: data must hold at least one sample, got none",
        ),
        "range": (
            lambda: bits_per_dim(denoiser(halve, 3), 2.0 * levels(4)),
            ValueError,
            r"bits_per_dim: data must be in \[-1, 1\]",
        ),
        "shape": (
            lambda: bits_per_dim(denoiser(halve, 4), levels(4)),
            ValueError,
            r"data must have shape \(4, 4\), got \(4, 3\)",
        ),
        "integers": (
            lambda: bits_per_dim(denoiser(halve, 3), torch.zeros(4, 3, dtype=torch.int64)),
            TypeError,
            "data must be floating tensors, got torch.int64",
        ),
        "variance": (
            lambda: bits_per_dim(denoiser(halve, 3), levels(4), variance="learned_range"),
            ValueError,
            'variance must not be "learned_range" for a model without one',
        ),
        "NaN": (
            lambda: bits_per_dim(denoiser(lambda x, t: x * torch.nan, 3), levels(4), 4),
            ValueError,
            "output must be finite, got NaN or infinity at t = 1000",
        ),
        "one step": (
            lambda: bits_per_dim(denoiser(halve, 3), levels(4), 1),
            ValueError,
            "^bits_per_dim: steps must be at least 2, got 1; a single step needs decoder_variance",
        ),
        "decoder": (
            lambda: bits_per_dim(denoiser(halve, 3), levels(4), 4, decoder_variance=0.0),
            ValueError,
            "^bits_per_dim: decoder_variance must be positive, got 0",
        ),
        "continuous": (
            lambda: bits_per_dim(
                fs.Denoiser(halve, fs.NoiseSchedule.vdm(), (3,), time="fraction"), levels(4)
            ),
            ValueError,
            "steps must be given for NoiseSchedule.vdm",
        ),
    }
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_one_step_with_its_own_decoder():
    found = bits_per_dim(denoiser(halve, 3), levels(4), 1, decoder_variance=0.3)
    assert found.kl == 0.0
    assert len(found.terms) == 1


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
def test_every_prediction_of_one_network_costs_the_same(prediction):
    """Outputs that say the same about x0, in the four languages."""
    schedule, x0 = fs.NoiseSchedule.linear(), levels(6)

    def network(x, t):
        alpha, sigma = (float(v) for v in schedule.levels(float(t[0]) + 1.0))
        clean = 0.3 * torch.tanh(x)
        eps = (x - alpha * clean) / sigma
        return {
            "epsilon": eps,
            "x0": clean,
            "v": alpha * eps - sigma * clean,
            "flow": eps - clean,
        }[prediction]

    model = fs.Denoiser(network, schedule, (3,), prediction=prediction)
    found = bits_per_dim(model, x0, 10)
    clean = fs.Denoiser(lambda x, t: 0.3 * torch.tanh(x), schedule, (3,), prediction="x0")
    assert found.total == pytest.approx(bits_per_dim(clean, x0, 10).total, rel=1e-9)
