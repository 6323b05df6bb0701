"""Times generated noise on one thread of a CPU, for each instruction set, beside an earlier build.

    python -m benchmarks.bench_noise [--former FILE --former-commit HASH] [--quick]

`--former` names the module `_native` that another commit built, whose operator `fill_noise` takes
the same arguments; the result keeps the name of that commit. Both take turns in one process, so
that a drift of the machine hits them alike. Without it, the figures are of this build alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.timing import facts, in_turns, write
from fastsample import _native, ops

CPU = torch.device("cpu")
FLOAT32 = 0
# A call takes 50 to 100 microseconds: far more than its overhead, and less than a time slice. At
# most 256 KiB are written, which stay in the second-level cache.
ELEMENTS = {"baseline": 1 << 12, "avx2": 1 << 16, "avx512": 1 << 16}


def load(path: Path) -> ModuleType:
    """Load another build's `_native` beside this one."""
    loader = ExtensionFileLoader("_native", str(path))
    spec = importlib.util.spec_from_loader("_native", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def filler(native: Any, out: torch.Tensor) -> Callable[[int], object]:
    """Return a function that fills `out` with the noise of one sample."""
    seed, index = torch.tensor([3]), torch.tensor([5])
    layout = (1, out.numel(), 1, out.numel(), False)

    def fill(call: int) -> None:
        native.fill_noise(
            *(-1, 0, 1, FLOAT32, *layout),
            *(seed.data_ptr(), False, index.data_ptr(), call, out.data_ptr()),
        )

    return fill


def run(former: Path | None = None, seconds: float = 4.0) -> list[dict[str, object]]:
    """Time every instruction set of this machine, and return nanoseconds per normal."""
    builds: dict[str, Any] = {"this build": _native}
    if former is not None:
        builds["former build"] = load(former)
    rows: list[dict[str, object]] = []
    chosen = _native.build_info()["cpu"]
    for isa in _native.build_info()["cpu_available"]:
        for native in builds.values():
            native.use_isa(isa)
        elements = ELEMENTS[isa]
        out = torch.empty(elements)
        candidates = {name: filler(native, out) for name, native in builds.items()}
        times = in_turns(candidates, device=CPU, seconds=seconds)
        row: dict[str, object] = {"instruction set": isa, "elements": elements}
        for name, values in times.items():
            low, middle, high = (1e9 * q / elements for q in statistics.quantiles(values, n=4))
            row[name] = {"median_ns": middle, "low_ns": low, "high_ns": high}
            print(f"{isa:10} {name:14} {middle:7.3f} ns per normal ({low:.3f} to {high:.3f})")
        rows.append(row)
    _native.use_isa(chosen)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--former", type=Path)
    parser.add_argument("--former-commit", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rows = run(options.former, seconds=0.2 if options.quick else 4.0)
    if not options.quick:
        builds = {"noise version": ops.NOISE_VERSION, "former commit": options.former_commit}
        rates = {"threads": 1, "instruction sets": rows}
        print(write("noise-cpu", {**facts(CPU), **builds, **rates}))


if __name__ == "__main__":
    main()
