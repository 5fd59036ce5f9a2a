"""Runs the fuzz targets: tests/fuzz/NAME_fuzz.cpp is the program fuzz_NAME of the asan tree.

Stored inputs are in tests/fuzz/corpus/NAME/; new ones go to build/fuzz/NAME/.
"""

from __future__ import annotations

import time

import builds
from common import BUILD, ROOT, Outcome, run, say, tail, venv_env

FOLDER = ROOT / "tests" / "fuzz"


def targets() -> list[str]:
    return sorted(path.name.removesuffix("_fuzz.cpp") for path in FOLDER.glob("*_fuzz.cpp"))


def run_targets(wanted: list[str], seconds: int) -> Outcome:
    """Replays each target's corpus, then fuzzes it for `seconds`."""
    outcome = Outcome("fuzz")
    start = time.monotonic()
    known = targets()
    if unknown := [name for name in wanted if name not in known]:
        return outcome.fail(f"no such fuzz target: {' '.join(unknown)}; there are: {known}")
    if not known:
        return outcome.skip("fuzz: the tree has no fuzz target yet (tests/fuzz/*_fuzz.cpp)")
    tree = builds.build("asan", [f"fuzz_{name}" for name in wanted or known])
    for name in wanted or known:
        log = f"fuzz-{name}"
        found = BUILD / "fuzz" / name
        found.mkdir(parents=True, exist_ok=True)
        stored = FOLDER / "corpus" / name
        command = [tree / "bin" / f"fuzz_{name}", f"-max_total_time={seconds}", "-timeout=10"]
        command += ["-rss_limit_mb=2048", f"-artifact_prefix={found}/", found]
        command += [stored] if stored.is_dir() else []
        say(f"    fuzz {name}: {seconds} s")
        env = venv_env(**builds.sanitizer_env())
        if run(command, log, env=env, timeout_s=seconds + 120.0) == 0:
            outcome.passed += 1
        else:
            outcome.fail(f"fuzz target {name}; the input is in {found}\n{tail(log)}")
    outcome.seconds = time.monotonic() - start
    return outcome
