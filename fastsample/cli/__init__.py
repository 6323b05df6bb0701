"""Implements the command line, ``fastsample``."""
