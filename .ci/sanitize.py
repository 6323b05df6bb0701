"""Runs tests on a native module that was built with sanitizers: `make sanitize`.

    python .ci/sanitize.py build/sanitized [pytest's arguments]

The module is put in the place of `fastsample._native` before anything imports it, so that the
package of the editable install is tested, and nothing of it is changed. The sanitizer's library has
to be loaded before Python: this program starts itself again with LD_PRELOAD.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# Python itself and torch keep memory until the process ends, which is not a leak of this package.
# odr: the sanitizer's copy is the only instrumented library, but torch brings equal names twice.
ASAN = "detect_leaks=0:detect_odr_violation=0:abort_on_error=0:exitcode=66"
UBSAN = "print_stacktrace=1:halt_on_error=1:exitcode=66"


def libraries() -> str:
    """Paths of the compiler's sanitizer libraries, for LD_PRELOAD."""
    found = []
    # libstdc++ too: its `__cxa_throw` must be there when the sanitizer looks for the real one.
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
        path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        found.append(str(Path(path).resolve()))
    return ":".join(found)


def main() -> int:
    """Returns pytest's exit status."""
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    if "FASTSAMPLE_SANITIZED" not in os.environ:
        settings = {
            "FASTSAMPLE_SANITIZED": "1",
            "LD_PRELOAD": libraries(),
            "ASAN_OPTIONS": ASAN,
            "UBSAN_OPTIONS": UBSAN,
        }
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})
    os.environ.pop("LD_PRELOAD")  # not for processes that tests start

    import torch  # noqa: F401  # before the module: its OpenMP runtime is loaded then, as always

    (path,) = folder.glob("_native*.so")
    spec = importlib.util.spec_from_file_location("fastsample._native", path)
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    sys.modules["fastsample._native"] = native
    spec.loader.exec_module(native)

    import pytest

    import fastsample

    built = fastsample.build_info()
    assert built["version"] == "sanitized", "the package found another native module"
    print(f"native module: {path}, {built}")
    # -s: what a sanitizer reports goes to the terminal, also when it ends the process at once.
    return int(pytest.main(["-s", "-p", "no:faulthandler", "-p", "no:cacheprovider", *arguments]))


if __name__ == "__main__":
    sys.exit(main())
