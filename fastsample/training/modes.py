"""Training and evaluation mode of a network, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def training(network: nn.Module) -> Iterator[None]:
    """Training mode, and the modes of before at the end.

    A network in training mode stays as it is: parts of it may be frozen in evaluation mode.
    """
    before = {module: module.training for module in network.modules()}
    if not network.training:
        network.train()
    try:
        yield
    finally:
        _set_modes(before)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, as samplers see a network, and the modes of before at the end."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        _set_modes(before)


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training
