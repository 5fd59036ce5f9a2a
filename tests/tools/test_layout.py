"""./dev layout: the drawing of rooms, floors and arrows."""

from __future__ import annotations

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "devtool"))
import layout  # noqa: E402


def write(root: pathlib.Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tree_has_no_circle_no_arrow_up_and_few_floors() -> None:
    assert layout.errors(ROOT) == []
    found = layout.rooms(ROOT)
    assert {"base", "session", "lanes/stream", "peer", "agent", "python/nixl"} <= found.keys()
    for name, room in found.items():
        if name in layout.check_layout.MAY_INCLUDE:
            assert room.below - {layout.GROUND} <= layout.check_layout.MAY_INCLUDE[name], name
    height = layout.floors(found)
    for name, room in found.items():
        assert all(height[other] < height[name] for other in room.below), name
    assert max(height.values()) <= layout.MOST_FLOORS


def test_the_drawing_shows_floors_and_arrows() -> None:
    text = layout.drawing(ROOT)
    assert "(ground)" in text
    assert "-> base, connect, device, lanes/host, lanes/stream" in text


def test_a_circle_of_rooms_is_named(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "src/base/a.h", '// A.\n#include "memory/b.h"\n')
    write(tmp_path, "src/memory/b.h", '// B.\n#include "base/a.h"\n')
    assert layout.errors(tmp_path) == ["a circle of rooms: base -> memory -> base"]


def test_a_test_draws_no_arrow(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "src/base/a_test.cpp", '// A.\n#include "memory/b.h"\n')
    write(tmp_path, "src/memory/b.h", '// B.\n#include "base/a.h"\n')
    assert layout.errors(tmp_path) == []


@pytest.mark.parametrize(
    "back", ["from .one import f", "from . import one", "import nixl.one", "from nixl.one import f"]
)
def test_a_circle_of_python_modules_is_named(tmp_path: pathlib.Path, back: str) -> None:
    write(tmp_path, "python/nixl/one.py", "from .two import g\n")
    write(tmp_path, "python/nixl/two.py", f"def g():\n    {back}\n")
    assert layout.errors(tmp_path) == [
        "a circle of Python modules: nixl.one -> nixl.two -> nixl.one"
    ]


def test_too_many_floors_are_an_error(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "MOST_FLOORS", 1)
    write(tmp_path, "src/base/a.h", "// A.\n")
    write(tmp_path, "src/memory/b.h", '// B.\n#include "base/a.h"\n')
    assert layout.errors(tmp_path) == ["2 floors: at most 1"]
