"""denoising-diffusion-pytorch: equal to float64 loops of its formulas, from its live objects."""

from __future__ import annotations

import itertools
import pickle
import threading

import numpy as np
import pytest
import torch

import fastsample as fs
from tests.helpers.lucidrains_objects import (
    ElucidatedDiffusion,
    GaussianDiffusion,
    Net,
    ancestral,
    ddim,
    named_betas,
    pairs,
)

lucidrains = fs.integrations.lucidrains
SHAPE = (3, 4, 4)
OBJECTIVES = ["pred_noise", "pred_x0", "pred_v"]


def draws(rows, *shape, batch=3):
    generator = torch.Generator().manual_seed(1)
    size = (rows + 1, batch, *(shape or SHAPE))
    start, *noise = torch.randn(size, generator=generator, dtype=torch.float64)
    return start, torch.stack(noise)


def assert_equal(ours, theirs):
    """Levels agree to 1e-12, and 1 / alpha is at most 2e4 in the first row, where x0 is clamped."""
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_ddim(name, objective, eta):
    betas = named_betas(name, 1000)
    diffusion = GaussianDiffusion(Net(), betas, objective).double()
    diffusion.sampling_timesteps = 37
    model, grid = lucidrains.denoiser(diffusion), lucidrains.grid(diffusion)
    start, noise = draws(37)
    ours = fs.sample(model, grid, method="ddim", eta=eta, start=start, noise=noise if eta else None)
    assert_equal(ours, ddim(diffusion.model, objective, betas, 37, start, noise, eta))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_ancestral_sampling_of_all_steps(name, objective):
    betas = named_betas(name, 60)
    diffusion = GaussianDiffusion(Net(), betas, objective).double()
    model, grid = lucidrains.denoiser(diffusion), lucidrains.grid(diffusion)
    start, noise = draws(60)
    ours = fs.sample(model, grid, method="ancestral", start=start, noise=noise)
    assert_equal(ours, ancestral(diffusion.model, objective, betas, start, noise))


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_the_schedule_is_found_in_float64(name):
    betas = named_betas(name, 1000)
    exact = np.cumprod(1 - betas)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        schedule = lucidrains.denoiser(GaussianDiffusion(Net(), betas).to(dtype)).schedule
        found = schedule.alpha_bar(np.arange(1.0, 1001.0))
        np.testing.assert_allclose(found, exact, rtol=1e-13)
        np.testing.assert_allclose(1 - found, 1 - exact, rtol=1e-11)


def test_betas_of_ones_own():
    betas = np.linspace(1e-3, 0.1, 100)
    diffusion = GaussianDiffusion(Net(), betas)
    model = lucidrains.denoiser(diffusion)
    assert model.schedule == fs.NoiseSchedule.from_betas(betas.astype(np.float32))
    with pytest.raises(ValueError, match=r"betas must be float32 .* got torch.bfloat16; make the"):
        lucidrains.denoiser(diffusion.bfloat16())


def test_the_list_of_steps():
    odd = 0
    for K in range(1, 251):
        grid = lucidrains.grid(1000, K)
        assert grid.times.tolist() == [t + 1 for t, _ in pairs(1000, K)] + [0]
        odd += not np.array_equal(grid.times, fs.grids.uniform(1000, K).times)
    assert odd == 236  # of 250 lists are not the evenly spaced one


def test_conventions():
    model = lucidrains.denoiser(GaussianDiffusion(Net(), named_betas("cosine", 50), "pred_v"))
    assert (model.shape, model.prediction, model.variance) == (SHAPE, "v", "small")
    assert (model.clip, model.time) == (1.0, "index")
    wide = GaussianDiffusion(Net(), named_betas("cosine", 50), image_size=(4, 8))
    assert lucidrains.denoiser(wide).shape == (3, 4, 8)
    wide.image_size = 8  # older versions
    assert lucidrains.denoiser(wide).shape == (3, 8, 8)


