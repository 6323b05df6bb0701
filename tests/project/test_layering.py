"""The rooms of the package: imports go upward in one list, and the lower rooms need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastsample

ROOT = Path(fastsample.__file__).parent
# A module imports from its own room and from those above it in this list.
ROOMS = (
    *("_support", "schedules", "grids", "plans", "samplers", "ops", "planning", "distances"),
    *("denoiser", "sampling", "profiling", "likelihood", "tuning"),
    *("training.randomness", "training.losses", "training.fidelity", "training.trainer"),
    *("integrations", "evaluation", "plots", "reports", "bundled", "cli"),
)
NUMPY_ONLY = ("schedules", "grids", "plans", "samplers", "planning")
KERNELS = {"ops", "planning"}  # the rooms that may touch `fastsample._native`


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def room(name: str) -> str | None:
    """The room of a module; None for the public faces at the top (`fastsample`, `training`)."""
    return next((r for r in ROOMS if name == r or name.startswith(f"{r}.")), None)


def imported(name: str) -> set[str]:
    """Modules of the package that a module imports, wherever the statement stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inner = full.removeprefix("fastsample.")
                found.add(full if inner in (*MODULES, "_native") else str(node.module))
    return {m.removeprefix("fastsample").lstrip(".") for m in found if m.startswith("fastsample")}


def test_every_module_has_a_room():
    outside = {name for name in MODULES if room(name) is None}
    aliases = {"reference", "loop", "methods"}
    assert outside == {"", "__main__", "training", *aliases}


@pytest.mark.parametrize("name", [n for n in MODULES if room(n)])
def test_imports_go_one_way(name):
    level = ROOMS.index(str(room(name)))
    for other in imported(name):
        if other == "_native":
            assert room(name) in KERNELS, f"{name} touches the kernels"
        elif other == "":
            assert room(name) == "cli", f"{name} imports the package's face"
        elif other == "training":
            assert level > ROOMS.index("training.trainer"), f"{name} imports the face of training"
        else:
            assert room(other) is not None, f"{name} imports {other}"
            assert ROOMS.index(str(room(other))) <= level, f"{name} imports {other} from below it"


def test_no_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in sorted(imported(name) & MODULES.keys() - {"", "training"}):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        if room(name):
            visit(name, ())


@pytest.mark.parametrize("room", NUMPY_ONLY)
def test_the_lower_rooms_run_without_torch(room):
    names = [f"fastsample.{name}" for name in MODULES if name.startswith(room)]
    code = f"import sys\nfor name in {names}: __import__(name)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
