"""Instructions of the paths that callers run most often, counted by valgrind's callgrind.

    NIXL_BUILD_DIR=build/release python tests/counts/counts.py [--write | --check]

prints what a call takes beside the baseline; --write makes it the baseline, --check (`./dev bench
check`) fails where a path takes over 5 % more. A count does not depend
on the load or the speed of the machine; it does on the processor's architecture and the compiler,
so that the baseline has a part for each.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile

PATHS = ("prepare", "index", "post", "poll")
MORE = 1.05
CALLS = 200  # of hot_paths.cpp
BASELINE = pathlib.Path(__file__).with_name("baseline.json")
# The C library chooses its copying loops by the processor: the simplest, which all have.
ENVIRONMENT = {
    "LD_BIND_NOW": "1",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM",
}
PATIENCE_S = 240


def program() -> pathlib.Path:
    return pathlib.Path(os.environ.get("NIXL_BUILD_DIR", "build/release")) / "bin" / "nixl_counts"


def why_not() -> str:
    """Why nothing can be counted here; empty where it can."""
    if shutil.which("valgrind") is None:
        return "no valgrind on this machine (Debian: valgrind)"
    if not program().exists():
        return f"{program()} is not built"
    return ""


def kind() -> str:
    """The part of the baseline for this machine and this build, such as `x86_64 gcc 12`."""
    told = subprocess.run([program(), "compiler"], capture_output=True, text=True, check=True)
    return f"{platform.machine()} {told.stdout.strip()}"


def count(path: str) -> int:
    """Instructions of one call."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += ["--collect-atstart=no", f"--toggle-collect=nixlCount{path.capitalize()}"]
        done = subprocess.run(
            [*command, program(), path],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found or found.group(1) == "0":
        raise RuntimeError(f"{path}: valgrind's exit status {done.returncode}\n{done.stderr}")
    return int(found.group(1)) // CALLS


def baseline() -> dict[str, dict[str, int]]:
    return json.loads(BASELINE.read_text()) if BASELINE.exists() else {}


def main() -> int:
    if reason := why_not():
        sys.exit(f"counts: {reason}")
    known, here = baseline(), kind()
    now = {path: count(path) for path in PATHS}
    print(f"{here}: instructions of a call")
    grown = []
    for path, instructions in now.items():
        before = known.get(here, {}).get(path)
        if before and instructions > before * MORE:
            grown.append(path)
        change = f"{instructions / before - 1:+.1%}" if before else "new"
        print(f"  {path:8s} {instructions:8d}  {change}")
    if "--write" in sys.argv[1:]:
        BASELINE.write_text(json.dumps(known | {here: now}, indent=2) + "\n")
        return 0
    if "--check" not in sys.argv[1:]:
        return 0
    if here not in known:
        sys.exit(f"counts: no baseline for {here}: --write makes one")
    if grown:
        print(f"over {MORE - 1:.0%} more than the baseline: {', '.join(grown)}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
