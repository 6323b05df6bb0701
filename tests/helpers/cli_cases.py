"""What tests of the command line's planning side share."""

from __future__ import annotations

import numpy as np
import torch

from fastsample.cli.main import main

MEASURE = "profile digits {0} --out {1} --times 3 --batch-size 2 --trajectories 1 --bin-width 1/8"


def run(text, *paths):
    """The exit status of a command line; {0}, {1} are paths."""
    return main([part.format(*paths) for part in text.split()])


def digits_file(folder):
    """A file of six images with the digits' shape and levels, and the images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 17, (6, 1, 8, 8), generator=generator) / 8.0 - 1.0
    np.save(folder / "x.npy", x.numpy())
    return folder / "x.npy", x
