"""Style checks: clang-format, ruff, layout, clang-tidy; and the formatter."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import pathlib
import shlex
import shutil
import subprocess
import time

import builds
from common import (
    BUILD,
    LOGS,
    ROOT,
    VENV,
    VENV_PYTHON,
    Outcome,
    cores,
    git_files,
    run,
    say,
    tail,
    venv_env,
)

CXX = ("*.h", "*.cpp", "*.cu")
TIDY_TREE = BUILD / "tidy"
TIDY_CACHE = BUILD / "tidy-cache"
# In a test a wrong access ends the test, and the check does not understand GoogleTest's ASSERT_*.
NOT_IN_TESTS = "-bugprone-unchecked-optional-access"


def python_files() -> list[str]:
    return [str(p.relative_to(ROOT)) for p in git_files("*.py", "*.pyi")]


def cxx_files() -> list[str]:
    return [str(p.relative_to(ROOT)) for p in git_files(*CXX)]


def format_tree() -> None:
    """Writes the format into all files."""
    tool = VENV / "bin" / "clang-format"
    if files := cxx_files():
        run([tool, "-i", *files], "fmt")
    if files := python_files():
        run([VENV_PYTHON, "-m", "ruff", "check", "-q", "--fix", *files], "fmt")
        run([VENV_PYTHON, "-m", "ruff", "format", "-q", *files], "fmt")
    say(f"formatted {len(cxx_files())} C++ and {len(python_files())} Python files")


def everything(tidy_budget_s: float | None) -> Outcome:
    """All checks; clang-tidy stops starting new files when its budget is spent."""
    outcome = Outcome("lint")
    start = time.monotonic()
    for old in LOGS.glob("lint*.log"):
        old.unlink()
    ruff = [VENV_PYTHON, "-m", "ruff"]
    if files := cxx_files():
        check(outcome, "clang-format", [VENV / "bin" / "clang-format", "-n", "-Werror", *files])
    if files := python_files():
        check(outcome, "ruff format", [*ruff, "format", "-q", "--diff", *files])
        check(outcome, "ruff check", [*ruff, "check", "-q", *files])
    check(outcome, "layout", [VENV_PYTHON, "tools/check_layout.py", ROOT])
    tidy(outcome, tidy_budget_s)
    outcome.seconds = time.monotonic() - start
    return outcome


def check(outcome: Outcome, name: str, command: list) -> None:
    log = f"lint-{name.replace(' ', '-')}"
    if run(command, log, env=venv_env()) == 0:
        outcome.passed += 1
    else:
        outcome.fail(f"{name}:\n{tail(log)}")


def tidy(outcome: Outcome, budget_s: float | None) -> None:
    """clang-tidy over all sources, those changed last first; results are kept by content."""
    if not shutil.which("clang++"):
        outcome.skip("clang-tidy: no clang++ for a compile database")
        return
    builds.configure_tidy()
    jobs = tidy_jobs()
    start = time.monotonic()
    failures: list[str] = []
    late = 0
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        tasks = []
        for job in jobs:
            deadline = None if budget_s is None else start + budget_s
            tasks.append(pool.submit(tidy_one, job, deadline))
        for done, task in enumerate(tasks, 1):
            result = task.result()
            late += result is None
            if result:
                failures.append(result)
            if done % 20 == 0:
                say(f"    clang-tidy: {done} of {len(tasks)} files")
    if failures:
        outcome.fail("clang-tidy:\n" + "\n".join(failures)[-20000:])
    elif late < len(jobs):
        outcome.passed += 1
    if late:
        outcome.skip(
            f"clang-tidy: {late} of {len(jobs)} files not reached in {budget_s:.0f} s; "
            "`./dev lint` checks all"
        )
    return outcome


def tidy_jobs() -> list[dict]:
    """Entries of the compile database that belong to us, those touched last in history first."""
    log = subprocess.run(
        ["git", "-C", str(ROOT), "log", "--format=", "--name-only", "-n", "400", "--", "*.cpp"],
        capture_output=True,
        text=True,
    ).stdout
    order = {name: number for number, name in reversed(list(enumerate(log.splitlines())))}
    ours = {str(ROOT / name) for name in cxx_files()}  # not the sources of what .venv holds
    jobs = [
        entry
        for entry in json.loads((TIDY_TREE / "compile_commands.json").read_text())
        if entry["file"] in ours
    ]
    jobs.sort(key=lambda e: order.get(str(pathlib.Path(e["file"]).relative_to(ROOT)), 1 << 30))
    return list({entry["file"]: entry for entry in jobs}.values())


def tidy_one(entry: dict, deadline: float | None) -> str | None:
    """The complaints about one file ("" for none), or None when time ran out before it."""
    key = TIDY_CACHE / tidy_key(entry)
    if key.exists():
        return key.read_text()
    if deadline is not None and time.monotonic() > deadline:
        return None
    command = [VENV / "bin" / "clang-tidy", "--quiet", "-p", TIDY_TREE, entry["file"]]
    command += [f"--checks={NOT_IN_TESTS}"] if is_test(entry) else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=venv_env())
    complaints = done.stdout.strip() if done.returncode != 0 else ""
    if done.returncode != 0 and not complaints:
        complaints = f"{entry['file']}: {done.stderr.strip()}"
    if not complaints:
        TIDY_CACHE.mkdir(parents=True, exist_ok=True)
        key.write_text("")
    return complaints


def is_test(entry: dict) -> bool:
    path = pathlib.Path(entry["file"]).relative_to(ROOT)
    return path.name.endswith("_test.cpp") or path.parts[0] in ("testing", "tests")


def tidy_key(entry: dict) -> str:
    """A hash of all of our files that one file's check reads."""
    words = [word for word in shlex.split(entry["command"]) if word != "-c"]
    if "-o" in words:
        del words[words.index("-o") : words.index("-o") + 2]
    listed = subprocess.run(
        [*words, "-MM", "-MT", "x"], capture_output=True, text=True, cwd=entry["directory"]
    )
    digest = hashlib.sha256((ROOT / ".clang-tidy").read_bytes() + " ".join(words).encode())
    digest.update(NOT_IN_TESTS.encode() if is_test(entry) else b"")
    for name in sorted(set(listed.stdout.replace("\\\n", " ").split()[1:]) | {entry["file"]}):
        path = pathlib.Path(entry["directory"]) / name
        if path.exists():
            digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()
