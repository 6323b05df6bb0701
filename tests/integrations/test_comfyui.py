"""ComfyUI: its samplers' interface with stand-ins of its classes, and the example's nodes."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.integrations import k_diffusion
from fastsample.plans.files import save_plans
from tests.helpers.networks import LINEAR
from tests.helpers.refusals import check_refusal, refusals

SHAPE = (4, 6, 6)
FLOW = fs.NoiseSchedule.flow()


# ---- what a custom sampler meets in ComfyUI, by the same names (comfy/model_sampling.py and
# comfy/samplers.py)


class EPS:
    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma) + latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class CONST:
    noise_scale = 1.0

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return sigma * self.noise_scale * noise + (1.0 - sigma) * latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma)


class DiscreteModelSampling:
    def __init__(self):
        alpha, sigma = LINEAR.levels(np.arange(1, 1001))
        self.sigmas = torch.as_tensor((sigma / alpha).astype(np.float32))
        self.sigma_max = self.sigmas[-1]


class FlowModelSampling:
    def __init__(self, shift=3.0):
        t = torch.arange(1, 1001) / 1000
        self.sigmas = shift * t / (1 + (shift - 1) * t)
        self.sigma_max = self.sigmas[-1]


class EpsSampling(DiscreteModelSampling, EPS):
    pass


class ConstSampling(FlowModelSampling, CONST):
    pass


def toward(x, sigma):
    """An x0 of x and sigma."""
    sigma = sigma.reshape(-1, *[1] * (x.dim() - 1))
    return torch.tanh(0.8 * x / (1 + sigma)) + 0.1 * sigma / (1 + sigma)


class Guider:
    """CFGGuider: called with (x, sigma), returns the guided x0."""

    def __init__(self, sampling):
        self.inner_model = SimpleNamespace(model_sampling=sampling)
        self.seeds = []

    def __call__(self, x, sigma, model_options, seed):
        self.seeds.append(seed)
        return toward(x, sigma)


class KSamplerX0Inpaint:
    def __init__(self, model, sigmas):
        self.inner_model, self.sigmas = model, sigmas

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        if denoise_mask is not None:
            noised = self.inner_model.inner_model.model_sampling.noise_scaling(
                sigma.reshape(-1, 1, 1, 1), self.noise, self.latent_image
            )
            x = x * denoise_mask + noised * (1.0 - denoise_mask)
        out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
        if denoise_mask is not None:
            out = out * denoise_mask + self.latent_image * (1.0 - denoise_mask)
        return out


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function = sampler_function
        self.extra_options = extra_options or {}

    def sample(
        self, wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, pbar=True
    ):
        extra_args["denoise_mask"] = denoise_mask
        model = KSamplerX0Inpaint(wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        sampling = wrap.inner_model.model_sampling
        full = math.isclose(float(sampling.sigma_max), float(sigmas[0]), rel_tol=1e-5)
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, full)
        total = len(sigmas) - 1
        reports = callback and (lambda d: callback(d["i"], d["denoised"], d["x"], total))
        with torch.inference_mode():
            x = self.sampler_function(
                model,
                x,
                sigmas,
                extra_args=extra_args,
                callback=reports,
                disable=pbar,
                **self.extra_options,
            )
        return sampling.inverse_noise_scaling(sigmas[-1], x)


def run(sampling, sigmas, function, seed=3, latent=None, mask=None, callback=None, dtype=None):
    """Sample as ComfyUI does; the samples, and the model that was called."""
    generator = torch.Generator().manual_seed(seed)
    dtype = dtype or torch.float32
    noise = torch.randn(2, *SHAPE, generator=generator, dtype=dtype)
    latent = torch.zeros_like(noise) if latent is None else latent
    wrap = Guider(sampling)
    arguments = {"model_options": {"a": object()}, "seed": seed}
    out = KSAMPLER(function).sample(wrap, sigmas, arguments, callback, noise, latent, mask)
    return out, wrap


def start_of(sampling, sigmas, seed=3):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    full = float(sigmas[0]) == float(sampling.sigma_max)
    return sampling.noise_scaling(sigmas[0].double(), noise, torch.zeros_like(noise), full)


def euler(x, sigmas):
    for t, s in pairwise(sigmas.double()):
        x = x + (x - toward(x, t.expand(2))) / t * (s - t)
    return x


LISTS = {
    "eps": (EpsSampling, k_diffusion.sigmas(fs.grids.uniform(1000, 6), LINEAR)),
    "const": (ConstSampling, torch.tensor([1.0, 0.9, 0.7, 0.45, 0.2, 0.0])),
    "const from the middle": (ConstSampling, torch.tensor([0.7, 0.45, 0.2, 0.0])),
}


@pytest.mark.parametrize("name", LISTS)
def test_ddim_is_euler(name):
    make, sigmas = LISTS[name]
    out, _ = run(make(), sigmas, k_diffusion.sampler("ddim"), dtype=torch.float64)
    x = start_of(make(), sigmas)
    want = euler(x, sigmas)
    assert (out - want).abs().max() < 1e-6 * x.abs().max()  # the levels of the start are float32


def test_steps_are_those_of_the_levels_alone():
    # In CONST and EPS alike Euler goes s / t of the way: only the noisy steps tell them apart.
    make, sigmas = LISTS["const"]
    wrap = KSamplerX0Inpaint(Guider(make()), sigmas)
    x = start_of(make(), sigmas)
    options = {"denoise_mask": None}
    out = k_diffusion.sampler("ddim")(wrap, x, sigmas, options)
    assert (out - euler(x, sigmas)).abs().max() < 1e-13


def flow_posterior(x, sigmas, noise):
    """Ancestral steps of flow from Bayes' rule for x = (1 - t) x0 + t eps."""
    for k, (t, s) in enumerate(pairwise(sigmas.double().tolist())):
        x0 = toward(x, torch.full((2,), t, dtype=x.dtype))
        if s == 0:
            return x0
        eps = (x - (1 - t) * x0) / t
        ratio = (1 - t) / (1 - s)  # x_t is this multiple of x_s, and noise
        d = math.sqrt(max(t**2 - ratio**2 * s**2, 0.0)) * s / t
        x = (1 - s) * x0 + math.sqrt(s**2 - d**2) * eps + d * noise[k]
    return x


