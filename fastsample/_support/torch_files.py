"""Tells what is wrong with a file that torch.load refuses."""

from __future__ import annotations

import os
import re


def fault_of(path: str | os.PathLike[str], error: Exception) -> str:
    """Return what is wrong with a file, to end a message, without torch's own text.

    That text has several lines with codes for terminals, and advises to load the file in a way that
    runs the code in it.

    Args:
        path: the file.
        error: what ``torch.load(weights_only=True)`` raised.
    """
    named = re.search(r"\bGLOBAL (\S+)", str(error))
    if named:
        return f"which needs the code of {named[1]}"
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as torch wrote it before
        return "which is damaged, or no file of torch.save"
    return "which is no file of torch.save" if start else "which is empty"
