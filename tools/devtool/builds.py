"""Configures and builds the presets of CMakePresets.json below build/."""

from __future__ import annotations

import os
import pathlib
import shutil

from common import BUILD, ROOT, VENV_PYTHON, cores, must

PRESETS = ["release", "debug", "clang", "asan", "tsan", "coverage", "aarch64", "bench"]
# What each needs to be installed (environment.GROUPS).
NEEDS = {"release": ("build", "tests"), "debug": ("build", "tests"), "bench": ("build", "bench")}
NEEDS["aarch64"] = ("build", "tests", "aarch64")
NEEDS["coverage"] = ("build", "tests", "coverage")
NEEDS |= {name: ("build", "tests", "clang") for name in ("clang", "asan", "tsan")}


def tree(preset: str) -> pathlib.Path:
    return BUILD / preset


def configure(preset: str, log: str, tests: bool = True) -> None:
    """Runs cmake where it has not run for these packages and with these tests; ninja itself runs
    it again where a list of files changed."""
    mark = tree(preset) / ".configured"
    made = (tree(preset) / "build.ninja").exists()
    tests = tests or (made and "tests" in read(mark))  # what has its tests keeps them
    key = f"{preset} {'tests ' if tests else ''}{packages_state()}"
    if made and read(mark) == key:
        return
    command = ["cmake", "--preset", preset, f"-DPython_EXECUTABLE={VENV_PYTHON}"]
    if preset != "bench":
        command.append(f"-DNIXL_TESTS={'ON' if tests else 'OFF'}")
    must(command, log, f"configuring preset {preset}", cwd=ROOT)
    mark.write_text(key)


def read(path: pathlib.Path) -> str:
    return path.read_text() if path.exists() else ""


def packages_state() -> str:
    """Another one when Debian's packages change: what was not found before may be there now."""
    database = pathlib.Path("/var/lib/dpkg/status")
    return str(database.stat().st_mtime_ns) if database.exists() else "no dpkg"


def build(
    preset: str, targets: list[str] | None = None, log: str | None = None, tests: bool = True
) -> pathlib.Path:
    """Builds a preset (all of it or some targets) and returns its folder. Without `tests` a new
    tree gets none, and needs no GoogleTest."""
    log = log or f"build-{preset}"
    configure(preset, log, tests)
    jobs = os.environ.get("NIXL_DEV_JOBS", str(cores()))
    command = ["cmake", "--build", tree(preset), "-j", jobs]
    if targets:
        command += ["--target", *targets]
    must(command, log, f"building preset {preset}")
    return tree(preset)


def python_path(preset: str) -> str:
    """PYTHONPATH that imports nixl from a build tree."""
    return str(tree(preset) / "python")


def configure_tidy() -> None:
    """A tree that is only configured: clang's command lines without precompiled headers."""
    options = ["-DNIXL_PCH=OFF", "-DNIXL_CCACHE=OFF", "-DNIXL_PYTHON=ON", "-DNIXL_BENCH=ON"]
    # What is an error is for .clang-tidy to say: -Werror would overrule what it leaves out.
    options += ["-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF"]
    command = ["cmake", "--preset", "clang", "-B", BUILD / "tidy", *options]
    command += [f"-DPython_EXECUTABLE={VENV_PYTHON}"]
    must(command, "lint-configure", "configuring for clang-tidy", cwd=ROOT)


def sanitizer_env() -> dict[str, str]:
    """Sanitizer options: any report is a failure, with stacks that name functions."""
    env = {
        # Without intercept_tls_get_addr: it guesses where the thread-local block of a library
        # opened at run time begins, guesses wrongly with UCX (clang 14), and its leak check then
        # ends in a fault of its own.
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1"
        ":intercept_tls_get_addr=0",
        "LSAN_OPTIONS": "print_suppressions=0:suppressions="
        + str(ROOT / "tools" / "devtool" / "lsan-suppressions.txt"),
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:suppressions="
        + str(ROOT / "tools" / "devtool" / "tsan-suppressions.txt"),
    }
    symbolizer = shutil.which("llvm-symbolizer") or shutil.which("llvm-symbolizer-14")
    if symbolizer:
        for name in ("ASAN", "UBSAN", "TSAN"):
            env[f"{name}_SYMBOLIZER_PATH"] = symbolizer
    return env
