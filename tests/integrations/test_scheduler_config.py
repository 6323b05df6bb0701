"""The config of `FastSampleScheduler`: what diffusers expects of every scheduler, and errors."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
FastSampleScheduler = fs.integrations.diffusers.FastSampleScheduler

# What diffusers does with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
SAMPLE = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SCHEDULE = fs.NoiseSchedule.linear()


def source(name: str, **config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**config)


def same_steps(first: Any, second: Any) -> bool:
    results = []
    for scheduler in (first, second):
        scheduler.set_timesteps(9)
        t = scheduler.timesteps[4]
        generator = torch.Generator().manual_seed(0)
        results.append(scheduler.step(0.1 * SAMPLE, t, SAMPLE, generator=generator).prev_sample)
    return torch.equal(*results)


# ---- what diffusers' own tests ask of every scheduler


@pytest.mark.parametrize("name", CLASSES)
def test_saved_and_loaded(tmp_path, name):
    scheduler = FastSampleScheduler(source=name)
    scheduler.save_pretrained(tmp_path)
    loaded = FastSampleScheduler.from_pretrained(tmp_path)
    config = dict(scheduler.config)
    del config["_use_default_values"]
    assert config == dict(loaded.config)
    assert same_steps(scheduler, loaded)


@pytest.mark.parametrize("name", CLASSES)
def test_other_schedulers_take_its_config(name):
    scheduler = FastSampleScheduler.from_scheduler(source(name))
    assert len(scheduler.compatibles) > 5
    for kind in scheduler.compatibles:
        if kind.__name__ != "DPMSolverSDEScheduler":  # It needs another package.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert kind.from_config(scheduler.config) is not None


@pytest.mark.parametrize("other", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("name", CLASSES)
def test_round_trip_through_another_scheduler(name, other):
    """Its choices are a private key, which other classes keep without a warning."""
    scheduler = FastSampleScheduler.from_scheduler(source(name), seed=3)
    again = FastSampleScheduler.from_config(source(other).from_config(scheduler.config).config)
    arguments = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    assert {k: again.config[k] for k in arguments} == arguments
    assert again.seed == 3
    assert same_steps(scheduler, again)


@pytest.mark.parametrize("name", CLASSES)
def test_results_as_tuple_and_as_object(name):
    scheduler = FastSampleScheduler.from_scheduler(source(name), seed=1)
    scheduler.set_timesteps(9)
    t = scheduler.timesteps[3]
    (expected,) = scheduler.step(0.1 * SAMPLE, t, SAMPLE, return_dict=False)
    result = scheduler.step(0.1 * SAMPLE, t, SAMPLE)
    assert torch.equal(expected, result.prev_sample)
    assert result.pred_original_sample.shape == SAMPLE.shape


@pytest.mark.parametrize("name", CLASSES)
def test_a_config_in_memory_tells_its_class(name):
    """It does not name the class, and the standard way drops what was left at its default."""
    theirs = source(name)
    made = FastSampleScheduler.from_config(theirs.config)
    assert same_steps(made, FastSampleScheduler.from_scheduler(theirs))


def test_defaults_of_the_source_are_kept():
    made = FastSampleScheduler.from_config(diffusers.DDIMScheduler().config)
    assert made.config.clip_sample
    assert made.config.clip_sample_range == 1.0


def test_a_saved_config_of_another_class(tmp_path):
    theirs = source("DPMSolverMultistepScheduler", use_karras_sigmas=True, solver_order=3)
    theirs.save_pretrained(tmp_path)
    made = FastSampleScheduler.from_pretrained(tmp_path)
    assert same_steps(made, FastSampleScheduler.from_scheduler(theirs))


def test_choices_in_from_config():
    made = FastSampleScheduler.from_config(
        diffusers.DDIMScheduler().config, method="dpm++", seed=5, clip_sample=False
    )
    assert made.seed == 5
    assert not made.config.clip_sample
    again = FastSampleScheduler.from_config(made.config, seed=6)
    assert (made.seed, again.seed) == (5, 6)
    made.seed = [1, 2, 3, 4]
    assert FastSampleScheduler.from_config(made.config).seed == [1, 2, 3, 4]


def test_from_its_own_kind():
    first = FastSampleScheduler.from_scheduler(
        source("FlowMatchEulerDiscreteScheduler", shift=3.0), method="fastsample"
    )
    second = FastSampleScheduler.from_scheduler(first)
    assert second.config.shift == 3.0
    second.set_timesteps(4)
    theirs = source("FlowMatchEulerDiscreteScheduler", shift=3.0)
    theirs.set_timesteps(4)
    assert torch.equal(second.timesteps, theirs.timesteps)


def test_trained_betas():
    betas = np.linspace(1e-4, 0.02, 100).tolist()
    scheduler = FastSampleScheduler(trained_betas=betas, num_train_timesteps=100)
    theirs = source("DDIMScheduler", trained_betas=betas, num_train_timesteps=100)
    theirs.set_timesteps(5)
    scheduler.set_timesteps(5)
    assert torch.equal(scheduler.timesteps, theirs.timesteps)
    assert len(scheduler) == 100


# ---- lists and plans


def test_lists_of_timesteps():
    """What `DDIMScheduler` refuses: the ten times of Align Your Steps, and any others."""
    ays = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    scheduler = FastSampleScheduler.from_scheduler(diffusers.DDIMScheduler(clip_sample=False))
    scheduler.set_timesteps(timesteps=ays)
    assert scheduler.timesteps.tolist() == ays
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    den = fs.Denoiser(lambda x, t: torch.tanh(x), SCHEDULE, (4, 8, 8))
    expected = fs.sample(den, fs.Grid.from_indices(ays), method="ddim", rederive=False, start=x)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
    assert (x - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("method", ["auto", "dpm++"])
def test_lists_of_sigmas(method):
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = source("DPMSolverMultistepScheduler", **config)
    scheduler = FastSampleScheduler.from_scheduler(theirs, method=method)
    for given in (sigmas, sigmas[:-1], torch.tensor(sigmas)):
        scheduler.set_timesteps(sigmas=given)
        assert len(scheduler.timesteps) == 10
        # The first exceeds the schedule's by rounding.
        assert torch.allclose(scheduler.sigmas, torch.tensor(sigmas), rtol=1e-4)


def test_several_plans_and_their_files(tmp_path):
    plans = [fs.dpm_solver(SCHEDULE, fs.grids.uniform(1000, k), order=2) for k in (4, 6)]
    fs.save_plans(tmp_path / "plans.json", plans)
    (tmp_path / "plan.json").write_text(plans[0].to_json())
    theirs = diffusers.DDIMScheduler()
    for given in (plans, {p.calls: p for p in plans}, tmp_path / "plans.json"):
        scheduler = FastSampleScheduler.from_scheduler(theirs, plan=given)
        for plan in plans:
            scheduler.set_timesteps(plan.calls)
            assert scheduler.timesteps.tolist() == (plan.times - 1).tolist()
        with pytest.raises(ValueError, match="num_inference_steps must be that of a plan, 4 or 6"):
            scheduler.set_timesteps(5)
    one = FastSampleScheduler.from_scheduler(theirs, plan=str(tmp_path / "plan.json"))
    one.save_pretrained(tmp_path)
    loaded = FastSampleScheduler.from_pretrained(tmp_path)  # without the plan's file
    loaded.set_timesteps(4)
    assert loaded.timesteps.tolist() == [999, 749, 499, 249]


def test_times_of_flow_models_come_from_the_scheduler():
    """Their lists depend on the resolution, which only the pipeline knows."""
    theirs = source("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    sigmas = np.linspace(1.0, 1 / 6, 6)
    theirs.set_timesteps(sigmas=sigmas, mu=0.9)
    own = FastSampleScheduler.from_scheduler(theirs, method="fastsample")
    own.set_timesteps(sigmas=sigmas, mu=0.9)
    assert torch.equal(own.timesteps, theirs.timesteps)
    other = FastSampleScheduler.from_scheduler(theirs, method="ddim", grid="uniform")
    other.set_timesteps(sigmas=sigmas, mu=0.9)
    assert other.timesteps.tolist() == pytest.approx([1000 * (6 - k) / 6 for k in range(6)])


# ---- errors


def refuse(message: str, call: Any, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_other_objects():
    refuse(
        "scheduler must be a scheduler of diffusers",
        lambda: FastSampleScheduler.from_scheduler(torch.nn.Linear(1, 1)),
        TypeError,
    )
    refuse(
        "config must be the config of a scheduler",
        lambda: FastSampleScheduler.from_config(diffusers.DDIMScheduler()),
        TypeError,
    )
    refuse("config must be that of a scheduler", lambda: FastSampleScheduler.from_config({"a": 1}))
    refuse(
        "arguments must be those of DDIMScheduler",
        lambda: FastSampleScheduler(shift=3.0),
        TypeError,
    )
    refuse("source must be the name", lambda: FastSampleScheduler(source="UNet2DModel"))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("PNDMScheduler", {}, "PNDMScheduler, which has no counterpart"),
        ("HeunDiscreteScheduler", {}, "HeunDiscreteScheduler, which has no counterpart"),
        ("DEISMultistepScheduler", {}, "DEISMultistepScheduler"),
        ("LCMScheduler", {}, "LCMScheduler"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            "algorithm_type must be",
        ),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "solver_type must be 'midpoint'"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "solver_order must be 2 or 1",
        ),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type must be 'bh2'"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "solver_order must be 2 or 1"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0 must be True"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector must be"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type must be"),
        ("DDPMScheduler", {"variance_type": "learned"}, "variance_type must be"),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_name(name, config, message):
    theirs = source(name, **config)
    refuse(message, lambda: FastSampleScheduler.from_scheduler(theirs))
    # The network still runs with this package's methods.
    made = FastSampleScheduler.from_scheduler(theirs, method="fastsample")
    made.set_timesteps(4)
    assert len(made.timesteps) == 4


def test_other_kinds_of_models():
    mochi = source("FlowMatchEulerDiscreteScheduler", invert_sigmas=True)
    refuse("invert_sigmas must be False", lambda: FastSampleScheduler.from_scheduler(mochi))
    refuse(
        "must have betas or be one of flow matching",
        lambda: FastSampleScheduler.from_scheduler(source("EDMEulerScheduler")),
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"method": "magic"}, "method must be one of"),
        ({"grid": "magic"}, "grid must be one of"),
        ({"grid": "random"}, 'grid must not be "random"'),
        ({"compat": "k-diffusion"}, "compat must be"),
        ({"compat": "diffusers", "method": "dpm++"}, 'method and grid must be "auto"'),
        ({"seed": -1}, "seed must be"),
        ({"method": "dpm++", "eta": 0.5}, "eta must be left out"),
        ({"method": "ddim", "eta": 2.0}, "eta must be"),
    ],
)
def test_choices_are_checked(choices, message):
    def make() -> None:
        made = FastSampleScheduler.from_scheduler(diffusers.DDIMScheduler(), **choices)
        made.set_timesteps(5)

    refuse(message, make)


def test_plans_of_other_networks():
    theirs = diffusers.DDIMScheduler()

    def make(plan: Any, **choices: Any) -> Any:
        return lambda: FastSampleScheduler.from_scheduler(theirs, plan=plan, **choices)

    grid = fs.grids.uniform(1000, 4)
    refuse(
        "plan must be for the scheduler's noise schedule",
        make(fs.ddim(fs.NoiseSchedule.cosine(), grid)),
    )
    refuse("plan must be for prediction 'epsilon'", make(fs.ddim(SCHEDULE, grid, prediction="v")))
    refuse("plan must lead from noise", make(fs.ddim_inversion(SCHEDULE, grid)))
    refuse("method must be left out with a plan", make(fs.ddim(SCHEDULE, grid), method="ddim"))
    refuse("plan must be a readable file", make("no/such/file.json"))
    refuse("plan must be one for each number of steps", make([fs.ddim(SCHEDULE, grid)] * 2))
    refuse("plan must be a Plan", make([3]), TypeError)
    guided = fs.ddim(SCHEDULE, grid).with_guidance(3.0)
    refuse("plan must not be guided", make(guided))
    refuse("plans must be passed as plan=", make(None, plans=[guided]), TypeError)
    made = FastSampleScheduler.from_scheduler(theirs, plan=fs.ddim(SCHEDULE, grid))
    refuse("set_timesteps must be called before", lambda: made.step(SAMPLE, 500, SAMPLE))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "num_inference_steps must be given"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be"),
        ({"timesteps": [1, 2, 3]}, "timesteps must fall"),
        ({"timesteps": [1000, 3]}, "timesteps must be in"),
        ({"timesteps": [5, 5, 1]}, "timesteps must fall"),
        ({"timesteps": []}, "timesteps must"),
        ({"sigmas": [1.0, 2.0]}, "sigmas must fall"),
        ({"sigmas": [1e4, 1.0]}, "sigmas must be at most"),
        ({"sigmas": [1.0], "timesteps": [3]}, "timesteps and sigmas must not be given together"),
        ({"num_inference_steps": 5, "timesteps": [9, 3]}, "num_inference_steps must be left out"),
    ],
)
def test_lists_are_checked(request_, message):
    scheduler = FastSampleScheduler.from_scheduler(diffusers.DDIMScheduler())
    refuse(message, lambda: scheduler.set_timesteps(**request_))


def test_steps_are_checked():
    scheduler = FastSampleScheduler.from_scheduler(diffusers.DPMSolverMultistepScheduler())
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[0]
    refuse(
        "model_output must have the shape of sample",
        lambda: scheduler.step(SAMPLE[:, :1], t, SAMPLE),
    )
    meta = SAMPLE.to("meta")
    refuse("model_output must be on the device", lambda: scheduler.step(meta, t, SAMPLE))
    noisy = FastSampleScheduler.from_scheduler(diffusers.DDPMScheduler())
    noisy.set_timesteps(5)
    for noise in (SAMPLE[:1], SAMPLE[:, :1], meta):
        refuse(
            "variance_noise must have the shape",
            lambda noise=noise: noisy.step(
                SAMPLE, noisy.timesteps[0], SAMPLE, variance_noise=noise
            ),
        )
    refuse("eta must be left out", lambda: scheduler.step(SAMPLE, t, SAMPLE, eta=0.5))
    refuse("s_churn must be 0.0", lambda: scheduler.step(SAMPLE, t, SAMPLE, s_churn=0.5))
    refuse(
        "timestep must be one number", lambda: scheduler.step(SAMPLE, scheduler.timesteps, SAMPLE)
    )
    refuse("timestep must be in", lambda: scheduler.step(SAMPLE, 1000, SAMPLE))
    refuse("seed must be given", lambda: scheduler.start_noise((1, 3, 8, 8)))


def test_knobs_must_fit_in_a_file():
    refuse(
        "knobs must fit in JSON",
        lambda: FastSampleScheduler.from_scheduler(
            diffusers.DDIMScheduler(), method="ancestral", variance=np.zeros(4)
        ),
        TypeError,
    )


def test_without_diffusers():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import fastsample as fs\n"
        "fs.integrations.diffusers.FastSampleScheduler"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'fastsample[diffusers]'" in done.stderr.splitlines()[-1]


def test_the_config_is_json():
    scheduler = FastSampleScheduler.from_scheduler(
        diffusers.DDIMScheduler(), plan=fs.ddim(SCHEDULE, fs.grids.uniform(1000, 3)), seed=2
    )
    assert json.loads(scheduler.to_json_string())["_fastsample"]["seed"] == 2


# ---- what is not in the config


class Subclass(diffusers.DDIMScheduler):
    """A scheduler of a user's own."""


