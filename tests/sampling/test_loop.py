"""The loop itself: every kind of operand, and no waiting for the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.sampling import loop
from fastsample.sampling.noise import Identity
from tests.helpers import oracles
from tests.helpers.loop_plans import PLANS, identity, parts
from tests.helpers.networks import denoiser, halve, model_a2, model_b

# ---- what it computes


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("in_place", [False, True])
def test_it_runs_the_rows(name, in_place):
    plan = PLANS[name]
    wide = name == "learned"
    noise = oracles.noise_formula(len(plan))
    numpy_network = oracles.model_a2(1000) if wide else oracles.model_b(1000)
    expected = oracles.execute(plan, lambda x, t: numpy_network(x, t - 1), oracles.X_T, noise)
    got = loop.run(
        denoiser((model_a2 if wide else model_b)(), 8, variance=("small", "learned_range")[wide]),
        plan,
        torch.from_numpy(oracles.X_T.copy())[None],
        noise=torch.from_numpy(noise)[:, None],
        in_place=in_place,
        inference=True,
    )
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
def test_in_place_inference_and_callback_change_no_bit(name):
    model, plan = parts(name, 3, 5)
    start = ops.noise(torch.tensor([1]), torch.arange(4), (3, 5))

    def run(**options):
        return loop.run(model, plan, start.clone(), identity=identity(4), **options)

    plain = run()
    assert torch.equal(run(in_place=True), plain)
    assert torch.equal(run(inference=True), plain)
    assert torch.equal(run(callback=lambda step: None), plain)
    assert torch.equal(run(in_place=True, inference=True, watch=lambda *_: None), plain)


def test_a_plan_that_wants_noise_and_gets_none_gives_nan():
    model, plan = parts("eta", 2)
    assert loop.run(model, plan, torch.zeros(1, 2)).isnan().all()
    model, plan = parts("ddim", 2)
    assert loop.run(model, plan, torch.zeros(1, 2)).isfinite().all()


def test_watch_sees_output_and_result_of_every_row():
    seen = []
    model, plan = parts("learned", 2)
    got = loop.run(
        model,
        plan,
        torch.ones(3, 2),
        identity=identity(3),
        watch=lambda k, output, x: seen.append((k, output.shape, x)),
    )
    assert [k for k, _, _ in seen] == [0, 1, 2, 3]
    assert {shape for _, shape, _ in seen} == {(3, 4)}
    assert seen[-1][2] is got


# ---- no waiting for the host

SYNCS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique")


class HostReads(TorchDispatchMode):
    """Notes, or refuses, every operator that makes the host wait for a value."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__()
        self.refuse, self.events = refuse, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.split(".")[-1].startswith(SYNCS):
            self.events.append("read")
            if self.refuse:
                raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


OPERANDS = {
    "generated noise": {},
    "explicit noise": {"noise": torch.ones(4, 2, 3)},
    "seed per sample": {"identity": Identity(torch.tensor([1, 2]), torch.arange(2))},
    "guided": {"conditions": Conditions("run", {"y": 1}, {"y": 0}, 2, torch.device("cpu"))},
    "callback": {"callback": lambda step: None},
    "watched": {"watch": lambda *_: None},
    "inference": {"inference": True, "in_place": True},
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("operands", OPERANDS)
def test_the_loop_never_waits(name, operands):
    model, plan = parts(name, 3)
    options = {"identity": identity(2), **OPERANDS[operands]}
    with HostReads(refuse=True):
        loop.run(model, plan, torch.ones(2, 3), **options)


def test_the_loop_never_waits_with_gradients():
    model, plan = parts("order 3", 3)
    start = torch.ones(2, 3, requires_grad=True)
    with HostReads(refuse=True):
        loop.run(model, plan, start, identity=identity(2)).sum().backward()


def test_the_check_itself_notices_a_read():
    def reads(x, t):
        return x * float(x.sum())

    with HostReads(refuse=True), pytest.raises(AssertionError, match="waits"):
        loop.run(denoiser(reads, 3), PLANS["ddim"], torch.ones(2, 3), inference=True)


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"guidance": 2.0, "uncond": {}}])
def test_sample_waits_once_after_the_last_call(options):
    with HostReads() as reads:
        fs.sample(
            lambda x, t: reads.events.append("call") or halve(x, t),
            5,
            shape=(3,),
            num_samples=2,
            seed=0,
            **options,
        )
    assert reads.events[:5] == ["call"] * 5
    assert set(reads.events[5:]) == {"read"}
