"""The command line, ``fastsample``."""
