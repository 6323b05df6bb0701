"""Samplers: each file has a function that compiles a schedule and a grid to a `Plan`."""
