"""The import directions of the package, read from its source: no arrow points back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastsample

ROOT = Path(fastsample.__file__).parent
NATIVE = "fastsample._native"

# From the bottom up; a module imports only from the lines above its own. Modules that are not
# named stand above these.
ORDER = (
    {"_checks", "reference", "conditioning", "interpolation", "devices", "fixed_point"},
    {"datasets", "files"},
    {"_curves", "transition", "grid", "rows"},
    {"schedule"},
    {"decoder", "learned_range", "trajectory", "adjoint", "profile_file"},
    {"elbo"},
    {"grids", "plan_text"},
    {"plan"},
    {"plan_file"},
    {"samplers"},
    {"methods"},
    {"ops", "models"},
    {"identity", "planner", "second_order", "statistics"},
    {"costs"},
    {"objectives"},
    {"profiles"},
    {"belongings"},
    {"denoiser"},
    {"loop", "loading", "guidance", "stored"},
    {"graph", "arguments", "diagnosis"},
    {"batches", "backward"},
    {"sampling", "inversion", "forward"},
    {"collective", "measurement", "resuming"},
    {"profiling"},
    {"tuning"},
)
# NumPy only, so that plans can be made, tested and read without torch.
PURE = set().union(*ORDER[:11]) - {
    "reference",
    "conditioning",
    "interpolation",
    "devices",
    "fixed_point",
    "datasets",
    "files",
    "plan_file",
    "profile_file",
}
# Joins torch and the kernels.
DOORS = {"ops", "planner", "second_order"}
# On top: nothing below may know of them.
TOP = {
    "bound",
    "likelihood",
    "training",
    "integrations",
    "cli",
    "cli_planning",
    "cli_arguments",
    "cli_training",
    "cli_tuning",
    "images",
    "peers",
    "comparison",
    "plots",
    "_drawing",
    "_error_lines",
    "__main__",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(name: str) -> set[str]:
    """Full names of the modules that a module names in import statements, wherever they stand."""
    tree = ast.parse(MODULES[name].read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            # `from package import name` may name a module of it or something inside it.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES or full == NATIVE else str(node.module))
    return found


IMPORTS = {name: imported(name) for name in MODULES}


def group(name: str) -> str:
    """A module's first part below the package; empty for the package itself."""
    return name.removeprefix("fastsample").lstrip(".").split(".")[0]


def ours(name: str) -> set[str]:
    return {other for other in IMPORTS[name] if other.split(".")[0] == "fastsample"}


def reached(name: str) -> set[str]:
    """Everything that importing a module brings in, except through the package's own face."""
    found, waiting = set(), [name]
    while waiting:
        for other in IMPORTS.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def test_the_walk_sees_the_package():
    assert {group(name) for name in MODULES} >= set().union(*ORDER)
    assert "fastsample.rows" in IMPORTS["fastsample.plan"]
    assert NATIVE in IMPORTS["fastsample.ops.native"]


@pytest.mark.parametrize("name", [n for n in MODULES if group(n) in PURE])
def test_the_mathematics_needs_numpy_alone(name):
    outside = {other.split(".")[0] for other in reached(name)} - {"fastsample"}
    assert "torch" not in outside
    assert NATIVE not in reached(name)
    assert outside - {"numpy"} <= {
        "__future__",
        "bisect",
        "collections",
        "dataclasses",
        "functools",
        "inspect",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "typing",
        "warnings",
    }


def test_only_the_operators_touch_the_kernels():
    assert {group(name) for name in MODULES if NATIVE in IMPORTS[name]} <= DOORS


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_down(name):
    own = group(name)
    level = next((i for i, names in enumerate(ORDER) if own in names), len(ORDER))
    below = set().union(*ORDER[:level])
    for other in ours(name):
        if group(other) == own or other == NATIVE:
            continue
        if level < len(ORDER):
            assert group(other) in below, f"{name} imports {other} from above"
        if own not in TOP:
            assert group(other) not in TOP or name == "fastsample", f"{name} imports {other}"


def test_only_the_top_imports_the_package_itself():
    """Inside, names come from their own module: `import fastsample` is for those who use it."""
    whole = {group(name) for name in MODULES if "fastsample" in ours(name)}
    assert whole <= TOP


def test_no_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name not in done:
            # A package's own face may import its parts; the parts do not import the face.
            for other in sorted(ours(name) & MODULES.keys()):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())
