"""`FastSampleScheduler` inside pipelines of diffusers, against the schedulers that it replaces."""

from __future__ import annotations

import warnings

import pytest
import torch

import fastsample as fs
from tests.helpers.diffusers_pipelines import CASES, SD_BETAS, call, ddpm, sd, sd_img2img, wan_case

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
FastSampleScheduler = fs.integrations.diffusers.FastSampleScheduler


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def replace_scheduler(case, **choices):
    scheduler = FastSampleScheduler.from_scheduler(case.pipe.scheduler, **choices)
    case.pipe.scheduler = scheduler
    return scheduler


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_gives_what_it_gave(name):
    case = CASES[name]()
    expected = case.run(2, generator())
    replace_scheduler(case)
    assert largest_difference(case.run(2, generator()), expected) <= 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_default_method_runs_in_every_pipeline(name):
    case = CASES[name]()
    expected = case.run(1, generator())
    replace_scheduler(case, method="fastsample")
    result = case.run(1, generator())
    assert result.shape == expected.shape
    assert torch.isfinite(result).all()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("UniPCMultistepScheduler", {}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("EulerAncestralDiscreteScheduler", {}),
    ],
)
@pytest.mark.parametrize("make", [sd, sd_img2img], ids=["text", "image"])
def test_other_schedulers_in_stable_diffusion(make, name, config):
    """The start of image-to-image lies in the middle of a multistep run."""
    betas = {k: v for k, v in SD_BETAS.items() if k.startswith("beta") or k == "steps_offset"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make(getattr(diffusers, name)(**betas, **config))
    expected = case.run(2, generator())
    replace_scheduler(case)
    assert largest_difference(case.run(2, generator()), expected) <= 1e-4


def test_part_of_a_run_leaves_noise_to_another_pipeline():
    """As the base and refiner of SDXL share a run by `denoising_end`: timesteps are cut."""
    case = sd()
    pipe = case.pipe
    pipe.scheduler = FastSampleScheduler.from_scheduler(pipe.scheduler, method="dpm++")
    pipe.scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 8, 8, generator=generator())
    outputs = [torch.randn(1, 4, 8, 8, generator=generator(k + 1)) for k in range(8)]
    whole = x
    for t, output in zip(pipe.scheduler.timesteps, outputs, strict=True):
        whole = pipe.scheduler.step(output, t, whole).prev_sample
    first = pipe.scheduler.timesteps[:5]
    for t, output in zip(first, outputs, strict=False):
        x = pipe.scheduler.step(output, t, x).prev_sample
    for t, output in zip(pipe.scheduler.timesteps[5:], outputs[5:], strict=True):
        x = pipe.scheduler.step(output, t, x).prev_sample
    assert torch.equal(x, whole)


def test_a_tuned_plan_runs_in_a_pipeline():
    case = sd()
    pipe = case.pipe
    text, none = torch.randn(1, 7, 16), torch.randn(1, 7, 16)
    den = fs.integrations.diffusers.denoiser(pipe).with_profile(None)
    cond = {"encoder_hidden_states": text}
    plan = fs.ddim(den.schedule, fs.grids.karras(den.schedule, 4), last="first")
    expected = fs.sample(
        den,
        plan.with_guidance(5.0),
        start=torch.randn(1, 4, 8, 8, generator=generator()),
        cond=cond,
        uncond={"encoder_hidden_states": none},
    )
    pipe.scheduler = FastSampleScheduler.from_scheduler(pipe.scheduler, plan=plan)
    result = call(
        pipe,
        prompt_embeds=text,
        negative_prompt_embeds=none,
        latents=torch.randn(1, 4, 8, 8, generator=generator()),
        guidance_scale=5.0,
        num_inference_steps=4,
        output_type="latent",
    )
    assert largest_difference(result, expected) <= 1e-4


def test_sample_0_is_the_same_in_a_batch_of_any_size():
    case = ddpm()
    scheduler = replace_scheduler(case, seed=7)
    scheduler.set_timesteps(8)
    runs = []
    for batch in (1, 4):
        x = scheduler.start_noise((batch, 3, 8, 8))
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        runs.append(x)
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[1][0], runs[1][1])
    # Inside a pipeline the network's own rounding may depend on the batch.
    pictures = [case.run(batch, generator()) for batch in (1, 4)]
    assert (pictures[0][0] - pictures[1][0]).abs().max() <= 1e-4


@pytest.mark.parametrize("choices", [{}, {"method": "dpm++", "grid": "karras"}, {"seed": 3}])
def test_a_pipeline_saves_and_loads_it(tmp_path, choices):
    case = sd()
    replace_scheduler(case, **choices)
    expected = case.run(1, generator())
    case.pipe.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = diffusers.StableDiffusionPipeline.from_pretrained(
            tmp_path, safety_checker=None, text_encoder=None, tokenizer=None
        )
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, FastSampleScheduler)
    case.pipe.scheduler = loaded.scheduler
    assert torch.equal(case.run(1, generator()), expected)


def test_a_bfloat16_network_with_float32_samples():
    """Wan keeps its samples in float32 whatever the network's dtype."""
    case = wan_case()
    case.pipe.transformer.to(torch.bfloat16)
    expected = case.run(1, generator())
    replace_scheduler(case)
    result = case.run(1, generator())
    assert result.dtype == expected.dtype == torch.float32
    assert largest_difference(result, expected) <= 1e-2  # the network rounds to bfloat16


def test_the_constructor_of_a_pipeline_may_change_the_config():
    """Stable Diffusion sets `clip_sample` and `steps_offset` in the config of what it is given."""
    source = diffusers.DDIMScheduler(**{**SD_BETAS, "steps_offset": 0, "clip_sample": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sd(source)
        ours = sd(FastSampleScheduler.from_scheduler(source))
    assert not ours.pipe.scheduler.config.clip_sample
    assert ours.pipe.scheduler.config.steps_offset == 1
    difference = largest_difference(ours.run(1, generator()), expected.run(1, generator()))
    assert difference <= 1e-4