class DDIMScheduler(diffusers.DDIMScheduler):
    """Another one, which has the name of its base."""


@pytest.mark.parametrize("kind", [Subclass, DDIMScheduler], ids=["other name", "same name"])
def test_subclasses_serve_with_methods_of_this_package_only(kind):
    refuse('method must not be "auto" with', lambda: FastSampleScheduler.from_scheduler(kind()))
    made = FastSampleScheduler.from_scheduler(kind(), method="dpm++")
    made.set_timesteps(4)
    assert made.config["clip_sample"]


def test_schedulers_that_were_changed_are_refused():
    flow = source("FlowMatchEulerDiscreteScheduler")
    flow.set_shift(5.0)
    refuse("got another shift", lambda: FastSampleScheduler.from_scheduler(flow))
    theirs = diffusers.DDIMScheduler()
    theirs.alphas_cumprod = theirs.alphas_cumprod**2
    refuse("got another alphas_cumprod", lambda: FastSampleScheduler.from_scheduler(theirs))


def test_configs_of_two_classes_are_refused():
    config = source("CogVideoXDPMScheduler").config
    refuse("config must tell its class", lambda: FastSampleScheduler.from_config(config))
    FastSampleScheduler.from_config(config, method="dpm++").set_timesteps(4)


def test_knobs_and_typos_of_from_config():
    config = diffusers.DDIMScheduler().config
    made = FastSampleScheduler.from_config(config, method="dpm++", order=3)
    assert made.config["_fastsample"]["knobs"] == {"order": 3}
    again = FastSampleScheduler.from_config(made.config, method="ddim")
    assert again.config["_fastsample"]["knobs"] == {}
    refuse("metod must be", lambda: FastSampleScheduler.from_config(config, metod="x"), TypeError)


