"""Decides how many CPU threads a kernel may use."""

from __future__ import annotations

import os
import sys


def num_threads() -> int:
    """Return torch's number of threads if torch is loaded, else the number of processors.

    The planner runs without torch and must not import it only to ask.
    """
    torch = sys.modules.get("torch")
    return (os.cpu_count() or 1) if torch is None else torch.get_num_threads()
