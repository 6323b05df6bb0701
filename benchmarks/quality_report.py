"""Tables and the plot of the quality benchmark, from its JSON alone."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

METRICS = {"sw2": "sliced W2", "frechet": "Frechet distance"}
BEST_OF = 10
SHOWN = 10
def markdown(result): return ''
def render(f): pass
