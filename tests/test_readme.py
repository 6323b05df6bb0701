"""README's Python runs as printed, and names only what exists."""

import re
from pathlib import Path

import pytest

from fastsample.samplers.registry import table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_readme_opens_with_the_two_commands():
    opening = README[: README.index("```python")]
    assert "make demo" in opening
    assert "make test" in opening


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Each block may use what the blocks before it made, as a reader would.
    exec(compile("\n".join(BLOCKS[: number + 1]), "README.md", "exec"), {})


def test_the_printed_plan_is_the_real_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(BLOCKS), "README.md", "exec"), {})
    shown = README[README.index("Plan ddim") :]
    assert shown[: shown.index("```")] in capsys.readouterr().out


def test_the_table_of_methods_is_the_real_one():
    shown = README.split("<!-- made by fastsample.samplers.registry.table() -->\n")[1]
    assert shown.split("\n<!-- end -->")[0] == table()


def test_the_table_of_quality_is_the_measured_one():
    shown = README.split("at 10 calls, from benchmarks/results/quality.md -->\n")[1].split(
        "\n<!-- end of it -->"
    )[0]
    assert shown in (ROOT / "benchmarks" / "results" / "quality.md").read_text()


def test_the_table_of_tuned_plans_is_the_measured_one():
    shown = README.split("tuned, from benchmarks/results/quality.md -->\n")[1]
    shown = shown.split("\n<!-- end of tuned -->")[0]
    assert "| model |" in shown
    assert shown in (ROOT / "benchmarks" / "results" / "quality.md").read_text()


def test_the_table_of_fine_tuning_is_the_measured_one():
    shown = README.split("in short, from benchmarks/results/fidelity.md -->\n")[1]
    shown = shown.split("\n<!-- end of in short -->")[0]
    assert shown.count("\n") > 8
    assert shown in (ROOT / "benchmarks" / "results" / "fidelity.md").read_text()


def test_the_table_of_likelihoods_is_the_measured_one():
    shown = README.split("paper-tables.md -->\n")[1].split("\n<!-- end of it -->")[0]
    assert shown in (ROOT / "benchmarks" / "results" / "paper-tables.md").read_text()


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing
