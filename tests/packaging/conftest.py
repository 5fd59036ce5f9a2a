"""Builds the wheel and an install prefix once for all packaging tests."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*words: str | pathlib.Path, **options) -> str:
    """Runs a command; an AssertionError with all its output if it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "NIXL_PLUGIN_DIR")}
    env.update(options.pop("env", {}))
    done = subprocess.run(
        [str(word) for word in words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        **options,
    )
    command = " ".join(str(word) for word in words)
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def build_tree() -> pathlib.Path:
    return pathlib.Path(os.environ["NIXL_BUILD_DIR"])


def copy_sources(target: pathlib.Path) -> None:
    """What git knows or would add, and nothing else: a wheel must not need anything more."""
    listed = run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard")
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel as `pip wheel .` makes it of a clean copy, with the build tools of .venv.

    Folder and flags are those of the tree that was just tested, so that the compiler cache helps.
    """
    if given := os.environ.get("NIXL_WHEEL"):  # ./dev release tries the very file it made
        return pathlib.Path(given)
    if not (ROOT / "python" / "nixl" / "__init__.py").exists():
        pytest.skip("no Python package in this tree")
    source = tmp_path_factory.mktemp("source")
    copy_sources(source)
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    options += ["-Cbuild-dir=build/release", "-Ccmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON"]
    run(sys.executable, "-m", "pip", "wheel", "-q", *options, source, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def wheel_python(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The interpreter of a virtual environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check", wheel)
    return python


@pytest.fixture(scope="session")
def site(wheel_python: pathlib.Path) -> pathlib.Path:
    """site-packages with the installed wheel."""
    (found,) = wheel_python.parents[1].glob("lib/python3*/site-packages")
    return found


@pytest.fixture(scope="session")
def prefix(build_tree: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What `cmake --install` leaves, moved once more: it must not know where it was made."""
    target = tmp_path_factory.mktemp("install") / "first"
    run("cmake", "--install", build_tree, "--prefix", target)
    moved = target.with_name("moved")
    target.rename(moved)
    return moved


@pytest.fixture(scope="session")
def conformance(build_tree: pathlib.Path) -> pathlib.Path:
    program = build_tree / "bin" / "nixl_conformance"
    if not program.exists():
        pytest.skip("built without tests: no nixl_conformance")
    return program
