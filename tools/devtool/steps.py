"""The steps of ./dev test. Each returns an Outcome; none ends the others."""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Callable, Sequence

import builds
import fuzz
import junit
import lint
from common import LOGS, VENV_PYTHON, Failure, Outcome, cores, git_files, run, tail, venv_env

TIDY_BUDGET_S = 480.0
FUZZ_S = 10
CTEST_TIMEOUT_S = 1800.0
PYTEST_TIMEOUT_S = 1800.0


def unit() -> Outcome:
    """C++ unit and conformance tests, optimised build (CTest)"""
    builds.build("release")
    return ctest("unit", "release", {})


# What a sanitizer cannot judge, by test name; each is told as a SKIP with its reason.
ASAN_LEFT_OUT = {
    "ExitTest": "ends with a live agent on purpose, which is a leak to the sanitizer",
    "RoundsTest": "measures resident memory, which the sanitizer's quarantine fills",
}
# These take all descriptors away. UndefinedBehaviorSanitizer asks a pipe whether an object can be
# read, and without one takes it for damaged: they run apart, without that check.
ASAN_FEW_DESCRIPTORS = "WaitsForADescriptor|DescriptorsThatFindNoRoom|NoDescriptorsLeft"
TSAN_LEFT_OUT = {
    "LimitsAreStatuses|FindsEachDefect": "posts many transfers to one place on purpose",
    "TwoProcessTest|SharedMappingTest": "order between processes is not seen by the sanitizer",
    "ForkInAnyState": "the sanitizer does not support threads after a fork of many",
}


def asan() -> Outcome:
    """the same under AddressSanitizer and UndefinedBehaviorSanitizer (clang)"""
    outcome = sanitized("asan", ASAN_LEFT_OUT, ASAN_FEW_DESCRIPTORS)
    if outcome.passed:
        suppressions = LOGS / "ubsan-suppressions.txt"
        suppressions.write_text("vptr:*\nvptr_check:*\n")
        env = builds.sanitizer_env()
        env["UBSAN_OPTIONS"] += f":suppressions={suppressions}"
        outcome.add(ctest("asan-few-descriptors", "asan", env, ["-R", ASAN_FEW_DESCRIPTORS]))
    return outcome


def tsan() -> Outcome:
    """the same under ThreadSanitizer (clang)"""
    return sanitized("tsan", TSAN_LEFT_OUT)


def sanitized(name: str, left_out: dict[str, str], apart: str = "") -> Outcome:
    if reason := no_sanitizer(name):
        return Outcome(name).skip(reason)
    builds.build(name)
    excluded = "|".join(filter(None, [*left_out, apart]))
    outcome = ctest(name, name, builds.sanitizer_env(), ["-E", excluded])
    for names, reason in left_out.items():
        outcome.skip(f"{name}: {names}: {reason}")
    return outcome


def python() -> Outcome:
    """Python tests (pytest over tests/ but packaging and docs)"""
    builds.build("release")
    ignored = ["--ignore=tests/packaging", "--ignore=tests/docs"]
    return pytest("python", ["tests", *ignored])


def docs() -> Outcome:
    """every code block of README.md and docs/*.md (tests/docs)"""
    builds.build("release")
    return pytest("docs", ["tests/docs"])


def packaging() -> Outcome:
    """wheel, install prefix, symbols, sizes, bare root (tests/packaging)"""
    builds.build("release")
    return pytest("packaging", ["tests/packaging"])


def fuzz_step() -> Outcome:
    """fuzz targets: the stored corpora, then 10 s each"""
    if reason := no_sanitizer("asan"):
        return Outcome("fuzz").skip(reason)
    return fuzz.run_targets([], FUZZ_S)


def lint_step() -> Outcome:
    """clang-format, ruff, layout and, within its time budget, clang-tidy"""
    return lint.everything(TIDY_BUDGET_S)


STEPS: dict[str, Callable[[], Outcome]] = {
    "lint": lint_step,
    "unit": unit,
    "python": python,
    "docs": docs,
    "packaging": packaging,
    "asan": asan,
    "fuzz": fuzz_step,
    "tsan": tsan,
}


def run_step(name: str) -> Outcome:
    """Runs one step with its time; a build that breaks is a failure of the step."""
    for old in LOGS.glob(f"{name}*.log"):
        old.unlink()
    start = time.monotonic()
    try:
        outcome = STEPS[name]()
    except Failure as failure:
        outcome = Outcome(name).fail(str(failure))
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
    if not any(git_files(f"{words[0]}/*.py")):
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
        outcome.failures.append(tail(log))
    return outcome
