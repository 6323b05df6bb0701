"""What `import fastsample` offers, and what it costs to start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastsample as fs
from fastsample.samplers.registry import METHODS

HERE = Path(__file__).parent
PUBLIC = [
    *("BitsPerDim", "CostTable", "Denoiser", "Grid", "NoiseSchedule", "Plan", "Profile"),
    *("History", "Sampler", "SamplerStack", "Step"),
    *("__version__", "ancestral", "best_path", "best_paths", "bits_per_dim", "build_info", "ddim"),
    *(
        "ddim_inversion",
        "diffuse",
        "dpm_solver",
        "elbo_costs",
        "fastdpm",
        "grids",
        "inpaint",
        "integrations",
        "interpolate",
    ),
    *(
        "invert",
        "load",
        "load_plans",
        "log_prob",
        "new_seed",
        "plans",
        "profile",
        "restart",
        "sample",
        "save_plans",
        "shared",
        "shortcut",
    ),
    "training",
    *("tune", "unipc"),
]
MOVED = {
    "reference": "ops.reference",
    "loop": "sampling.loop",
    "methods": "samplers.registry",
}


def output(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, cwd=HERE, capture_output=True, text=True).stdout


def test_the_public_names_are_these_and_all_are_there():
    assert sorted(fs.__all__) == dir(fs) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(fs, name) is getattr(fs, name)
    assert fs.__version__ == fs.build_info()["version"]


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(fs.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    names: set[str] = set()
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            (alias,) = node.names
            assert alias.asname == alias.name, "X as X is what re-exports"
            names.add(alias.name)
            if alias.name not in ("grids", "integrations", "plans", "training"):
                assert getattr(fs, alias.name).__module__ in (node.module, "fastsample.ops.native")
        else:
            assert isinstance(node, ast.AnnAssign)
            assert isinstance(node.target, ast.Name)
            names.add(node.target.id)
    assert names == set(PUBLIC)
    assert names >= {method.make.__name__ for method in METHODS.values()}


def test_a_name_that_is_not_there_is_an_attribute_error():
    for name in ("smaple", "__main__", "_hidden", "grids.nothing"):
        with pytest.raises(AttributeError, match=f"'fastsample' has no attribute '{name}'"):
            getattr(fs, name)


def test_training_lists_its_names():
    assert dir(fs.training) == sorted(fs.training.__all__)
    assert "Trainer" in dir(fs.training)


def test_importing_the_entry_point_runs_nothing():
    assert output("-c", "import fastsample.__main__") == ""


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_moved_modules_keep_their_name_for_a_version(old, new):
    code = f"import fastsample.{old}, fastsample.{new} as new; print(fastsample.{old} is new)"
    assert output("-W", "ignore", "-c", code) == "True\n"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        output("-W", "error", "-c", f"import fastsample.{old}")
    assert f"fastsample.{old} has moved to fastsample.{new}" in failure.value.stderr


@pytest.mark.parametrize("code", ["import fastsample", "from fastsample.cli.main import main"])
def test_starting_needs_no_torch(code):
    assert output("-c", f"import sys; {code}; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_imports_no_torch(argument):
    code = f"""
import sys
from fastsample.cli.main import main
try:
    main([{argument!r}])
except SystemExit as stop:
    print(stop.code, "torch" in sys.modules)
"""
    assert output("-c", code).endswith("0 False\n")