def test_const_is_found_and_its_noise_keeps_the_process():
    make, sigmas = LISTS["const"]
    x = start_of(make(), sigmas)
    noise = torch.randn(5, 2, *SHAPE, dtype=torch.float64, generator=torch.Generator())
    draws = iter(noise)
    options = {"denoise_mask": None}
    wrap = KSamplerX0Inpaint(Guider(make()), sigmas)
    out = k_diffusion.sampler("ddim", eta=1.0)(
        wrap, x, sigmas, options, noise_sampler=lambda sigma, sigma_next: next(draws)
    )
    assert (out - flow_posterior(x, sigmas, noise)).abs().max() < 1e-12


def test_the_noise_of_a_const_model_may_have_another_scale():
    sigmas = torch.tensor([0.8, 0.5, 0.1])
    options = {"denoise_mask": None}
    zero = torch.zeros(2, *SHAPE, dtype=torch.float64)

    def noisy(scale):
        sampling = ConstSampling()
        sampling.noise_scale = scale
        wrap = KSamplerX0Inpaint(lambda x, sigma, **_: torch.zeros_like(x), sigmas)
        wrap.inner_model.inner_model = SimpleNamespace(model_sampling=sampling)
        return k_diffusion.sampler("shortcut", seed=1)(wrap, zero, sigmas, options)

    assert torch.allclose(noisy(2.0), 2.0 * noisy(1.0), atol=1e-15)
    assert noisy(1.0).std() == pytest.approx(0.1, rel=0.2)


def test_forge_says_const_in_another_way():
    model = SimpleNamespace(predictor=SimpleNamespace(prediction_type="const"))

    class Outer:
        inner_model = model

        def __call__(self, x, sigma):
            return toward(x, sigma)

    _, sigmas = LISTS["const"]
    x = torch.ones(2, *SHAPE)
    noisy = k_diffusion.sampler("ddim", eta=1.0, seed=1)
    told = k_diffusion.sampler("ddim", eta=1.0, seed=1, convention="flow")
    assert torch.equal(noisy(Outer(), x, sigmas), told(toward, x, sigmas))
    other = k_diffusion.sampler("ddim", eta=1.0, seed=1, convention="ratio")
    assert not torch.equal(noisy(Outer(), x, sigmas), other(toward, x, sigmas))


