"""What is random in an iteration of training: a function of (seed, iteration, purpose) alone.

Nothing has to be stored to resume, all processes find the same times, and a sample's noise does not
depend on how many processes share its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

Purpose: TypeAlias = Literal[
    "order",
    "times",
    "noise",
    "decoder",
    "condition",
    "network",
    "chain times",
    "chain length",
    "chain start",
    "chain noise",
    "directions",
]
# Their order is part of what a seed means.
_NUMBERS = {name: number for number, name in enumerate(get_args(Purpose))}


@dataclass(frozen=True)
class Draws:
    """Random numbers of one iteration, independent for every purpose.

    Attributes:
        seed: of the run, 64 bits.
        iteration: 0, 1, ...
    """

    seed: int
    iteration: int

    def generator(self, purpose: Purpose) -> np.random.Generator:
        """Numbers for the host, the same in every process."""
        return np.random.Generator(np.random.Philox(self._source(purpose)))

    def key(self, purpose: Purpose) -> int:
        """A 64-bit seed, for noise that belongs to samples."""
        return int(self._source(purpose).generate_state(1, np.uint64)[0])

    def _source(self, purpose: Purpose) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(_NUMBERS[purpose], self.iteration))
