"""What users do with a network of diffusers: defaults, tuning, profiles, inversion, bad input."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import fastsample as fs
from tests.helpers import diffusers_networks as tiny
from tests.helpers.diffusers_networks import normal, run_loop
from tests.helpers.refusals import GRAMMAR

diffusers = pytest.importorskip("diffusers")
from fastsample.integrations.diffusers import (  # noqa: E402
    denoiser,
    families,
    inputs,
    shapes,
)

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class Contraction(nn.Module):
    """Scales a network's output down, since inverting wild random networks needs many steps."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, sample, timestep, **cond):
        return 0.1 * self.network(sample, timestep, **cond).sample


def stable_diffusion():
    empty = {"encoder_hidden_states": normal(1, 7, 16, seed=2)}
    model = denoiser(tiny.text_unet(), diffusers.DDIMScheduler(**SD), uncond=empty)
    return model, {"encoder_hidden_states": normal(32, 7, 16)}


def stable_diffusion_3():
    model = denoiser(tiny.sd3(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    cond = {"encoder_hidden_states": normal(32, 7, 16), "pooled_projections": normal(32, 16)}
    return model, cond


MODELS = {"SD": stable_diffusion, "SD3": stable_diffusion_3}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_tuned_profiled_and_sampled_from(name):
    model, cond = MODELS[name]()
    plan = fs.tune(model, 3, samples=32, teacher_steps=8, max_runs=3, cond=cond)
    tuned = model.with_plans([plan])
    assert fs.Sampler(tuned, 3).plan == plan
    samples = fs.sample(tuned, 3, cond=cond, seed=1)
    assert samples.shape == (32, *model.shape)
    profile = fs.profile(model, samples, cond=cond, times=None if name == "SD3" else [1, 500, 1000])
    assert fs.Sampler(model.with_profile(profile), 2).plan.calls == 2


def test_guidance_is_part_of_a_tuned_plan():
    model, cond = stable_diffusion()
    plan = fs.tune(model, 2, samples=32, teacher_steps=6, max_runs=2, cond=cond, guidance=3.0)
    assert plan.is_guided
    assert fs.sample(model, plan, cond=cond, num_samples=32, seed=0).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_it_is_inverted(name):
    model, cond = MODELS[name]()
    network = model.model.network
    if name == "SD":
        model = denoiser(Contraction(network), diffusers.DDIMScheduler(**SD), model.shape)
    cond = {key: value[:2] for key, value in cond.items()}
    x0 = normal(2, *model.shape, seed=7)
    noise = fs.invert(model, x0, 8, method="ddim", tolerance=1e-3, cond=cond)
    back = fs.sample(model, 8, method="ddim", start=noise, cond=cond)
    assert (back - x0).abs().max() < 1e-3


def test_dynamic_thresholding_and_a_learned_variance_as_of_deepfloyd():
    network = tiny.unet(out=6)
    scheduler = diffusers.DDPMScheduler(
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    scheduler.set_timesteps(10)
    x = normal(2, 3, 8, 8)
    generator = torch.Generator().manual_seed(5)
    noise = torch.stack([torch.randn(x.shape, generator=generator) for _ in range(10)])
    generator.manual_seed(5)
    expected = run_loop(scheduler, lambda x, t: network(x, t).sample, x, generator)
    model = denoiser(network, scheduler)
    assert (model.clip, model.threshold) == (1.0, (0.95, 1.5))
    grid = fs.grids.diffusers(1000, 10, "leading")
    got = fs.sample(model, grid, method="ancestral", start=x, noise=noise)
    assert (got - expected).abs().max() < 5e-5
    clipped = fs.sample(model, grid, method="ancestral", start=x, noise=noise, threshold=None)
    assert (clipped - expected).abs().max() > 1e-2


def test_diffusers_default_thresholding_is_plain_clipping():
    model = denoiser(tiny.unet(), diffusers.DDPMScheduler(thresholding=True))
    assert (model.clip, model.threshold) == (1.0, None)


def test_steep_betas_do_not_underflow():
    scheduler = diffusers.DDIMScheduler(beta_start=0.001, beta_end=0.2)
    assert float(scheduler.alphas_cumprod[-1]) < 1e-38
    schedule = denoiser(tiny.unet(), scheduler).schedule
    assert schedule == fs.NoiseSchedule.linear(1000, 0.001, 0.2)
    assert np.all(np.diff(schedule.log_snr(np.arange(1.0, 1001.0))) < 0)


def test_a_pipeline_of_two_parts_and_a_module_agree():
    pipe = diffusers.DDPMPipeline(tiny.unet(), diffusers.DDPMScheduler())
    whole, parts = denoiser(pipe), denoiser(pipe.unet, pipe.scheduler)
    options = {"num_samples": 2, "seed": 0}
    assert torch.equal(fs.sample(whole, 4, **options), fs.sample(parts, 4, **options))
    # Another scheduler in place of the pipeline's.
    other = denoiser(pipe, diffusers.DDIMScheduler(prediction_type="v_prediction"))
    assert other.prediction == "v"


def test_a_compiled_network_is_looked_into():
    network = tiny.sd3()
    compiled = torch.compile(network, backend="eager")
    model = denoiser(compiled, diffusers.FlowMatchEulerDiscreteScheduler())
    assert model.shape == (4, 8, 8)
    cond = {"encoder_hidden_states": normal(2, 7, 16), "pooled_projections": normal(2, 16)}
    eager = denoiser(network, diffusers.FlowMatchEulerDiscreteScheduler())
    options = {"cond": cond, "seed": 0}
    torch.testing.assert_close(fs.sample(model, 2, **options), fs.sample(eager, 2, **options))


def test_the_mode_is_that_of_the_network():
    network = tiny.unet().train()
    with pytest.warns(UserWarning, match="call model.eval"):
        model = denoiser(network, diffusers.DDPMScheduler())
    assert model.model.training
    network.eval()
    assert not model.model.training
    fs.sample(model, 2)
    model.model.train()
    assert network.training


def test_a_cast_or_moved_network_is_followed():
    model = denoiser(tiny.unet(), diffusers.DDPMScheduler())
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    model.model.network.to(torch.bfloat16)
    assert fs.sample(model, 2, seed=0).dtype == torch.bfloat16


def test_a_flow_of_another_count_is_told_in_it():
    network = tiny.unet()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)
    model = denoiser(network, scheduler)
    assert model.network_times(np.array([0.25, 1.0])).tolist() == [125.0, 500.0]


def test_a_time_of_the_callers_reaches_the_network():
    network = tiny.sd3()
    told = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    model = denoiser(network, scheduler, time="fraction")
    cond = {"encoder_hidden_states": normal(1, 7, 16), "pooled_projections": normal(1, 16)}
    fs.sample(model, [1.0, 0.5, 0.0], method="ddim", cond=cond)
    assert [t.item() for t in told] == [1.0, 0.5]


@pytest.mark.parametrize("name", list(families._FAMILIES))
def test_the_known_classes_are_those_of_diffusers(name):
    network = getattr(diffusers, name)
    forward = list(inspect.signature(network.forward).parameters)[1:]
    assert set(forward) & set(inputs._TIME_NAMES)
    assert families.flow_family(network.__new__(network)) is families._FAMILIES[name]


@pytest.mark.parametrize(
    ("name", "told"),
    {
        "SD3Transformer2DModel": torch.tensor([917.2]),
        "HunyuanVideoTransformer3DModel": torch.tensor([917.2]).bfloat16(),
        "QwenImageTransformer2DModel": torch.tensor([917.2]).bfloat16() / 1000,
        "AuraFlowTransformer2DModel": (torch.tensor([917.2]) / 1000).bfloat16(),
        "Lumina2Transformer2DModel": 1 - torch.tensor([917.2]) / 1000,
    }.items(),
)
def test_what_a_family_is_told_in_bfloat16(name, told):
    rule = families._FAMILIES[name].told
    got = rule(torch.tensor([917.2]), torch.zeros(1, dtype=torch.bfloat16), None)
    torch.testing.assert_close(got, told)


def test_the_shape_of_a_video_with_frames_in_patches():
    config = {
        "in_channels": 16,
        "sample_frames": 81,
        "temporal_compression_ratio": 4,
        "patch_size_t": 2,
        "sample_height": 96,
        "sample_width": 170,
    }
    network = type("CogVideoXTransformer3DModel", (), {"config": config})()
    assert shapes.sample_shape(network) == (22, 16, 96, 170)


# ---- bad input


class Unknown(nn.Module):
    config = types.SimpleNamespace(get=lambda name, default=None: {"in_channels": 4}.get(name))

    def forward(self, hidden_states, timestep):
        return hidden_states


def wan_2_2():
    pipe = types.SimpleNamespace(
        transformer=tiny.wan(), transformer_2=tiny.wan(), scheduler=diffusers.DDIMScheduler()
    )
    return denoiser(pipe, shape=(4, 2, 8, 8))


def inpainting():
    network = tiny.text_unet(in_channels=9, out_channels=4)
    return denoiser(network, diffusers.DDIMScheduler(**SD))


FLOW = diffusers.FlowMatchEulerDiscreteScheduler
REFUSED = {
    "no pipeline": (lambda: denoiser(3), TypeError, "must be a pipeline of diffusers or a torch.n"),
    "a class": (
        lambda: denoiser(diffusers.UNet2DModel),
        TypeError,
        "must be a pipeline of diffusers or a torch.nn.Module, got UNet2DModel",
    ),
    "no network": (
        lambda: denoiser(types.SimpleNamespace(scheduler=diffusers.DDIMScheduler(), prior=1)),
        TypeError,
        "must be a pipeline with a unet or a transformer, got SimpleNamespace",
    ),
    "two networks": (wan_2_2, ValueError, "pipeline of one network, .* with transformer_2"),
    "no scheduler": (lambda: denoiser(tiny.unet()), ValueError, "scheduler must be given"),
    "no scheduler's kind": (
        lambda: denoiser(tiny.unet(), 3),
        TypeError,
        "denoiser: scheduler must be a scheduler of diffusers, such as pipe.scheduler, got int",
    ),
    "a scheduler's class": (
        lambda: denoiser(tiny.unet(), diffusers.DDIMScheduler),
        TypeError,
        "such as pipe.scheduler, got the class DDIMScheduler",
    ),
    "EDM": (
        lambda: denoiser(tiny.unet(), diffusers.EDMEulerScheduler()),
        ValueError,
        "scheduler must have betas or be one of flow matching, got EDMEulerScheduler",
    ),
    "no shape": (
        lambda: denoiser(tiny.flux(), FLOW()),
        ValueError,
        "shape must be given for FluxTransformer2DModel, whose config does not tell it",
    ),
    "a spectrogram": (
        lambda: denoiser(
            types.SimpleNamespace(
                unet=tiny.text_unet(), vocoder=None, scheduler=diffusers.DDIMScheduler(**SD)
            )
        ),
        ValueError,
        "shape must be given for UNet2DConditionModel",
    ),
    "more channels in": (inpainting, ValueError, "with 9 in and 4 out; wrap it in a module"),
    "an unknown flow": (
        lambda: denoiser(Unknown(), FLOW(), (4, 8, 8)),
        ValueError,
        'time must be given for Unknown, .* pass time="thousandths"',
    ),
    "inverted sigmas": (
        lambda: denoiser(tiny.sd3(), FLOW(invert_sigmas=True)),
        ValueError,
        "invert_sigmas must be False, got True",
    ),
    "a variance of its own": (
        lambda: denoiser(tiny.unet(out=6), diffusers.DDPMScheduler(variance_type="learned")),
        ValueError,
        'variance_type must be "learned_range" or a fixed one',
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match) as caught:
        call()
    assert GRAMMAR.match(str(caught.value)), str(caught.value)


def test_sample_names_the_way_from_a_pipeline():
    pipe = diffusers.DDPMPipeline(tiny.unet(), diffusers.DDPMScheduler())
    remedy = r"pass fastsample.integrations.diffusers.denoiser\(pipe\)$"
    with pytest.raises(TypeError, match=remedy):
        fs.sample(pipe, 3)
    with pytest.raises(ValueError, match=r"shape must be given .*diffusers.denoiser\(model, sch"):
        fs.sample(pipe.unet, 3)


def test_a_missing_condition_is_named():
    model = denoiser(tiny.text_unet(), diffusers.DDIMScheduler(**SD))
    with pytest.raises(TypeError, match="encoder_hidden_states"):
        fs.sample(model, 2)


def test_diffusers_is_not_imported():
    """Whoever has a pipeline has imported it; a network of one's own needs none."""
    code = (
        "import sys, torch; sys.modules['diffusers'] = None\n"
        "from fastsample.integrations.diffusers import denoiser\n"
        "try: denoiser(torch.nn.Linear(1, 1))\n"
        "except ValueError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("denoiser: scheduler must be given with a network, got None")
