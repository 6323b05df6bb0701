"""Times functions for all benchmarks, and gathers facts about the machine."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import fastsample as fs
from fastsample.ops.draws import NOISE_VERSION

_BURST, _WARM_UP = 8, 2  # calls in a burst, of which some only warm up

RESULTS = Path(__file__).resolve().parent / "results"


def in_turns(
    candidates: dict[str, Callable[[int], object]],
    *,
    device: torch.device,
    seconds: float = 1.0,
    least: int = 3,
) -> dict[str, list[float]]:
    """Measure seconds per call of several candidates, which take turns in short bursts.

    Because they take turns, a drift of the machine's speed affects all alike. The first calls of a
    burst do not count, so that no candidate pays for the caches that the one before it left.

    Args:
        candidates: functions by name; each is called with the number of the call, by which it may
            choose a buffer.
        device: calls on a CPU are timed by the wall clock, on CUDA by events.
        seconds: time to spend on each candidate.
        least: smallest number of bursts.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    for function in candidates.values():
        function(0)  # Compile, and allocate memory.
    _synchronise(device)
    turn = 0
    while turn < least or any(total < seconds for total in spent.values()):
        for name, function in candidates.items():
            if turn >= least and spent[name] >= seconds:
                continue
            burst = [_once(lambda f=function, n=i: f(n), device) for i in range(_BURST)]
            times[name] += burst[_WARM_UP:]
            spent[name] += sum(burst)
        turn += 1
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return the median and quartiles in microseconds."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"median_us": middle * 1e6, "low_us": low * 1e6, "high_us": high * 1e6}


def host_cost(function: Callable[[], object], calls: int = 2000, repeats: int = 9) -> float:
    """Measure microseconds of host time per call, and return the least of several repeats."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - begin) / calls)
    return best * 1e6


def facts(device: torch.device) -> dict[str, object]:
    """Return facts about machine and versions, without which a result has no meaning."""
    result: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "commit": _command("git", "rev-parse", "--short", "HEAD"),
        "modified": bool(_command("git", "status", "--porcelain", "--", "csrc", "fastsample")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "fastsample": fs.build_info(),
        "noise": NOISE_VERSION,
    }
    if device.type == "cuda":
        result["gpu"] = torch.cuda.get_device_name(device)
        result["driver"] = _command(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        result["cuda"] = torch.version.cuda
    return result


def write(name: str, result: dict[str, object]) -> Path:
    """Write a result to benchmarks/results/<name>.json, and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _once(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        function()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
