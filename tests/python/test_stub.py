"""The stubs of the native modules are what tools/make_stub.py makes of the modules as they are."""

from __future__ import annotations

import ast
import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytest.importorskip("nanobind.stubgen")
pytest.importorskip("nixl", reason="the Python module is not built")
sys.path.insert(0, str(ROOT / "tools"))
make_stub = importlib.import_module("make_stub")


@pytest.mark.parametrize("module", list(make_stub.PATTERNS))
def test_the_stub_is_current(module: str) -> None:
    kept = (make_stub.PACKAGE / f"{module}.pyi").read_text()
    made = make_stub.made(module)
    # The format is ruff's business.
    lines = [ast.unparse(ast.parse(text)).splitlines() for text in (kept, made)]
    differ = sorted(set(lines[0]) ^ set(lines[1]))
    assert lines[0] == lines[1], (
        f"nixl/{module}.pyi is out of date ({differ[:6]} …): with the build on PYTHONPATH, run "
        "python tools/make_stub.py; what the module does not tell is in its stub.pat"
    )
