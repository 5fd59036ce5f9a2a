#!/usr/bin/env python3
"""Checks the rules about the tree itself; docs/architecture.md and CONTRIBUTING.md state them.

Size budgets, include direction, what a plugin's folder holds, backend names outside the core,
first-line comments, sleeps in tests, and hygiene (no registry hosts, no paths of one machine, no
stray bytes).

Usage: tools/check_layout.py [ROOT]   Prints one line per violation; exit status 1 if there is any.
"""

from __future__ import annotations

import ast
import os
import pathlib
import re
import stat
import subprocess
import sys
from collections.abc import Iterator

# A module may include the modules listed for it, itself, and nothing else of ours.
MAY_INCLUDE = {
    "base": set(),
    "device": {"base"},
    "memory": {"base"},
    "backend": {"base", "memory"},
    "session": {"base", "memory"},
    "lanes": {"base"},  # the choice among lanes, which come through nixl/lane.h
    "lanes/local": {"base", "device", "memory", "session"},
    "lanes/host": {"base", "device", "memory", "session"},
    "lanes/stream": {"base", "device", "memory", "session"},
    "connect": {"base", "session"},
    "peer": {"base", "device", "memory", "session", "connect", "lanes/host", "lanes/stream"},
    "metadata": {"base", "memory", "session"},
    "exchange": {"base", "memory", "metadata", "session"},
    "exchange_tcp": {"base", "memory", "metadata", "session", "connect", "exchange"},
    "exchange_file": {"base", "memory", "metadata", "session", "exchange"},
    "exchange_etcd": {"base", "memory", "metadata", "session", "exchange"},
    "telemetry": {"base"},
    "agent": {
        "base",
        "device",
        "memory",
        "backend",
        "session",
        "lanes",
        "lanes/local",
        "peer",
        "metadata",
        "exchange",
        "exchange_tcp",
        "exchange_file",
        "exchange_etcd",
        "telemetry",
    },
    "hicache": {"base"},
    "plugin": set(),  # plugins/<name>/: the public headers only
}
# A plugin may hold a copy of another one's files (nixl_plugin_part), included as "NAME/…".
PLUGIN_PARTS = {
    "gds": {"posix"},
    "gusli": {"posix"},
    "hf3fs": {"posix"},
    "ucx_mo": {"ucx"},
}
LINE_BUDGET = [
    ("_bindings.pyi", 1200),  # generated
    ("include/", 300),
    ("_test.", 800),
    ("test_", 800),
    ("", 600),
]
FUNCTION_BUDGET = 70
WIDTH = 100
SOURCE = {".h", ".cpp", ".c", ".cu", ".py", ".pyi"}
CXX = {".h", ".cpp", ".c", ".cu"}
WIDTH_CHECKED = SOURCE | {".cmake", ".sh", ".toml", ".map"}
BINARY = {".png", ".gz", ".bin", ".safetensors", ".whl", ".jpg"}
FILE_LIMIT = 1 << 20

# A backend's name appears nowhere in src/ and include/. The types OBJ and FILE are no names.
BACKEND_NAMES = re.compile(
    r"(?<![A-Za-z0-9])(?:(?i:ucx|ucx_mo|libfabric|mooncake|gpunetio|gds|gds_mt|hf3fs|3fs|gusli"
    r"|azure_blob|uccl|infinia)|POSIX)(?![A-Za-z0-9])"
)
# Written in pieces so that this file does not find itself.
HYGIENE = [
    (re.compile(r"(?:pypi|pythonhosted|files\.pythonhosted)\.(?:o)rg/"), "registry host"),
    (re.compile(r"(?:deb|snapshot|security)\.debian\.(?:o)rg"), "registry host"),
    (re.compile(r"(?:registry\.npmjs|download\.pytorch)\.(?:o)rg"), "registry host"),
    (re.compile(r"\b(?:ghcr|quay|docker)\.(?:i)o\b"), "registry host"),
    (re.compile(r"(?<![\w.$}/-])/(?:root|work|Users|home/[a-z]+)/\w"), "path of one machine"),
    (re.compile(r"^(?:<{7} |>{7} |={7}$)"), "merge mark"),
]


# A test waits for an event; where time itself must pass, `sleeps: REASON` in a comment says why.
SLEEP = re.compile(
    r"(?:\b(?:sleep_for|sleep_until|usleep|(?:clock_)?nanosleep|(?:this_thread::|time\.|asyncio\.)"
    r"sleep)|(?<![\w.\"':])sleep)\((?!0?\))"
)
SLEEP_REASON = re.compile(r"(?://|#) sleeps: \w")


