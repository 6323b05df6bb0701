"""Sample i is the same in any batch: bits belong to (seed, index, row, element) alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops import START_DRAW, reference
from tests.helpers.networks import LINEAR, denoiser, halve, halve_wide, per_sample
from tests.helpers.tensors import same_bits

SHAPE = (3, 5, 7)  # 105 elements: no multiple of any vector width
RUNS = {
    "default": (halve, {"steps": 3}),
    "ddim": (halve, {"steps": 3, "method": "ddim"}),
    "ddim eta": (halve, {"steps": 4, "eta": 1.0}),
    "clipped": (halve, {"steps": 3, "eta": 0.5, "clip": 1.0}),
    "ancestral": (halve, {"steps": 3, "method": "ancestral"}),
    "learned": (halve_wide, {"steps": 3, "method": "ancestral"}),
    "guided": (halve, {"steps": 3, "eta": 1.0, "guidance": 3.0, "uncond": {}}),
}


def draw(name, **options):
    network, fixed = RUNS[name]
    variance = "learned_range" if network is halve_wide else "small"
    return fs.sample(denoiser(network, *SHAPE, variance=variance), **{**fixed, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", RUNS)
def test_any_batch_size_split_and_order(name, dtype):
    whole = draw(name, num_samples=7, seed=11, dtype=dtype)
    for i in (0, 3, 6):
        assert torch.equal(draw(name, sample_index=[i], seed=11, dtype=dtype)[0], whole[i])
    parts = [
        draw(name, num_samples=2, seed=11, dtype=dtype),
        draw(name, num_samples=5, sample_index=2, seed=11, dtype=dtype),
    ]
    assert torch.equal(torch.cat(parts), whole)
    order = [5, 0, 5, 2]
    assert torch.equal(draw(name, sample_index=order, seed=11, dtype=dtype), whole[order])
    assert torch.equal(
        draw(name, sample_index=torch.tensor(order), seed=11, dtype=dtype), whole[order]
    )


@pytest.mark.parametrize("name", RUNS)
def test_any_number_of_threads(name):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            # Enough elements for the kernels to share them out between three threads.
            results.append(draw(name, num_samples=500, seed=5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", RUNS)
def test_a_sequence_of_seeds_is_index_0_of_each(name):
    seeds = [3, 2**63, 3, 2**64 - 1]
    got = draw(name, seed=seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(got[i : i + 1], draw(name, seed=seed))
    assert torch.equal(got, draw(name, seed=np.array(seeds, dtype=np.uint64)))
    shifted = draw(name, seed=seeds, sample_index=[4, 5, 6, 7])
    assert torch.equal(shifted[1:2], draw(name, seed=2**63, sample_index=5))


def test_memory_format_of_the_start_does_not_matter():
    start = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    for name in RUNS:
        plain = draw(name, start=start, seed=2)
        for other in (
            start.to(memory_format=torch.channels_last),
            start.transpose(1, 3).contiguous().transpose(1, 3),
            torch.stack((start, start), dim=-1)[..., 0],
        ):
            assert not other.is_contiguous()
            assert torch.equal(draw(name, start=other, seed=2), plain)
            assert torch.equal(other, start)


def test_explicit_noise_equals_the_generated_noise():
    seeds, index = torch.tensor([9]), torch.arange(4)
    noise = torch.stack([ops.noise(seeds, index, SHAPE, draw=k) for k in range(4)])
    start = ops.noise(seeds, index, SHAPE)
    got = draw("ddim eta", start=start, noise=noise)
    assert torch.equal(got, draw("ddim eta", num_samples=4, seed=9))


def test_the_starting_noise_is_the_one_of_the_contract():
    first = []
    model = denoiser(lambda x, t: first.append(x.clone()) or halve(x, t), *SHAPE)
    fs.sample(model, 1, sample_index=[0, 2**32 + 5, 2**63 - 1], seed=[7, 2**40 + 1, 2**64 - 1])
    words = torch.tensor([7, 2**40 + 1, -1])
    index = torch.tensor([0, 2**32 + 5, 2**63 - 1])
    expected = reference.noise(words, index, (3, *SHAPE), START_DRAW, torch.float32)
    torch.testing.assert_close(first[0], expected, atol=2e-6, rtol=0)


def test_everything_that_should_differ_differs():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    indices = [0, 1, 2**32, 2**32 + 1, 2**63 - 1]
    starts = [
        fs.sample(halve, 1, shape=SHAPE, seed=seed, sample_index=[i])
        for seed in seeds
        for i in indices
    ]
    rows = []
    plan = fs.ancestral(LINEAR, fs.Grid([900, 500, 100, 0]))
    zero = torch.zeros(1, *SHAPE)
    still = denoiser(lambda x, t: torch.zeros_like(x), *SHAPE)
    fs.sample(still, plan, start=zero, callback=rows.append)
    first = rows[0].x
    second = rows[1].x - plan.column("a")[1] * first - plan.column("b")[1] * rows[1].x0
    draws = torch.stack([s.flatten() for s in [*starts, first, second]])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 5.5 / np.sqrt(draws.shape[1])


def test_two_threads_share_one_model():
    model = denoiser(halve_wide, *SHAPE, variance="learned_range")

    def one(seed):
        return fs.sample(model, 12, method="ancestral", seed=seed, num_samples=20)

    serial = [one(seed) for seed in range(2)]
    for _ in range(3):
        together = [None, None]
        barrier = threading.Barrier(2)

        def work(seed, together=together, barrier=barrier):
            barrier.wait()
            together[seed] = one(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(a, b) for a, b in zip(serial, together, strict=True))


@pytest.mark.parametrize("seed", [7, [7, 8]], ids=str)
@pytest.mark.parametrize("index", [None, 3, [5, 2**40], np.array([5, 6]), torch.tensor([5, 6])])
def test_the_default_device_of_torch_does_not_matter(index, seed):
    """Seeds, indices, times and conditions are numbers of the host, whatever torch's default is."""

    def labelled(x, t, y):
        return halve(x, t) + per_sample(y, x)

    def run(steps):
        options = {"seed": seed, "sample_index": index, "cond": {"y": [1.0, 2.0]}, "eta": 1.0}
        return fs.sample(labelled, steps, shape=(2, 3), num_samples=2, **options)

    times = [1000, 433.5, 20, 0]
    expected = [run(3), run(times)]
    with torch.device("meta"):
        found = [run(3), run(times)]
    assert all(map(same_bits, found, expected))
