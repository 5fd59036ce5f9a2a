"""The paths that callers run most often take no more instructions than they did (counts.py)."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import counts

MORE = 1.05


@pytest.mark.parametrize("path", counts.PATHS)
def test_a_call_takes_no_more_instructions_than_before(path: str) -> None:
    if reason := counts.why_not():
        pytest.skip(reason)
    known = counts.baseline().get(counts.kind())
    if known is None:
        pytest.skip(f"no baseline for {counts.kind()}: tests/counts/counts.py --write makes one")
    now = counts.count(path)
    assert now <= known[path] * MORE, (
        f"{path}: {now} instructions a call, {known[path]} before (callgrind_annotate says where); "
        "if the change is worth them: tests/counts/counts.py --write"
    )
