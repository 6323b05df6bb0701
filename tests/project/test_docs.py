"""The pages of docs/ and the other texts: their Python runs, their links lead somewhere, and what
they show was printed or measured."""

from __future__ import annotations

import contextlib
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fastsample as fs
from fastsample.grids.registry import grid_names
from fastsample.plans.plan import COLUMNS
from fastsample.samplers.registry import METHODS
from tests.project.test_layering import ROOMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]
RESULTS = ROOT / "benchmarks" / "results"
# The optional package that the blocks of a page import.
EXTRAS = {"docs/diffusers_models.md": "diffusers", "docs/diffusers_pipelines.md": "diffusers"}


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def fences(page: str, language: str) -> list[tuple[int, str]]:
    """(line of its first statement, content) of every block of this language."""
    found: list[tuple[int, str]] = []
    opened, inside, block = 0, None, []
    for number, line in enumerate(text_of(page).splitlines()):
        if not line.startswith("```"):
            block.append(line)
        elif inside is None:
            opened, inside, block = number + 1, line[3:], []
        else:
            if inside == language:
                found.append((opened, "".join(f"{line}\n" for line in block)))
            inside = None
    return found


def parameters(language: str) -> list[Any]:
    """One parameter per block: (page, its number on the page)."""
    return [
        pytest.param(page, number, id=f"{page} line {line}")
        for page in PAGES
        for number, (line, _) in enumerate(fences(page, language))
    ]


class Reader:
    """Runs the blocks of a page in their order and each once, as someone who types them all."""

    def __init__(self, page: str) -> None:
        self.page, self.blocks = page, fences(page, "python")
        self.namespace: dict[str, Any] = {}
        self.printed = io.StringIO()
        self.finished, self.failed = 0, False

    def reach(self, count: int) -> None:
        """Runs what is left of the first `count` blocks; an error is at its line of the page."""
        while self.finished < count:
            line, code = self.blocks[self.finished]
            assert not self.failed, f"{self.page} fails before line {line}"
            self.failed = True
            methods = dict(METHODS)
            try:
                with contextlib.redirect_stdout(self.printed):
                    exec(compile("\n" * line + code, ROOT / self.page, "exec"), self.namespace)
            finally:  # docs/extending.md adds a sampler
                METHODS.clear()
                METHODS.update(methods)
            self.finished, self.failed = self.finished + 1, False


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """The reader of a page, and the folder that its blocks write to."""

    @cache
    def reader(page: str) -> tuple[Reader, Path]:
        if page in EXTRAS:
            pytest.importorskip(EXTRAS[page])
        return Reader(page), tmp_path_factory.mktemp(Path(page).stem)

    return reader


@pytest.mark.parametrize(("page", "number"), parameters("python"))
def test_python_block_runs(page, number, readers, monkeypatch):
    reader, folder = readers(page)
    monkeypatch.chdir(folder)
    reader.reach(number + 1)


@pytest.mark.parametrize(("page", "number"), parameters("text"))
def test_the_shown_output_is_the_printed_one(page, number, readers, monkeypatch):
    reader, folder = readers(page)
    monkeypatch.chdir(folder)
    reader.reach(len(reader.blocks))
    assert fences(page, "text")[number][1] in reader.printed.getvalue()


# ---- links


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}, which does not exist"
        if anchor:
            other = str(file.resolve().relative_to(ROOT))
            assert anchor in anchors(other), f"{page} links to {target}: no such heading"


def test_every_page_is_in_the_contents():
    contents = text_of("docs/index.md")
    for page in PAGES:
        name = Path(page).name
        assert not page.startswith("docs/") or name == "index.md" or f"]({name})" in contents


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_in_the_text_exist(page):
    for code in re.findall(r"`([^`\n]+)`", text_of(page)):
        path = re.match(r"(?:csrc|fastsample|tests|benchmarks|examples|docs)/[\w./-]*", code)
        if path and "<" not in code:
            assert (ROOT / path[0]).exists(), f"{page} names {code}"
        for name in re.findall(r"\bfs\.(\w+)", code):
            assert name == "name" or hasattr(fs, name), f"{page} names {code}"


