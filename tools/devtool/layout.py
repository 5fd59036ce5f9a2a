"""./dev layout: the rooms of the tree, the floor each stands on, and who includes whom.

A room is a folder of src/ with a line in the table of tools/check_layout.py, the public headers,
the bindings, or a Python package. Its floor is one above the highest room that it includes; the
public headers are the ground (0). Tests do not count. A circle has no floor: it is named, and an
error.
"""

from __future__ import annotations

import ast
import pathlib
import re
import sys
from dataclasses import dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import check_layout

GROUND = "include/nixl"
MOST_FLOORS = 6
INCLUDE = re.compile(r'^#include ["<](?:src/)?([a-z_0-9/]+)/[a-z_0-9]+\.h[">]', re.M)


@dataclass
class Room:
    name: str
    files: int = 0
    lines: int = 0
    below: set[str] = field(default_factory=set)  # the rooms it includes


def is_test(path: pathlib.PurePath) -> bool:
    return "_test." in path.name or path.name.startswith(("test_", "testing_"))


def room_of(path: pathlib.PurePath) -> str | None:
    """The room of a file, by its path in the tree."""
    parts = path.parts
    if parts[:2] == ("include", "nixl"):
        return GROUND
    if parts[0] == "src" and len(parts) > 2:
        return check_layout.room_of(parts[1:-1])
    if parts[0] == "bindings" and len(parts) > 2:
        return "/".join(parts[:2])
    if parts[:2] == ("python", "nixl"):
        return "/".join(parts[:-1])
    return None


def included(room: str, text: str) -> set[str]:
    found = set()
    for folder in INCLUDE.findall(text):
        name = check_layout.room_of(tuple(folder.split("/")))
        if folder == "nixl":
            found.add(GROUND)
        elif name in check_layout.MAY_INCLUDE:
            found.add(name)
    return found - {room}


def imports(path: pathlib.PurePath, text: str) -> set[str]:
    """The modules of our package that a Python file imports, as dotted names; types too."""
    found = set()
    package = list(path.parts[1:-1])  # nixl, hicache
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names if one.name.split(".")[0] == "nixl"}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            if whole.split(".")[0] == "nixl":
                found |= {f"{whole}.{one.name}" for one in node.names} | {whole}
    return found


def python_modules(root: pathlib.Path) -> dict[str, set[str]]:
    """Each module of the package with those it imports; __init__.py files are only doors."""
    files = {}
    for path in sorted((root / "python").glob("nixl/**/*.py")):
        inside = path.relative_to(root)
        if path.name not in ("__init__.py", "__main__.py"):
            files[".".join([*inside.parts[1:-1], path.stem])] = inside
    return {
        name: (imports(inside, (root / inside).read_text()) & files.keys()) - {name}
        for name, inside in files.items()
    }


def rooms(root: pathlib.Path) -> dict[str, Room]:
    found: dict[str, Room] = {}
    for folder in ("include", "src", "bindings", "python"):
        for path in sorted((root / folder).rglob("*.*")):
            if path.suffix not in (".h", ".cpp", ".py"):
                continue
            inside = path.relative_to(root)
            name = room_of(inside)
            if name is None or is_test(inside):
                continue
            room = found.setdefault(name, Room(name))
            text = path.read_text()
            room.files += 1
            room.lines += text.count("\n")
            if path.suffix == ".py":
                modules = imports(inside, text)
                if any(re.search(r"\._(bindings|hicache)\b", one) for one in modules):
                    room.below.add("bindings/python")
                room.below |= python_rooms(root, modules) - {name}
            else:
                room.below |= included(name, text)
    return found


def python_rooms(root: pathlib.Path, modules: set[str]) -> set[str]:
    found = set()
    for name in modules:
        path = root / "python" / pathlib.PurePath(*name.split("."))
        if path.is_dir():
            found.add(path.relative_to(root).as_posix())
        elif path.with_suffix(".py").is_file():
            found.add(path.parent.relative_to(root).as_posix())
    return found


def circle(below: dict[str, set[str]]) -> list[str]:
    """One circle of arrows, from a name back to it; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(below.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    for start in sorted(below):
        if found := walk(start, []):
            return found
    return []


def floors(found: dict[str, Room]) -> dict[str, int]:
    """REQUIRES: no circle."""
    known = {GROUND: 0}

    def floor(name: str) -> int:
        if name not in known:
            below = found[name].below if name in found else set()
            known[name] = 1 + max((floor(other) for other in below), default=0)
        return known[name]

    for name in found:
        floor(name)
    return known


def errors(root: pathlib.Path) -> list[str]:
    """What is wrong with the drawing; empty where nothing is."""
    found = rooms(root)
    wrong = []
    for what, below in (
        ("rooms", {name: room.below for name, room in found.items()}),
        ("Python modules", python_modules(root)),
    ):
        if around := circle(below):
            wrong.append(f"a circle of {what}: " + " -> ".join(around))
    if wrong:
        return wrong
    if (top := max(floors(found).values(), default=0)) > MOST_FLOORS:
        wrong.append(f"{top} floors: at most {MOST_FLOORS}")
    return wrong


def drawing(root: pathlib.Path) -> str:
    """The rooms from the highest floor down, as text."""
    found = rooms(root)
    height = floors(found)
    lines = []
    for level in sorted(set(height.values()), reverse=True):
        lines.append(f"floor {level}" + (" (ground)" if level == 0 else ""))
        for name in sorted(name for name, its in height.items() if its == level):
            room = found.get(name, Room(name))
            below = ", ".join(sorted(room.below - {GROUND})) or "-"
            lines.append(f"  {name:22} {room.files:3} files {room.lines:6} lines  -> {below}")
    return "\n".join(lines)


def show(root: pathlib.Path) -> int:
    wrong = errors(root)
    if not any("circle" in one for one in wrong):
        print(drawing(root))
    print("\n".join(wrong) or "no circle, no arrow up")
    return 1 if wrong else 0
