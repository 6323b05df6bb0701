"""How `FastSampleScheduler` behaves under threads, compilation, gradients and without waiting."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
FastSampleScheduler = fs.integrations.diffusers.FastSampleScheduler

# What diffusers does with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def made(name: str = "DDIMScheduler", config: dict[str, Any] | None = None, **choices: Any) -> Any:
    source = getattr(diffusers, name)(**(config or {}))
    return FastSampleScheduler.from_scheduler(source, **choices)


def run(scheduler: Any, x: torch.Tensor, steps: int | None = None, **options: Any) -> torch.Tensor:
    if steps is not None:
        scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x, **options, return_dict=False)[0]
    return x


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert "_local_scalar_dense" not in name, name
        assert "nonzero" not in name, name
        assert "is_nonzero" not in name, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "config", "choices"),
    [
        ("DDIMScheduler", {}, {}),
        ("DDPMScheduler", {}, {"seed": 1}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
        ("UniPCMultistepScheduler", {}, {}),
        ("FlowMatchEulerDiscreteScheduler", {}, {}),
        ("DDIMScheduler", {"thresholding": True}, {}),
    ],
)
def test_a_loop_never_waits_for_the_device(name, config, choices):
    scheduler = made(name, config, **choices)
    expected = run(scheduler, START, 5)
    scheduler.set_timesteps(5)
    noise = torch.randn_like(START)
    with NoWaiting():
        x = START
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
            # Inpainting pipelines noise the known region in every step.
            scheduler.add_noise(START, noise, scheduler.timesteps[i : i + 1])
    assert torch.equal(x, expected)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.slow
def test_a_compiled_loop_is_one_graph(name):
    scheduler = made(name)
    expected = run(scheduler, START, 5)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(lambda x: run(scheduler, x))(START)
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)
    for _ in range(2):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(0)
        compiled = torch.compile(lambda x: run(scheduler, x), fullgraph=True, backend="eager")
        assert torch.equal(compiled(START), expected)


def test_threads_share_a_multistep_scheduler():
    scheduler = made("DPMSolverMultistepScheduler", {"solver_order": 3})
    expected = {steps: run(scheduler, START * steps, steps) for steps in range(4, 12)}
    results: dict[int, torch.Tensor] = {}
    barrier = threading.Barrier(len(expected))

    def work(steps: int) -> None:
        barrier.wait()
        for _ in range(10):
            scheduler.set_timesteps(steps)
            assert len(scheduler.timesteps) == scheduler.num_inference_steps == steps
            results[steps] = run(scheduler, START * steps)

    threads = [threading.Thread(target=work, args=(steps,)) for steps in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[steps], expected[steps]) for steps in expected)


def test_a_multistep_run_that_is_cut_short_leaves_nothing_behind():
    scheduler = made("DPMSolverMultistepScheduler")
    expected = run(scheduler, START, 8)
    scheduler.set_timesteps(8)
    for t in scheduler.timesteps[:3]:
        scheduler.step(100 * START, t, START)
    assert torch.equal(run(scheduler, START), expected)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_run_may_begin_part_way(name):
    """Image-to-image begins at a later timestep: rows that would look back are compiled anew."""
    theirs = getattr(diffusers, name)()
    ours = made(name)
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(4)
        x = START
        for t in scheduler.timesteps[4:]:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()


def test_a_plan_that_looks_back_may_begin_part_way():
    schedule = fs.NoiseSchedule.linear()
    plan = fs.dpm_solver(schedule, fs.grids.uniform(1000, 6), order=3)
    scheduler = made(plan=plan)
    scheduler.set_timesteps(6)
    x = START
    for t in scheduler.timesteps[2:]:
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
    # Without earlier x0's the first row is DDIM's.
    first = fs.ddim(schedule, fs.Grid([plan.nodes[2], plan.nodes[3], 0.0]))
    den = fs.Denoiser(lambda x, t: torch.tanh(x), schedule, (4, 8, 8))
    expected = fs.sample(den, first, start=START, stop=float(plan.nodes[3]))
    scheduler.set_timesteps(6)
    t = scheduler.timesteps[2]
    result = scheduler.step(torch.tanh(START), t, START).prev_sample
    assert (result - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.isfinite(x).all()


def test_gradients_flow_through_steps():
    scheduler = made("DPMSolverMultistepScheduler")
    scheduler.set_timesteps(4)
    x = START.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: run(scheduler, x, 4), x[:1, :1, :2, :2].detach().requires_grad_()
    )
    run(scheduler, x, 4).sum().backward()
    assert x.grad is not None


def test_a_run_may_turn_from_gradients_to_kernels_and_back():
    scheduler = made("UniPCMultistepScheduler")
    expected = run(scheduler, START, 8)
    scheduler.set_timesteps(8)
    x = START.clone()
    for i, t in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(i % 3 == 1):
            x = x.detach().requires_grad_(i % 3 == 1)
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
    assert (x - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_results_are_never_overwritten():
    """Large samples lie in memory that is used again, but only once nobody holds them."""
    scheduler = made("DDIMScheduler", {"clip_sample": False})
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 256, 256)
    held: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
        kept = (x, x[:, :1], x.detach(), torch.from_numpy(x.numpy()))[i % 4]
        held.append(kept)
        copies.append(kept.clone())
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


def test_memory_of_results_that_nobody_holds_is_used_again():
    scheduler = made("DDIMScheduler", {"clip_sample": False})
    scheduler.set_timesteps(20)
    x, addresses = torch.randn(1, 4, 256, 256), set()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x, return_dict=False)[0]
        addresses.add(x.data_ptr())
    assert len(addresses) <= 3


def test_the_estimate_of_the_clean_samples_comes_later():
    scheduler = made("DDIMScheduler")
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[2]
    result = scheduler.step(START, t, START)
    theirs = diffusers.DDIMScheduler()
    theirs.set_timesteps(5)
    expected = theirs.step(START, t, START)
    assert set(result.keys()) == {"prev_sample", "pred_original_sample"}
    assert (result["pred_original_sample"] - expected.pred_original_sample).abs().max() <= 1e-6
    assert result[0] is result.prev_sample
    assert result[1] is result.pred_original_sample is result.to_tuple()[1]
    with pytest.raises(KeyError):
        result["other"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies(copied):
    scheduler = made("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, seed=4)
    expected = run(scheduler, START, 6)
    other = copied(scheduler)
    assert dict(other.config) == dict(scheduler.config)
    assert torch.equal(run(other, START, 6), expected)


def test_noise_of_a_generator_is_that_of_diffusers():
    """One generator per sample, as pipelines pass them, makes every sample its own noise too."""
    results = []
    for scheduler in (diffusers.DDPMScheduler(), made("DDPMScheduler")):
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        results.append(run(scheduler, START, 4, generator=generators))
    assert (results[0] - results[1]).abs().max() <= 1e-5


def test_add_noise_and_its_kin():
    config = {"beta_schedule": "scaled_linear"}
    theirs, ours = diffusers.DDIMScheduler(**config), made("DDIMScheduler", config)
    noise = torch.randn_like(START)
    t = torch.tensor([999, 3])
    for method in ("add_noise", "get_velocity"):
        expected = getattr(theirs, method)(START, noise, t)
        # Their sigma at t = 3 is the root of the difference 1 - 0.9995 in float32.
        assert (getattr(ours, method)(START, noise, t) - expected).abs().max() <= 4e-6
    assert (ours.alphas_cumprod - theirs.alphas_cumprod).abs().max() <= 4e-7
    assert (ours.betas - theirs.betas).abs().max() <= 1e-7
    assert (ours.alphas - theirs.alphas).abs().max() <= 1e-7
    assert float(ours.final_alpha_cumprod) == float(theirs.final_alpha_cumprod)
    flow = made("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for scheduler in (flow, reference):
        scheduler.set_timesteps(6)
    t = reference.timesteps[2:3]
    expected = reference.scale_noise(START, t, noise)
    assert (flow.scale_noise(START, t, noise) - expected).abs().max() <= 1e-6
    assert (flow.sigmas - reference.sigmas).abs().max() <= 1e-7
    assert not hasattr(flow, "alphas_cumprod")


def test_levels_of_rounded_timesteps_are_those_of_their_steps():
    """Karras sigmas lie between the timesteps that the network is told."""
    name, config = "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}
    theirs, ours = getattr(diffusers, name)(**config), made(name, config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(8)
    noise, t = torch.randn_like(START), theirs.timesteps[5:6]
    expected = theirs.add_noise(START, noise, t)
    assert (ours.add_noise(START, noise, t) - expected).abs().max() <= 1e-5


def test_previous_timestep_and_variance():
    theirs, ours = diffusers.DDPMScheduler(), made("DDPMScheduler")
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    for t in theirs.timesteps:
        assert int(ours.previous_timestep(t)) == int(theirs.previous_timestep(t))
        expected = float(theirs._get_variance(t))
        assert float(ours._get_variance(t)) == pytest.approx(expected, rel=3e-4, abs=1e-19)


def test_length_and_indices():
    scheduler = made()
    assert len(scheduler) == 1000
    assert (scheduler.begin_index, scheduler.step_index, scheduler.order) == (None, None, 1)
    assert scheduler.init_noise_sigma == 1.0
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    scheduler.step(START, scheduler.timesteps[0], START)
    assert (scheduler.begin_index, scheduler.step_index) == (0, 1)


@pytest.mark.parametrize("seed", [[1, 2], [1], [1, 2, 3, 4]])
def test_seeds_are_one_or_one_per_sample(seed):
    scheduler = made("DDPMScheduler", seed=seed)
    scheduler.set_timesteps(4)
    x = torch.zeros(3, 3, 4, 4)
    with pytest.raises(ValueError, match=f"one per sample, got {len(seed)} for 3 samples"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_a_thread_may_step_through_what_another_one_asked_for():
    scheduler = made("DPMSolverMultistepScheduler")
    expected = run(scheduler, START, 6)
    results: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: results.append(run(scheduler, START)))
    thread.start()
    thread.join()
    assert torch.equal(results[0], expected)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_copies_have_the_same_timesteps(copied):
    scheduler = made("UniPCMultistepScheduler")
    scheduler.set_timesteps(6)
    other = copied(scheduler)
    assert torch.equal(other.timesteps, scheduler.timesteps)
    assert torch.equal(run(other, START), run(scheduler, START))


@pytest.mark.slow
def test_a_compiled_step_must_know_where_it_begins():
    scheduler = made()
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[1]

    def step(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return scheduler.step(x, t, x, return_dict=False)[0]

    with pytest.raises(Exception, match="set_begin_index"):
        torch.compile(step, backend="eager", fullgraph=True)(t, START)
    torch._dynamo.reset()
    # Without fullgraph=True the step runs as it is, which looks the timestep up.
    assert torch.equal(torch.compile(step, backend="eager")(t, START), step(t, START))


def test_the_estimate_of_changed_samples_is_refused():
    scheduler = made()
    scheduler.set_timesteps(4)
    x = START.clone()
    result = scheduler.step(torch.tanh(x), scheduler.timesteps[0], x)
    x.copy_(result.prev_sample)
    with pytest.raises(RuntimeError, match="must be as they were in the step"):
        result.pred_original_sample  # noqa: B018


def test_writing_to_the_sigmas_is_refused():
    scheduler = made("EulerDiscreteScheduler")
    scheduler.set_timesteps(4)
    scheduler.sigmas[-1] = scheduler.sigmas[-2]
    with pytest.raises(ValueError, match="sigmas of the scheduler must not be written to"):
        scheduler.step(START, scheduler.timesteps[0], START)


def test_timesteps_that_a_pipeline_puts_in_their_place():
    scheduler = made("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
    expected = run(scheduler, START, 6)
    scheduler.timesteps = scheduler.timesteps.to(torch.float64)
    assert torch.equal(run(scheduler, START), expected)
    scheduler.timesteps = scheduler.timesteps.to(torch.bfloat16)  # 999 becomes 1000
    assert torch.equal(run(scheduler, START), expected)
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.dtype == torch.int64


@pytest.mark.parametrize("begin", [10, 16, 18])
@pytest.mark.parametrize(
    "config",
    [
        {"solver_order": 3},
        {"final_sigmas_type": "sigma_min"},
        {"solver_order": 3, "use_karras_sigmas": True},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ],
    ids=lambda c: "-".join(c),
)
def test_the_end_of_a_long_run_does_not_depend_on_its_beginning(config, begin):
    """Its last rows are of lower order only if the whole run is short."""
    theirs = diffusers.DPMSolverMultistepScheduler(**config)
    ours = made("DPMSolverMultistepScheduler", config)
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
        scheduler.set_begin_index(begin)
        x = START
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_as_many_steps_as_were_trained(name):
    scheduler = made(name, {"num_train_timesteps": 100})
    assert torch.isfinite(run(scheduler, START, 100)).all()


def test_compat_of_cogvideox():
    config = {"timestep_spacing": "trailing", "clip_sample": False}
    theirs = diffusers.CogVideoXDDIMScheduler(**config)
    ours = made("CogVideoXDDIMScheduler", config, compat="diffusers")
    expected, result = run(theirs, START, 7), run(ours, START, 7)
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_samples_that_are_no_floating_tensors():
    scheduler = made()
    scheduler.set_timesteps(4)
    with pytest.raises(TypeError, match="sample must be a floating tensor"):
        scheduler.step(START.long(), scheduler.timesteps[0], START.long())
