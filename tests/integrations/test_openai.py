"""improved- and guided-diffusion: equal to float64 loops of their formulas, with their flags."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fastsample as fs
from tests.helpers.openai_oracle import Loop, TinyNet, kept, named_betas

openai = fs.integrations.openai
SHAPE = (3, 4, 4)
Y = torch.tensor([1, 3, 0])

# name -> (flags, respacing)
CASES = {
    "linear, large": ({}, "10,15,20"),
    "linear, small": ({"sigma_small": True}, "ddim25"),
    "cosine 4000, learned, rescaled": (
        {"diffusion_steps": 4000, "noise_schedule": "cosine", "learn_sigma": True}
        | {"rescale_timesteps": True},
        "250",
    ),
    "cosine 4000, learned, rescaled, 3 sections": (
        {"diffusion_steps": 4000, "noise_schedule": "cosine", "learn_sigma": True}
        | {"rescale_timesteps": True},
        "10,15,20",
    ),
    "cosine, x0, unclipped": (
        {"noise_schedule": "cosine", "predict_xstart": True, "clip_denoised": False},
        "25",
    ),
    "linear 400, rescaled, learned": (
        {"diffusion_steps": 400, "learn_sigma": True, "rescale_timesteps": True},
        "7",
    ),
    "linear, unclipped": ({"clip_denoised": False, "sigma_small": True}, "20"),
}


def parts(flags, respacing):
    """(their loop, our model, our grid) for flags that are not the defaults."""
    flags = {"rescale_timesteps": False, **flags}
    learn = flags.get("learn_sigma", False)
    T = flags.get("diffusion_steps", 1000)
    variance = "learned_range" if learn else "small" if flags.get("sigma_small") else "large"
    loop = Loop(
        named_betas(flags.get("noise_schedule", "linear"), T),
        kept(T, respacing),
        variance=variance,
        predict_xstart=flags.get("predict_xstart", False),
        rescale=flags["rescale_timesteps"],
        clip=flags.get("clip_denoised", True),
    )
    model = openai.denoiser(TinyNet(learn).double(), SHAPE, class_cond=True, **flags)
    return loop, model, openai.grid(respacing, T)


def draws(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows + 1, len(Y), *SHAPE, generator=generator, dtype=torch.float64)


def assert_equal(ours, theirs):
    """Equal to 1e-9: levels agree to 1e-13, and the first rows multiply that by up to 1 / alpha."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_ancestral(case):
    loop, model, grid = parts(*CASES[case])
    start, *noise = draws(len(grid))
    ours = fs.sample(
        model, grid, method="ancestral", start=start, noise=torch.stack(noise), cond={"y": Y}
    )
    assert_equal(ours, loop.ancestral(model.model, start, noise, {"y": Y}))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_ddim(case, eta):
    loop, model, grid = parts(*CASES[case])
    start, *noise = draws(len(grid))
    ours = fs.sample(
        *(model, grid),
        **{"method": "ddim", "eta": eta, "start": start, "cond": {"y": Y}},
        noise=torch.stack(noise) if eta else None,
    )
    assert_equal(ours, loop.ddim(model.model, start, noise, {"y": Y}, eta))


def test_a_float32_run_is_the_float64_one_to_its_rounding():
    loop, model, grid = parts(*CASES["linear, large"])
    start, *noise = draws(len(grid))
    single = fs.Denoiser(TinyNet(), model.schedule, SHAPE, variance=model.variance, clip=model.clip)
    ours = fs.sample(
        *(single, grid),
        **{"method": "ancestral", "start": start.float(), "cond": {"y": Y}},
        noise=torch.stack(noise).float(),
    )
    theirs = loop.ancestral(model.model, start, noise, {"y": Y})
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5)


