"""Functions that run plans: they draw samples, and invert data to noise."""
