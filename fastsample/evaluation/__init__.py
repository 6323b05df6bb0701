"""Comparisons with many-step results and with other packages."""
