"""Moved to `fastsample.sampling.loop`; this name goes with the next version."""

from fastsample._support.moved import moved

moved(__name__, "fastsample.sampling.loop")