@pytest.mark.parametrize("first", [True, False])
def test_sequences(first):
    diffusion = GaussianDiffusion(Net(), named_betas("cosine", 50))
    del diffusion.image_size
    diffusion.seq_length, diffusion.channel_first = 16, first
    model = lucidrains.denoiser(diffusion)
    assert model.shape == ((3, 16) if first else (16, 3))


def test_a_learned_variance_is_a_noise_prediction():
    diffusion = GaussianDiffusion(Net(out_dim=6), named_betas("cosine", 50), "pred_v")
    diffusion.vb_loss_weight = 0.001
    model = lucidrains.denoiser(diffusion)
    assert (model.prediction, model.variance) == ("epsilon", "learned_range")
    assert torch.isfinite(fs.sample(model, 10, method="ancestral", seed=0)).all()


# ---- networks that condition on themselves


def self_conditioned(objective="pred_v", T=1000):
    betas = named_betas("sigmoid", T)
    return betas, GaussianDiffusion(Net(self_condition=True), betas, objective).double()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_last_x0_is_given_to_the_network(objective):
    betas, diffusion = self_conditioned(objective)
    model, grid = lucidrains.denoiser(diffusion), lucidrains.grid(diffusion, 20)
    start, noise = draws(20)
    ours = lucidrains.sample(model, grid, method="ddim", start=start)
    theirs = ddim(diffusion.model, objective, betas, 20, start, noise)
    assert_equal(ours, theirs)
    without = lucidrains.denoiser(diffusion, self_condition=False)
    zeros = ddim(lambda x, t, _: diffusion.model(x, t), objective, betas, 20, start, noise)
    assert_equal(fs.sample(without, grid, method="ddim", start=start), zeros)
    assert (zeros - theirs).abs().max() > 1e-2  # the last x0 matters in this case


def test_runs_do_not_mix():
    """Parts of a batch, several threads and runs one after the other each begin without an x0."""
    _, diffusion = self_conditioned()
    model = lucidrains.denoiser(diffusion)
    expected = lucidrains.sample(model, 6, 8, seed=0)
    torch.testing.assert_close(lucidrains.sample(model, 6, 8, seed=0, batch_size=3), expected)
    results = {}

    def run(number):
        results[number] = lucidrains.sample(model, 6, 2, seed=0, sample_index=2 * number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([results[n] for n in range(4)]), expected)


def test_the_callers_callback_is_called():
    rows = []
    _, diffusion = self_conditioned()
    lucidrains.sample(
        lucidrains.denoiser(diffusion), 3, seed=0, callback=lambda step: rows.append(step.row)
    )
    assert rows == [0, 1, 2]


def test_other_functions_refuse_a_network_without_its_last_x0():
    _, diffusion = self_conditioned()
    model = lucidrains.denoiser(diffusion)
    match = r"must be run by fs\.integrations\.lucidrains\.sample, .* self_condition=False"
    with pytest.raises(ValueError, match=match):
        fs.sample(model, 3)
    plain = lucidrains.denoiser(GaussianDiffusion(Net(), named_betas("cosine", 50)))
    with pytest.raises(ValueError, match="must have a network that conditions on itself, got Net"):
        lucidrains.sample(plain, 3)
    with pytest.raises(ValueError, match="self_condition must be False for a network without"):
        lucidrains.denoiser(plain_diffusion(), self_condition=True)
    with pytest.raises(TypeError, match="denoiser must be a Denoiser, got GaussianDiffusion"):
        lucidrains.sample(diffusion, 3)


def plain_diffusion(**changes):
    diffusion = GaussianDiffusion(Net(), named_betas("cosine", 50))
    for name, value in changes.items():
        setattr(diffusion, name, value)
    return diffusion


# ---- ElucidatedDiffusion


def edm_x0(net, x, sigma):
    """EDM, eq. (7) and table 1, with sigma_data = 0.5."""
    root = (sigma**2 + 0.25) ** 0.5
    out = net(x / root, torch.full((len(x),), np.log(sigma) / 4, dtype=torch.float64))
    return 0.25 / root**2 * x + sigma * 0.5 / root * out


