"""How many threads a kernel may use."""

from __future__ import annotations

import os
import sys


def num_threads() -> int:
    """Torch's number where torch is loaded, so that one setting governs; else one per processor.

    Planning needs no torch: it must not import it to ask.
    """
    torch = sys.modules.get("torch")
    return (os.cpu_count() or 1) if torch is None else torch.get_num_threads()
