"""Sampling on a GPU: streams, CUDA graphs, several devices, and no waiting for the host."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.sampling.loop import run
from fastsample.sampling.noise import Identity
from tests.helpers.networks import denoiser, halve, halve_wide, per_sample
from tests.helpers.tensors import ROWS, operands

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda", 0)
STEPS = 12
SHAPE = (3, 9, 7)  # no multiple of a pack
DELAY = 50_000_000  # clock cycles, about 30 ms: long enough for a wrong order to show

METHODS = {
    "default": {},
    "ddim": {"method": "ddim"},
    "ddim eta=1": {"eta": 1.0, "clip": 1.0},
    "ancestral": {"method": "ancestral"},
    "dpm++": {"method": "dpm++", "order": 3},
    "dpm++ sde": {"method": "dpm++", "stochastic": True},
    "seed per sample": {"eta": 1.0, "seed": [3, 2**63 + 1, 5, 0]},
}


def draw(device, model=halve, **options):
    return fs.sample(
        model, STEPS, shape=SHAPE, device=device, **{"num_samples": 4, "seed": 11, **options}
    )


def conditioned(x, t, y):
    return 0.5 * x + per_sample(y, x) * 0.125


GUIDED = {"guidance": 2.5, "cond": {"y": [1, 2, 3, 4]}, "uncond": {"y": 0}, "eta": 1.0}


def on_gpu(given):
    return {name: t.to(CUDA) for name, t in given.items()}


# ---- sample ----


@pytest.mark.parametrize("name", METHODS)
def test_sample_is_the_same_as_on_the_cpu(name):
    # `halve` rounds alike everywhere (products with powers of two), and so do the kernels.
    expected = draw("cpu", **METHODS[name])
    found = draw(CUDA, **METHODS[name])
    assert found.device == CUDA
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.cpu(), expected)


def test_guided_and_learned_samples_are_the_same_as_on_the_cpu():
    assert torch.equal(draw(CUDA, conditioned, **GUIDED).cpu(), draw("cpu", conditioned, **GUIDED))
    model = denoiser(halve_wide, *SHAPE, variance="learned_range")
    options = {"num_samples": 4, "method": "ancestral", "seed": 5}
    found = fs.sample(model, STEPS, device=CUDA, **options)
    assert torch.equal(found.cpu(), fs.sample(model, STEPS, device="cpu", **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype):
    found = draw(CUDA, eta=1.0, dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), draw("cpu", eta=1.0, dtype=dtype))


def test_sample_i_is_the_same_in_any_batch():
    together = draw(CUDA, eta=1.0, num_samples=6)
    alone = [draw(CUDA, eta=1.0, num_samples=1, sample_index=i) for i in range(6)]
    assert torch.equal(torch.cat(alone), together)


# ---- CUDA graphs ----


@pytest.mark.parametrize("name", METHODS)
def test_graph_gives_the_same(name):
    found = draw(CUDA, graph=True, **METHODS[name])
    assert torch.equal(found, draw(CUDA, **METHODS[name]))
    again = draw(CUDA, graph=True, **METHODS[name])  # nothing is left over from the first
    assert torch.equal(again, found)


def test_graph_with_guidance_and_learned_variance():
    expected = draw(CUDA, conditioned, **GUIDED)
    assert torch.equal(draw(CUDA, conditioned, graph=True, **GUIDED), expected)
    model = denoiser(halve_wide, *SHAPE, variance="learned_range")
    options = {"num_samples": 3, "seed": 2, "method": "ancestral", "device": CUDA}
    expected = fs.sample(model, STEPS, **options)
    assert torch.equal(fs.sample(model, STEPS, graph=True, **options), expected)


def test_graph_leaves_the_start_alone():
    start = torch.randn(2, *SHAPE, device=CUDA)
    before = start.clone()
    found = draw(CUDA, num_samples=2, start=start, graph=True)
    assert torch.equal(start, before)
    assert torch.equal(found, draw(CUDA, num_samples=2, start=start))


def test_graph_of_the_bundled_model():
    model = fs.load("digits", device=CUDA)
    options = {"num_samples": 8, "eta": 1.0, "seed": 0}
    plain = fs.sample(model, STEPS, **options)
    graph = fs.sample(model, STEPS, graph=True, **options)
    # cuDNN may choose other algorithms while capturing: a network's rounding, grown over the steps.
    torch.testing.assert_close(graph, plain, rtol=1e-2, atol=1e-2)
    on_cpu = fs.sample(fs.load("digits"), STEPS, **options)
    torch.testing.assert_close(plain.cpu(), on_cpu, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", METHODS)
def test_a_sampler_captures_once_and_replays_for_new_samples(name):
    calls = []

    def network(x, t, y):
        calls.append(len(x))
        return conditioned(x, t, y)

    options = {"shape": SHAPE, "device": CUDA, **METHODS[name]}
    seed = options.pop("seed", 11)
    sampler = fs.Sampler(network, STEPS, graph=True, **options)
    plain = fs.Sampler(conditioned, STEPS, **options)
    for k in range(3):
        seeds = [s + k for s in seed] if isinstance(seed, list) else seed + k
        given = {"num_samples": 4, "seed": seeds, "cond": {"y": torch.arange(4.0) + k}}
        assert torch.equal(sampler(**given), plain(**given))
        assert len(calls) == 3  # twice to warm up, and once in the capture
    given = {"num_samples": 3, "seed": 1, "cond": {"y": 2.0}}
    assert torch.equal(sampler(**given), plain(**given))
    assert len(calls) == 6


def test_a_generator_on_the_gpu_gives_a_seed():
    sampler = fs.Sampler(halve, 3, shape=SHAPE, device=CUDA, eta=1.0)
    got = sampler(2, seed=torch.Generator(CUDA).manual_seed(4))
    assert torch.equal(sampler(2, seed=sampler.seed), got)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "names",
    [{"seeds"}, {"seeds", "h1", "h2"}, {"noise"}],
    ids=lambda names: "+".join(sorted(names)),
)
def test_replay_reads_the_row_number(names, in_place):
    given = on_gpu(operands((3, 5, 33), names))
    start = given["x"].clone()
    arguments = {**given, "target": given["x"] if in_place else None}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops.step(**arguments)  # loads the kernel: loading may not happen in a capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.step(**arguments)
    for row in (2, 0, 3, 1):
        given["x"].copy_(start)
        given["row"].fill_(row)
        if "seeds" in given:
            given["seeds"].fill_(row + 70)
        graph.replay()
        expected = ops.step(**{**given, "x": start})
        assert torch.equal(captured, expected)


def test_replay_draws_the_noise_of_new_seeds():
    seeds = torch.tensor([1], device=CUDA)
    index = torch.arange(4, device=CUDA)
    ops.noise(seeds, index, (37,))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.noise(seeds, index, (37,))
    for seed in (5, -9):
        seeds.fill_(seed)
        index.add_(3)
        graph.replay()
        assert torch.equal(captured, ops.noise(seeds.clone(), index.clone(), (37,)))


# ---- streams, devices, waiting ----


def test_kernels_run_on_the_current_stream():
    given = on_gpu(operands((4, 1 << 16), {"seeds"}))
    expected = ops.step(**given)
    late = {**given, "x": torch.zeros_like(given["x"]), "index": torch.zeros_like(given["index"])}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # On any other stream the step would run before its operands are written.
        torch.cuda._sleep(DELAY)
        late["x"].copy_(given["x"])
        late["index"].copy_(given["index"])
        found = ops.step(**late)
        drawn = ops.noise(late["seeds"], late["index"], (5,))
    side.synchronize()
    assert torch.equal(found, expected)
    assert torch.equal(drawn, ops.noise(given["seeds"], given["index"], (5,)))


def test_backward_runs_on_the_stream_of_forward():
    given = on_gpu(operands((4, 1 << 16), {"seeds"}))

    def gradient(x):
        return torch.autograd.grad(ops.step(**{**given, "x": x}).square().sum(), x)[0]

    expected = gradient(given["x"].clone().requires_grad_())
    late = torch.zeros_like(given["x"])
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(DELAY)
        late.copy_(given["x"])
        found = gradient(late.requires_grad_())
    side.synchronize()
    assert torch.equal(found, expected)


def test_a_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    given = operands((3, 5, 33), {"seeds", "h1"})
    expected = ops.step_x0(**given)
    elsewhere = {name: t.to(other) for name, t in given.items()}
    assert torch.cuda.current_device() == 0
    for found, value in zip(ops.step_x0(**elsewhere), expected, strict=True):
        assert found.device == other
        assert torch.equal(found.cpu(), value)
    assert torch.cuda.current_device() == 0
    drawn = ops.noise(elsewhere["seeds"], elsewhere["index"], (7,))
    assert torch.equal(drawn.cpu(), ops.noise(given["seeds"], given["index"], (7,)))
    for graph in (False, True):
        assert torch.equal(draw(other, eta=1.0, graph=graph).cpu(), draw("cpu", eta=1.0))
    with pytest.raises(ValueError, match="row must be on cuda:1, got cuda:0"):
        ops.step(**{**elsewhere, "row": given["row"].to(CUDA)})


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("guided", [False, True])
def test_the_loop_never_waits_for_the_device(guided):
    calls = []

    def network(x, t, **cond):
        # From the first call on: the plan is uploaded before it, and that does wait.
        torch.cuda.set_sync_debug_mode("error")
        calls.append(t)
        return conditioned(x, t, **cond) if cond else halve(x, t)

    model = denoiser(network, *SHAPE, device=CUDA)
    grid = fs.grids.uniform(1000, STEPS)
    plan = fs.ddim(model.schedule, grid, eta=1.0, clip=1.0)
    plan = plan.with_guidance(2.0) if guided else plan
    cond, uncond = ({"y": [1, 2]}, {"y": 0}) if guided else (None, None)
    conditions = Conditions("run", cond, uncond, 2, CUDA)
    identity = Identity(torch.zeros(1, dtype=torch.int64, device=CUDA), torch.arange(2).to(CUDA))
    x = torch.randn(2, *SHAPE, device=CUDA)
    for in_place in (True, False):
        try:
            run(
                model,
                plan,
                x,
                identity=identity,
                conditions=conditions,
                in_place=in_place,
                inference=True,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(calls) == 2 * STEPS


def test_a_row_per_sample_is_read_on_the_device():
    given = on_gpu(operands((len(ROWS), 100), {"noise"}))
    given["row"] = torch.arange(len(ROWS), device=CUDA)
    together = ops.step(**given)
    for k in range(len(ROWS)):
        assert torch.equal(ops.step(**{**given, "row": given["row"][k]})[k], together[k])
