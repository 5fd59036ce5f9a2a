"""Builds for aarch64 on another machine, and runs the tests of that under qemu-user."""

from __future__ import annotations

import pathlib
import sys

import builds
import junit
from common import LOGS, ROOT, VENV_PYTHON, Failure, Outcome, must, run, say, tail, venv_env

TOOLCHAIN = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
# The programs that need no more of the kernel than qemu-user passes on: no io_uring, no
# cross-memory attach, no network namespaces.
PROGRAMS = ["base_test", "memory_test", "session_test"]
# qemu-user passes on four bytes of such a name (findings/qemu_user_tcp_congestion.sh).
LEFT_OUT = "CongestionControl"
TIMEOUT_S = 1800.0


def tests() -> None:
    """Builds core and plugins, and runs the programs above."""
    say(f"aarch64: building, and running {', '.join(PROGRAMS)} under qemu-user")
    tree = builds.build("aarch64", ["nixl_runtime", *PROGRAMS])
    report = LOGS / "aarch64.xml"
    report.unlink(missing_ok=True)
    command = ["ctest", "--test-dir", tree, "--output-on-failure", "--output-junit", report]
    command += ["-R", "|".join(f"^{name}\\." for name in PROGRAMS), "-E", LEFT_OUT]
    status = run(command, "aarch64", env=venv_env(), timeout_s=TIMEOUT_S)
    outcome = junit.read(report, Outcome("aarch64")) if report.exists() else Outcome("aarch64")
    say(f"aarch64: {outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped")
    if status != 0 or not outcome.passed:
        raise Failure(f"{tail('aarch64')}\naarch64: exit status {status}: {outcome.failures}")


def wheel(sdist: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The wheel of an sdist for aarch64, for this Python's version."""
    say("aarch64: the wheel")
    env = venv_env(
        CMAKE_TOOLCHAIN_FILE=str(TOOLCHAIN),
        _PYTHON_HOST_PLATFORM="linux-aarch64",
        SETUPTOOLS_EXT_SUFFIX=f".cpython-3{sys.version_info.minor}-aarch64-linux-gnu.so",
    )
    command = [VENV_PYTHON, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, sdist]
    must(command, "release-aarch64", "the wheel for aarch64", env=env)
    (made,) = folder.glob("*linux_aarch64.whl")
    return made
