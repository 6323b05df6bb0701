"""Compares few-step samples with many-step results and with the samplers of other packages."""
