"""The random numbers of a training iteration: a function of (seed, iteration, purpose) alone.

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
# Reordering the purposes changes what a seed gives.
_NUMBERS = {name: number for number, name in enumerate(get_args(Purpose))}


@dataclass(frozen=True)
class RandomStreams:
    """Random numbers of one iteration, independent between purposes.

    Attributes:
        seed: seed of the run, 64 bits.
        iteration: 0, 1, ...
    """

    seed: int
    iteration: int

    def generator(self, purpose: Purpose) -> np.random.Generator:
        """A NumPy generator, the same in every process."""
        return np.random.Generator(np.random.Philox(self._seed_sequence(purpose)))

    def key(self, purpose: Purpose) -> int:
        """A 64-bit seed, for noise that is a function of (seed, sample index)."""
        return int(self._seed_sequence(purpose).generate_state(1, np.uint64)[0])

    def _seed_sequence(self, purpose: Purpose) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(_NUMBERS[purpose], self.iteration))
