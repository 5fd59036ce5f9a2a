"""What the pages say about the tree is true: tests they name exist, links lead somewhere."""

from __future__ import annotations

import importlib.util
import pathlib
import re

import pytest
from blocks import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("examples/**/*.md"),
    *ROOT.glob("plugins/*/*.md"),
    *ROOT.glob("python/**/*.md"),
]
GUARANTEES = ROOT / "docs" / "guarantees.md"
MIGRATING = ROOT / "docs" / "migrating.md"
CPP_TEST = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)", re.M)
CONFORMANCE_CHECK = re.compile(r'\{"(\w+)", For::')
PYTHON_TEST = re.compile(r"^\s*(?:async )?def (test_\w+)", re.M)
TEST_NAME = re.compile(r"`((?:[A-Z]\w+\.[A-Z]\w+)|(?:conformance/\w+)|(?:test_\w+))`")


def sources(pattern: str) -> list[pathlib.Path]:
    folders = ["src", "plugins", "testing", "tests", "bindings", "python"]
    return [path for folder in folders for path in (ROOT / folder).rglob(pattern)]


def names_of_tests() -> set[str]:
    names: set[str] = set()
    for path in sources("*_test.cpp"):
        names |= {f"{suite}.{name}" for suite, name in CPP_TEST.findall(path.read_text())}
    for path in sources("conformance_*.cpp"):
        names |= {f"conformance/{name}" for name in CONFORMANCE_CHECK.findall(path.read_text())}
    for path in sources("test_*.py"):
        names |= set(PYTHON_TEST.findall(path.read_text()))
    return names


def sentences() -> list[str]:
    """The list items of guarantees.md."""
    items = re.split(r"^- ", GUARANTEES.read_text(), flags=re.M)[1:]
    return [re.split(r"\n\s*\n", item)[0] for item in items]


def test_every_guarantee_names_a_test() -> None:
    unproved = [sentence for sentence in sentences() if not TEST_NAME.search(sentence)]
    assert sentences() and not unproved


def test_every_difference_names_a_test() -> None:
    rows = [line for line in MIGRATING.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| what |", "| --- |"))]
    unproved = [row for row in rows if not TEST_NAME.search(row.rsplit("|", 2)[1])]
    assert rows and not unproved


@pytest.mark.parametrize(
    "page",
    [GUARANTEES, MIGRATING, *sorted(ROOT.glob("docs/decisions/*.md"))],
    ids=lambda page: page.name,
)
def test_named_tests_exist(page: pathlib.Path) -> None:
    named = set(TEST_NAME.findall(page.read_text()))
    missing = sorted(name for name in named - names_of_tests() if not name.endswith(".md"))
    assert not missing, f"{page.relative_to(ROOT)} names tests that do not exist: {missing}"


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    targets = [t.split("#")[0].strip() for t in re.findall(r"\]\(([^)]+)\)", text)]
    dead = [
        target
        for target in targets
        if target and "://" not in target and not (page.parent / target).exists()
    ]
    assert not dead, f"{page.relative_to(ROOT)}: links to nothing: {dead}"


def test_the_readme_lists_every_backend() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = [path.parent.name for path in ROOT.glob("plugins/*/CMakeLists.txt")]
    missing = [name for name in folders if f"plugins/{name}/README.md" not in readme]
    assert folders and not missing


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_every_header_is_in_the_cpp_page() -> None:
    page = (ROOT / "docs" / "cpp_api.md").read_text()
    missing = [p.name for p in ROOT.glob("include/nixl/*.h") if f"nixl/{p.name}" not in page]
    assert not missing


def test_the_module_table_is_the_enforced_one() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("| module | may include |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([\w/]+) \| ?([\w, /]*?) ?\|$", table, re.M)
    shown = {module: {word for word in words.split(", ") if word} for module, words in rows}
    spec = importlib.util.spec_from_file_location("layout", ROOT / "tools" / "check_layout.py")
    assert spec and spec.loader
    layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layout)
    assert shown == layout.MAY_INCLUDE
