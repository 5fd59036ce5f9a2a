"""Sets the machine up: system packages (apt, as root) and the virtual environment .venv.

Everything is in groups, so that a command installs what it needs and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from common import ROOT, VENV, VENV_PYTHON, Failure, must, run, say, tail, venv_env

TOOLS_FOLDER = ROOT / "tools"
CLIENTS = TOOLS_FOLDER / "requirements-clients.txt"


@dataclass(frozen=True)
class Group:
    """What one kind of work needs. Fedora's names of the packages to build are in README.md."""

    what: str
    apt: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # without these some tests say SKIP
    pip: str = ""  # tools/requirements-PIP.txt


GROUPS = {
    "venv": Group("for .venv", apt=("ca-certificates", "python3-venv")),
    "build": Group(
        "to build and to run the demo",
        apt=(
            "cmake",
            "g++",
            "liburing-dev",
            "ninja-build",
            "python3-dev",
        ),
        pip="demo",
    ),
    "tests": Group(
        "for the tests in C++",
        apt=(
            "binutils",
            "ccache",
            "git",
            "libcurl4-openssl-dev",
            "libfabric-dev",
            "libgmock-dev",
            "libgtest-dev",
            "libibverbs1",
            "libnuma1",
            "libpugixml-dev",
            "libssl-dev",
            "libucx-dev",
            "nlohmann-json3-dev",
            "pkg-config",
            "prometheus-cpp-dev",
        ),
        pip="dev",
    ),
    # Debian's torch is a CPU build of 50 MB; its etcd is of another version than the one in .venv.
    "python": Group(
        "for the tests in Python",
        apt=("fio", "iproute2", "valgrind"),
        optional=("chromium-headless-shell", "etcd-server", "prometheus", "python3-torch"),
    ),
    "clients": Group("for the tests with programs of others", pip="clients"),
    "clang": Group("for the sanitizers", apt=("clang", "libclang-rt-14-dev", "llvm")),
    "lint": Group("for the checks of style", pip="lint"),
    "release": Group("for the files of a release", pip="release"),
    "aarch64": Group("for another architecture", apt=("g++-aarch64-linux-gnu", "qemu-user")),
    "coverage": Group("for the report of what the tests run", pip="coverage"),
    "docs": Group("for the site of the documentation", pip="docs"),
    "bench": Group("for the benchmarks", apt=("fio", "libbenchmark-dev")),
}
TORCH_PARTS = ["torch", "torchgen", "functorch"]
DEBIAN_PYTHON = pathlib.Path("/usr/lib/python3/dist-packages")
TOOLS = ["g++", "cmake", "ninja"]


def set_up(*groups: str) -> None:
    """Brings packages and .venv to what these groups ask for; quick where nothing is missing."""
    wanted = [name for name in GROUPS if name in ("venv", *groups)]
    install_packages(wanted)
    make_venv(wanted)


def packages(groups: Iterable[str]) -> tuple[list[str], list[str]]:
    """The system packages of groups: needed, and nice to have."""
    needed = sorted({name for group in groups for name in GROUPS[group].apt})
    if "libclang-rt-14-dev" in needed and not apt_knows("libclang-rt-14-dev"):
        needed[needed.index("libclang-rt-14-dev")] = "libclang-rt-dev"
    return needed, sorted({name for group in groups for name in GROUPS[group].optional})


def missing_packages(names: list[str]) -> list[str]:
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${db:Status-Abbrev}\n", *names],
        capture_output=True,
        text=True,
    )
    have = {line.split()[0] for line in listing.stdout.splitlines() if line.split()[1:] == ["ii"]}
    return [name for name in names if name not in have]


def install_packages(groups: list[str]) -> None:
    if not shutil.which("apt-get"):
        say("set-up: no apt here; packages are yours to install (README.md lists them)")
        return check_tools(groups)
    needed, optional = packages(groups)
    absent = missing_packages([*needed, *optional])
    missing = [name for name in needed if name in absent]
    # What is nice to have is tried once, when its group is new here.
    optional = [name for name in optional if name in absent and groups_pending(groups)]
    if not missing and not optional:
        say("set-up: system packages are there")
        return None
    if os.geteuid() != 0:
        say(f"set-up: not root, apt skipped; missing: {' '.join(missing + optional)}")
        return check_tools(groups)
    say(f"set-up: apt installs {' '.join(missing + optional)}")
    apt = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    must(["apt-get", "update", "-q"], "setup", "apt-get update", env=apt)
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends"]
    if missing:
        must([*install, *missing], "setup", "apt-get install", env=apt)
    for name in optional:  # one by one: no system has them all
        if run([*install, name], "setup", env=apt) != 0:
            say(f"set-up: optional {name} could not be installed; its tests will skip")
    return check_tools(groups)


