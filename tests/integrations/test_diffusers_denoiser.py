"""Networks of diffusers through `denoiser`: `sample` is their own pipeline's loop.

The loops call network and scheduler as the pipelines of diffusers do. Both sides compute in
float32 and differ by the rounding of the steps. From t = 1000 on, where alpha is 0.006, an epsilon
prediction's x0 has 150 times the rounding of x: up to 2e-5 a step of the largest value.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

import fastsample as fs
from tests.helpers import diffusers_networks as tiny
from tests.helpers.diffusers_networks import normal, run_loop

diffusers = pytest.importorskip("diffusers")
from fastsample.integrations.diffusers import denoiser  # noqa: E402

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def check_same(got, expected, tolerance=5e-5):
    assert torch.isfinite(expected).all()
    difference = (got.float() - expected.float()).abs().max() / expected.abs().max()
    assert float(difference) < tolerance


def leading(steps, offset=0):
    return fs.grids.diffusers(1000, steps, "leading", offset)


# ---- networks of discrete steps


def test_ddpm():
    network, scheduler = tiny.unet(), diffusers.DDPMScheduler()
    scheduler.set_timesteps(10)
    x = normal(2, 3, 8, 8)
    generator = torch.Generator().manual_seed(5)
    noise = torch.stack([torch.randn(x.shape, generator=generator) for _ in range(10)])
    expected = run_loop(
        scheduler, lambda x, t: network(x, t).sample, x, torch.Generator().manual_seed(5)
    )
    got = fs.sample(
        denoiser(network, scheduler), leading(10), method="ancestral", start=x, noise=noise
    )
    check_same(got, expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim(kind):
    network, scheduler = tiny.unet(), diffusers.DDIMScheduler(prediction_type=kind)
    scheduler.set_timesteps(10)
    x = normal(2, 3, 8, 8)
    expected = run_loop(scheduler, lambda x, t: network(x, t).sample, x)
    model = denoiser(network, scheduler)
    assert model.clip == 1.0
    got = fs.sample(model, leading(10), method="ddim", rederive=False, start=x)
    check_same(got, expected)


def test_a_learned_variance_is_found_and_sampled_with():
    network = tiny.unet(out=6)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(10)
    x = normal(2, 3, 8, 8)
    generator = torch.Generator().manual_seed(5)
    noise = torch.stack([torch.randn(x.shape, generator=generator) for _ in range(10)])
    expected = run_loop(
        scheduler, lambda x, t: network(x, t).sample, x, torch.Generator().manual_seed(5)
    )
    model = denoiser(network, scheduler)
    assert model.variance == "learned_range"
    got = fs.sample(model, leading(10), method="ancestral", start=x, noise=noise)
    check_same(got, expected)


def test_stable_diffusion_is_its_pipeline():
    pytest.importorskip("transformers")
    network = tiny.text_unet()
    vae = tiny.made("AutoencoderKL", block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = diffusers.StableDiffusionPipeline(
        *(vae, None, None, network, diffusers.DDIMScheduler(**STABLE_DIFFUSION), None, None),
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    x, text, empty = normal(2, 4, 8, 8), normal(2, 7, 16), normal(1, 7, 16, seed=2)
    expected = pipe(
        prompt_embeds=text,
        negative_prompt_embeds=empty.expand(2, -1, -1),
        latents=x,
        num_inference_steps=10,
        guidance_scale=7.5,
        output_type="latent",
    ).images
    model = denoiser(pipe, uncond={"encoder_hidden_states": empty})
    assert (model.shape, model.prediction, model.last) == ((4, 8, 8), "epsilon", "first")
    cond = {"encoder_hidden_states": text}
    got = fs.sample(model, leading(10, 1), method="ddim", guidance=7.5, cond=cond, start=x)
    check_same(got, expected)
    to_data = fs.sample(
        model, leading(10, 1), method="ddim", guidance=7.5, cond=cond, start=x, last="data"
    )
    assert not torch.allclose(to_data, expected, atol=1e-3)


def test_conditions_may_be_nested_as_those_of_sdxl():
    network = tiny.text_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    scheduler = diffusers.DDIMScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(6)
    x, text, empty = normal(2, 4, 8, 8), normal(2, 7, 16), normal(2, 7, 16, seed=2)
    added = {"text_embeds": normal(2, 16, seed=3), "time_ids": torch.full((2, 6), 8.0)}
    blank = {"text_embeds": torch.zeros(2, 16), "time_ids": torch.full((2, 6), 8.0)}

    def predict(x, t):
        both = {name: torch.cat((blank[name], added[name])) for name in added}
        u, c = network(
            torch.cat((x, x)),
            t,
            encoder_hidden_states=torch.cat((empty, text)),
            added_cond_kwargs=both,
            return_dict=False,
        )[0].chunk(2)
        return u + 5.0 * (c - u)

    expected = run_loop(scheduler, predict, x)
    got = fs.sample(
        denoiser(network, scheduler),
        leading(6, 1),
        method="ddim",
        start=x,
        guidance=5.0,
        cond={"encoder_hidden_states": text, "added_cond_kwargs": added},
        uncond={"encoder_hidden_states": empty, "added_cond_kwargs": blank},
    )
    check_same(got, expected)


def test_dit_has_classes_a_learned_variance_and_no_class():
    network, scheduler = tiny.dit(), diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x, labels = normal(2, 4, 8, 8), torch.tensor([207, 3])

    def predict(x, t):
        # Its pipeline: conditional half first, and the variance is dropped.
        out = network(
            torch.cat((x, x)),
            timestep=t.expand(4),
            class_labels=torch.cat((labels, torch.full((2,), 1000))),
        ).sample
        c, u = out[:, :4].chunk(2)
        return u + 4.0 * (c - u)

    expected = run_loop(scheduler, predict, x)
    model = denoiser(network, scheduler)
    assert (model.shape, model.variance) == ((4, 8, 8), "learned_range")
    cond = {"class_labels": labels}
    got = fs.sample(model, leading(10), method="ddim", guidance=4.0, cond=cond, start=x)
    check_same(got, expected)


# diffusers calls NumPy in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_a_multistep_scheduler_tells_where_it_ends(last):
    network = tiny.unet()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        final_sigmas_type=last, timestep_spacing="leading"
    )
    scheduler.set_timesteps(8)
    x = normal(2, 3, 8, 8)
    expected = run_loop(scheduler, lambda x, t: network(x, t).sample, x)
    model = denoiser(network, scheduler)
    assert model.last == ("data" if last == "zero" else "first")
    got = fs.sample(model, 8, method="dpm++", grid="leading", order=2, start=x)
    check_same(got, expected)


def test_cogvideox_is_a_video_of_v_prediction_with_a_shifted_schedule():
    network = tiny.cogvideox()
    scheduler = diffusers.CogVideoXDDIMScheduler(
        **{**STABLE_DIFFUSION, "set_alpha_to_one": True, "steps_offset": 0},
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(8)
    x, text = normal(2, 3, 4, 8, 8), normal(2, 7, 16)

    def predict(x, t):
        return network(x, encoder_hidden_states=text, timestep=t.expand(2), return_dict=False)[0]

    expected = run_loop(scheduler, predict, x)
    model = denoiser(network, scheduler)
    assert (model.shape, model.prediction) == ((3, 4, 8, 8), "v")
    cond = {"encoder_hidden_states": text}
    got = fs.sample(model, 8, method="ddim", grid="trailing", cond=cond, start=x)
    check_same(got, expected)


def test_sound_of_discrete_steps():
    network, scheduler = tiny.unet_1d(), diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(8)
    x = normal(2, 2, 32)
    expected = run_loop(scheduler, lambda x, t: network(x, t).sample, x)
    model = denoiser(network, scheduler)
    assert model.shape == (2, 32)
    check_same(fs.sample(model, leading(8), method="ddim", start=x), expected)


def test_stable_audio_has_a_cosine_schedule(monkeypatch):
    """One call at sigma is x0 of its scheduler, which preconditions as EDM does."""
    # Its module imports torchsde for noise that this test does not draw.
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
    network, scheduler = tiny.stable_audio(), module.CosineDPMSolverMultistepScheduler()
    cond = {
        "encoder_hidden_states": normal(2, 3, 8),
        "global_hidden_states": normal(2, 1, 16, seed=4),
        "rotary_embedding": fs.shared(None),
    }
    model = denoiser(network, scheduler)
    assert (model.shape, model.schedule.T, model.prediction) == ((4, 16), 1.0, "v")
    clean, noise = normal(2, 4, 16), normal(2, 4, 16, seed=5)
    for sigma in (0.3, 2.0, 500.0):
        t = scheduler.precondition_noise(torch.tensor(sigma)).expand(2)
        high = torch.tensor(sigma, dtype=torch.float64)
        x = clean.double() + high * noise.double()  # variance exploding
        scaled = scheduler.precondition_inputs(x, high).float()
        output = network(scaled, t, **{**cond, "rotary_embedding": None}, return_dict=False)[0]
        expected = scheduler.precondition_outputs(x, output.double(), high)
        time = float(model.schedule.time_at(1.0 / (1.0 + sigma**2)))
        plan = fs.ddim(model.schedule, fs.Grid([time, 0.0]), prediction="v")
        check_same(fs.sample(model, plan, start=scaled, cond=cond), expected, 1e-4)


# ---- flow matching


def test_stable_diffusion_3():
    network = tiny.sd3()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    x, text, pooled = normal(2, 4, 8, 8), normal(2, 7, 16), normal(2, 16, seed=3)

    def predict(x, t):
        u, c = network(
            hidden_states=torch.cat((x, x)),
            timestep=t.expand(4),
            encoder_hidden_states=torch.cat((torch.zeros_like(text), text)),
            pooled_projections=torch.cat((torch.zeros_like(pooled), pooled)),
            return_dict=False,
        )[0].chunk(2)
        return u + 5.0 * (c - u)

    expected = run_loop(scheduler, predict, x)
    model = denoiser(network, scheduler)
    assert (model.shape, model.prediction) == ((4, 8, 8), "flow")
    got = fs.sample(
        model,
        fs.grids.flow(8, shift=3.0, like="euler"),
        method="ddim",
        start=x,
        guidance=5.0,
        cond={"encoder_hidden_states": text, "pooled_projections": pooled},
        uncond={
            "encoder_hidden_states": torch.zeros(1, 7, 16),
            "pooled_projections": torch.zeros(1, 16),
        },
    )
    check_same(got, expected)


IDS = {
    "img_ids": torch.stack([torch.tensor([0.0, i // 4, i % 4]) for i in range(16)]),
    "txt_ids": torch.zeros(7, 3),
}


def flux_loop(network, scheduler, x, text, pooled):
    def predict(x, t):
        timestep = t.expand(2).to(x.dtype)
        return network(
            hidden_states=x,
            timestep=timestep / 1000,
            guidance=torch.full((2,), 3.5),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            **IDS,
            return_dict=False,
        )[0]

    return run_loop(scheduler, predict, x)


def flux_cond(text, pooled):
    shared = {name: fs.shared(value) for name, value in IDS.items()}
    return {
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "guidance": 3.5,
        **shared,
    }


def test_flux_has_packed_latents_shared_positions_and_fractions_of_time():
    network = tiny.flux()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.8)
    x, text, pooled = normal(2, 16, 4), normal(2, 7, 32), normal(2, 32, seed=3)
    expected = flux_loop(network, scheduler, x, text, pooled)
    model = denoiser(network, scheduler, (16, 4))
    grid = fs.grids.flow(4, mu=0.8)
    got = fs.sample(model, grid, method="ddim", start=x, cond=flux_cond(text, pooled))
    check_same(got, expected)


def test_flux_in_bfloat16_is_told_the_time_that_its_pipeline_rounds():
    network = tiny.flux().to(torch.bfloat16)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.8)
    told: list[torch.Tensor] = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True
    )
    x, text, pooled = (
        value.to(torch.bfloat16)
        for value in (normal(2, 16, 4), normal(2, 7, 32), normal(2, 32, seed=3))
    )
    flux_loop(network, scheduler, x, text, pooled)
    model = denoiser(network, scheduler, (16, 4))
    fs.sample(model, fs.grids.flow(4, mu=0.8), method="ddim", start=x, cond=flux_cond(text, pooled))
    theirs, ours = told[:4], told[4:]
    assert all(map(torch.equal, theirs, ours))
    assert all(timestep.dtype == torch.bfloat16 for timestep in ours)
    model.at_time(x, 0.9172, {**flux_cond(text, pooled), **IDS, "guidance": torch.full((2,), 3.5)})
    assert [round(t, 4) for t in told[-1].tolist()] == [0.9141, 0.9141]


def test_wan_is_told_truncated_times_by_unipc():
    network = tiny.wan()
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.set_timesteps(8)
    x, text, empty = normal(2, 4, 2, 8, 8), normal(2, 7, 16), normal(2, 7, 16, seed=2)
    told: list[torch.Tensor] = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True
    )

    def predict(x, t):
        c, u = (
            network(
                hidden_states=x,
                timestep=t.expand(2),
                encoder_hidden_states=states,
                return_dict=False,
            )[0]
            for states in (text, empty)
        )
        return u + 5.0 * (c - u)

    expected = run_loop(scheduler, predict, x)
    model = denoiser(network, scheduler, (4, 2, 8, 8))
    assert model.prediction == "flow"
    theirs = told[::2]
    told.clear()
    got = fs.sample(
        model,
        fs.grids.flow(8, shift=3.0, like="unipc"),
        method="unipc",
        start=x,
        guidance=5.0,
        cond={"encoder_hidden_states": text},
        uncond={"encoder_hidden_states": empty},
    )
    assert [t[0].item() for t in told] == [t[0].item() for t in theirs]
    assert all(t.dtype == torch.int64 for t in told)
    check_same(got, expected, 1e-4)


def test_z_image_takes_lists_and_is_told_1_minus_t():
    network = tiny.z_image()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2], mu=0.6)
    texts = [normal(9, 16), normal(6, 16, seed=2)]
    empty = [normal(4, 16, seed=3), normal(5, 16, seed=4)]
    x = normal(2, 4, 8, 8)

    def predict(x, t):
        timestep = ((1000 - t.expand(2)) / 1000).repeat(2)
        inputs = list(x.repeat(2, 1, 1, 1).unsqueeze(2).unbind(0))
        out = network(inputs, timestep, [*texts, *empty], return_dict=False)[0]
        positive, negative = torch.stack(out[:2]), torch.stack(out[2:])
        return -(positive + 3.0 * (positive - negative)).squeeze(2)

    expected = run_loop(scheduler, predict, x)
    model = denoiser(network, scheduler, (4, 8, 8))
    options = {"method": "ddim", "start": x, "guidance": 4.0, "uncond": {"cap_feats": empty}}
    grid = fs.grids.flow(5, mu=0.6)
    got = fs.sample(model, grid, cond={"cap_feats": texts}, **options)
    check_same(got, expected)
    parts = fs.sample(model, grid, cond={"cap_feats": texts}, **options, batch_size=1)
    check_same(parts, expected)
