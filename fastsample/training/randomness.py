"""Makes a training iteration's random numbers from (seed, iteration, use) alone.

So resuming needs no stored random state, all processes draw the same times, and the noise of a
sample does not depend on how many processes share its batch.
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
# Keep this order: another one changes the random numbers of every seed.
_NUMBERS = {name: number for number, name in enumerate(get_args(Purpose))}


@dataclass(frozen=True)
class RandomStreams:
    """Makes the random streams of one iteration, an independent one per use (times, noise, ...).

    Attributes:
        seed: seed of the run, 64 bits.
        iteration: 0, 1, ...
    """

    seed: int
    iteration: int

    def generator(self, purpose: Purpose) -> np.random.Generator:
        """Return a NumPy generator for one use, the same in every process."""
        return np.random.Generator(np.random.Philox(self._seed_sequence(purpose)))

    def key(self, purpose: Purpose) -> int:
        """Return a 64-bit seed for one use, whose noise is a function of (seed, sample index)."""
        return int(self._seed_sequence(purpose).generate_state(1, np.uint64)[0])

    def _seed_sequence(self, purpose: Purpose) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(_NUMBERS[purpose], self.iteration))