# ---- what was measured


def marked(marker: str) -> list[tuple[str, str, str]]:
    """(page, source, table) of every table between such a marker and ``<!-- end -->``."""
    pattern = re.compile(rf"^<!-- {marker} (\S+) -->\n(.*?)\n<!-- end -->$", re.S | re.M)
    return [(page, *match.groups()) for page in PAGES for match in pattern.finditer(text_of(page))]


COPIED = marked("from")
MADE = marked("made from")


def test_there_are_tables_to_check():
    assert {source.rpartition("/")[2] for _, source, _ in COPIED} == {
        "quality.md",
        "fidelity.md",
        "paper-tables.md",
        "default.md",
    }
    assert len(COPIED) >= 7
    assert {source.rpartition("/")[2] for _, source, _ in MADE} == {
        "step-cpu-float32.json",
        "step-cuda-bfloat16.json",
        "loop-cpu.json",
        "planner.json",
        "profile-cpu.json",
        "profile-cuda.json",
        "scheduler-cpu.json",
        "exploding.json",
    }
    for page in PAGES:  # a marker that is spelt otherwise would not be compared
        assert text_of(page).count("<!-- from ") == sum(page == other for other, *_ in COPIED)
        assert text_of(page).count("<!-- made from ") == sum(page == other for other, *_ in MADE)


@pytest.mark.parametrize(("page", "source", "shown"), COPIED)
def test_a_copied_table_is_in_its_source(page, source, shown):
    assert shown.startswith("| ")
    assert shown.count("\n") >= 4
    assert f"\n{shown}\n" in (ROOT / source).read_text()


@pytest.mark.parametrize(("page", "source", "shown"), MADE)
def test_a_made_table_is_the_measured_one(page, source, shown):
    assert shown == MAKERS[Path(source).name](json.loads((ROOT / source).read_text()))


def markdown(head: str, rows: list[list[str]]) -> str:
    columns = head.split(", ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")


def duration(us: float) -> str:
    return f"{us:.0f} us" if us < 1000 else f"{us / 1000:.2f} ms"


