"""./dev coverage: which lines the tests run, C++ (gcov) and Python (coverage.py).

Its own tree, build/coverage; the reports are in build/coverage-report. A test that fails is named,
and its lines count all the same.
"""

from __future__ import annotations

import collections
import json
import pathlib
import shutil

import builds
import steps
from common import BUILD, ROOT, VENV_PYTHON, Failure, cores, must, run, say, venv_env

REPORT = BUILD / "coverage-report"
FOLDERS = ("bindings", "include", "plugins", "src")
NOT_OURS = (r".*_test\.cpp", r".*/testing_\w+\.h", r".*_(fixture|support)\.h", r".*standin\.c")
PYTHON_TESTS = ("tests/python", "tests/examples", "tests/guarantees")


def command(only: str | None) -> int:
    """`only`: cpp or python; None for both."""
    shutil.rmtree(REPORT, ignore_errors=True)
    REPORT.mkdir(parents=True)
    tree = builds.build("coverage")
    for old in tree.rglob("*.gcda"):
        old.unlink()
    env = venv_env(PYTHONPATH=builds.python_path("coverage"), NIXL_BUILD_DIR=str(tree))
    bad = []
    if only != "python":
        tests = ["ctest", "--test-dir", tree, "-j", str(cores()), "--output-on-failure"]
        bad += ["ctest"] * (run(tests, "coverage-ctest", env, steps.CTEST_TIMEOUT_S) != 0)
    if only != "cpp":
        bad += ["pytest"] * (python_tests(env) != 0)
    rows = cpp_rows(env) + ([] if only == "cpp" else python_rows(env))
    say(f"\n{'lines of':28s} {'all':>7s} {'run':>7s} {'':>7s}")
    for name, lines, ran in rows:
        say(f"{name:28s} {lines:7d} {ran:7d} {ran / max(lines, 1):7.1%}")
    say(f"\nline by line: {(REPORT / 'cpp' / 'index.html').relative_to(ROOT)}"
        f" and {(REPORT / 'python' / 'index.html').relative_to(ROOT)}")  # fmt: skip
    for name in bad:
        say(f"some tests failed: build/logs/coverage-{name}.log")
    return 1 if bad else 0


def python_tests(env: dict[str, str]) -> int:
    words = [VENV_PYTHON, "-m", "coverage", "run", "--parallel-mode", "--source=nixl"]
    words += ["-m", "pytest", "-q", "-p", "no:cacheprovider", *PYTHON_TESTS]
    env = env | {"COVERAGE_FILE": str(REPORT / "data")}
    return run(words, "coverage-pytest", env, steps.PYTEST_TIMEOUT_S)


Row = tuple[str, int, int]


def cpp_rows(env: dict[str, str]) -> list[Row]:
    """Folder, lines and lines that ran; the report in HTML beside it."""
    (REPORT / "cpp").mkdir()
    summary = REPORT / "cpp.json"
    words = [VENV_PYTHON, "-m", "gcovr", "--root", ROOT, "--object-directory", BUILD / "coverage"]
    words += [word for name in FOLDERS for word in ("--filter", f"{ROOT}/{name}/")]
    words += [word for name in NOT_OURS for word in ("--exclude", name)]
    words += ["--gcov-ignore-parse-errors=all", "--merge-mode-functions=merge-use-line-min"]
    words += ["--html-details", REPORT / "cpp" / "index.html", "--json-summary", summary]
    words += ["-j", str(cores()), BUILD / "coverage"]
    must(words, "coverage-gcovr", "gcovr", env=env)
    sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for file in json.loads(summary.read_text())["files"]:
        parts = file["filename"].split("/")
        for name in (
            "all C++",
            "/".join(parts[:2] if parts[0] in ("src", "plugins") else parts[:1]),
        ):
            sums[name][0] += file["line_total"]
            sums[name][1] += file["line_covered"]
    return [(name, *sums[name]) for name in sorted(sums, key=lambda n: (n != "all C++", n))]


def python_rows(env: dict[str, str]) -> list[Row]:
    env = env | {"COVERAGE_FILE": str(REPORT / "data")}
    tool = [VENV_PYTHON, "-m", "coverage"]
    log = "coverage-python"
    must([*tool, "combine", "-q"], log, "coverage combine", env=env)
    omit = ["--omit", "*/test_*.py"]
    must([*tool, "html", "-q", "-d", REPORT / "python", *omit], log, "coverage html", env=env)
    must([*tool, "json", "-q", "-o", REPORT / "python.json", *omit], log, "coverage json", env=env)
    files = json.loads((REPORT / "python.json").read_text())["files"]
    if not files:
        raise Failure("coverage: no line of the package was counted")
    sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for name, found in files.items():
        folder = pathlib.Path(name).parent.name
        inner = "nixl" if folder == "nixl" else f"nixl/{folder}"
        for key in ("all Python", f"python/{inner}"):
            sums[key][0] += found["summary"]["num_statements"]
            sums[key][1] += found["summary"]["covered_lines"]
    return [(name, *sums[name]) for name in sorted(sums, key=lambda n: (n != "all Python", n))]
