"""Runs the commands ``fastsample demo|sample|profile|plan|bpd|tune|train|info``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from fastsample.cli.parser import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of ``fastsample``.

    Args:
        arguments: the arguments; None takes those of the process.

    Returns:
        The exit status: 0, 2 for a wrong argument (as argparse), 1 for another error.
    """
    options = make_parser().parse_args(arguments)
    module, function = options.run
    try:
        return getattr(import_module(f"fastsample.cli.{module}"), function)(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"fastsample {options.command}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, TypeError)) else 1
