"""Measures profiles: a model's errors at every diffusion time, in one pass over data."""