# ---- what the network is given


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"project": "guided"}, [999, 500, 0]),
        ({"project": "improved"}, [999.0, 500.0, 0.0]),
        ({"project": "improved", "diffusion_steps": 4000}, [999.75, 500.0, 0.0]),
        ({"project": "improved", "rescale_timesteps": False}, [999, 500, 0]),
    ],
    ids=str,
)
def test_timesteps_that_the_network_is_given(flags, expected):
    seen = []

    class Net(TinyNet):
        def forward(self, x, timesteps, y=None):
            seen.append(timesteps)
            return super().forward(x, timesteps, y)

    model = openai.denoiser(Net(classes=None), SHAPE, **flags)
    T = model.schedule.num_steps
    fs.sample(model, fs.Grid.from_indices([0, T // 2, T - 1]), method="ddim", num_samples=2)
    assert [t[1].item() for t in seen] == expected
    whole = isinstance(expected[0], int)
    assert {t.dtype for t in seen} == {torch.int64 if whole else torch.float32}


def test_half_precision_parts_are_left_to_the_network():
    """Their use_fp16 casts the blocks alone, and the network casts what it is given itself."""

    class Net(TinyNet):
        def forward(self, x, timesteps, y=None):
            assert x.dtype == torch.float32
            return (x.to(self.mix.dtype) * 0.5).to(x.dtype)

    net = Net(classes=None)
    net.mix.data = net.mix.data.half()
    model = openai.denoiser(net, SHAPE, project="guided", use_fp16=True)
    x = fs.sample(model, 3, num_samples=2, seed=0, dtype=torch.float32)
    assert x.dtype == torch.float32


# ---- flags


DEFAULTS = {
    "image_size": 4,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "attention_resolutions": "16,8",
    "dropout": 0.0,
    "learn_sigma": True,
    "sigma_small": False,
    "class_cond": True,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": True,
    "rescale_learned_sigmas": True,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
}


def test_a_dictionary_and_a_file_of_flags(tmp_path):
    net = TinyNet(learn_sigma=True)
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(DEFAULTS))
    for model in (
        openai.denoiser(net, **DEFAULTS),
        openai.denoiser(net, settings=DEFAULTS),
        openai.denoiser(net, settings=path),
    ):
        assert model.shape == SHAPE
        assert model.schedule == fs.NoiseSchedule.cosine(4000)
        assert (model.time, model.variance) == ("rescaled", "learned_range")
        assert (model.prediction, model.clip) == ("epsilon", 1.0)
    changed = openai.denoiser(net, settings=path, rescale_timesteps=False, clip_denoised=False)
    assert (changed.time, changed.clip) == ("index", None)


def test_defaults_are_linear_1000_and_the_large_variance():
    model = openai.denoiser(TinyNet(), SHAPE, project="guided")
    assert model.variance == "large"
    levels = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(model.schedule.alpha_bar(np.arange(1.0, 1001.0)), levels, rtol=1e-11)


def test_no_respacing_keeps_every_step():
    assert openai.grid("", 50).times.tolist() == list(range(50, -1, -1))
    assert openai.grid([10, 15, 20]).times.tolist() == openai.grid("10,15,20").times.tolist()


NET = TinyNet()


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (
            ValueError,
            "rescale_timesteps must be given, got None; it is True by default",
            {"project": None},
        ),
        (
            ValueError,
            r"project must be one of \['improved', 'guided'\], got 'glide'",
            {"project": "glide"},
        ),
        (ValueError, r"got 'number_of_heads'", {"number_of_heads": 3}),
        (ValueError, r"grid\('250'\)\)$", {"timestep_respacing": "250"}),
        (
            ValueError,
            r"grid\('250', diffusion_steps=4000\)\)$",
            {"timestep_respacing": "250", "diffusion_steps": 4000},
        ),
        (
            ValueError,
            'noise_schedule must be "linear" or "cosine", got \'sqrt\'',
            {"noise_schedule": "sqrt"},
        ),
        (ValueError, "diffusion_steps must be above 20", {"diffusion_steps": 20}),
        (TypeError, "diffusion_steps must be an integer, got '1000'", {"diffusion_steps": "1000"}),
        (TypeError, "learn_sigma must be True or False, got 'False'", {"learn_sigma": "False"}),
        (ValueError, r"6 output channels .* got 3; pass learn_sigma=False", {"learn_sigma": True}),
        (
            ValueError,
            "class_cond must be True for this network, whose num_classes is 4",
            {"class_cond": False},
        ),
        (
            FileNotFoundError,
            "settings must be a JSON file of flags, got 'nothing.json'",
            {"settings": "nothing.json"},
        ),
        (TypeError, "settings must be a mapping of flags", {"settings": 3}),
        (
            FileNotFoundError,
            "load_weights: path must be a file, got 'nothing.pt'",
            {"checkpoint": "nothing.pt"},
        ),
    ],
    ids=str,
)
def test_wrong_flags(error, match, arguments):
    with pytest.raises(error, match=match):
        openai.denoiser(NET, SHAPE, **{"project": "guided", **arguments})


def test_wrong_objects_and_shapes(tmp_path):
    with pytest.raises(ValueError, match=r"3 output channels .* got 6; pass learn_sigma=True"):
        openai.denoiser(TinyNet(learn_sigma=True), **{**DEFAULTS, "learn_sigma": False})
    with pytest.raises(TypeError, match=r"model must be a network .* got tuple; pass the first"):
        openai.denoiser((NET, object()), SHAPE, project="guided")
    with pytest.raises(ValueError, match="shape must be given without image_size, got None"):
        openai.denoiser(NET, project="guided")
    with pytest.raises(ValueError, match=r"must have 1 output channels .* got 3"):
        openai.denoiser(NET, (1, 4, 4), project="guided")
    (tmp_path / "flags.json").write_text("[1, 2]")
    with pytest.raises(TypeError, match=r"settings must be .*flags"):
        openai.denoiser(NET, SHAPE, settings=tmp_path / "flags.json")
    (tmp_path / "flags.json").write_text("learn_sigma: true")
    with pytest.raises(ValueError, match=r"settings must be a JSON file .*flags"):
        openai.denoiser(NET, SHAPE, settings=tmp_path / "flags.json")
    with pytest.raises(ValueError, match=r'sections must name a step count .* got "ddim37"'):
        openai.grid("ddim37")
