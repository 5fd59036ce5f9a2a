"""./dev doctor: `python -m nixl.doctor` of what is built here, and what building would install.

Installs and builds nothing. Exit status 1 when nothing is built, or when the package's own doctor
finds something wrong.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import environment
from common import BUILD, ROOT, VENV_PYTHON, venv_env


def tools() -> None:
    """What building and testing would install."""
    for tool in environment.TOOLS:
        print(f"{tool:12s} {shutil.which(tool) or 'absent'}")
    if not shutil.which("dpkg-query"):
        print("packages     no dpkg here: README.md lists what to install")
        return
    for name, group in environment.GROUPS.items():
        needed, optional = environment.packages([name])
        lacking = environment.missing_packages([*needed, *optional])
        pending = name in environment.groups_pending([name]) and group.pip
        parts = [f"apt install {' '.join(lacking)}"] if lacking else []
        parts += [f"in .venv: tools/requirements-{group.pip}.txt"] if pending else []
        print(f"  {group.what:40s} {'; '.join(parts) or 'all there'}")


def main(words: list[str]) -> int:
    """Further words go to the package's doctor."""
    tools()
    modules = sorted(BUILD.glob("*/python/nixl/_bindings.*so"), key=lambda p: p.stat().st_mtime)
    sys.stdout.flush()
    if modules and VENV_PYTHON.exists():  # the newest that was built
        env = venv_env(PYTHONPATH=str(modules[-1].parents[1]))
        return subprocess.run([VENV_PYTHON, "-m", "nixl.doctor", *words], env=env).returncode
    what = "not built" if VENV_PYTHON.exists() else "neither built nor set up"
    print(f"nixl         {what}: `./dev demo` or `./dev build` builds it")
    alone = ROOT / "python" / "nixl" / "doctor.py"  # what it can say without the package
    sys.stdout.flush()
    if alone.exists():
        subprocess.run([sys.executable, "-I", str(alone), *words])
    return 1
