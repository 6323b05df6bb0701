"""The steps of `FastSampleScheduler` against loops of the schedulers that it replaces."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import fastsample as fs
from tests.helpers.diffusers_pipelines import SD_BETAS

diffusers = pytest.importorskip("diffusers")
FastSampleScheduler = fs.integrations.diffusers.FastSampleScheduler

V_ZERO = {
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
THRESHOLD = {"thresholding": True, "sample_max_value": 1.5}
DDIM, DDPM, COGVIDEOX = "DDIMScheduler", "DDPMScheduler", "CogVideoXDDIMScheduler"
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"

SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddim": (DDIM, {}, {}),
    "ddim-sd": (DDIM, SD_BETAS, {}),
    "ddim-ends-still": (DDIM, {"clip_sample": False, "set_alpha_to_one": False}, {}),
    "ddim-v-zero": (DDIM, {**V_ZERO, "clip_sample": False}, {}),
    "ddim-x0": (DDIM, {"prediction_type": "sample", "timestep_spacing": "trailing"}, {}),
    "ddim-threshold": (DDIM, THRESHOLD, {}),
    "ddim-steep": (DDIM, {"beta_start": 0.001, "beta_end": 0.1}, {}),
    "ddpm": (DDPM, {}, {}),
    "ddpm-large": (DDPM, {"variance_type": "fixed_large"}, {}),
    "ddpm-threshold": (DDPM, THRESHOLD, {}),
    "ddpm-sigmoid": (DDPM, {"beta_schedule": "sigmoid", "clip_sample_range": 2.0}, {}),
    "ddpm-linspace": (DDPM, {"timestep_spacing": "linspace"}, {}),
    "cogvideox": (COGVIDEOX, V_ZERO, {}),
    "dpm": (DPM, {}, {}),
    "dpm-cosine": (DPM, {"beta_schedule": "squaredcos_cap_v2"}, {}),
    "dpm-1": (DPM, {"solver_order": 1}, {}),
    "dpm-3": (DPM, {"solver_order": 3}, {}),
    "dpm-karras": (DPM, {"use_karras_sigmas": True}, {}),
    "dpm-lu-3": (DPM, {"use_lu_lambdas": True, "solver_order": 3}, {}),
    "dpm-exponential": (DPM, {"use_exponential_sigmas": True}, {}),
    "dpm-beta": (DPM, {"use_beta_sigmas": True}, {}),
    "dpm-ends-at-first": (DPM, {"final_sigmas_type": "sigma_min"}, {}),
    "dpm-ends-still": (DPM, {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}, {}),
    "dpm-lambda-clipped": (DPM, {"lambda_min_clipped": -5.1}, {}),
    "dpm-threshold": (DPM, THRESHOLD, {}),
    "dpm-v-zero": (DPM, V_ZERO, {}),
    "dpm-full-order": (DPM, {"lower_order_final": False, "solver_order": 3}, {}),
    "dpm-flow": (DPM, FLOW, {}),
    "sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "sde-karras": (DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, {}),
    "unipc": (UNIPC, {}, {}),
    "unipc-1": (UNIPC, {"solver_order": 1}, {}),
    "unipc-karras": (UNIPC, {"use_karras_sigmas": True}, {}),
    "unipc-v-zero": (UNIPC, V_ZERO, {}),
    "unipc-ends-at-first": (UNIPC, {"final_sigmas_type": "sigma_min"}, {}),
    "unipc-flow": (UNIPC, FLOW, {}),
    "euler": (EULER, {}, {}),
    "euler-sd": (EULER, {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "euler-karras": (EULER, {"use_karras_sigmas": True}, {}),
    "euler-log": (EULER, {"interpolation_type": "log_linear"}, {}),
    "euler-ancestral": (ANCESTRAL, {}, {}),
    "flow-euler": (FLOW_EULER, {"shift": 3.0}, {}),
    "flow-karras": (FLOW_EULER, {"use_karras_sigmas": True}, {}),
    "flow-dynamic": (
        FLOW_EULER,
        {"use_dynamic_shifting": True, "shift_terminal": 0.1},
        {"sigmas": np.linspace(1, 1 / 7, 7), "mu": 1.15},
    ),
    "flow-stochastic": (FLOW_EULER, {"stochastic_sampling": True}, {}),
}
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def source(name: str, config: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**config)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.8 * torch.tanh(0.7 * x) + 0.05 * torch.sin(t.double() / 100).to(x.dtype)


def seeded(scheduler: Any) -> dict[str, Any]:
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": torch.Generator().manual_seed(5)}


def loop(scheduler: Any, *, doubled: bool = False, **request: Any) -> torch.Tensor:
    """A pipeline's loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(**request)
    options: dict[str, Any] = {}
    if not scheduler.config.get("stochastic_sampling"):
        options = seeded(scheduler)
    torch.manual_seed(5)  # FlowMatchEuler draws from the global generator
    x = START * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", None)
        given = x if scale is None else scale(x, t)
        output = network(given, t)
        if doubled:
            output = torch.cat((output, torch.cos(given)), dim=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = scheduler.step(output, t, x, **options, return_dict=False)[0]
    return x


@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_equals_that_of_the_source(name, steps):
    kind, config, given = SETTINGS[name]
    theirs = source(kind, config)
    ours = FastSampleScheduler.from_scheduler(theirs)
    request = {"num_inference_steps": steps, **given}
    if "sigmas" in request:
        del request["num_inference_steps"]
    expected = loop(theirs, **request)
    result = loop(ours, **request)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", SETTINGS)
def test_one_step_equals_that_of_the_source(name):
    """In the middle of the run: within 5e-7 of the largest value, a few roundings of float32."""
    kind, config, given = SETTINGS[name]
    theirs = source(kind, {**config, **({"stochastic_sampling": False} if given else {})})
    ours = FastSampleScheduler.from_scheduler(theirs)
    if theirs.__class__.__name__.startswith("Euler") or name == "flow-stochastic":
        pytest.skip("Euler's samples have another scale, and noise is compared in whole runs")
    request = given or {"num_inference_steps": 10}
    for scheduler in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.set_timesteps(**request)
    t = theirs.timesteps[4]
    results = []
    for scheduler in (theirs, ours):
        output, options = network(START, t), seeded(scheduler)
        results.append(scheduler.step(output, t, START, **options, return_dict=False)[0])
    # DDPM's own posterior variance is off by 2e-4: differences of float32 numbers near 1.
    bound = 2e-4 if kind == DDPM else 5e-7
    assert (results[1] - results[0]).abs().max() <= bound * START.abs().max()


def test_learned_variance_in_both_halves_of_the_output():
    theirs = diffusers.DDPMScheduler(variance_type="learned_range")
    ours = FastSampleScheduler.from_scheduler(theirs)
    expected = loop(theirs, doubled=True, num_inference_steps=10)
    result = loop(ours, doubled=True, num_inference_steps=10)
    assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_sampler_without_learned_variance_leaves_the_second_half_aside():
    """DDIMScheduler of diffusers fails here, or broadcasts one channel to two."""
    scheduler = FastSampleScheduler.from_scheduler(diffusers.DDIMScheduler())
    assert torch.equal(
        loop(scheduler, doubled=True, num_inference_steps=5), loop(scheduler, num_inference_steps=5)
    )


def test_stochastic_sampling_of_flow_models_is_the_shortcut_sampler():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    ours = FastSampleScheduler.from_scheduler(theirs)
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(5)
        torch.manual_seed(3)
        x = START
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        results.append(x)
    # Every step draws its noise from torch's global generator, also the last one of diffusers.
    assert (results[0] - results[1]).abs().max() <= 2e-6 * results[0].abs().max()


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_of_a_step(eta):
    theirs = diffusers.DDIMScheduler()
    ours = FastSampleScheduler.from_scheduler(theirs)
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(6)
        generator = torch.Generator().manual_seed(1)
        x = START
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, eta=eta, generator=generator).prev_sample
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()


