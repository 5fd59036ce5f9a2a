"""Configures and builds the presets of CMakePresets.json below build/."""

from __future__ import annotations

import os
import pathlib
import shutil

from common import BUILD, ROOT, VENV_PYTHON, cores, must

PRESETS = ["release", "debug", "clang", "asan", "tsan", "bench"]


def tree(preset: str) -> pathlib.Path:
    return BUILD / preset


def configure(preset: str, log: str, *options: str) -> None:
    if (tree(preset) / "build.ninja").exists() and not options:
        return  # ninja runs cmake again by itself where a list of files changed
    command = ["cmake", "--preset", preset, f"-DPython_EXECUTABLE={VENV_PYTHON}", *options]
    must(command, log, f"configuring preset {preset}", cwd=ROOT)


def build(preset: str, targets: list[str] | None = None, log: str | None = None) -> pathlib.Path:
    """Builds a preset (all of it or some targets) and returns its folder."""
    log = log or f"build-{preset}"
    configure(preset, log)
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
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    }
    symbolizer = shutil.which("llvm-symbolizer") or shutil.which("llvm-symbolizer-14")
    if symbolizer:
        for name in ("ASAN", "UBSAN", "TSAN"):
            env[f"{name}_SYMBOLIZER_PATH"] = symbolizer
    return env