@pytest.mark.parametrize("name", LISTS)
def test_split_lists_are_one_run(name):
    make, sigmas = LISTS[name]
    function = k_diffusion.sampler("ddim")
    whole, _ = run(make(), sigmas, function)
    wrap, options = Guider(make()), {"denoise_mask": None}
    sampling = make()
    first, _ = run(sampling, sigmas[:3], function)
    # The second sampler gets no noise, and scales the latent to its first level again.
    x = sampling.noise_scaling(sigmas[2], torch.zeros_like(first), first, False)
    second = function(KSamplerX0Inpaint(wrap, sigmas), x, sigmas[2:], options)
    assert torch.allclose(second, whole, atol=2e-5)


def test_masks_seeds_and_callbacks_pass_through():
    sampling, sigmas = EpsSampling(), LISTS["eps"][1]
    latent = torch.full((2, *SHAPE), 0.3)
    mask = torch.zeros(2, 1, 6, 6)
    mask[..., :3] = 1.0
    reports = []
    out, wrap = run(
        sampling,
        sigmas,
        k_diffusion.sampler(),
        latent=latent,
        mask=mask,
        callback=lambda i, denoised, x, total: reports.append((i, total, denoised.shape, x.shape)),
    )
    assert torch.allclose(out[..., 3:], latent[..., 3:])
    assert wrap.seeds == [3] * 6
    assert [r[:2] for r in reports] == [(i, 6) for i in range(6)]
    assert {r[2:] for r in reports} == {(out.shape, out.shape)}


def test_the_seed_of_the_node_is_the_seed_of_the_noise():
    sampling, sigmas = EpsSampling(), LISTS["eps"][1]
    function = k_diffusion.sampler("ddim", eta=1.0)
    start = torch.full((4, *SHAPE), 5.0)
    wrap = KSamplerX0Inpaint(Guider(sampling), sigmas)

    def noisy(x, seed):
        return function(wrap, x, sigmas, {"denoise_mask": None, "seed": seed})

    most = 2**64 - 1  # the largest seed that ComfyUI offers
    assert torch.equal(noisy(start, most)[:1], noisy(start[:1], most))
    assert not torch.equal(noisy(start, most), noisy(start, most - 1))


def test_levels_above_the_range_are_comfyuis_to_clamp():
    sampling = EpsSampling()
    out, _ = run(sampling, torch.tensor([200.0, 1.0, 0.0]), k_diffusion.sampler())
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("make", [fs.ddim, fs.unipc, fs.shortcut])
def test_a_flow_plan_runs_on_a_const_model(make):
    plan = make(FLOW, fs.grids.uniform(1.0, 5), prediction="flow")

    def velocity(x, t):
        at = t.to(x).reshape(-1, 1, 1, 1)
        return (x - toward(x, t)) / at

    denoiser = fs.Denoiser(velocity, FLOW, SHAPE, prediction="flow", time="fraction")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    here = fs.sample(denoiser, plan, start=x, seed=2)
    sigmas = k_diffusion.sigmas(plan)
    wrap = KSamplerX0Inpaint(Guider(ConstSampling()), sigmas)
    there = k_diffusion.sampler(plan, seed=2)(wrap, x, sigmas, {"denoise_mask": None})
    assert torch.allclose(here, there, atol=1e-6)  # times reach both networks as float32


# ---- the example


@pytest.fixture
def nodes(monkeypatch):
    comfy, samplers = types.ModuleType("comfy"), types.ModuleType("comfy.samplers")
    comfy.samplers, samplers.KSAMPLER = samplers, KSAMPLER
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    path = Path(__file__).parents[2] / "examples" / "comfyui" / "fastsample_node.py"
    spec = importlib.util.spec_from_file_location("fastsample_node", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def defaults(node):
    """Every combination of a node's lists with the default of its numbers."""
    return node.INPUT_TYPES()["required"]


def test_nodes_have_what_comfyui_reads(nodes):
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node(), node.FUNCTION))
        assert set(node.RETURN_TYPES) <= {"SAMPLER", "SIGMAS"}
        assert node.CATEGORY.startswith("sampling/")
        assert defaults(node)


