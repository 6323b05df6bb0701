"""README: what a reader sees first. What holds for every text is in test_docs.py."""

import re
from pathlib import Path

from fastsample.samplers.registry import table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ("sampling", "choosing", "planning", "tuning", "training", "noise", "benchmarks")


def test_readme_opens_with_the_two_commands():
    opening = README[: README.index("```python")]
    assert "make demo" in opening
    assert "make test" in opening


def test_readme_is_short():
    assert README.count("\n") <= 125


def test_readme_links_to_the_pages():
    links = set(re.findall(r"\]\(docs/(\w+)\.md\)", README))
    assert links >= {*PAGES, "guidance", "extending"}


def test_the_table_of_methods_is_the_real_one():
    shown = README.split("<!-- made by fastsample.samplers.registry.table() -->\n")[1]
    assert shown.split("\n<!-- end -->")[0] == table()
