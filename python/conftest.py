"""Tests that lie beside the package (nixl/hicache) run against the package that was built or
installed, which has the native modules, not against the bare sources that pytest puts first."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent

_path = list(sys.path)
sys.path[:] = [entry for entry in _path if pathlib.Path(entry or os.curdir).resolve() != HERE]
with contextlib.suppress(ImportError):
    import nixl  # noqa: F401
sys.path[:] = _path