def line_budget(path: str) -> int:
    return next(limit for mark, limit in LINE_BUDGET if mark in path)


def module_of(path: pathlib.PurePath) -> str | None:
    """The module a file belongs to: src/<module>/… or plugins/<name>/…; None for the rest."""
    if path.parts[0] == "src" and len(path.parts) > 2:
        return room_of(path.parts[1:-1])
    if path.parts[0] == "plugins" and len(path.parts) > 2:
        return "plugin"
    return None


def room_of(folders: tuple[str, ...]) -> str:
    """The innermost of these folders below src/ that has a line in the table."""
    inner = next((n for n in range(len(folders), 0, -1) if "/".join(folders[:n]) in MAY_INCLUDE), 1)
    return "/".join(folders[:inner])


def include_errors(relative: pathlib.PurePath, lines: list[str]) -> Iterator[str]:
    """Includes against the direction; a plugin's test may use the core and testing/."""
    module = module_of(relative)
    test = relative.name.endswith(("_test.cpp", "_test.h"))
    for number, line in enumerate(lines, 1):
        match = re.match(r'#include "(?:src/)?([a-z_0-9/]+)/', line)
        target = match and room_of(tuple(match.group(1).split("/")))
        if relative.parts[0] == "include" and target in MAY_INCLUDE:
            yield f"{relative}:{number}: public header includes internal '{target}'"
        elif module == "plugin" and test:
            continue
        elif module in MAY_INCLUDE and target in MAY_INCLUDE.keys() - MAY_INCLUDE[module] - {
            module
        }:
            yield f"{relative}:{number}: '{module}' may not include '{target}'"


def part_errors(relative: pathlib.PurePath, lines: list[str], plugins: set[str]) -> Iterator[str]:
    """Includes of another plugin's files, but for those that are meant to be shared."""
    if module_of(relative) != "plugin":
        return
    own = relative.parts[1]
    for number, line in enumerate(lines, 1):
        match = re.match(r'#include "(?:plugins/)?([a-z_0-9]+)/', line)
        if match and match.group(1) in plugins - {own} - PLUGIN_PARTS.get(own, set()):
            yield f"{relative}:{number}: plugin '{own}' may not include '{match.group(1)}'"


def name_errors(relative: pathlib.PurePath, lines: list[str]) -> Iterator[str]:
    if relative.parts[0] not in ("src", "include") or relative.suffix not in CXX:
        return
    if relative.name.endswith("_test.cpp"):
        return  # a test may name what it tries
    for number, line in enumerate(lines, 1):
        if match := BACKEND_NAMES.search(line):
            yield f"{relative}:{number}: names the backend '{match.group()}' inside the core"


def line_errors(relative: pathlib.PurePath, lines: list[str]) -> Iterator[str]:
    """Width, tabs, spaces at the end, hygiene."""
    source = relative.suffix in SOURCE
    for number, line in enumerate(lines, 1):
        if len(line) > WIDTH and relative.suffix in WIDTH_CHECKED and "http" not in line:
            yield f"{relative}:{number}: {len(line)} columns, budget {WIDTH}"
        if source and "\t" in line:
            yield f"{relative}:{number}: tab"
        if source and line != line.rstrip():
            yield f"{relative}:{number}: space at the end"
        for pattern, what in HYGIENE:
            if match := pattern.search(line):
                yield f"{relative}:{number}: {what} '{match.group().strip()}'"


def head_errors(relative: pathlib.PurePath, lines: list[str]) -> Iterator[str]:
    """The first lines of a file say what it is."""
    first = lines[0] if lines else ""
    if relative.suffix in CXX and not first.startswith(("//", "/*")):
        yield f"{relative}:1: starts without a comment that says what the file is"
    if relative.suffix == ".py" and lines and not first.startswith(('"""', 'r"""', "#")):
        yield f"{relative}:1: starts without a docstring that says what the file is"


def sleep_errors(relative: pathlib.PurePath, lines: list[str]) -> Iterator[str]:
    """Sleeps in tests without a reason in their line or the one above."""
    test = relative.name.startswith(("test_", "testing_")) or "_test." in relative.name
    if relative.suffix not in SOURCE or not (test or relative.parts[0] in ("tests", "testing")):
        return
    for number, line in enumerate(lines, 1):
        comment = "//" if relative.suffix in CXX else "#"
        above = lines[number - 2].strip() if number > 1 else ""
        if not SLEEP.search(line) or line.strip().startswith(comment):
            continue
        if not SLEEP_REASON.search(line) and not (
            above.startswith(comment) and SLEEP_REASON.search(above)
        ):
            yield (
                f"{relative}:{number}: sleeps in a test: wait for an event, or say why time "
                f"must pass in a comment '{comment} sleeps: REASON'"
            )


