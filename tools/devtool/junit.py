"""Reads the result files that ctest and pytest write."""

from __future__ import annotations

import pathlib
import xml.etree.ElementTree as ElementTree

from common import Outcome

GTEST_SKIP_MARK = "Skipped"


def read(path: pathlib.Path, outcome: Outcome) -> Outcome:
    """Adds the counts of one JUnit file, and a line for each test that failed or was skipped."""
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = case.get("name", "?")
        if case.get("classname") not in (None, name):
            name = f"{case.get('classname')}.{name}"
        status = case.get("status", "run")
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None or status == "fail":
            outcome.fail(name)
        elif skipped is not None or status in ("notrun", "disabled"):
            outcome.skip(f"{name}: {_reason(case, skipped)}")
        else:
            outcome.passed += 1
    return outcome


def _reason(case: ElementTree.Element, skipped: ElementTree.Element | None) -> str:
    """Why a test did not run: pytest's message, or the line after GoogleTest's mark."""
    output = (case.findtext("system-out") or "").splitlines()
    for number, line in enumerate(output):
        if line.rstrip().endswith(GTEST_SKIP_MARK) and number + 1 < len(output):
            return output[number + 1].strip() or "no reason given"
    message = skipped.get("message", "") if skipped is not None else ""
    return " ".join(message.split()) or "no reason given"
