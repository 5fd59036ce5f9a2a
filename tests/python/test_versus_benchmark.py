"""benchmarks/versus: the rows whose sizes can be tiny run and note what they promise."""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

VERSUS = pathlib.Path(__file__).parents[2] / "benchmarks" / "versus"
sys.path.insert(0, str(VERSUS))

pytest.importorskip("nixl", reason="the Python module is not built")
pytest.importorskip("numpy")

import bench_versus  # noqa: E402
import hogs  # noqa: E402
import hosts  # noqa: E402
import page  # noqa: E402
import rows  # noqa: E402
from rows_base import Metric, Row, at_least, at_most  # noqa: E402

import hicache  # noqa: E402

TRIED = ("pair_", "hosts_", "posix_small", "posix_large")
NAMES = [row.name for row in rows.ALL if row.name.startswith(TRIED)]


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("cc") is None:
        pytest.skip("the limits need a C compiler")
    command = [sys.executable, str(VERSUS / "bench_versus.py"), "--quick", "--rounds", "1", *words]
    pipe = subprocess.PIPE
    return subprocess.run(
        command, stdout=pipe, stderr=pipe, text=True, timeout=150, env=os.environ | env
    )


def namespaces() -> set[str]:
    folder = pathlib.Path("/run/netns")
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_of_a_row_is_measured(name: str, tmp_path: pathlib.Path) -> None:
    figures = tmp_path / "figures.json"
    done = run("--no-peer", "--json", str(figures), f"^{name}$")
    assert done.returncode == 0, done.stdout + done.stderr
    if "SKIP" in done.stdout:
        assert name.startswith("hosts_")
        pytest.skip(done.stdout.split("SKIP", 1)[1].splitlines()[0])
    (measured,) = json.loads(figures.read_text())[name]
    for metric in rows.find(name).metrics:
        assert measured["ours"][metric.name], metric.name
        assert all(value >= 0 for value in measured["ours"][metric.name])
        if metric.limit not in ("", "iperf3") or (metric.limit and shutil.which("iperf3")):
            assert measured["ours"][f"limit:{metric.name}"], metric.name
        if metric.second:
            assert measured["ours"][f"second:{metric.name}"], metric.name


def test_the_namespaces_are_taken_away_again() -> None:
    try:
        with hosts.Cable() as cable:
            made = {cable.near, cable.far}
            assert made <= namespaces()
    except hosts.NoHosts as why:
        pytest.skip(str(why))
    assert not made & namespaces()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # sleeps: between two looks


