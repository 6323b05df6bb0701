"""The golden numbers in tests/data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "data"


def stored(name: str) -> Any:
    """What `tests/data/<name>.json` holds."""
    return json.loads((FOLDER / f"{name}.json").read_text())
