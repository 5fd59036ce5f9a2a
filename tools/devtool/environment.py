"""Sets the machine up: system packages (apt, as root) and the virtual environment .venv."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

from common import ROOT, VENV, VENV_PYTHON, Failure, must, run, say, tail, venv_env

# Needed to build and test. A machine that is no Debian finds the Fedora names in README.md.
APT = [
    "binutils",
    "ca-certificates",
    "ccache",
    "clang",
    "cmake",
    "fio",
    "g++",
    "git",
    "iproute2",
    "libbenchmark-dev",
    "libclang-rt-14-dev",
    "libgmock-dev",
    "libgtest-dev",
    "libucx-dev",
    "liburing-dev",
    "llvm",
    "ninja-build",
    "pkg-config",
    "python3-dev",
    "python3-venv",
]
# Nice to have: without them some tests say SKIP. Debian's torch is a CPU build of 50 MB.
APT_OPTIONAL = ["python3-torch"]
TORCH_PARTS = ["torch", "torchgen", "functorch"]
DEBIAN_PYTHON = pathlib.Path("/usr/lib/python3/dist-packages")
REQUIREMENTS = ROOT / "tools" / "requirements-dev.txt"
CLIENTS = ROOT / "tools" / "requirements-clients.txt"
TOOLS = ["g++", "cmake", "ninja", "git"]


def set_up() -> None:
    """Brings packages and .venv to what the tree asks for; quick where nothing is missing."""
    install_packages()
    make_venv()


def missing_packages(names: list[str]) -> list[str]:
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${db:Status-Abbrev}\n", *names],
        capture_output=True,
        text=True,
    )
    have = {line.split()[0] for line in listing.stdout.splitlines() if line.split()[1:] == ["ii"]}
    return [name for name in names if name not in have]


def install_packages() -> None:
    if not shutil.which("apt-get"):
        say("set-up: no apt here; packages are yours to install (README.md lists them)")
        return check_tools()
    if shutil.which("clang-14") is None and not apt_knows("libclang-rt-14-dev"):
        APT[APT.index("libclang-rt-14-dev")] = "libclang-rt-dev"
    missing = missing_packages(APT)
    optional = missing_packages(APT_OPTIONAL) if VENV_PYTHON.exists() is False else []
    if not missing and not optional:
        say("set-up: system packages are there")
        return None
    if os.geteuid() != 0:
        say(f"set-up: not root, apt skipped; missing: {' '.join(missing + optional)}")
        return check_tools()
    say(f"set-up: apt installs {' '.join(missing + optional)}")
    apt = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    must(["apt-get", "update", "-q"], "setup", "apt-get update", env=apt)
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends"]
    if missing:
        must([*install, *missing], "setup", "apt-get install", env=apt)
    if optional and run([*install, *optional], "setup", env=apt) != 0:
        say(f"set-up: optional {' '.join(optional)} could not be installed; its tests will skip")
    return check_tools()


def apt_knows(name: str) -> bool:
    shown = subprocess.run(["apt-cache", "policy", name], capture_output=True, text=True).stdout
    return "Candidate:" in shown and "Candidate: (none)" not in shown


def check_tools() -> None:
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        raise Failure(f"set-up: these programs are missing: {' '.join(lacking)}; as root run: "
                      f"apt-get install {' '.join(APT)}")  # fmt: skip


def make_venv() -> None:
    """Makes .venv, or brings it up to date when the list of its packages has changed."""
    mark = VENV / ".ready"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + CLIENTS.read_bytes()).hexdigest()
    if VENV_PYTHON.exists() and mark.exists() and mark.read_text() == wanted:
        say("set-up: .venv is there")
        return
    say(f"set-up: .venv with {sys.executable}")
    if not VENV_PYTHON.exists():
        must([sys.executable, "-m", "venv", VENV], "setup", "making .venv", env=dict(os.environ))
    pip_install("-r", REQUIREMENTS)
    link_debian_torch()
    install_clients()
    mark.write_text(wanted)


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
