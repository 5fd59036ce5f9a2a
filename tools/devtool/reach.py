"""What a test reaches: C++ through includes and what implements them, Python through imports.

Read from the text of the sources, without a build. Where it cannot know, it reaches too much
rather than too little. Paths are strings relative to ROOT.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Iterable

from common import ROOT, git_files

CXX = (".h", ".cpp", ".c", ".cu")
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<(nixl/[^>]+)>)', re.M)
IMPORTED = re.compile(
    r"^\s*(?:from\s+(\.*[\w.]*)\s+import\s+\(?([\w, ]*)|import\s+([\w., ]+))", re.M
)
DOTTED = re.compile(r"\bnixl(?:\.\w+)+")
PY_FILE = re.compile(r"\b(\w+)\.py\b")
PACKAGE = "python/nixl"


def path(name: str) -> pathlib.PurePosixPath:
    return pathlib.PurePosixPath(name)


@functools.cache
def files() -> frozenset[str]:
    return frozenset(str(p.relative_to(ROOT)) for p in git_files())


@functools.cache
def text(name: str) -> str:
    return (ROOT / name).read_text(errors="replace")


def cxx_test(name: str) -> bool:
    return name.endswith("_test.cpp")


def python_test(name: str) -> bool:
    return path(name).name.startswith("test_") and name.endswith(".py")


def closure(start: str, next_of: Callable[[str], Iterable[str]]) -> frozenset[str]:
    seen, waiting = {start}, [start]
    while waiting:
        for name in next_of(waiting.pop()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return frozenset(seen)


# --- C++ ---


@functools.cache
def includes(name: str) -> frozenset[str]:
    """Our headers that a file names."""
    found = set()
    for quoted, public in INCLUDE.findall(text(name)):
        word = quoted or public
        tries = [str(path(name).parent / word), f"include/{word}", f"src/{word}", word]
        found |= set([one for one in tries if one in files()][:1])
    return frozenset(found)


@functools.cache
def cxx_sources() -> list[str]:
    """What is compiled and is no test."""
    return sorted(n for n in files() if path(n).suffix in CXX[1:] and not cxx_test(n))


def serves(source: str, header: str) -> bool:
    """Whether a source holds (part of) what a header declares: they share the beginning of their
    names, or the source has no header of its own and includes this one of its folder. Public
    headers are served from src/."""
    inside, wanted = path(source), path(header)
    public = header.startswith("include/")
    if header not in includes(source) or not (
        source.startswith("src/") if public else inside.parent == wanted.parent
    ):
        return False
    if named_after(inside.stem, wanted.stem):
        return True
    own = [h for h in includes(source) if path(h).parent == inside.parent]
    return not any(named_after(inside.stem, path(h).stem) for h in own) and (
        header in own if own else public
    )


def named_after(stem: str, header: str) -> bool:
    return stem == header or stem.startswith(header + "_")


@functools.cache
def serving(header: str) -> frozenset[str]:
    return frozenset(one for one in cxx_sources() if serves(one, header))


@functools.cache
def cxx_next(name: str) -> frozenset[str]:
    return includes(name) | (serving(name) if name.endswith(".h") else frozenset())


@functools.cache
def cxx_reach(name: str) -> frozenset[str]:
    """All files whose change may change what this C++ file does."""
    return closure(name, cxx_next)


@functools.cache
def includers(header: str) -> list[str]:
    """Compiled files that read a header, those that serve it first."""
    inside = [n for n in files() if path(n).suffix in CXX[1:] and header in cxx_included(n)]
    return sorted(inside, key=lambda n: (path(n).stem != path(header).stem, cxx_test(n), n))


@functools.cache
def cxx_included(name: str) -> frozenset[str]:
    return closure(name, includes)


# --- Python ---


@functools.cache
def stems() -> dict[str, list[str]]:
    """Python files outside of the package by the name that imports them."""
    found: dict[str, list[str]] = {}
    for name in sorted(files()):
        if name.endswith(".py") and not (name.startswith("python/") and not python_test(name)):
            found.setdefault(path(name).stem, []).append(name)
    return found


def module(dotted: str) -> set[str]:
    """Files of the package that importing nixl.a.b runs."""
    words, found = dotted.split(".")[1:], {f"{PACKAGE}/__init__.py"}
    where = path(PACKAGE)
    for word in words:
        where /= word
        found |= {n for n in (f"{where}.py", f"{where}/__init__.py") if n in files()}
    return found & files()


def relative(name: str, origin: str, words: str) -> set[str]:
    """Files that `from .origin import words` of a file of the package runs."""
    level = len(origin) - len(origin.lstrip("."))
    folder = path(name).parents[level - 1]
    base = ".".join([*folder.relative_to("python").parts, *filter(None, [origin[level:]])])
    return set().union(*(module(f"{base}.{word}") for word in names(words)))


@functools.cache
def python_next(name: str) -> frozenset[str]:
    """What a Python file (or the programs inside its text) imports or names."""
    if not name.endswith(".py"):
        return frozenset()
    found: set[str] = set()
    words = set(PY_FILE.findall(text(name)))
    for origin, parts, plain in IMPORTED.findall(text(name)):
        if origin.startswith("."):
            found |= relative(name, origin, parts) if name.startswith("python/") else set()
        elif origin.split(".")[0] == "nixl":
            for part in names(parts) or [""]:
                found |= module(f"{origin}.{part}")
        words |= {origin.split(".")[0], *(word.split(".")[0] for word in names(plain))}
    if re.search(r"\bnixl\b", text(name)):
        found |= module("nixl")
    for dotted in DOTTED.findall(text(name)):
        found |= module(dotted)
    for word in words:
        alike = stems().get(word, [])
        beside = [one for one in alike if path(one).parent == path(name).parent]
        found |= set(beside or alike) if word != "conftest" else set()
    folder = path(name).parent
    found |= {f"{one}/conftest.py" for one in [folder, *folder.parents]} & files()
    return frozenset(found - {name})


def names(listed: str) -> list[str]:
    """The names in `a, b as c`."""
    return [word.split()[0] for word in listed.split(",") if word.strip()]


@functools.cache
def python_reach(name: str) -> frozenset[str]:
    return closure(name, python_next)
