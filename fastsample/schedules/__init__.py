"""Noise schedules: the levels of signal and noise over time."""
