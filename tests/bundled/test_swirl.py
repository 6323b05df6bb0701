"""The swirl's points and encoding, and the network made for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastsample.bundled.datasets import swirl_data
from fastsample.bundled.swirl import SwirlNet


def test_the_training_set_is_the_published_one() -> None:
    data = swirl_data()
    assert data.x0.shape == (1024, 2)
    assert data.x0.dtype == data.levels.dtype == torch.float32
    np.testing.assert_allclose(data.mean, [115.57, 135.31], atol=0.005)
    np.testing.assert_allclose(data.std, [47.22, 41.61], atol=0.005)
    assert float(data.x0.mean(0).abs().max()) < 1e-6
    np.testing.assert_allclose(data.x0.std(0, correction=0), 1.0, rtol=1e-6)


def test_points_are_levels_and_decode_to_whole_numbers() -> None:
    data = swirl_data(300, seed=5)
    values = data.x0.double() * data.std + data.mean
    whole = values.round().long()
    np.testing.assert_allclose(values, whole, atol=1e-4)
    assert torch.equal(data.levels[torch.arange(2), whole], data.x0)
    assert data.levels.shape == (2, 256)
    np.testing.assert_allclose(data.levels[:, 255], (255 - data.mean) / data.std, rtol=1e-6)


def test_fresh_points_share_the_encoding() -> None:
    first, fresh = swirl_data(), swirl_data(4096, seed=12345)
    assert torch.equal(first.levels, fresh.levels)
    assert not torch.equal(first.x0, fresh.x0[:1024])
    assert float(fresh.x0.mean(0).abs().max()) < 0.1
    # On the spiral r = 2 theta + pi, four units to a unit, but for the noise and the truncation.
    points = (fresh.x0.double() * fresh.std + fresh.mean + 0.5) / 4 - 30
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    turns = ((radius - math.pi) / 2 - angle) / (2 * math.pi)
    assert float((turns - turns.round()).abs().max()) < 0.12


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [(0, 0, "count must be at least 1, got 0"), (8, -1, r"seed must be in \[0, 4294967295\]")],
)
def test_wrong_sets(count, seed, message) -> None:
    with pytest.raises(ValueError, match=f"swirl_data: {message}"):
        swirl_data(count, seed)


def test_the_network_is_the_published_one() -> None:
    net = SwirlNet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 290_306
    assert net(torch.randn(7, 2), torch.randn(7)).shape == (7, 2)
    for layer in (net.dense1, net.dense2):
        std = 1 / math.sqrt(layer.in_features)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.weight.abs().max().item() <= 2 * std / 0.8796 + 1e-6
        assert not layer.bias.any()


def test_features_are_sines_and_cosines_of_the_octaves() -> None:
    """Against the plain formula in float64, in points where float32 has lost the phase."""
    net = SwirlNet(width=4)
    seen = []
    net.dense1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    z, log_snr = 2.0 * torch.randn(50, 2), torch.linspace(13.3, -5.0, 50)
    net(z, log_snr)
    level = 2.0 * (-log_snr.double().numpy() + 13.3) / 18.3 - 1.0
    h = np.concatenate([z.double().numpy(), level[:, None]], axis=1)
    phase = (2.0 * math.pi * h[:, :, None] * 2.0 ** np.arange(8)).reshape(50, 24)
    np.testing.assert_allclose(seen[0][:, :3], h, atol=1e-6)
    # The point's own features are exact; gamma's level is itself rounded before it is doubled.
    for part, function in ((seen[0][:, 3:27], np.sin), (seen[0][:, 27:], np.cos)):
        np.testing.assert_allclose(part[:, :16], function(phase)[:, :16], atol=1e-6)
        np.testing.assert_allclose(part[:, 16:], function(phase)[:, 16:], atol=3e-4)


def test_gradients_pass_the_features() -> None:
    net = SwirlNet(width=8).double()
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    log_snr = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (z, log_snr), eps=1e-7)
