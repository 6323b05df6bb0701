"""Profiles on a GPU: the sums of the CPU, up to float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from tests.helpers.networks import denoiser, halve, halve_wide

pytestmark = pytest.mark.cuda


CUDA = torch.device("cuda", 0)
TIMES = [1, 7, 60, 333, 1000]


def data(count=20, shape=(3, 9, 7)):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *shape), generator=generator) / 127.5 - 1.0


def both(network, **options):
    """Profiles of one model on the CPU and on the GPU."""
    x0 = data()
    found = []
    for device in ("cpu", CUDA):
        model = denoiser(network, 3, 9, 7, clip=1.0, device=device, **options)
        run = {"batch_size": 8, "trajectories": 5}
        found.append(fs.profile(model, x0, times=TIMES, **run))
    return found


@pytest.mark.parametrize("learned", [False, True])
def test_sums_are_those_of_the_cpu(learned):
    network = halve_wide if learned else halve
    options = {"variance": "learned_range"} if learned else {}
    on_cpu, on_gpu = both(network, **options)
    assert on_gpu.count == 20
    for name, expected in on_cpu.arrays().items():
        # Terms in float32 there, float64 here; a sum's terms may cancel to the trajectories' norms.
        scale = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(
            on_gpu.arrays()[name], expected, rtol=2e-5, atol=2e-6 * scale, err_msg=name
        )


def test_float64_models():
    def exact(x, t):
        assert x.dtype == torch.float64
        return 0.5 * x

    class Double(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x, t):
            return exact(x, t) * (self.scale * 2.0)

    x0 = data(6)
    profiles = [
        fs.profile(
            denoiser(Double(), 3, 9, 7, clip=1.0, device=device), x0, times=TIMES, trajectories=0
        )
        for device in ("cpu", CUDA)
    ]
    for name, expected in profiles[0].sums.items():
        np.testing.assert_allclose(profiles[1].sums[name], expected, rtol=1e-11, err_msg=name)


def test_the_digits_model_and_its_grids():
    x0 = (data(32, (1, 8, 8)) * 8).round() / 8
    found = [
        fs.profile(
            fs.load("digits", device=device),
            x0,
            times=range(50, 1001, 50),
            bin_width=1 / 8,
            cond={"y": 10},
        )
        for device in ("cpu", CUDA)
    ]
    np.testing.assert_allclose(found[1].error, found[0].error, rtol=1e-3)
    for objective in ("elbo", "mse", "trajectory"):
        tables = [profile.costs(objective) for profile in found]
        # The other's best grid is as good as one's own, up to the network's rounding.
        own, other = (tables[0].cost(table.best_grid(6)) for table in tables)
        assert other == pytest.approx(own, rel=1e-2)