def test_elucidated_x0_and_euler():
    diffusion = ElucidatedDiffusion(Net()).double()
    model = lucidrains.denoiser(diffusion)
    x = 10.0 * draws(1)[0]
    # The noise level reaches the network as float32: relative 6e-8.
    torch.testing.assert_close(model(x, 9.7), edm_x0(diffusion.net, x, 9.7), rtol=1e-6, atol=1e-6)
    K = 12
    roots = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), K)
    sigmas = [*(roots**7).tolist(), 0.0]
    grid = lucidrains.grid(diffusion, K)
    np.testing.assert_allclose(grid.times, sigmas, rtol=1e-13)
    start = x = 80.0 * draws(1)[0]
    with torch.no_grad():
        for s, s_next in itertools.pairwise(sigmas):
            slope = (x - edm_x0(diffusion.net, x, s).clamp(-1, 1)) / s
            x = x + (s_next - s) * slope
    ours = fs.sample(model, grid, method="ddim", start=start)
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_elucidated_draws_start_at_the_noisiest_level():
    model = lucidrains.denoiser(ElucidatedDiffusion(Net(), num_sample_steps=5))
    assert len(lucidrains.grid(ElucidatedDiffusion(Net(), num_sample_steps=5))) == 5
    start = fs.Sampler(model, 3).start(2000, seed=0)
    assert start.std().item() == pytest.approx(80.0, rel=0.01)
    assert pickle.loads(pickle.dumps(model.schedule)) == model.schedule
    with pytest.raises(ValueError, match=r"must be run by fs\.integrations\.lucidrains"):
        fs.sample(lucidrains.denoiser(ElucidatedDiffusion(Net(self_condition=True))), 3)
    grid = lucidrains.grid(ElucidatedDiffusion(Net()), 1)
    assert grid.times.tolist() == [80.0, 0.0]


def test_training_mode_is_seen_through_the_wrappers():
    diffusion = ElucidatedDiffusion(Net()).train()
    with pytest.warns(UserWarning, match="training mode"):
        fs.sample(lucidrains.denoiser(diffusion), 2, seed=0)


# ---- wrong input


@pytest.mark.parametrize(
    ("error", "match", "diffusion"),
    [
        (TypeError, "got Net without model; pass the diffusion around the network", Net()),
        (TypeError, "got str without model", "model.pt"),
        (ValueError, "objective must be one of .* got 'pred_score'", {"objective": "pred_score"}),
        (ValueError, "predicts two of them", {"split_dims": (3, 3, 2)}),
        (ValueError, r"3 output channels for 3 of the samples, got 6", {"model": Net(out_dim=6)}),
        (TypeError, "image_size must be an integer, got None", {"image_size": None}),
        (TypeError, "channels must be an integer, got '3'", {"channels": "3"}),
        (TypeError, "betas must be a floating tensor", {"betas": torch.arange(3)}),
    ],
    ids=["network", "path", "objective", "weighted", "outputs", "size", "channels", "betas"],
)
def test_wrong_objects(error, match, diffusion):
    if isinstance(diffusion, dict):
        diffusion = plain_diffusion(**diffusion)
    with pytest.raises(error, match=match):
        lucidrains.denoiser(diffusion)


def test_wrong_lists():
    with pytest.raises(ValueError, match=r"num_steps must be in \[1, 1000\], got 1001"):
        lucidrains.grid(1000, 1001)
    with pytest.raises(TypeError, match="num_steps must be an integer, got None"):
        lucidrains.grid(1000)
    with pytest.raises(TypeError, match=r"must be a GaussianDiffusion, .* got Net"):
        lucidrains.grid(Net(), 10)


def test_networks_with_classes_are_refused():
    net = Net()
    net.cond_drop_prob = 0.5
    with pytest.raises(ValueError, match=r"without classes, got Net, which .* cond_drop_prob=0\.0"):
        lucidrains.denoiser(plain_diffusion(model=net))
