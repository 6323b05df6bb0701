"""Finds the K-step sampler whose results are nearest to a run with many steps, for one model."""
