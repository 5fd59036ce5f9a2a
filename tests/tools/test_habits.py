"""What those who join rely on: templates and workflows that parse, findings that are listed."""

from __future__ import annotations

import os
import pathlib
import re

import pytest

yaml = pytest.importorskip("yaml")

ROOT = pathlib.Path(__file__).resolve().parents[2]
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))


def load(name: str):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", ["test", "release"])
def test_workflows_call_dev(name: str) -> None:
    jobs = load(f".github/workflows/{name}.yml")["jobs"]
    lines = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert "./dev test" in lines


def test_pre_commit_runs_what_lint_checks() -> None:
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    entries = " ".join(hook["entry"] for hook in repository["hooks"])
    for tool in ("clang-format", "ruff format", "ruff check", "tools/check_layout.py"):
        assert tool in entries


def test_issue_forms_have_what_the_host_asks_for() -> None:
    forms = [p for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"]
    assert forms
    for form in forms:
        found = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= set(found)
        assert all(part["attributes"]["label"] for part in found["body"])


def test_every_folder_with_an_owner_exists() -> None:
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    folders = [line.split()[0] for line in lines if line.startswith("/")]
    assert folders
    assert [name for name in folders if not (ROOT / name.strip("/")).is_dir()] == []


def test_every_finding_is_listed_and_can_run() -> None:
    listed = re.findall(
        r"^\| \[\w+\]\((\w+\.sh)\)", (ROOT / "findings/README.md").read_text(), re.M
    )
    assert sorted(listed) == [path.name for path in FINDINGS]
    for path in FINDINGS:
        text = path.read_text()
        assert os.access(path, os.X_OK) and "set -euo pipefail" in text
        assert re.search(r"==[\d$]", text), f"{path.name}: no version is pinned"
        assert "exit 1" in text and "mktemp -d" in text