def test_clipped_output_and_given_noise():
    theirs = diffusers.DDIMScheduler()
    ours = FastSampleScheduler.from_scheduler(theirs)
    noise = torch.randn(START.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(6)
        t = scheduler.timesteps[2]
        results.append(
            scheduler.step(
                2 * START, t, START, eta=1.0, use_clipped_model_output=True, variance_noise=noise
            )
        )
    assert (results[0].prev_sample - results[1].prev_sample).abs().max() <= 2e-6
    estimates = [result.pred_original_sample for result in results]
    assert (estimates[0] - estimates[1]).abs().max() <= 1e-6


@pytest.mark.parametrize("steps", [7, 9, 30, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_compat_repeats_the_pairs_of_ddim(spacing, steps):
    """Their previous timestep is t - T // n, also where the list goes elsewhere."""
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    ours = FastSampleScheduler.from_scheduler(theirs, compat="diffusers")
    expected = loop(theirs, num_inference_steps=steps)
    result = loop(ours, num_inference_steps=steps)
    assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()
    own = loop(FastSampleScheduler.from_scheduler(theirs), num_inference_steps=steps)
    chain = (np.diff(theirs.timesteps.numpy()) == -(1000 // steps)).all()
    if spacing == "linspace" and steps < 30:
        assert not chain
        assert (own - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("value", [0, 1, 10, 49, 500.0, torch.tensor(321)])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm", "unipc", "euler"])
def test_timesteps_outside_of_the_list(name, value):
    """One step to the next lower timestep, also before `set_timesteps`."""
    kind, config, _ = SETTINGS[name]
    scheduler = FastSampleScheduler.from_scheduler(source(kind, config))
    before = scheduler.step(0.1 * START, value, START).prev_sample
    scheduler.set_timesteps(7)
    after = scheduler.step(0.1 * START, value, START).prev_sample
    assert before.shape == after.shape == START.shape
    assert torch.isfinite(before).all()
    assert torch.isfinite(after).all()


def test_a_step_before_set_timesteps_goes_down_by_one():
    schedule = fs.NoiseSchedule.linear()
    scheduler = FastSampleScheduler.from_scheduler(diffusers.DDIMScheduler(clip_sample=False))
    plan = fs.ddim(schedule, fs.Grid([501.0, 500.0, 0.0]), rederive=False)
    x, output = START.double(), torch.tanh(START.double())
    expected = fs.ops.step(x, output, torch.tensor(np.array(plan.rows)), torch.tensor([0]))
    assert (scheduler.step(output, 500, x).prev_sample - expected).abs().max() <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    scheduler = FastSampleScheduler.from_scheduler(diffusers.DPMSolverMultistepScheduler())
    scheduler.set_timesteps(6)
    x = START.to(dtype)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).float(), t, x).prev_sample
    assert x.dtype == dtype
    expected = loop(scheduler, num_inference_steps=6)
    # Six rounded outputs and samples; the run to compare with is in float32.
    assert (x - expected).abs().max() <= (
        24 * max(torch.finfo(dtype).eps, 1e-7) * expected.abs().max()
    )


def test_the_own_default_method():
    """`method="fastsample"` is what `fs.sample` does by default with this network."""
    scheduler = FastSampleScheduler.from_scheduler(
        diffusers.DDIMScheduler(clip_sample=False), method="fastsample"
    )
    result = loop(scheduler, num_inference_steps=8)
    den = fs.Denoiser(
        lambda x, t: network(x, t.view(-1, 1, 1, 1)), fs.NoiseSchedule.linear(), (4, 8, 8)
    )
    expected = fs.sample(den, 8, start=START)
    assert (result - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize(
    "choices",
    [
        {"method": "ddim", "grid": "quadratic", "eta": 0.5},
        {"method": "dpm++", "grid": "karras", "order": 3},
        {"method": "dpm++", "grid": "log_snr", "stochastic": True},
        {"method": "ancestral", "grid": "uniform", "variance": "large"},
        {"method": "fastdpm", "approximation": "var", "extended": True, "kappa": 0.5},
        {"method": "shortcut"},
        {"method": "restart", "intervals": ((300.0, 700.0, 2, 2),)},
        {"method": "unipc", "grid": "trailing"},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_every_method_runs_as_in_sample(choices):
    scheduler = FastSampleScheduler.from_scheduler(diffusers.DDIMScheduler(), seed=11, **choices)
    scheduler.set_timesteps(8)
    x = START
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    den = fs.Denoiser(
        lambda x, t: network(x, t.view(-1, 1, 1, 1)),
        fs.NoiseSchedule.linear(),
        (4, 8, 8),
        clip=1.0,
    )
    expected = fs.sample(den, 8, start=START, seed=11, **choices)
    assert (x - expected).abs().max() <= 1e-5 * expected.abs().max()
