"""Pictures as files, what making one leaves alone, and what is refused."""

from __future__ import annotations

import ast
import struct
import sys
from pathlib import Path

import pytest

import fastsample as fs
from fastsample import plots
from tests.helpers.diagonal import SMALL

matplotlib = pytest.importorskip("matplotlib")

WHOLE = SMALL.profile()
CHOSEN = {"even": fs.Grid([20, 10, 0]), "late": fs.Grid([20, 3, 2, 1, 0])}
DRAWINGS = {
    "cost_map": lambda: plots.cost_map(WHOLE.costs("elbo"), [2, 5]),
    "bits_against_steps": lambda: plots.bits_against_steps(WHOLE.costs("elbo")),
    "time_strips": lambda: plots.time_strips(CHOSEN),
    "step_terms": lambda: plots.step_terms(WHOLE.costs("elbo"), CHOSEN),
    "overview": lambda: plots.overview(WHOLE.costs("elbo"), CHOSEN),
}


def settings():
    """All but the back end: to ask for it imports pyplot."""
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}


def test_save_writes_a_legible_file_where_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = plots.save(plots.time_strips(CHOSEN), Path("folder") / "strips.PNG")
    assert result == tmp_path / "folder" / "strips.PNG"
    header = result.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", header[16:20])[0] >= 1000  # pixels across
    assert b"<svg" in plots.save(plots.time_strips(CHOSEN), "strips.svg").read_bytes()


@pytest.mark.parametrize("name", ["strips", "strips.txt"])
def test_save_refuses_what_is_no_picture(name, tmp_path):
    with pytest.raises(ValueError, match=r"save: path must end in one of \[.*'png'"):
        plots.save(plots.time_strips(CHOSEN), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_global_is_touched(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    before = settings()
    assert plots.save(DRAWINGS[name](), tmp_path / "x.png").stat().st_size > 1000
    assert settings() == before


@pytest.mark.parametrize("name", DRAWINGS)
def test_without_matplotlib_the_remedy_is_told(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib must be .*pip install 'fastsample\[plot\]'"):
        DRAWINGS[name]()


def test_only_drawing_imports_matplotlib():
    """No module does at its top, where it would be needed by everyone."""
    for path in Path(fs.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            module = getattr(node, "module", None) or ""
            assert not any(n.startswith("matplotlib") for n in [module, *names]), path


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.time_strips({}), ValueError, "time_strips: grids must hold at least one"),
        (
            lambda: plots.step_terms(WHOLE.costs("elbo"), {"x": [20, 0]}),
            TypeError,
            r"step_terms: grids must hold Grids, got \[20, 0\] for 'x'",
        ),
        (
            lambda: plots.step_terms(WHOLE.costs("elbo"), {"x": fs.Grid([20, 2.5, 0])}),
            ValueError,
            "grid must lie on the 20 times of the table, got 2.5",
        ),
        (lambda: plots.overview(WHOLE.costs("elbo"), {}), ValueError, "overview: grids must hold"),
        (
            lambda: plots.bits_against_steps(WHOLE.costs("mse")),
            ValueError,
            "bits_against_steps: chosen must be an \"elbo\" table, got 'mse'",
        ),
        (
            lambda: plots.bits_against_steps(WHOLE.costs("elbo"), WHOLE.costs("mse")),
            ValueError,
            "bits_against_steps: measured must be an \"elbo\" table, got 'mse'",
        ),
        (
            lambda: plots.bits_against_steps(WHOLE.costs("elbo"), steps=[]),
            ValueError,
            "bits_against_steps: steps must hold at least one number, got none",
        ),
        (
            lambda: plots.bits_against_steps(WHOLE.costs("elbo"), steps=[21]),
            ValueError,
            r"steps must be in \[1, 20\], got 21",
        ),
        (
            lambda: plots.cost_map(WHOLE.costs("elbo"), [0]),
            ValueError,
            r"steps must be in \[1, 20\]",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
