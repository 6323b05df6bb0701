"""The examples run as their first lines say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_compare_samplers_draws_every_method(tmp_path, monkeypatch, capsys):
    out = tmp_path / "compare.png"
    monkeypatch.setattr(sys, "argv", ["compare", "--steps", "3", "--digit", "3", "--out", str(out)])
    names = runpy.run_path(str(EXAMPLES / "compare_samplers.py"), run_name="__main__")["ROWS"]
    printed = capsys.readouterr().out.splitlines()
    assert [line[:28].rstrip() for line in printed[:-1]] == list(names)
    assert out.stat().st_size > 1000