def python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return  # ruff says it better
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


NOT_A_FUNCTION = re.compile(
    r"\s*(?:namespace|class|struct|union|enum|extern \"C\" \{|if|for|while|switch|else|do|case"
    r"|default|try|catch|\}|\{|#|//|return)\b|\s*[{}#]"
    r"|\s*(?:const|constexpr|static|inline)[^()]*=\s"
)


def cxx_functions(lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """Functions of a file in our format: the body ends at a brace in the column it began in."""
    for number, line in enumerate(lines):
        if not line.endswith("{") or line.lstrip().startswith(("//", "}")):
            continue
        start = number
        while start > 0 and not re.search(r"[;{}:]$|^\s*$|^\s*#|^\s*//|>$", lines[start - 1]):
            start -= 1
        head = " ".join(text.strip() for text in lines[start : number + 1])
        if NOT_A_FUNCTION.match(lines[start]) or "(" not in head or "](" in head or "] {" in head:
            continue
        indent = len(lines[start]) - len(lines[start].lstrip())
        closing = re.compile(rf"^ {{{indent}}}\}}")
        end = next((n for n in range(number + 1, len(lines)) if closing.match(lines[n])), number)
        yield head.split("(")[0].split()[-1], start + 1, end - start + 1


def size_errors(relative: pathlib.PurePath, lines: list[str]) -> Iterator[str]:
    if relative.suffix not in SOURCE:
        return
    budget = line_budget(relative.as_posix())
    if len(lines) > budget:
        yield f"{relative}: {len(lines)} lines, budget {budget}"
    found = cxx_functions(lines) if relative.suffix in CXX else python_functions("\n".join(lines))
    for name, line, length in found:
        if length > FUNCTION_BUDGET:
            yield f"{relative}:{line}: {name} has {length} lines, budget {FUNCTION_BUDGET}"


def file_errors(root: pathlib.Path, relative: pathlib.PurePath) -> list[str]:
    path = root / relative
    if path.is_symlink():
        return [f"{relative}: symbolic link"]
    found = []
    data = path.read_bytes()
    if len(data) > FILE_LIMIT:
        found.append(f"{relative}: {len(data)} bytes, budget {FILE_LIMIT}")
    executable = bool(os.stat(path).st_mode & stat.S_IXUSR)
    if executable != data.startswith(b"#!"):
        found.append(f"{relative}: executable bit and #! line do not agree")
    if "corpus" in relative.parts or "golden" in relative.parts or relative.suffix in BINARY:
        return found
    if b"\r\n" in data:
        found.append(f"{relative}: CR LF line ends")
    if data and not data.endswith(b"\n"):
        found.append(f"{relative}: no newline at the end")
    lines = data.decode(errors="replace").splitlines()
    for check in (
        size_errors,
        include_errors,
        name_errors,
        line_errors,
        head_errors,
        sleep_errors,
    ):
        found += check(relative, lines)
    plugins = {folder.name for folder in (root / "plugins").glob("*") if folder.is_dir()}
    return found + list(part_errors(relative, lines, plugins))


def plugin_errors(root: pathlib.Path) -> Iterator[str]:
    """What every folder of plugins/ holds."""
    for folder in sorted(p for p in (root / "plugins").glob("*") if p.is_dir()):
        if not any(p.is_file() for p in folder.rglob("*")):
            continue
        for needed in ("README.md", "CMakeLists.txt"):
            if not (folder / needed).exists():
                yield f"plugins/{folder.name}: no {needed}"
        if not list(folder.glob("**/*_test.cpp")):
            yield f"plugins/{folder.name}: no *_test.cpp (at least the conformance suite)"


def module_errors(root: pathlib.Path) -> Iterator[str]:
    for folder in sorted(p for p in (root / "src").rglob("*") if p.is_dir()):
        name = folder.relative_to(root / "src").as_posix()
        if name not in MAY_INCLUDE:
            yield f"src/{name}: a module without a line in MAY_INCLUDE of this check"


def tracked(root: pathlib.Path) -> list[pathlib.PurePath]:
    """Files git knows or would add."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(pathlib.PurePath(line) for line in set(listed.splitlines()))


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    found = []
    for relative in tracked(root):
        if (root / relative).is_file() or (root / relative).is_symlink():
            found += file_errors(root, relative)
    found += [*plugin_errors(root), *module_errors(root)]
    print("\n".join(found) or "layout ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
