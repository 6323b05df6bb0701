"""Ctrl-C and SIGTERM between iterations: never in the middle of an update of the weights."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