def size(shape: list[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def factor(ratio: float) -> str:
    return f"{ratio:.3g} x"


def steps(result: dict[str, Any]) -> str:
    """The table of one step's time, of either device."""
    rows = []
    for entry in result["results"]:
        times, ratio = entry["times"], entry["ratio"]
        (peer,) = (name for name in times if name.startswith("diffusers"))
        rows.append(
            [
                entry["kind"],
                size(entry["shape"]),
                duration(times["fused"]["median_us"]),
                f"{duration(times[peer]['median_us'])}, {factor(ratio[peer])}",
                factor(ratio["torch.compile"]),
                factor(ratio["plain torch"]),
                f"{entry['gb_per_s']:.0f}",
                f"{entry['share_of_add']:.2f}",
                f"{entry['share_of_copy']:.2f}",
            ]
        )
    return markdown(
        "step, size, fastsample, diffusers, torch.compile, plain torch, GB/s, "
        "of `torch.add`'s speed, of a copy's",
        rows,
    )


def loops(result: dict[str, Any]) -> str:
    """The table of whole loops around a network that costs nothing."""
    rows = []
    for entry in result["results"]:
        times = entry["times"]
        (peer,) = (name for name in times if name.startswith("diffusers"))
        sampler, plain = (entry[key][peer] for key in ("ratio_sampler", "ratio_sample"))
        rows.append(
            [
                entry["method"],
                size(entry["shape"]),
                f"{duration(times['fs.Sampler']['median_us'])}",
                f"{duration(times['fs.sample']['median_us'])}",
                f"{duration(times[peer]['median_us'])}, {factor(sampler)} and {factor(plain)}",
            ]
        )
    return markdown("method, samples, `fs.Sampler`, `fs.sample`, diffusers", rows)


def planner(result: dict[str, Any]) -> str:
    rows = []
    for name, title in (("table", "a table of costs"), ("envelope", "a fixed variance, no table")):
        entry = result[name]
        rows.append(
            [
                title,
                f"{entry['steps']:,}",
                f"{entry['budgets']}",
                f"{entry['seconds']:.2f} s",
                f"{entry['numpy_seconds']:.1f} s" if "numpy_seconds" in entry else "",
            ]
        )
    return markdown("costs, times, numbers of calls, all grids, row-vectorised NumPy", rows)


def profiles(result: dict[str, Any]) -> str:
    tables, overhead = result["tables"], result["overhead"]
    rows = [
        ["every pair of times, plain torch", f"{tables['plain_torch_s']:.1f} s"],
        ["every pair of times, the kernel", f"{tables['kernel_every_pair_s']:.2f} s"],
        ["16 nodes per time", f"{tables['kernel_16_nodes_s']:.2f} s"],
        ["relative error of the nodes", f"{tables['nodes_relative_error']:.1e}"],
        ["a profile of the digits / its network calls", f"{overhead['ratio']:.2f}"],
    ]
    return markdown("what, measured", rows)


def schedulers(result: dict[str, Any]) -> str:
    """The table of a pipeline's step, of either device."""
    rows = [
        [
            f"`{entry['source']}`",
            size(entry["shape"]),
            *(
                duration(entry["times"][name]["median_us"])
                for name in ("diffusers", "FastSampleScheduler")
            ),
            factor(entry["ratio"]),
            f"{entry['over_add']:.2f}",
        ]
        for entry in result["results"]
    ]
    return markdown("replaced, samples, diffusers, here, faster, over `torch.add`", rows)


def exploding(result: dict[str, Any]) -> str:
    """The table of lists of times for variance-exploding models."""
    names = {"ddim": "DDIM", "unipc": "UniPC", "dpm++": "DPM-Solver++"}
    rows = [
        [
            names.get(method, method),
            *(f"{cell['ratio']:.2f} ({cell['better']})" for cell in cells.values()),
        ]
        for method, cells in result["table"].items()
    ]
    head = 'method, `"uniform"`, `"blended"`, `"karras"` to 0.02, `edm.grid` to 0.002'
    return markdown(head, rows)


MAKERS = {
    "step-cpu-float32.json": steps,
    "step-cuda-bfloat16.json": steps,
    "loop-cpu.json": loops,
    "planner.json": planner,
    "profile-cpu.json": profiles,
    "profile-cuda.json": profiles,
    "scheduler-cpu.json": schedulers,
    "exploding.json": exploding,
}


# ---- what the code says


def test_every_column_and_grid_is_explained():
    page = text_of("docs/sampling.md")
    named = set(re.findall(r"`([^`]+)`", page[page.index("| columns |") : page.index("## Plans")]))
    assert named >= set(COLUMNS)
    table_of_grids = page[page.index("| `grid=` |") : page.index("The grids of this package")]
    assert set(re.findall(r'`"([\w:]+)"`', table_of_grids)) == set(grid_names())


def test_the_list_of_rooms_is_the_real_one():
    page = text_of("docs/extending.md")
    listed = page[page.index("test_layering.py`:\n\n") :].split("\n\n")[1]
    rooms = [room.partition(".")[0] for room in ROOMS]
    assert re.findall(r"`(\w+)`", listed) == list(dict.fromkeys(rooms))


def formula(lines: list[str]) -> dict[str, str]:
    """Right side by left side where it stands first, without spaces, words and comment signs."""
    found: dict[str, str] = {}
    for line in lines:
        match = re.match(r"^(?://)?\s*(m|x0|sd|x_next)\s+= (.*)$", line)
        if match:
            found.setdefault(match[1], re.split(r"\s{2,}", match[2])[0].replace(" ", ""))
    return found


def test_the_formula_is_one():
    sources = {
        "README.md": fences("README.md", "")[0][1],
        "docs/sampling.md": fences("docs/sampling.md", "")[0][1],
        "csrc/core/step.h": text_of("csrc/core/step.h").split("#pragma once")[0],
    }
    found = {name: formula(text.splitlines()) for name, text in sources.items()}
    assert set(found["README.md"]) == {"m", "x0", "sd", "x_next"}
    assert found["README.md"] == found["docs/sampling.md"] == found["csrc/core/step.h"]