def apt_knows(name: str) -> bool:
    """Whether apt could install it, or it is there."""
    if not missing_packages([name]):
        return True
    shown = subprocess.run(["apt-cache", "policy", name], capture_output=True, text=True).stdout
    return "Candidate:" in shown and "Candidate: (none)" not in shown


def check_tools(groups: list[str]) -> None:
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking and "build" in groups:
        raise Failure(f"set-up: these programs are missing: {' '.join(lacking)}; as root run: "
                      f"apt-get install {' '.join(GROUPS['build'].apt)}")  # fmt: skip


# --- .venv ---


def requirements(group: str) -> pathlib.Path:
    return TOOLS_FOLDER / f"requirements-{GROUPS[group].pip}.txt"


def fingerprint(group: str) -> str:
    """What a group asks for, so that a changed list is installed once more."""
    asked = GROUPS[group]
    digest = hashlib.sha256(" ".join(asked.optional).encode())
    digest.update(requirements(group).read_bytes() if asked.pip else b"")
    return digest.hexdigest()


def marks() -> dict[str, str]:
    """Group → fingerprint of what .venv holds."""
    try:
        found = json.loads((VENV / ".ready").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def groups_pending(groups: list[str]) -> list[str]:
    """Those whose part of .venv is not there, or not as the tree asks for now."""
    have = marks() if VENV_PYTHON.exists() else {}
    return [name for name in groups if have.get(name) != fingerprint(name)]


def make_venv(groups: list[str]) -> None:
    """Makes .venv, or adds to it what is missing of these groups."""
    pending = groups_pending(groups)
    if not pending:
        say("set-up: .venv is there")
        return
    say(f"set-up: .venv with {sys.executable}: {', '.join(GROUPS[name].what for name in pending)}")
    if not VENV_PYTHON.exists():
        must([sys.executable, "-m", "venv", VENV], "setup", "making .venv", env=dict(os.environ))
    files = [requirements(n) for n in pending if GROUPS[n].pip not in ("", "clients")]
    if files:
        pip_install(*(word for file in files for word in ("-r", file)))
    if "python" in pending:
        link_debian_torch()
    if "clients" in pending:
        install_clients()
    have = marks() | {name: fingerprint(name) for name in pending}
    (VENV / ".ready").write_text(json.dumps(have, indent=1))


def pip_install(*words: str | os.PathLike[str]) -> None:
    command = [VENV_PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if run([*command, *words], "setup", env=venv_env()) != 0:
        what = " ".join(os.fspath(word) for word in words)
        raise Failure(f"{tail('setup', 20)}\nset-up: pip install {what} failed; "
                      "is the package index reachable?")  # fmt: skip


def install_clients() -> None:
    """Packages that use ours, for tests with their own code; nice to have."""
    command = [VENV_PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:"]
    if run([*command, "-r", CLIENTS], "setup", env=venv_env()) == 0:
        return
    for line in CLIENTS.read_text().splitlines():  # what there is for this machine
        if line.startswith("#") or run([*command, line], "setup", env=venv_env()) == 0:
            continue
        say(f"set-up: {line} could not be installed; its tests will skip")


def link_debian_torch() -> None:
    """Lets .venv see Debian's torch alone, not the rest of the system's Python packages."""
    site = next((VENV / "lib").glob("python3*/site-packages"))
    if not (DEBIAN_PYTHON / "torch").is_dir() or (site / "torch").exists():
        return
    links = [site / part for part in TORCH_PARTS if (DEBIAN_PYTHON / part).is_dir()]
    for link in links:
        link.symlink_to(DEBIAN_PYTHON / link.name)
    works = subprocess.run([VENV_PYTHON, "-c", "import torch"], capture_output=True, env=venv_env())
    if works.returncode != 0:  # another Python version than Debian's
        for link in links:
            link.unlink()