def test_numbers_of_numpy():
    made = FastSampleScheduler.from_scheduler(
        diffusers.DDIMScheduler(), method="dpm++", order=np.int64(3)
    )
    assert json.loads(made.to_json_string())["_fastsample"]["knobs"] == {"order": 3}


@pytest.mark.parametrize("method", ["auto", "dpm++", "ancestral", "fastsample", "restart"])
def test_grids_of_both_kinds(method):
    theirs = source("DDIMScheduler")
    knobs = {"intervals": ((100.0, 500.0, 1, 2),)} if method == "restart" else {}
    own = FastSampleScheduler.from_scheduler(theirs, method=method, grid="karras", **knobs)
    own.set_timesteps(5)
    karras = fs.grids.karras(SCHEDULE, 5).times[:-1] - 1
    assert own.timesteps[:2].tolist() == pytest.approx(karras[:2].tolist())
    same = FastSampleScheduler.from_scheduler(theirs, method=method, grid="source", **knobs)
    same.set_timesteps(5)
    theirs.set_timesteps(5)
    assert same.timesteps[:2].tolist() == theirs.timesteps[:2].tolist()


def test_lists_of_sources_that_cannot_be_stepped_through():
    heun = FastSampleScheduler.from_scheduler
    refuse(
        "must fall from step to step",
        lambda: heun(source("FlowMatchHeunDiscreteScheduler"), method="fastsample"),
    )
    flow = source("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1)
    made = FastSampleScheduler.from_scheduler(flow)
    refuse("must be finite", lambda: made.set_timesteps(1))
    refuse("schedule must have whole steps", lambda: heun(flow, method="fastdpm"))
    refuse("schedule must have whole steps", lambda: heun(flow, method="ddim", grid="leading"))


def test_mu_beside_timesteps():
    theirs = source("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    made = FastSampleScheduler.from_scheduler(theirs)
    given = {"timesteps": [1000.0, 500.0], "mu": 0.7}
    for scheduler in (theirs, made):
        scheduler.set_timesteps(**given)
    assert torch.equal(made.timesteps, theirs.timesteps)
    assert torch.allclose(made.sigmas, theirs.sigmas)


def test_a_network_under_its_new_scheduler():
    """`denoiser(pipe)` after the pipeline's scheduler was replaced."""
    from tests.helpers.diffusers_networks import flux

    flow = source("FlowMatchEulerDiscreteScheduler", shift=3.0)
    made = FastSampleScheduler.from_scheduler(flow)
    model = fs.integrations.diffusers.denoiser(flux(), made, shape=(16, 4))
    assert model.prediction == "flow"