def state_and_ticks(pid: int) -> tuple[str, int]:
    """What a process does (R runs, T is stopped) and the processor time that it has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return fields[0], int(fields[11])


def test_hogs_use_processor_time_only_while_they_run_and_are_killed() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    beside = hogs.Hogs(cores)
    pids = [process.pid for process in beside.processes]
    try:
        wait_until(lambda: all(state_and_ticks(pid)[0] == "T" for pid in pids))
        stopped = [state_and_ticks(pid)[1] for pid in pids]
        with beside.running():
            for pid, ticks, core in zip(pids, stopped, cores, strict=True):
                wait_until(lambda: state_and_ticks(pid)[1] > ticks + 5)  # noqa: B023
                assert os.sched_getaffinity(pid) == {core}
        wait_until(lambda: all(state_and_ticks(pid)[0] == "T" for pid in pids))
    finally:
        beside.close()
    assert [process.returncode for process in beside.processes] == [-signal.SIGKILL] * len(cores)


def test_hogs_end_with_whoever_started_them() -> None:
    program = (
        "import hogs, os, sys\n"
        "beside = hogs.Hogs([min(os.sched_getaffinity(0))])\n"
        "beside.signal(18)\n"
        "print(beside.processes[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(0)\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=VERSUS, stdin=pipe, stdout=pipe, text=True) as parent:
        pid = int(parent.stdout.readline())
        wait_until(lambda: state_and_ticks(pid)[1] > 5)  # it has noted its parent
    # That closed the parent's input, and waited for its end.

    def gone() -> bool:
        try:
            return state_and_ticks(pid)[0] == "Z"  # where nobody reaps orphans
        except (FileNotFoundError, ProcessLookupError):
            return True

    try:
        wait_until(gone)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_without_namespaces_the_row_is_skipped_and_says_why() -> None:
    done = run("--no-peer", "^hosts_first$", PATH="/nonexistent")
    # The compiler is not found either unless its product is there from an earlier run.
    if done.returncode != 0 and "FileNotFoundError" in done.stderr:
        pytest.skip("no compiled limits yet")
    assert done.returncode == 0, done.stderr
    assert "SKIP hosts_first: needs the command ip" in done.stdout


def test_a_side_that_cannot_run_is_left_out(tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho it cannot start >&2\nexit 3\n")
    broken.chmod(0o755)
    done = run("--peer", str(broken), "^pair_first$", NIXL_MOONCAKE="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without the published package: ended with 3: it cannot start" in done.stdout
    assert "<= 5: " in done.stdout


def test_a_side_that_crashes_has_two_more_tries(tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "python"
    tried = tmp_path / "tried"
    broken.write_text(f"#!/bin/sh\necho again >> {tried}\nkill -SEGV $$\n")
    broken.chmod(0o755)
    done = run("--peer", str(broken), "^pair_first$", NIXL_MOONCAKE="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("once more, after the published package: ended with -11") == 2
    assert done.stdout.count("without the published package: ended with -11") == 1
    assert tried.read_text().count("again") == 3
    assert "<= 5: " in done.stdout


def test_a_failure_of_ours_fails_the_run(tmp_path: pathlib.Path) -> None:
    (tmp_path / "nixl").mkdir()
    (tmp_path / "nixl" / "__init__.py").write_text("raise ImportError('spoiled')\n")
    done = run("--no-peer", "^pair_first$", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "until DONE" not in done.stdout and "ours: ended with" in done.stdout


@pytest.mark.parametrize("mode", ["buffered", "direct"])
def test_hicache_runs_both_connectors_over_ours(mode: str, tmp_path: pathlib.Path) -> None:
    for module in ("torch", "sglang"):
        # Not what stands in for it in other tests.
        if importlib.machinery.PathFinder.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    words = ["--quick", "--rounds", "1", "--case", "small", "--mode", mode, "--dir", str(tmp_path)]
    words += ["--side", "ours", "--side", "client"]
    command = [sys.executable, str(VERSUS / "hicache.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert len(lines) > 2, done.stdout + done.stderr
    figures = {line[0].split()[0]: [float(cell.split()[0]) for cell in line[1:3]]
               for line in lines[2:] if len(line) > 2}  # fmt: skip
    assert set(figures) == {"set", "get", "exists"}
    assert all(value >= 0 for pair in figures.values() for value in pair)
    assert not any(tmp_path.iterdir())


def test_hicache_judges_the_client_by_the_rounds_own_ratios() -> None:
    rates = {"client": [2.0, 9.0, 4.0], "peer": [1.0, 9.0, 3.0]}  # times 0.5, 1 and 0.75
    assert hicache.client_of("large", "direct", "get", rates) == ("0.75 x (<= 0.8)", "ok")
    assert hicache.client_of("large", "buffered", "get", rates) == ("0.75 x", "")
    times = {"client": [1.0, 4.0, 5.0], "peer": [10.0, 10.0, 10.0]}
    found = hicache.client_of("small", "buffered", "exists", times)
    assert found == ("0.40 x (<= 0.3)", "MISSED")


class Made(Row):
    name, title = "made", "a row"
    metrics = (
        Metric("small", "us", (at_most("peer", 0.5), at_most("value", 3)), limit="one call"),
        Metric("rate", "GB/s", (at_least("limit", 0.9),), True, "first", "other"),
    )


def test_table_judges_by_the_rounds_own_ratios() -> None:
    results = [
        {
            "ours": {"small": [1.0], "rate": [9.0], "limit:rate": [10.0], "second:rate": [12.0]},
            "peer": {"small": [4.0]},
            "mooncake": {"rate": [2.0]},
        },
        {
            "ours": {"small": [3.0], "rate": [8.0], "limit:rate": [10.0], "second:rate": [12.0]},
            "peer": {"small": [6.0]},
            "mooncake": {"rate": [2.0]},
        },
    ]
    small, rate = bench_versus.table_of(Made, results)
    assert len(small) == len(rate) == len(bench_versus.HEAD)
    assert small[3] == "0.375"  # of 1/4 and 3/6, not of the medians
    assert small[6] == "<= 0.5 x peer (0.375): yes; <= 3: yes"
    assert rate[4] == "2" and rate[5] == "10 first; 12 other"
    assert rate[6] == ">= 0.9 x limit (0.85): NO"


def test_names_of_rows_are_unique() -> None:
    names = [row.name for row in rows.ALL]
    assert len(names) == len(set(names))


def test_rows_are_kept_by_machine_with_what_was_reached(tmp_path: pathlib.Path) -> None:
    class Kept(Row):
        name = "kept"
        title = "a row"
        metrics = (
            Metric("time", "us", (at_most("peer", 0.5), at_most("value", 3), at_most("limit", 2))),
        )

    results = [{"ours": {"time": [4.0]}, "peer": {"time": [10.0]}} for _ in range(3)]
    path = bench_versus.keep(tmp_path, {"kept": bench_versus.record_of(Kept, results)})
    kept = json.loads(path.read_text())
    assert "host" not in kept["machine"] and kept["machine"]["processor"]
    (metric,) = kept["rows"]["kept"]["metrics"].values()
    assert metric["ours"]["median"] == 4 and metric["published"]["ours_over_it"] == 0.4
    assert [target["reached"] for target in metric["targets"]] == [True, False, None]
    assert bench_versus.keep(tmp_path, {"other": {"title": "another"}}) == path
    assert set(json.loads(path.read_text())["rows"]) == {"kept", "other"}


def test_the_page_of_the_rows_is_what_is_kept() -> None:
    reasons = json.loads(page.REASONS.read_text())
    written = page.page(page.baselines(), reasons)
    assert page.PAGE.read_text() == written, "run benchmarks/versus/page.py"
    assert not page.unexplained(page.baselines(), reasons), page.REASONS


def test_the_page_says_what_is_reached_and_what_is_not() -> None:
    class Sample(Row):
        name, title = "sample", "a row"
        metrics = (
            Metric("time", "us", (at_most("peer", 0.8),)),
            Metric("rate", "GB/s", (at_least("limit", 0.9), at_most("value", 7)), higher=True),
        )

    ours = {"time": [9.0], "rate": [5.0], "limit:rate": [5.5]}
    row = bench_versus.record_of(Sample, [{"ours": ours, "peer": {"time": [10.0]}}])
    kept = {"m": {"machine": bench_versus.machine.record(), "rows": {"sample": row}}}
    kept["m"]["rows"]["sample"]["date"] = "2026-01-02"
    told = page.page(kept, {})
    assert "| time, us | 9 | 10 | 0.9 |  |  | <= 0.8 x published | NO |" in told
    assert "| rate, GB/s | 5 |  |  | 5.5 | 0.909 | >= 0.9 x limit; <= 7 | yes; yes |" in told
    assert "2 targets reached, 1 not, 0 could not be told." in told
    assert f"Not reached (time): {page.NO_REASON}" in told
    assert page.unexplained(kept, {}) == ["sample"]
    assert page.unexplained(kept, {"sample": "because"}) == []
    assert "Not reached (time): because" in page.page(kept, {"sample": "because"})
