"""Memory: x, the network's output and at most one more; the caller's tensors stay the caller's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample.ops import direct
from fastsample.plans.history import HistorySlots
from fastsample.sampling import loop
from tests.helpers.loop_plans import PLANS, identity
from tests.helpers.networks import denoiser, halve

SHAPE, BATCH = (64, 8, 8), 2  # 32 KiB a batch: far above the plan's own table
UNIT = 4 * BATCH * math.prod(SHAPE)


class Live(TorchDispatchMode):
    """The most storage alive at once among the tensors made inside, in units of one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.storages = 0.0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= UNIT:
                reference = StorageWeakRef(tensor.untyped_storage())
                self.storages[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        self.storages = {
            key: entry for key, entry in self.storages.items() if not entry[0].expired()
        }
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()) / UNIT)
        return result


def negate(x, t, **_):
    """A network that makes nothing but its output."""
    return x.neg()


@pytest.fixture(params=["direct", "dispatched"])
def way(request, monkeypatch):
    """Both ways to the kernels; `Live`, a dispatch mode, would allow the second one only."""
    if request.param == "direct":
        monkeypatch.setattr(direct, "_num_dispatch_modes", lambda: 0)
    return request.param


def peak(steps=6, **options):
    with Live() as live:
        fs.sample(negate, steps, shape=SHAPE, num_samples=BATCH, **options)
    return live.peak


WITHOUT_HISTORY = {
    "ddim": {"method": "ddim"},
    "eta": {"eta": 1.0},
    "ancestral": {"method": "ancestral"},
    "seeds": {"method": "ddim", "seed": [1, 2]},
    "progress": {"method": "ddim", "progress": True},
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", WITHOUT_HISTORY.values(), ids=WITHOUT_HISTORY)
def test_x_the_output_and_at_most_one_more(options):
    assert 2 <= peak(**options) <= 3


@pytest.mark.parametrize(
    ("options", "history"),
    [
        ({}, 2),
        ({"order": 1}, 1),
        ({"method": "dpm++", "order": 2}, 1),
        ({"method": "dpm++", "order": 3}, 2),
        ({"method": "dpm++", "order": 3, "corrected": True}, 2),
        ({"method": "dpm++", "stochastic": True}, 1),
    ],
    ids=str,
)
def test_multistep_methods_keep_their_history_beside_that(options, history, monkeypatch):
    plan = fs.Sampler(negate, 6, shape=SHAPE, **options).plan
    assert HistorySlots.of(plan).count <= plan.needs_history == history
    monkeypatch.setattr(direct, "_num_dispatch_modes", lambda: 0)
    assert peak(**options) <= 2 + history
    assert peak(**options, guidance=2.0, uncond={}) <= 1 + 2 * 2 + history


def test_half_precision_samples_keep_their_history_in_float32(monkeypatch):
    monkeypatch.setattr(direct, "_num_dispatch_modes", lambda: 0)
    double = (2 * SHAPE[0], *SHAPE[1:])  # as many bytes in half precision as one unit
    with Live() as live:
        fs.sample(negate, 6, shape=double, num_samples=BATCH, dtype=torch.bfloat16)
    assert live.peak <= 2 + 2 * 2


def test_samples_of_a_large_number_need_the_memory_of_one_run(monkeypatch):
    monkeypatch.setattr(direct, "_num_dispatch_modes", lambda: 0)
    with Live() as live:
        fs.sample(negate, 6, shape=SHAPE, num_samples=8 * BATCH, batch_size=BATCH, method="ddim")
    # All results, twice while they are joined; the runs themselves need less.
    assert live.peak <= 2 * 8
    with Live() as live:
        sampler = fs.Sampler(negate, 6, shape=SHAPE, batch_size=BATCH, method="ddim")
        sampler(2 * BATCH, seed=0)
    assert live.peak <= 2 * 2


@pytest.mark.usefixtures("way")
def test_a_given_start_is_copied_once():
    # The caller's own start counts as well here.
    assert peak(start=torch.ones(BATCH, *SHAPE), method="ddim") <= 3 + 1


@pytest.mark.usefixtures("way")
def test_guidance_doubles_the_input_and_the_outputs():
    assert peak(guidance=2.0, uncond={}, method="ddim") <= 1 + 2 * 3


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", [{}, {"method": "ddim"}], ids=str)
def test_the_number_of_steps_costs_nothing(options):
    assert peak(steps=8, **options) == peak(steps=30, **options)


def test_history_keeps_what_the_order_asks_for():
    peaks = []
    for name in ("order 2", "order 3"):
        with Live() as live:
            model, start = denoiser(negate, *SHAPE), torch.ones(BATCH, *SHAPE)
            loop.run(model, PLANS[name], start, identity=identity(BATCH))
        peaks.append(live.peak)
    assert peaks[1] <= peaks[0] + 1


def test_the_check_itself_notices_a_network_that_hoards():
    kept = []
    with Live() as live:
        fs.sample(lambda x, t: kept.append(-x) or kept[-1], 6, shape=SHAPE, num_samples=BATCH)
    assert live.peak >= 6


def test_the_start_is_neither_changed_nor_returned():
    start = torch.ones(2, 3)
    for options in ({}, {"eta": 1.0}, {"callback": lambda step: None}):
        got = fs.sample(halve, 3, shape=(3,), start=start, **options)
        assert torch.equal(start, torch.ones(2, 3))
        assert got.untyped_storage().data_ptr() != start.untyped_storage().data_ptr()


def test_a_network_may_keep_its_output():
    kept = []

    def keeps(x, t):
        kept.append(halve(x, t))
        return kept[-1]

    options = {"shape": (3,), "seed": 0}
    assert torch.equal(fs.sample(keeps, 4, **options), fs.sample(halve, 4, **options))
    assert len({tensor.data_ptr() for tensor in kept}) == 4


def test_a_network_may_return_its_input():
    # Then the kernel's target is also the model output.
    for options in ({"eta": 1.0}, {}, {"method": "dpm++", "order": 3}):
        options |= {"shape": (3,), "seed": 0}
        got = fs.sample(lambda x, t: x, 4, **options)
        assert torch.equal(got, fs.sample(lambda x, t: x.clone(), 4, **options))
