"""Provides context managers for training: the network's mode, and deferred interrupts.

An interrupt (Ctrl-C or SIGTERM) waits for the end of the iteration, so that a checkpoint can be
written.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import FrameType

from torch import nn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptFlag:
    """Remembers whether an interrupt has arrived."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @property
    def is_set(self) -> bool:
        """Return whether an interrupt has arrived."""
        return self.signal_number is not None

    def handle(self, signal_number: int, _frame: FrameType | None) -> None:
        """Handle a signal: remember the first one, stop at once on a second one."""
        if self.is_set:
            self.stop()
        self.signal_number = signal_number

    def stop(self) -> None:
        """Raise the exception that the signal would have raised without this class."""
        if self.signal_number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def deferred_interrupts() -> Generator[InterruptFlag, None, None]:
    """Make interrupts only set a flag inside; this has no effect outside the main thread."""
    flag = InterruptFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    handlers = {number: signal.signal(number, flag.handle) for number in _SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def training(network: nn.Module) -> Generator[None, None, None]:
    """Set training mode inside; restore the modules' previous modes afterwards.

    A network in training mode is left as it is: some of its modules may be in evaluation mode on
    purpose, such as frozen batch norms.
    """
    modes = {module: module.training for module in network.modules()}
    if not network.training:
        network.train()
    try:
        yield
    finally:
        _restore_modes(modes)


@contextmanager
def evaluating(network: nn.Module) -> Generator[None, None, None]:
    """Set evaluation mode inside, for samplers; restore the previous modes afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        _restore_modes(modes)


def _restore_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, is_training in modes.items():
        module.training = is_training
