"""The steps of ./dev test. Each returns an Outcome; none ends the others."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import builds
import changes
import fuzz
import junit
import lint
from choice import Choice
from common import LOGS, VENV_PYTHON, Failure, Outcome, cores, git_files, run, tail, venv_env

TIDY_BUDGET_S = 480.0  # for files that did not change; when it is spent, the rest is left
TIDY_CHANGED_BUDGET_S = 900.0  # for those that did; when it is spent, the step fails
FUZZ_S = 10
CTEST_TIMEOUT_S = 1800.0
PYTEST_TIMEOUT_S = 1800.0


@dataclass
class Scope:
    """What of the steps is asked for; nothing set means all."""

    choice: Choice | None = None  # --changed
    ctest: str = ""  # a pattern of C++ tests
    pytest: list[str] = field(default_factory=list)  # what pytest runs in the step python

    def pattern(self) -> str:
        return self.ctest or (self.choice.ctest_pattern() if self.choice else "")

    def targets(self) -> list[str] | None:
        return ["nixl_runtime", *self.choice.targets()] if self.choice else None

    def python_targets(self) -> list[str] | None:
        return ["nixl_runtime", "nixl_counts"] if self.choice or self.pytest else None


def unit(scope: Scope) -> Outcome:
    """C++ unit and conformance tests, optimised build (CTest)"""
    builds.build("release", scope.targets())
    if not scope.pattern():
        return ctest("unit", "release", {})
    return chosen_ctest("unit", "release", {}, picked("release", scope))


# What a sanitizer cannot judge, by test name; each is told as a SKIP with its reason.
ASAN_LEFT_OUT = {
    "ExitTest": "ends with a live agent on purpose, which is a leak to the sanitizer",
    "RoundsTest": "measures resident memory, which the sanitizer's quarantine fills",
    "ForkInAnyState": "a child forked while another thread allocates finds the lock of the "
    "sanitizer's allocator taken (clang 14)",
}
# These take all descriptors away. UndefinedBehaviorSanitizer asks a pipe whether an object can be
# read, and without one takes it for damaged: they run apart, without that check.
ASAN_FEW_DESCRIPTORS = (
    "WaitsForADescriptor|DescriptorsThatFindNoRoom|NoDescriptorsLeft|WithoutRoomForHolding"
)
TSAN_LEFT_OUT = {
    "LimitsAreStatuses|FindsEachDefect": "posts many transfers to one place on purpose",
    "TwoProcessTest|SharedMappingTest": "order between processes is not seen by the sanitizer",
    "ForkInAnyState|WhatIsOwnedGoesWithItsOwner|KeysOfAKilledProcess": "the sanitizer does not "
    "support threads after a fork of many",
}


def asan(scope: Scope) -> Outcome:
    """the same under AddressSanitizer and UndefinedBehaviorSanitizer (clang)"""
    outcome = sanitized("asan", scope, ASAN_LEFT_OUT, ASAN_FEW_DESCRIPTORS)
    few = {n: t for n, t in picked("asan", scope).items() if re.search(ASAN_FEW_DESCRIPTORS, t)}
    if few and not no_sanitizer("asan"):
        suppressions = LOGS / "ubsan-suppressions.txt"
        suppressions.write_text("vptr:*\nvptr_check:*\n")
        env = builds.sanitizer_env()
        env["UBSAN_OPTIONS"] += f":suppressions={suppressions}"
        outcome.add(chosen_ctest("asan-few-descriptors", "asan", env, few))
    return outcome


def tsan(scope: Scope) -> Outcome:
    """the same under ThreadSanitizer (clang)"""
    return sanitized("tsan", scope, TSAN_LEFT_OUT)


def sanitized(name: str, scope: Scope, left_out: dict[str, str], apart: str = "") -> Outcome:
    if reason := no_sanitizer(name):
        return Outcome(name).skip(reason)
    builds.build(name, scope.targets())
    excluded = "|".join(filter(None, [*left_out, apart]))
    env = builds.sanitizer_env()
    if not scope.pattern():
        outcome = ctest(name, name, env, ["-E", excluded])
    elif tests := picked(name, scope):
        left = {n: test for n, test in tests.items() if not re.search(excluded, test)}
        if not left:
            return Outcome(name).skip(f"{name}: all that was chosen is left out under it")
        outcome = chosen_ctest(name, name, env, left)
    else:
        return chosen_ctest(name, name, env, {})
    for names, reason in left_out.items():
        outcome.skip(f"{name}: {names}: {reason}")
    return outcome


def picked(preset: str, scope: Scope) -> dict[int, str]:
    """Number → name of the tests in a tree that the scope names. By number, since ctest's own
    patterns are too short for many."""
    command = ["ctest", "--test-dir", builds.tree(preset), "-N"]
    shown = subprocess.run(command, capture_output=True, text=True, env=venv_env()).stdout
    tests = re.findall(r"^ *Test +#(\d+): (.+)$", shown, re.M)
    return {int(n): test for n, test in tests if re.search(scope.pattern(), test)}


def chosen_ctest(name: str, preset: str, extra: dict[str, str], tests: dict[int, str]) -> Outcome:
    """Runs tests by number; none at all is a failure, since something was to run."""
    if not tests:
        return Outcome(name).fail("no test of this tree has the name that was asked for")
    first, *others = sorted(tests)
    numbers = ",".join(map(str, [first, first, 1, *others]))
    return ctest(name, preset, extra, ["-I", numbers])


def python(scope: Scope) -> Outcome:
    """Python tests (pytest over tests/ but packaging and docs)"""
    builds.build("release", scope.python_targets())
    ignored = ["--ignore=tests/packaging", "--ignore=tests/docs"]
    chosen = scope.pytest or (sorted(scope.choice.python) if scope.choice else [])
    return pytest("python", chosen or ["tests", *ignored])


def docs(scope: Scope) -> Outcome:
    """every code block of README.md and docs/*.md (tests/docs)"""
    builds.build("release")
    chosen = scope.choice.docs if scope.choice else {"tests/docs"}
    if "tests/docs" in chosen:
        return pytest("docs", ["tests/docs"])
    pages = [word.removeprefix("page ") for word in sorted(chosen) if word.startswith("page ")]
    return pytest("docs", ["tests/docs", "-k", " or ".join(["test_pages", "test_site", *pages])])


def packaging(_scope: Scope) -> Outcome:
    """wheel, install prefix, symbols, sizes, bare root (tests/packaging)"""
    builds.build("release")
    return pytest("packaging", ["tests/packaging"])


def fuzz_step(scope: Scope) -> Outcome:
    """fuzz targets: the stored corpora, then 10 s each"""
    if reason := no_sanitizer("asan"):
        return Outcome("fuzz").skip(reason)
    return fuzz.run_targets(sorted(scope.choice.fuzz) if scope.choice else [], FUZZ_S)


def lint_step(scope: Scope) -> Outcome:
    """clang-format, ruff, mypy, layout and, within its time budget, clang-tidy"""
    change = scope.choice.change if scope.choice else changes.since()
    budget = lint.TidyBudget(TIDY_BUDGET_S, TIDY_CHANGED_BUDGET_S)
    return lint.everything(budget, change, only_changed=scope.choice is not None)


STEPS: dict[str, Callable[[Scope], Outcome]] = {
    "lint": lint_step,
    "unit": unit,
    "python": python,
    "docs": docs,
    "packaging": packaging,
    "asan": asan,
    "fuzz": fuzz_step,
    "tsan": tsan,
}
# What each step needs to be installed (environment.GROUPS).
TESTED = ("build", "tests")
NEEDS: dict[str, tuple[str, ...]] = {name: TESTED for name in STEPS}
NEEDS |= {"lint": (*TESTED, "clang", "lint", "bench"), "python": (*TESTED, "python", "clients")}
NEEDS |= {"docs": (*TESTED, "python", "docs"), "packaging": (*TESTED, "python")}
NEEDS |= {name: (*TESTED, "clang") for name in ("asan", "fuzz", "tsan")}
# The tree of build/ that a step tests.
TREES = {name: "release" for name in ("unit", "python", "docs", "packaging")}
TREES |= {"asan": "asan", "fuzz": "asan", "tsan": "tsan"}


def build_for(name: str, scope: Scope) -> None:
    """Builds what a step builds first; nothing for one that needs no tree."""
    if name not in TREES or (TREES[name] != "release" and no_sanitizer(TREES[name])):
        return
    if name in ("unit", "asan", "tsan"):
        builds.build(TREES[name], scope.targets())
    else:
        builds.build(TREES[name], scope.python_targets() if name == "python" else None)


def run_step(name: str, scope: Scope) -> Outcome:
    """Runs one step with its time; a build that breaks is a failure of the step."""
    for old in LOGS.glob(f"{name}*.log"):
        old.unlink()
    start = time.monotonic()
    try:
        outcome = STEPS[name](scope)
    except Failure as failure:
        *shown, what = str(failure).splitlines()
        outcome = Outcome(name).fail(what)
        outcome.output = "\n".join(shown)
    outcome.seconds = time.monotonic() - start
    return outcome


def no_sanitizer(preset: str) -> str | None:
    if not shutil.which("clang++"):
        return f"{preset}: no clang++ on this machine"
    return None


def ctest(name: str, preset: str, extra: dict[str, str], words: Sequence[str] = ()) -> Outcome:
    outcome = Outcome(name)
    report = LOGS / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = ["ctest", "--test-dir", builds.tree(preset), "-j", str(cores())]
    command += ["--output-on-failure", "--output-junit", report, *words]
    status = run(command, name, env=venv_env(**extra), timeout_s=CTEST_TIMEOUT_S)
    return conclude(outcome, report, status, name)


def pytest(name: str, words: list[str]) -> Outcome:
    outcome = Outcome(name)
    if words[0] in ("tests", "tests/docs", "tests/packaging") and not any(
        git_files(f"{words[0]}/*.py")
    ):
        return outcome.skip(f"{words[0]}: no tests there yet")
    report = LOGS / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [VENV_PYTHON, "-m", "pytest", "-q", f"--junitxml={report}", *words]
    env = venv_env(
        PYTHONPATH=builds.python_path("release"),
        NIXL_BUILD_DIR=str(builds.tree("release")),
        PYTHONFAULTHANDLER="1",
    )
    status = run(command, name, env=env, timeout_s=PYTEST_TIMEOUT_S)
    return conclude(outcome, report, status, name)


def conclude(outcome: Outcome, report: pathlib.Path, status: int, log: str) -> Outcome:
    """Counts from the report; a run that failed without naming a test is a failure too."""
    if report.exists():
        junit.read(report, outcome)
    if status == 124:
        outcome.fail(f"ran out of time\n{tail(log, 15)}")
    elif status != 0 and not outcome.failed:
        outcome.fail(f"exit status {status}\n{tail(log)}")
    elif not outcome.passed and not outcome.failed and not outcome.skipped:
        outcome.fail("no test ran")
    elif outcome.failed:
        outcome.output = tail(log)
    return outcome
