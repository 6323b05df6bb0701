"""Moved to `fastsample.samplers.registry`; this name goes with the next version."""

from fastsample._support.moved import moved

moved(__name__, "fastsample.samplers.registry")
