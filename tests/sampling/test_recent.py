"""The memory of plans behind `sample`: it saves work, and never gives a stale plan."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.sampling import recent
from fastsample.sampling.recent import Recent, prepare
from fastsample.sampling.resolve import PlanRequest
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide, model_b
from tests.helpers.tensors import same_bits


@pytest.fixture(autouse=True)
def resolved(monkeypatch):
    """Starts each test with an empty memory, and counts the plans that are made."""
    made, original = [], recent.resolve

    def resolve(function, denoiser, request):
        made.append(request)
        return original(function, denoiser, request)

    monkeypatch.setattr(recent, "resolve", resolve)
    monkeypatch.setattr(recent, "_PREPARED", Recent(64))
    return made


def run(model, steps=4, **options):
    return fs.sample(model, steps, seed=3, **options)


# ---- what is remembered


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "ancestral", "variance": "large"},
        {"clip": (0.0, 1.0)},
        {"steps": fs.Grid([900, 30, 0])},
        {"steps": fs.ddim(LINEAR, fs.Grid([900, 30, 0]))},
        {"eta": 0.5, "guidance": 2.0, "uncond": {}},
        {"guidance": (2.0, 1.0, 3.0, 1.0), "uncond": {}},
        {"grid": "random", "grid_seed": 4},
        {"stop": 0.0},
    ],
    ids=str,
)
def test_a_plan_is_made_once(resolved, options):
    first = run(halve, shape=(2,), **options)
    assert same_bits(run(halve, shape=(2,), num_samples=1, **options), first)
    # Another model of the same conventions shares it, as does any bare callable.
    run(lambda x, t: -x, shape=(2,), **options)
    assert len(resolved) == 1


def test_other_samples_seeds_and_conditions_need_no_other_plan(resolved):
    model = denoiser(lambda x, t, y=0.0: 0.5 * x, 2)
    run(model)
    run(model, num_samples=5, dtype=torch.float64)
    run(model, cond={"y": 3.0}, callback=lambda step: None)
    run(model, start=torch.ones(4, 2), batch_size=2)
    assert len(resolved) == 1


def test_the_oldest_is_forgotten():
    memory, made = Recent(2), []
    for key in "abacab":
        memory.get(key, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "b"]
    assert memory.get([1], lambda: "a list") == "a list"  # has no hash


def test_eight_threads_use_one_memory():
    memory, barrier = Recent(3), threading.Barrier(8)
    wrong = []

    def work():
        barrier.wait(30)
        for i in range(2000):
            key = i % 5
            if memory.get(key, lambda key=key: -key - 1) != -key - 1:
                wrong.append(key)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- equal values that are not equally good


def test_true_and_1_and_float_1_are_not_confused():
    for good, bad in ((1, True), (1, 1.0)):
        assert run(halve, good, shape=(2,)).shape == (1, 2)
        for _ in range(2):
            with pytest.raises(TypeError, match="steps must be an integer"):
                run(halve, bad, shape=(2,))
    for name, good in (("clip", 1), ("eta", 1), ("guidance", 1), ("order", 1), ("grid_seed", 1)):
        fixed = {"uncond": {}} if name == "guidance" else {}
        fixed |= {"grid": "random"} if name == "grid_seed" else {}
        run(halve, shape=(2,), **fixed, **{name: good})
        with pytest.raises(
            TypeError, match="seed must" if name == "grid_seed" else f"{name} must "
        ):
            run(halve, shape=(2,), **fixed, **{name: True})
    run(halve, shape=(2,), order=1)
    with pytest.raises(TypeError, match="order must be an integer"):
        run(halve, shape=(2,), order=1.0)
    run(halve, shape=(2,), rederive=True)
    with pytest.raises(TypeError, match="rederive must be True or False"):
        run(halve, shape=(2,), rederive=1)


def test_numbers_inside_tuples_are_not_confused():
    run(halve, shape=(2,), clip=(0, 1000))
    with pytest.raises(TypeError, match=r"clip\[0\] must be a real number, got False"):
        run(halve, shape=(2,), clip=(False, 1000))


def test_an_error_is_not_remembered(resolved):
    for _ in range(2):
        with pytest.raises(ValueError, match="eta must be in"):
            run(halve, shape=(2,), eta=3.0)
    assert len(resolved) == 2


# ---- what may change


def told(steps, **options):
    """The times at which a network is called."""
    spy = Spy(halve)
    fs.sample(spy, steps, shape=(2,), seed=0, **options)
    return [float(t[0]) + 1 for t in spy.told]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_changed_times_are_respected(kind):
    times = kind([900.0, 500.0, 0.0])
    assert told(times) == [900, 500]
    times[1] = 400.0
    assert told(times) == [900, 400]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_changed_scales_and_variances_are_respected(kind):
    model = denoiser(model_b(), 2)
    scales = kind([2.0, 1.0, 3.0, 1.0])

    def labelled(x, t, y):
        return x * y.reshape(-1, 1)

    guided = {"cond": {"y": 0.5}, "uncond": {"y": 0.1}}
    labelled = denoiser(labelled, 2)  # one object, whose plans would be remembered
    before = run(labelled, guidance=scales, **guided)
    scales[0] = 7.0
    after = run(labelled, guidance=scales, **guided)
    assert not torch.equal(before, after)
    assert same_bits(after, run(labelled, guidance=[7.0, 1.0, 3.0, 1.0], **guided))
    interval = kind([0.0, 500.0])
    run(labelled, guidance=2.0, guidance_interval=interval, **guided)
    interval[1] = 1000.0
    after = run(labelled, guidance=2.0, guidance_interval=interval, **guided)
    assert same_bits(after, run(labelled, guidance=2.0, **guided))
    if kind is not torch.tensor:
        variances = kind([0.1, 0.2, 0.3, 0.0])
        run(model, method="ancestral", variance=variances)
        variances[0] = 0.5
        after = run(model, method="ancestral", variance=variances)
        expected = run(model, method="ancestral", variance=[0.5, 0.2, 0.3, 0.0])
        assert same_bits(after, expected)


def test_a_changed_model_is_respected():
    model = denoiser(model_b(), 2, clip=0.5)
    other = lambda **options: denoiser(model_b(), 2, **options)  # noqa: E731

    def check(expected, **options):
        for _ in range(2):
            assert same_bits(run(model, **options), run(expected, **options))

    check(other(clip=0.5))
    model.clip = 0.1
    check(other(clip=0.1))
    model.clip = (-0.1, 0.2)
    check(other(clip=(-0.1, 0.2)))
    model.clip = None
    check(other())
    model.schedule = fs.NoiseSchedule.cosine()
    check(other(schedule=fs.NoiseSchedule.cosine()))
    model.schedule = LINEAR
    model.prediction = "v"
    check(other(prediction="v"))
    model.prediction = "epsilon"
    model.time = "rescaled"
    check(other(time="rescaled"))
    model.time = lambda times: torch.from_numpy(times / 2)
    check(other(time=lambda times: torch.from_numpy(times / 2)))
    model.time = "index"
    check(other(variance="small"), method="ancestral")
    model.variance = "large"
    check(other(variance="large"), method="ancestral")
    model.model, model.variance = halve_wide, "learned_range"
    check(denoiser(halve_wide, 2, variance="learned_range"), method="ancestral")


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
def test_profiles_and_plans_given_later_are_respected():
    model = denoiser(model_b(), 2)
    x0 = torch.rand(4, 2) - 0.5
    plain = run(model)
    profile = fs.profile(model, x0, times=[1, 5, *range(20, 1001, 20)], trajectories=4)
    model.profile = profile
    best = profile.costs("trajectory", method="dpm++").best_grid(4)
    assert same_bits(run(model), run(model, best))
    assert not torch.equal(run(model), plain)
    tuned = fs.ddim(LINEAR, fs.Grid([1000, 400, 90, 5, 0]))
    model.plans = {4: tuned}
    assert same_bits(run(model), run(model, tuned))
    model.plans[4] = tuned.with_clip(0.1)
    assert same_bits(run(model), run(model, tuned.with_clip(0.1)))
    model.plans, model.profile = {}, None
    assert same_bits(run(model), plain)


def test_a_new_object_at_an_old_address_is_another():
    """Objects that are compared by identity are kept, so that no other can take their place."""
    for k in range(50):
        times = lambda t, k=k: torch.from_numpy(t + k)  # noqa: E731
        spy = Spy(halve)
        fs.sample(denoiser(spy, 2, time=times), 1)
        assert spy.told[0].tolist() == [1000 + k]
        spy = Spy(halve)
        fs.sample(denoiser(spy, 2), fs.Grid([500 + k, 0]))
        assert spy.told[0].tolist() == [499 + k]


# ---- what is kept alive


@pytest.mark.parametrize("clip", [None, 1.0])
def test_models_are_not_kept_alive(clip):
    class Network(torch.nn.Module):
        def forward(self, x, t):
            return 0.5 * x

    network = Network()
    model = denoiser(network, 2, clip=clip)
    plan = fs.ddim(LINEAR, fs.Grid([900, 30, 0]))
    for steps in (3, plan, [900, 30, 0]):
        run(model, steps)
        run(network, steps, shape=(2,))
    if clip:
        run(model, threshold=0.9)
    references = [weakref.ref(network), weakref.ref(model)]
    del network, model
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_samples_and_conditions_are_not_kept_alive():
    start, y = torch.ones(2, 3), torch.ones(2)
    run(lambda x, t, y: x * y[:, None], shape=(3,), start=start, cond={"y": y})
    references = [weakref.ref(start), weakref.ref(y)]
    del start, y
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_the_plan_is_the_same_object():
    model = denoiser(halve, 2)
    plans = [prepare("sample", model, PlanRequest(5)).resolved.plan for _ in range(2)]
    assert plans[0] is plans[1]
    assert fs.Sampler(model, 5).plan is plans[0]


def test_a_network_whose_method_gives_the_timesteps_is_not_kept_alive():
    class Network(torch.nn.Module):
        def forward(self, x, t):
            return 0.5 * x

        def timesteps(self, times):
            return torch.from_numpy(times.copy())

    network = Network().eval()
    model = denoiser(network, 2, time=network.timesteps)
    for steps in (3, fs.Grid([900, 30, 0]), fs.ddim(LINEAR, fs.Grid([900, 30, 0]))):
        run(model, steps)
        run(model, steps, stop=30.0) if steps != 3 else run(model, steps, stop=33.3)
    references = [weakref.ref(network), weakref.ref(model)]
    del network, model
    gc.collect()
    assert [reference() for reference in references] == [None, None]
