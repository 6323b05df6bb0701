"""Running plans: samples, inversion, noise."""
