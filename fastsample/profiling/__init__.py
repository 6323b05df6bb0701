"""Profiles: a model's errors at every time, measured in one pass over data."""
