"""Noise levels over time."""
