"""Draws figures and images; matplotlib and Pillow are imported when a function needs them."""

from fastsample.plots.figures import (
    bits_against_steps,
    cost_map,
    overview,
    save,
    step_terms,
    time_strips,
    tuned_errors,
)
from fastsample.plots.images import save_grid

__all__ = [
    "bits_against_steps",
    "cost_map",
    "overview",
    "save",
    "save_grid",
    "step_terms",
    "time_strips",
    "tuned_errors",
]
