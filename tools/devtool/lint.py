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
from dataclasses import dataclass

import builds
import reach
from changes import Change
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
CXX_ENDS = (".h", ".cpp", ".cu")
TIDY_TREE = BUILD / "tidy"
TIDY_CACHE = BUILD / "tidy-cache"
# In a test a wrong access ends the test, and the check does not understand GoogleTest's ASSERT_*;
# a global constructor that throws ends it, too.
NOT_IN_TESTS = "-bugprone-unchecked-optional-access,-bugprone-throwing-static-initialization"


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


@dataclass
class TidyBudget:
    """Seconds after which clang-tidy begins no further file; None for no end."""

    others_s: float | None = None  # files that did not change: left, and counted as a skip
    changed_s: float | None = None  # files that changed: left, and that fails


# What decides about all files.
RULES = {".clang-format", ".clang-tidy", "pyproject.toml"}


def everything(budget: TidyBudget, change: Change, only_changed: bool = False) -> Outcome:
    """All checks, over all files or only over those that changed."""
    outcome = Outcome("lint")
    start = time.monotonic()
    for old in LOGS.glob("lint*.log"):
        old.unlink()
    few = only_changed and not RULES & set(change.files)
    ruff = [VENV_PYTHON, "-m", "ruff"]
    if files := [f for f in cxx_files() if not few or f in change.files]:
        check(outcome, "clang-format", [VENV / "bin" / "clang-format", "-n", "-Werror", *files])
    if files := [f for f in python_files() if not few or f in change.files]:
        check(outcome, "ruff format", [*ruff, "format", "-q", "--diff", *files])
        check(outcome, "ruff check", [*ruff, "check", "-q", *files])
    if not few or any(name.endswith((".py", ".pyi")) for name in change.files):
        check(outcome, "mypy", [VENV_PYTHON, "-m", "mypy", "--no-error-summary"])
    check(outcome, "layout", [VENV_PYTHON, "tools/check_layout.py", ROOT])
    tidy(outcome, budget, change, few)
    outcome.seconds = time.monotonic() - start
    return outcome


def check(outcome: Outcome, name: str, command: list) -> None:
    log = f"lint-{name.replace(' ', '-')}"
    if run(command, log, env=venv_env()) == 0:
        outcome.passed += 1
    else:
        outcome.fail(f"{name}:\n{tail(log)}")


def tidy(outcome: Outcome, budget: TidyBudget, change: Change, only_changed: bool) -> None:
    """clang-tidy over what changed, then over the rest; results are kept by content."""
    if only_changed and not any(name.endswith(CXX_ENDS) for name in change.files):
        return
    if not shutil.which("clang++"):
        outcome.skip("clang-tidy: no clang++ for a compile database")
        return
    builds.configure_tidy()
    jobs = tidy_jobs()
    needed = checks_of(change, {name_of(job) for job in jobs}, outcome)
    first = [job for job in jobs if name_of(job) in needed]
    rest = [] if only_changed else [job for job in jobs if name_of(job) not in needed]
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        results = [
            (job, pool.submit(tidy_one, job, deadline))
            for part, seconds in ((first, budget.changed_s), (rest, budget.others_s))
            for deadline in [None if seconds is None else start + seconds]
            for job in part
        ]
        try:
            for done, (_, result) in enumerate(results, 1):
                result.result()
                if done % 20 == 0:
                    say(f"    clang-tidy: {done} of {len(results)} files")
        except BaseException:  # interrupted: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = {name_of(job): result.result() for job, result in results}
    conclude_tidy(outcome, found, needed, budget, change)


def conclude_tidy(
    outcome: Outcome,
    found: dict[str, str | None],
    needed: set[str],
    budget: TidyBudget,
    change: Change,
) -> None:
    """`found`: each file's complaints, None where time ran out before it."""
    late = [name for name, complaints in found.items() if complaints is None]
    missed = [name for name in late if name in needed]
    if failures := [complaints for complaints in found.values() if complaints]:
        outcome.fail("clang-tidy:\n" + "\n".join(failures)[-20000:])
    if missed:
        outcome.fail(
            f"clang-tidy: {len(missed)} of {len(needed)} files that changed ({change.reason}) were "
            f"not reached in {budget.changed_s:.0f} s: {' '.join(missed)}"
        )
    if not failures and not missed and len(late) < len(found):
        outcome.passed += 1
    if others := len(late) - len(missed):
        outcome.skip(
            f"clang-tidy: {others} of {len(found)} files, which did not change, not reached in "
            f"{budget.others_s:.0f} s; `./dev lint` checks all"
        )


def name_of(job: dict) -> str:
    return str(pathlib.Path(job["file"]).relative_to(ROOT))


def checks_of(change: Change, known: set[str], outcome: Outcome) -> set[str]:
    """The compiled files whose check covers what changed: a source itself, and for a header one
    that includes it, its own where there is one."""
    if change.whole or ".clang-tidy" in change.files:
        return known
    needed = known & set(change.files)
    for header in change.files:
        if not header.endswith(".h") or header not in reach.files():
            continue
        reading = [name for name in reach.includers(header) if name in known]
        if reading:
            needed.add(next((name for name in reading if name in needed), reading[0]))
        else:
            outcome.skip(f"clang-tidy: {header}: nothing that is compiled here includes it")
    return needed


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
    pins = (ROOT / "tools" / "requirements-lint.txt").read_text().splitlines()
    digest.update("".join(line for line in pins if line.startswith("clang-tidy")).encode())
    digest.update(NOT_IN_TESTS.encode() if is_test(entry) else b"")
    for name in sorted(set(listed.stdout.replace("\\\n", " ").split()[1:]) | {entry["file"]}):
        path = pathlib.Path(entry["directory"]) / name
        if path.exists():
            digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()
