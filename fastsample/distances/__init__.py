"""Distances between two sets of samples."""
