"""Losses of one network call."""
