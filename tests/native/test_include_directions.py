"""The include directions of the native code, read from its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
# What the files of a folder may include, beside their own folder.
BELOW = {
    "core": set(),
    "planner": {"core"},
    "gpu": {"core"},
    "emulated": {"core", "gpu"},
    "cpu": {"core", "planner"},
    "cuda": {"core", "gpu"},
    "bind": {"core", "planner", "gpu", "emulated", "cpu", "cuda"},
}
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


def included(path: Path) -> list[str]:
    return re.findall(r'#include "([^"]+)"', path.read_text())


def test_every_folder_has_its_rule():
    assert {p.parent.relative_to(CSRC).as_posix() for p in SOURCES} == set(BELOW)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(CSRC).as_posix())
def test_includes_point_down(path):
    folder = path.parent.name
    for name in included(path):
        assert (CSRC / name).is_file()
        assert name.split("/")[0] in BELOW[folder] | {folder}, f"{path.name} includes {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(CSRC).as_posix())
def test_files_named_in_comments_exist(path):
    comments = "\n".join(re.findall(r"//.*", path.read_text()))
    for name in re.findall(rf"\b(?:{'|'.join(BELOW)})/\w+\.(?:h|cpp|cuh|cu)\b", comments):
        assert (CSRC / name).is_file(), f"{path.name} names {name}"


def test_python_is_not_seen_below_the_bindings():
    for path in SOURCES:
        if path.parent.name != "bind":
            assert not re.search(r"pybind11|Python\.h|torch/", path.read_text()), path.name
