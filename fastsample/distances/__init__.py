"""Provides distances between two sets of samples, for use as losses."""
