"""./dev test --changed: which tests a change can break, and why they were chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import changes
import reach
from reach import path

PRODUCT = ("src/", "include/", "plugins/", "bindings/", "testing/", "tests/")
# Whoever changes these changes how everything is built, run or checked.
FOUNDATION = re.compile(
    r"(dev|pyproject\.toml|CMakePresets\.json|(.*/)?CMakeLists\.txt|(cmake|tools|\.ci)/.*)$"
)
# Nothing runs because of these but the checks of style and links.
SILENT = re.compile(r"(LICENSE|\.gitignore|\.editorconfig|\.clang-(format|tidy)|.*\.md)$")
# Read by a test of their own.
HABITS = re.compile(r"(\.github/|findings/|\.pre-commit-config\.yaml$)")
HABITS_TEST = "tests/tools/test_habits.py"
COUNTS_TEST = "tests/counts/test_counts.py"  # runs a program of its own over the library
PLUGIN_NAME = re.compile(r"nixl_plugin\(\s*(\w+)")
TEST_PROGRAM = re.compile(r"nixl_test\(\s*([a-z]\w*)")
SUITE = re.compile(r"^(?:TYPED_)?TEST(?:_F|_P)?\(\s*(\w+),", re.M)
HICACHE = ("src/hicache/", "bindings/python/hicache/")
PACKAGED = ("include/", "bindings/", "tests/packaging/")


@dataclass
class Choice:
    """What of each step runs, each with the file that it runs for."""

    change: changes.Change
    everything: str = ""  # why all steps run whole
    programs: dict[str, set[str]] = field(default_factory=dict)  # test program → ctest patterns
    fuzz: set[str] = field(default_factory=set)
    python: set[str] = field(default_factory=set)
    docs: set[str] = field(default_factory=set)
    packaging: bool = False
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)  # step → file → tests

    def because(self, step: str, name: str, count: int = 1) -> None:
        why = self.reasons.setdefault(step, {})
        why[name] = why.get(name, 0) + count

    def steps(self, all_steps: Iterable[str]) -> list[str]:
        cxx = bool(self.programs)
        chosen = {"lint": True, "unit": cxx, "asan": cxx, "tsan": cxx}
        chosen |= {"fuzz": bool(self.fuzz), "python": bool(self.python)}
        chosen |= {"docs": bool(self.docs), "packaging": self.packaging}
        return [name for name in all_steps if self.everything or chosen[name]]

    def targets(self) -> list[str]:
        return sorted(self.programs)

    def ctest_pattern(self) -> str:
        return "|".join(sorted(set().union(*self.programs.values())))


def choose(change: changes.Change) -> Choice:
    choice = Choice(change)
    if change.whole:
        choice.everything = change.reason
        return choice
    for name in change.files:
        if FOUNDATION.match(name):
            choice.everything = f"{name} changed: it decides how all is built, run or checked"
            return choice
    for name in change.files:
        known = [rule(choice, name) for rule in (cxx, python, docs, packaging)]
        if not any(known) and not SILENT.match(name):
            choice.everything = f"{name} changed, and no rule says what it touches"
            return choice
    return choice


# --- C++ ---


def cxx(choice: Choice, name: str) -> bool:
    """GoogleTest files that reach the changed one; fuzz targets likewise."""
    if name.startswith("tests/fuzz/corpus/"):
        add_fuzz(choice, path(name).parts[3], name)
        return True
    if name.startswith("tests/golden/") and not name.endswith(".py"):
        add_tests(choice, [t for t in cxx_tests() if "golden" in reach.text(t)], name)
        return True
    if path(name).suffix not in reach.CXX or not name.startswith(PRODUCT):
        return False
    if name.startswith(("bindings/", "tests/packaging/")):
        return True  # the Python tests and those of packaging are what exercises them
    found = [t for t in cxx_tests() if name in reach.cxx_reach(t)]
    fuzz = [t for t in fuzz_sources() if name in reach.cxx_reach(t)]
    if name.startswith("plugins/"):
        quoted = f'"{path(name).parts[1].upper()}"'
        found += [t for t in cxx_tests() if quoted in reach.text(t)]
    if not any(cxx_module(t) == cxx_module(name) for t in [*found, *fuzz]):
        # Deleted, or reached in a way that its text does not tell: all that lie beside it.
        found += [t for t in cxx_tests() if cxx_module(t) == cxx_module(name)]
    add_tests(choice, found, name)
    for source in fuzz:
        add_fuzz(choice, path(source).name.removesuffix("_fuzz.cpp"), name)
    return True


def cxx_tests() -> list[str]:
    return sorted(name for name in reach.files() if reach.cxx_test(name))


def fuzz_sources() -> list[str]:
    return sorted(name for name in reach.files() if name.endswith("_fuzz.cpp"))


def cxx_module(name: str) -> tuple[str, ...]:
    return path(name).parts[: 1 if name.startswith("testing/") else 2]


def add_fuzz(choice: Choice, target: str, why: str) -> None:
    choice.fuzz.add(target)
    choice.programs.setdefault(f"fuzz_{target}", set()).add(rf"^fuzz_replay\.{target}$")
    choice.because("fuzz", why)


def add_tests(choice: Choice, tests: list[str], why: str) -> None:
    for test in set(tests):
        program = program_of(test)
        choice.programs.setdefault(program, set()).update(patterns(program, test))
    if tests:
        choice.because("unit", why, len(set(tests)))


def program_of(test: str) -> str:
    """The program that a test file is compiled into, as the CMakeLists.txt above it says."""
    for folder in path(test).parents:
        lists = f"{folder}/CMakeLists.txt"
        if lists not in reach.files():
            continue
        if named := PLUGIN_NAME.search(reach.text(lists)):
            return f"plugin_{named.group(1)}_test"
        if named := TEST_PROGRAM.search(reach.text(lists)):
            return named.group(1)
        break
    return f"{path(test).parts[1]}_test"


def patterns(program: str, test: str) -> set[str]:
    """What ctest calls the tests of one file: program.[Instance/]Suite[/type].Test[/parameter]."""
    suites = set(SUITE.findall(reach.text(test)))
    found = {rf"^{program}\.([^.]*/)?{suite}(/[^.]*)?\." for suite in suites}
    if "joinConformance(" in reach.text(test):
        found.add(rf"^{program}\.Conformance")
    return found or {rf"^{program}\."}


# --- Python ---


def python(choice: Choice, name: str) -> bool:
    """Files of tests (not those of docs and packaging) that reach the changed one."""
    tests = [t for t in python_tests() if not t.startswith(("tests/docs/", "tests/packaging/"))]
    if HABITS.match(name):
        found = [HABITS_TEST]
    elif name.endswith(".py") or name.endswith(".pyi"):
        found = by_import(tests, name)
    elif path(name).suffix in reach.CXX and name.startswith(PRODUCT):
        found = by_product(tests, name)
    elif name.startswith(("tests/", "python/", "examples/", "benchmarks/")):
        top = path(name).parts[1 if name.startswith("tests/") else 0]
        beside = [t for t in tests if str(path(t).parent) in map(str, path(name).parents)]
        found = beside or [t for t in tests if re.search(rf"\b{top}\b", reach.text(t))]
    else:
        return False
    choice.python.update(found)
    if found:
        choice.because("python", name, len(found))
    return True


def python_tests() -> list[str]:
    inside = (name for name in reach.files() if name.startswith("tests/"))
    return sorted(name for name in inside if reach.python_test(name))


def by_import(tests: list[str], name: str) -> list[str]:
    if name in reach.files() and name.endswith(".py"):
        found = [t for t in tests if name in reach.python_reach(t)]
        folder = path(name).parts[0]
        if found or not name.startswith(("examples/", "benchmarks/", "python/")):
            return found
        if folder != "python":
            return [t for t in tests if re.search(rf"\b{folder}\b", reach.text(t))]
    above = str(path(name).parent) + "/"
    return [t for t in tests if uses_package(t) or t.startswith(above)]


def uses_package(test: str) -> bool:
    return f"{reach.PACKAGE}/__init__.py" in reach.python_reach(test)


def by_product(tests: list[str], name: str) -> list[str]:
    """Tests that run the changed C++ through the package."""
    if reach.cxx_test(name) or name.startswith(("testing/", "tests/")):
        return []
    using = [t for t in tests if uses_package(t)]
    if name.startswith(HICACHE):
        package = f"{reach.PACKAGE}/hicache/"
        return [t for t in using if any(n.startswith(package) for n in reach.python_reach(t))]
    if name.startswith("plugins/"):
        word = re.compile(rf"\b{path(name).parts[1]}\b", re.I)
        using = [t for t in using if any(word.search(reach.text(n)) for n in own_files(t))]
    return [*using, *(t for t in tests if t == COUNTS_TEST)]


def own_files(test: str) -> list[str]:
    """What a test is made of: of the package only the part that chooses a backend by itself."""
    return [
        name
        for name in reach.python_reach(test)
        if not name.startswith(reach.PACKAGE) or "/hicache/" in name
    ]


# --- Pages and packages ---


def docs(choice: Choice, name: str) -> bool:
    """The blocks of a changed page; links and names whatever page or test changed."""
    if name.endswith(".md") or reach.python_test(name) or reach.cxx_test(name):
        choice.docs.add("tests/docs/test_pages.py")
        choice.because("docs", name)
    if name.endswith(".md") and path(name).parts[0] in ("docs", "README.md", "CONTRIBUTING.md"):
        choice.docs.add(f"page {name}")
    if name.startswith("tests/docs/"):
        choice.docs.add("tests/docs")
        choice.because("docs", name)
        return True
    return name.endswith(".md")


def packaging(choice: Choice, name: str) -> bool:
    """The wheel and the prefix, where headers, bindings or the list of files change."""
    gone = name not in reach.files()
    chosen = name.startswith(PACKAGED) or (name.startswith("python/") and gone)
    if chosen:
        choice.packaging = True
        choice.because("packaging", name)
    return chosen
