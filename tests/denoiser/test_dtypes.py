"""Samples of another dtype than the network's are cast for it, by everybody who calls it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.training import DiffusionLoss
from tests.helpers.networks import LINEAR

DTYPES = [torch.bfloat16, torch.float32, torch.float64]


class Net(nn.Module):
    """A dense layer, after a norm that stays in float32 if asked for."""

    def __init__(self, dtype: torch.dtype, *, mixed: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2) if mixed else nn.Identity()
        self.dense = nn.Linear(2, 2, dtype=dtype)
        self.seen: set[torch.dtype] = set()

    def forward(self, x, t):
        self.seen.add(x.dtype)
        return self.dense(x) * 0.1


def model(dtype, **options):
    return fs.Denoiser(Net(dtype, **options).eval(), LINEAR, (2,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", DTYPES)
def test_every_caller_casts(network, dtype):
    denoiser = model(network)
    x = torch.linspace(-1, 1, 8).reshape(4, 2).to(dtype)
    results = {
        "call": denoiser(x, 3.0),
        "sample": fs.sample(denoiser, 3, start=x),
        "invert": fs.invert(denoiser, x, 4),
        "exact inversion": fs.invert(denoiser, x, 4, tolerance=0.5),
    }
    for name, result in results.items():
        assert result.dtype == dtype, name
    loss = DiffusionLoss(LINEAR, kind="simple", variance="small")
    assert torch.isfinite(loss(denoiser, x, torch.tensor([5] * 4))["loss"]).all()
    assert denoiser.model.seen == {network}


def test_a_network_takes_any_dtype_that_its_parameters_have():
    """Norms are often kept in float32: the first parameter does not tell the input's dtype."""
    denoiser = model(torch.bfloat16, mixed=True)
    assert fs.sample(denoiser, 3, num_samples=2, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert denoiser.model.seen == {torch.bfloat16}
