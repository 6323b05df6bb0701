"""Assigns the x0 estimates that later rows read again to as few buffers as possible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastsample.plans.plan import Plan
from fastsample.plans.rows import HISTORY, history_sources


@dataclass(frozen=True)
class HistorySlots:
    """Says for every row which buffers it reads earlier x0's from, and which it writes its own to.

    A row may write to a buffer that it reads: the kernel reads first.

    Attributes:
        count: the number of buffers, at most 4.
        reads: for each row the buffers of h1, h2, h3 and h4; -1 where the coefficient is 0.
        writes: for each row the buffer of its x0; -1 if no later row reads it.
    """

    count: int
    reads: tuple[tuple[int, int, int, int], ...]
    writes: tuple[int, ...]

    @classmethod
    def of(cls, plan: Plan) -> HistorySlots:
        """Assign the buffers of a plan."""
        used = np.stack([plan.column(name) != 0.0 for name in HISTORY], axis=1)
        sources = history_sources(plan.nodes, plan.calls_network)
        last_reader: dict[int, int] = {}  # row that made an x0 -> last row that reads it
        for k, row_sources in enumerate(sources):
            for n, source in enumerate(row_sources):
                if used[k, n]:
                    last_reader[source] = k
        slot_of: dict[int, int] = {}  # row that made an x0 -> its buffer
        free: list[int] = []
        count = 0
        reads: list[tuple[int, int, int, int]] = []
        writes: list[int] = []
        for k, row_sources in enumerate(sources):
            slots = [-1] * len(HISTORY)
            for n, source in enumerate(row_sources):
                if used[k, n]:
                    slots[n] = slot_of[source]
            reads.append((slots[0], slots[1], slots[2], slots[3]))
            for source in [s for s in slot_of if last_reader[s] == k]:
                free.append(slot_of.pop(source))
            if k in last_reader:
                if not free:
                    free.append(count)
                    count += 1
                slot_of[k] = free.pop()
            writes.append(slot_of.get(k, -1))
        return cls(count, tuple(reads), tuple(writes))
