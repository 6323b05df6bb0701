"""Kinds of command line arguments that several commands take."""

from __future__ import annotations

import argparse


def numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like 5,8,10, got {text!r}") from None
