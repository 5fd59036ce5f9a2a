"""Finds and runs benchmarks: bench_* of the bench tree, benchmarks/**/bench_*.py, the guide's."""

from __future__ import annotations

import os
import pathlib
import subprocess

import builds
from common import ROOT, VENV_PYTHON, Failure, say, venv_env

# Those of the guide's suite that need no argument.
GUIDE = (
    "single_node/memory_copy.py",
    "single_node/ucx_loopback.py",
    "multi_node/ucx_p2p.py",
    "multi_node/hierarchical.py",
    "multi_node/all_reduce.py",
)
VERSUS = "versus/bench_versus.py"
VERSUS_PAGE = "versus/page.py"
BASELINES = ROOT / "benchmarks" / "baselines"
OTHERS = {"peer": "peer", "mooncake": "mooncake"}  # option → folder of .cache


def find(tree: pathlib.Path) -> dict[str, list[str]]:
    """Name → command of each benchmark there is."""
    found = {p.name: [str(p)] for p in sorted((tree / "bin").glob("bench_*"))}
    scripts = sorted((ROOT / "benchmarks").glob("**/bench_*.py"))
    for script in [*scripts, *(ROOT / "benchmarks" / name for name in GUIDE)]:
        name = str(script.relative_to(ROOT / "benchmarks"))
        found[name] = [str(VENV_PYTHON), str(script)]
    return found


def versus_rows(env: dict[str, str]) -> dict[str, str]:
    """Name → title of the rows of versus/bench_versus.py, which words choose as well."""
    command = [str(VENV_PYTHON), str(ROOT / "benchmarks" / VERSUS), "--list"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def choose(words: list[str], found: dict[str, list[str]], rows: dict[str, str]) -> dict:
    """Name → command; of versus/bench_versus.py only the rows that words name, where they do."""
    wanted = {n: c for n, c in found.items() if not words or any(w in n for w in words)}
    chosen = [name for name in rows if any(word in name for word in words)]
    if chosen and VERSUS in found and VERSUS not in wanted:
        wanted[VERSUS] = [*found[VERSUS], *(f"^{name}$" for name in chosen)]
    return wanted


def run_versus(words: list[str], rest: list[str]) -> int:
    """Rows beside the published package and the limits; makes the others' environments where they
    are not there, keeps what was measured in benchmarks/baselines, and writes the page of that."""
    builds.build("bench")
    env = venv_env(PYTHONPATH=builds.python_path("bench"))
    rows = versus_rows(env)
    chosen = [f"^{name}$" for name in rows if not words or any(word in name for word in words)]
    if not chosen:
        raise Failure(f"bench versus: no row matches {words}; there are: {' '.join(rows)}")
    extra = [] if "--quick" in rest else ["--keep", str(BASELINES)]
    if "--no-peer" not in rest:
        extra += [
            f"--install-{name}"
            for name, folder in OTHERS.items()
            if f"--{name}" not in rest
            and not os.environ.get(f"NIXL_{name.upper()}")
            and not (ROOT / ".cache" / folder / "bin" / "python").exists()
        ]
    script = str(ROOT / "benchmarks" / VERSUS)
    status = subprocess.run([str(VENV_PYTHON), script, *chosen, *extra, *rest], env=env).returncode
    if "--keep" in extra:
        page = str(ROOT / "benchmarks" / VERSUS_PAGE)
        status = max(status, subprocess.run([str(VENV_PYTHON), page], env=env).returncode)
    return status


def run_check(rest: list[str]) -> int:
    """Instructions of the core's hot paths beside their baseline: 1 where one grew by over 5 %."""
    tree = builds.build("release")
    script = str(ROOT / "tests" / "counts" / "counts.py")
    env = venv_env(NIXL_BUILD_DIR=str(tree))
    return subprocess.run([str(VENV_PYTHON), script, "--check", *rest], env=env).returncode


def run_benchmarks(words: list[str], only_list: bool, rest: list[str]) -> int:
    if words[:1] == ["versus"] and not only_list:
        return run_versus(words[1:], rest)
    if words == ["check"]:
        return run_check(rest)
    tree = builds.build("bench")
    found = find(tree)
    env = venv_env(PYTHONPATH=builds.python_path("bench"))
    rows = versus_rows(env)
    wanted = choose(words, found, rows)
    if not wanted:
        raise Failure(f"bench: nothing matches {words}; there are: {' '.join(found) or 'none'}")
    if only_list:
        for name, command in wanted.items():
            say(name)
            if name == VERSUS:
                shown = [row for row in rows if len(command) == 2 or f"^{row}$" in command]
                say("\n".join(f"    {row:<24} {rows[row]}" for row in shown))
        return 0
    worst = 0
    for name, command in wanted.items():
        say(f"\n== {name}")
        status = subprocess.run([*command, *rest], env=env).returncode
        if status:
            say(f"{name}: exit status {status}")
        worst = max(worst, status)
    return 1 if worst else 0