@pytest.mark.parametrize("sampling", [EpsSampling(), ConstSampling()], ids=["eps", "const"])
def test_every_sampler_runs_on_every_list(nodes, sampling):
    patcher = SimpleNamespace(get_model_object=lambda name: {"model_sampling": sampling}[name])
    lists = {}
    for spacing in defaults(nodes.FastSampleSigmas)["spacing"][0]:
        (lists[spacing],) = nodes.FastSampleSigmas().get_sigmas(patcher, spacing, 6, 1.0)
        sigmas = lists[spacing]
        assert len(sigmas) == 7
        assert sigmas.dtype == torch.float32
        assert float(sigmas[0]) == pytest.approx(float(sampling.sigma_max), rel=1e-6)
        assert float(sigmas[-1]) == 0.0
    for method in defaults(nodes.FastSampleSampler)["method"][0]:
        (sampler,) = nodes.FastSampleSampler().get_sampler(method)
        out, wrap = run(sampling, lists["blended"], sampler.sampler_function)
        assert torch.isfinite(out).all()
        assert len(wrap.seeds) == 6
        run(sampling, lists["karras"][4:], sampler.sampler_function)  # two steps are enough
        run(sampling, lists["karras"][:3], sampler.sampler_function)


def test_sigmas_of_a_uniform_grid_are_the_models_own(nodes):
    sampling = ConstSampling(shift=3.0)
    patcher = SimpleNamespace(get_model_object=lambda name: sampling)
    (sigmas,) = nodes.FastSampleSigmas().get_sigmas(patcher, "uniform", 4, 1.0)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    assert torch.allclose(sigmas, 3 * t / (1 + 2 * t), atol=1e-7)


def test_image_to_image_takes_the_end_of_a_longer_list(nodes):
    patcher = SimpleNamespace(get_model_object=lambda name: EpsSampling())
    node = nodes.FastSampleSigmas()
    (part,), (whole,) = (
        node.get_sigmas(patcher, "karras", *args) for args in ((5, 0.5), (10, 1.0))
    )
    assert torch.equal(part, whole[-6:])
    assert len(node.get_sigmas(patcher, "karras", 5, 0.0)[0]) == 0


@pytest.mark.parametrize("spacing", ["uniform", "blended", "karras"])
@pytest.mark.parametrize("denoise", [0.01, 0.02, 0.05])
def test_little_noise_is_no_more_than_asked_for(nodes, spacing, denoise):
    """A table of 1000 levels has only 10 in the last hundredth of its list."""
    patcher = SimpleNamespace(get_model_object=lambda name: EpsSampling())
    (sigmas,) = nodes.FastSampleSigmas().get_sigmas(patcher, spacing, 20, denoise)
    assert len(sigmas) == 1 + min(20, round(1000 * denoise))
    if spacing == "uniform":
        alpha, sigma = LINEAR.levels(1000 * denoise)
        assert float(sigmas[0]) == pytest.approx(float(sigma / alpha), rel=1e-3)
    assert sigmas[-1] == 0.0


def test_a_plan_from_a_file(nodes, tmp_path):
    plan = fs.unipc(LINEAR, fs.grids.uniform(1000, 5))
    path = save_plans(tmp_path / "plans.json", [plan])
    sampler, sigmas = nodes.FastSamplePlan().load(str(path), 5)
    out, wrap = run(EpsSampling(), sigmas, sampler.sampler_function)
    assert len(wrap.seeds) == plan.calls
    assert torch.isfinite(out).all()
    with pytest.raises(ValueError, match=r"steps must be one of the file's \[5\], got 4"):
        nodes.FastSamplePlan().load(str(path), 4)


class Falling(ConstSampling):
    def __init__(self):
        super().__init__()
        self.sigmas = self.sigmas.flip(0)


class TooHigh(ConstSampling):
    def __init__(self):
        super().__init__()
        self.sigmas = 2 * self.sigmas


@refusals(
    schedule={
        "falls": (lambda: k_diffusion.schedule(Falling()), ValueError, "must be positive and rise"),
        "above 1": (lambda: k_diffusion.schedule(TooHigh()), ValueError, "at most 1 for CONST"),
    }
)
def test_bad_tables_get_one_line(call, error, match):
    check_refusal(call, error, match)
