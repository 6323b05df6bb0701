"""What surrounds an iteration: the network's mode, and interruptions that wait for its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from torch import nn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted:
    """Whether somebody has asked to stop."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def asked(self) -> bool:
        """Since the beginning."""
        return self.number is not None

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal; a second one stops at once."""
        if self.asked:
            self.stop()
        self.number = number

    def stop(self) -> None:
        """End as the signal would have."""
        if self.number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def deferred_interrupts() -> Iterator[Interrupted]:
    """Signals set a mark inside; only the main thread can take them."""
    found = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found.take) for number in _SIGNALS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
