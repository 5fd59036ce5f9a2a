"""The paths that callers run most often take no more instructions than they did (counts.py)."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import counts


@pytest.mark.parametrize("path", counts.PATHS)
def test_a_call_takes_no_more_instructions_than_before(path: str) -> None:
    if reason := counts.why_not():
        pytest.skip(reason)
    known = counts.baseline().get(counts.kind())
    if known is None:
        pytest.skip(f"no baseline for {counts.kind()}: tests/counts/counts.py --write makes one")
    now = counts.count(path)
    assert now <= known[path] * counts.MORE, (
        f"{path}: {now} instructions a call, {known[path]} before (callgrind_annotate says where); "
        "if the change is worth them: tests/counts/counts.py --write"
    )


def test_check_fails_where_a_path_has_grown(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(counts, "why_not", lambda: "")
    monkeypatch.setattr(counts, "kind", lambda: "this one")
    monkeypatch.setattr(counts, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(counts, "count", lambda path: 105 if path == "post" else 100)
    monkeypatch.setattr(sys, "argv", ["counts.py", "--write"])
    assert counts.main() == 0
    monkeypatch.setattr(sys, "argv", ["counts.py", "--check"])
    monkeypatch.setattr(counts, "count", lambda path: 105)
    assert counts.main() == 0
    monkeypatch.setattr(counts, "count", lambda path: 111 if path == "post" else 100)
    assert counts.main() == 1
    assert "over 5% more than the baseline: post" in capsys.readouterr().out
