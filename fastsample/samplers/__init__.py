"""Samplers: one file each, with a function that compiles a schedule and a grid to a plan."""
