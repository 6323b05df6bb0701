"""Keeps the exponential moving average of the weights, from which samples are drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averaged_copy(modules: nn.Module, decay: float) -> AveragedModel:
    """Make a copy of the modules whose `update_parameters` moves it towards current weights.

    Update n uses the decay ``min(decay, (1 + n) / (10 + n))``: the memory is short at first,
    because the earliest weights are worth little. Buffers of floating dtype are averaged too;
    others are copied.

    Args:
        modules: the modules in training.
        decay: decay of the average per update, in [0, 1).
    """

    def update(averages: Any, current: Any, _num_averaged: Any) -> None:
        # `n_averaged` is on the CPU, unlike the argument, so that reading it waits for no GPU.
        n = float(average.n_averaged)
        rate = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
        pairs = list(zip(averages, current, strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        if floating:  # Torch passes one dtype at a time; integers are copied.
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
                [mean for mean, _ in floating], [value for _, value in floating], rate
            )
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)

    average = AveragedModel(modules, multi_avg_fn=update, use_buffers=True)
    return average.requires_grad_(False).eval()
