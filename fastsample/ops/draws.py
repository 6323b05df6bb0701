"""The table of draws: which numbered noise of a sample serves which purpose.

A sample's noise is a function of (seed, index, draw, element). Each purpose has draws of its own,
so that no noise serves twice by accident under equal seeds: re-noising a generated image would
otherwise add the very noise that it was made from. This is the only place that assigns them; once
a number is given away it stays, since stored results depend on it.
"""

from __future__ import annotations

START_DRAW = 0xFFFFFFFF
"""The starting noise x_T of a run. The rows of a run have their row numbers 0, 1, 2 ..."""

NOISE_VERSION = 2
"""The version of the function from (seed, sample index, draw, element) to a normal number.

Results that depend on generated noise can be made again only under the same version, which stored
ones name. Version 1 was Box-Muller with an angle over the full turn, and one set of draws for all
purposes. Version 2 takes an angle within an eighth of a turn and the quarter from two bits of the
same word.
"""

_BLOCK = 2**20


def _block(number: int) -> int:
    """Return the first of the 2^20 draws of a purpose, counted back from the highest number."""
    return 2**32 - (number + 1) * _BLOCK


DIFFUSE_DRAW = _block(1)
"""The noise that `diffuse` adds to data."""
PROFILE_DRAW = _block(2)
"""The noise that `profile` adds to data; the next draw is the start of its trajectories."""
BITS_PER_DIM_DRAW = _block(3)
"""The first of the draws of `bits_per_dim`, one per time."""
TUNE_DRAW = _block(4)
"""The starting noise of `tune`."""
INPAINT_DRAW = _block(5)
"""The first of the draws for the known region of inpainting, one per row."""
