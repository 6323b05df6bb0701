"""README's Python runs as printed, and names only what exists."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from fastsample.samplers.registry import table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def python_blocks():
    """(line of its first statement, code) of each block."""
    for match in re.finditer(r"```python\n(.*?)```", README, flags=re.DOTALL):
        yield README[: match.start(1)].count("\n") + 1, match[1]


BLOCKS = list(python_blocks())


class Reader:
    """Runs the blocks in their order and each once, as a person would who types them all."""

    def __init__(self):
        self.namespace, self.printed = {}, io.StringIO()
        self.finished, self.failed = 0, False

    def reach(self, count):
        """Runs what is left of the first `count` blocks; an error is at its line of README.md."""
        while self.finished < count:
            line, code = BLOCKS[self.finished]
            assert not self.failed, f"README.md fails at the block of line {line}"
            self.failed = True
            with contextlib.redirect_stdout(self.printed):
                exec(compile("\n" * (line - 1) + code, ROOT / "README.md", "exec"), self.namespace)
            self.finished, self.failed = self.finished + 1, False


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("readme"), Reader()


@pytest.fixture
def reader(home, monkeypatch):
    folder, reader = home
    monkeypatch.chdir(folder)
    return reader


def test_readme_opens_with_the_two_commands():
    opening = README[: README.index("```python")]
    assert "make demo" in opening
    assert "make test" in opening


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[f"line {line}" for line, _ in BLOCKS])
def test_python_block_runs(number, reader):
    reader.reach(number + 1)


def test_the_printed_plan_is_the_real_one(reader):
    reader.reach(len(BLOCKS))
    shown = README[README.index("Plan ddim") :]
    assert shown[: shown.index("```")] in reader.printed.getvalue()


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
