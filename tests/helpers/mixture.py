"""A denoiser that is right about three narrow modes in the plane."""

from __future__ import annotations

import torch

from tests.helpers.networks import LINEAR, denoiser

MEANS = torch.tensor([[-1.2, 0.4], [0.9, 1.0], [0.5, -1.1]])


def mixture(prediction="epsilon", schedule=LINEAR, **options):
    def network(x, t, y=None):
        index = float(t.reshape(-1)[0])
        time = index * schedule.T if options.get("time") == "fraction" else index + 1
        alpha, sigma = (float(level) for level in schedule.levels(time))
        variance = (alpha * 0.2) ** 2 + sigma**2
        means = MEANS.to(x) if y is None else MEANS.to(x) + 0.3 * y.to(x)[:, None, None]
        away = x[:, None] - alpha * means
        share = torch.softmax(-(away**2).sum(-1) / (2 * variance), dim=1)
        eps = sigma * (share[:, :, None] * away).sum(1) / variance
        x0 = (x - sigma * eps) / max(alpha, 1e-9)
        return {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[
            prediction
        ]

    return denoiser(network, 2, schedule=schedule, prediction=prediction, **options)
