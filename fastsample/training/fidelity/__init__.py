"""Provides the fidelity loss, a distance between samples of a few-step sampler and data."""
