"""Ours beside the published package 1.5.1, Mooncake's engine and the machine's limit, in one run.

Each side lives in a process of its own; rounds alternate (A B A B), and whoever is not measured
is stopped (SIGSTOP), so that spinning threads of one side never disturb the other. Figures are
medians over all rounds; ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import hosts  # noqa: E402
import rows  # noqa: E402
from page import counts, number, with_spread  # noqa: E402
from rows_base import Row, Target  # noqa: E402
from utils import machine  # noqa: E402

PEER_VERSION = "1.5.1"
# Who is compared with ours: what to install where, and how to name it.
OTHERS = {
    "peer": [f"nixl=={PEER_VERSION}", f"nixl-cu13=={PEER_VERSION}", "numpy"],
    "mooncake": ["mooncake-transfer-engine-non-cuda==0.3.13.post1", "numpy"],
}
NAMES = {"ours": "ours", "peer": "the published package", "mooncake": "Mooncake's engine"}

TRIES = 3  # of a row, with sides that crash

Samples = dict[str, list[float]]


class SideFailed(Exception):
    """A side's process ended, or cannot do the row."""

    def __init__(self, side: str, why: str) -> None:
        super().__init__(f"{NAMES[side]}: {why}")
        self.side = side
        self.crashed = "ended with -" in why  # itself or its far process, by a signal


class Worker:
    """One side's process; in the near network namespace where there is a cable."""

    def __init__(
        self, side: str, python: str, row: type[Row], scratch: str, cable: hosts.Cable | None
    ) -> None:
        env = dict(os.environ) | row.environment()
        prefix = []
        if cable is not None:
            env |= cable.environment()
            prefix = hosts.inside(cable.near)
        build = ROOT / "build" / "bench" / "python"
        if side == "ours" and not env.get("PYTHONPATH") and build.exists():
            env["PYTHONPATH"] = str(build)
        if side != "ours":
            env.pop("PYTHONPATH", None)
            env.pop("NIXL_PLUGIN_DIR", None)
        self.side = side
        self.log = open(os.path.join(scratch, f"{row.name}.{side}.log"), "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*prefix, python, str(HERE / "worker.py"), row.name, side, scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env,
            preexec_fn=os.setpgrp,  # noqa: PLW1509 - rows may start processes; one thread here
        )
        try:
            self.facts = self.answer()["ready"]
        except SideFailed:
            self.end()
            raise
        self.stop()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            tail = "\n".join(self.log.read().splitlines()[-4:])
            raise SideFailed(self.side, f"ended with {self.process.returncode}: {tail}")
        return json.loads(line)

    def round(self) -> Samples:
        self.signal(signal.SIGCONT)
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        figures = self.answer()
        self.stop()
        return figures

    def signal(self, number: int) -> None:
        """To the worker and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)

    def end(self) -> None:
        self.signal(signal.SIGCONT)
        over = (subprocess.TimeoutExpired, BrokenPipeError, ValueError)
        with contextlib.suppress(*over):
            self.process.communicate("end\n", timeout=20)
        self.signal(signal.SIGKILL)  # and what it started, should it have forgotten that
        self.process.wait()
        self.log.close()


@contextlib.contextmanager
def workers(
    row: type[Row], sides: dict[str, str], scratch: str, cable: hosts.Cable | None
) -> Iterator[dict[str, Worker]]:
    running: dict[str, Worker] = {}
    try:
        for side, python in sides.items():
            running[side] = Worker(side, python, row, scratch, cable)
        yield running
    finally:
        for worker in running.values():
            worker.end()


def run_rounds(
    row: type[Row], sides: dict[str, str], rounds: int, scratch: str, cable: hosts.Cable | None
) -> list[dict]:
    """The rounds, each side → its samples."""
    results: list[dict[str, Samples]] = []
    rounds = min(rounds, row.most_rounds)
    if row.fresh:
        for _ in range(rounds):
            figures = {}
            for side, python in sides.items():
                with workers(row, {side: python}, scratch, cable) as one:
                    figures[side] = one[side].round()
            results.append(figures)
        return results
    with workers(row, sides, scratch, cable) as running:
        for worker in running.values():
            if worker.facts:
                print(f"{row.name}, {NAMES[worker.side]}: {worker.facts}", flush=True)
            worker.round()  # warms up
        for index in range(rounds):
            order = list(running.items())
            if index % 2:
                order.reverse()
            results.append({side: worker.round() for side, worker in order})
    return results


def run_row(row: type[Row], sides: dict[str, str], rounds: int, scratch: str) -> list[dict]:
    """The same, once more without whoever else than ours cannot do it. Who crashes has two more
    tries: the published package does now and then where both ends poll."""
    sides = {side: python for side, python in sides.items() if side in row.sides}
    crashes = 0
    with contextlib.ExitStack() as stack:
        cable = stack.enter_context(hosts.Cable(row.cables, row.rate)) if row.hosts else None
        while True:
            try:
                return run_rounds(row, sides, rounds, scratch, cable)
            except SideFailed as failure:
                if failure.side == "ours":
                    raise
                crashes += failure.crashed
                if failure.crashed and crashes < TRIES:
                    print(f"{row.title}: once more, after {failure}", flush=True)
                    continue
                print(f"{row.title}: without {failure}", flush=True)
                del sides[failure.side]


class Figure:
    """One metric of one side over all rounds."""

    def __init__(self, results: list[dict], side: str, key: str, higher: bool) -> None:
        self.higher = higher
        self.rounds = [r.get(side, {}).get(key, []) for r in results]
        self.all = [value for samples in self.rounds for value in samples]

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    @property
    def spread(self) -> tuple[float, float]:
        """The least, and the third quartile (of rates: the first quartile, and the most)."""
        if len(self.all) < 4:
            return min(self.all), max(self.all)
        low, _, high = statistics.quantiles(self.all, n=4)
        return (low, max(self.all)) if self.higher else (min(self.all), high)

    def over(self, other: Figure) -> float:
        """The median of the rounds' ratios to another figure of the same rounds."""
        pairs = [
            statistics.median(mine) / statistics.median(theirs)
            for mine, theirs in zip(self.rounds, other.rounds, strict=True)
            if mine and theirs and statistics.median(theirs) > 0
        ]
        return statistics.median(pairs) if pairs else float("nan")


def shown(figure: Figure) -> str:
    return with_spread(figure.median, *figure.spread) if figure else "-"


def judge(target: Target, ours: Figure, others: dict[str, Figure]) -> str:
    """`others` by what a target may be of."""
    reference = others.get(target.of)
    if not ours or (reference is not None and not reference):
        return f"{target.text}: -"
    reached = ours.median if reference is None else ours.over(reference)
    good = reached >= target.factor if target.text[0] == ">" else reached <= target.factor
    figure = "" if reference is None else f" ({number(reached)})"
    return f"{target.text}{figure}: {'yes' if good else 'NO'}"


def table_of(row: type[Row], results: list[dict]) -> list[list[str]]:
    lines = []
    for metric in row.metrics:
        ours = Figure(results, "ours", metric.name, metric.higher)
        peer = Figure(results, "peer", metric.name, metric.higher)
        limit = Figure(results, "ours", f"limit:{metric.name}", metric.higher)
        mooncake = Figure(results, "mooncake", metric.name, metric.higher)
        second = Figure(results, "ours", f"second:{metric.name}", metric.higher)
        others = {"peer": peer, "limit": limit, "mooncake": mooncake}
        limits = [f"{shown(limit)} {metric.limit}".strip()] if limit else []
        limits += [f"{shown(second)} {metric.second}".strip()] if second else []
        lines.append(
            [
                f"{row.title}: {metric.name}, {metric.unit}",
                shown(ours),
                shown(peer),
                number(ours.over(peer)) if ours and peer else "-",
                shown(mooncake),
                "; ".join(limits) or "-",
                "; ".join(judge(t, ours, others) for t in metric.targets) or "-",
            ]
        )
    return lines


def verdict(target: Target, figures: dict[str, Figure]) -> dict[str, Any]:
    """A target for a program to read; reached is None where it could not be told."""
    others = {"peer": figures["published"]} | {k: figures[k] for k in ("limit", "mooncake")}
    told = judge(target, figures["ours"], others)
    reached = {"yes": True, "NO": False}.get(told.rsplit(": ", 1)[1])
    return {"target": target.text, "of": target.of, "reached": reached, "told": told}


def record_of(row: type[Row], results: list[dict]) -> dict[str, Any]:
    """What is kept of a row: medians and spreads of each side, ratios, and what was reached."""
    kept: dict[str, Any] = {}
    for metric in row.metrics:
        figures = {
            name: Figure(results, side, key, metric.higher)
            for name, side, key in (
                ("ours", "ours", metric.name),
                ("published", "peer", metric.name),
                ("mooncake", "mooncake", metric.name),
                ("limit", "ours", f"limit:{metric.name}"),
            )
        }
        ours = figures["ours"]
        entry: dict[str, Any] = {"unit": metric.unit, "rounds": len(results)}
        for name, figure in figures.items():
            if figure:
                low, high = figure.spread
                entry[name] = {"median": figure.median, "spread": [low, high]}
                if name != "ours" and ours:
                    entry[name]["ours_over_it"] = ours.over(figure)
        entry["targets"] = [verdict(target, figures) for target in metric.targets]
        kept[metric.name] = entry
    return {"title": row.title, "metrics": kept}


def keep(folder: pathlib.Path, everything: dict[str, dict[str, Any]]) -> pathlib.Path:
    """Writes the rows into the file of this machine; rows that were not run stay as they were."""
    about = machine.record()
    words = f"{about['processor']} {len(os.sched_getaffinity(0))} cores"
    path = folder / (re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") + ".json")
    rows_before = json.loads(path.read_text())["rows"] if path.exists() else {}
    today = time.strftime("%Y-%m-%d")
    fresh = {name: {"date": today, **row} for name, row in everything.items()}
    about.pop("host", None)  # a name of somebody's network
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": about, "rows": rows_before | fresh}, indent=1, sort_keys=True)
    path.write_text(text + "\n")
    return path


HEAD = ["what", "ours", "published", "ours / published", "Mooncake", "limit", "target"]


def show(lines: list[list[str]], markdown: bool) -> str:
    if markdown:
        head = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
        return "\n".join(head + ["| " + " | ".join(line) + " |" for line in lines])
    out = []
    for line in lines:
        out.append(line[0])
        for name, cell in zip(HEAD[1:], line[1:], strict=True):
            if cell != "-":
                out.append(f"    {name:<18} {cell}")
    return "\n".join(out)


def find_other(side: str, path: str | None) -> str | None:
    """The interpreter of the environment that holds what ours is compared with, if there is one."""
    given = os.environ.get(f"NIXL_{side.upper()}")
    for place in (path, given, str(ROOT / ".cache" / side)):
        if not place:
            continue
        here = pathlib.Path(place)
        python = here / "bin" / "python" if here.is_dir() else here
        if python.exists():
            return str(python)
        if place == path:
            raise SystemExit(f"--{side} {place}: no interpreter there")
    return None


def install_other(side: str) -> None:
    folder = ROOT / ".cache" / side
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *OTHERS[side]], check=True)


def sides_of(options: argparse.Namespace, wanted: list[type[Row]]) -> dict[str, str]:
    """Side → interpreter, of those that are here and take part in some row."""
    sides = {"ours": sys.executable}
    for side in OTHERS:
        if getattr(options, f"install_{side}"):
            install_other(side)
        if options.no_peer or not any(side in row.sides for row in wanted):
            continue
        python = find_other(side, getattr(options, side))
        if python is not None:
            sides[side] = python
        else:
            print(f"SKIP {NAMES[side]}: none found; --{side} PATH, or --install-{side}")
    return sides


def compile_yardstick() -> str:
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    library = cache / "yardstick.so"
    sources = sorted(HERE.glob("yardstick*.c"))
    newest = max(source.stat().st_mtime for source in sources)
    if not library.exists() or library.stat().st_mtime < newest:
        fresh = cache / f"yardstick{os.getpid()}.so"
        command = ["cc", "-O2", "-shared", "-fPIC", "-pthread", "-o", str(fresh)]
        subprocess.run([*command, *map(str, sources)], check=True)
        fresh.replace(library)  # whoever has it open keeps the old one
    return str(library)


def raise_priority() -> None:
    """Puts this run before everything else on a machine that is not ours alone; needs root."""
    with contextlib.suppress(PermissionError):
        os.setsid()  # fails where this is the first process of its session already
    try:
        pathlib.Path("/proc/self/autogroup").write_text("-19")
    except OSError as error:
        print(f"--urgent: {error}")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="parts of row names; default: all")
    parser.add_argument("--peer", help="virtual environment (or interpreter) of the published one")
    parser.add_argument("--install-peer", action="store_true", help="make it, in .cache/peer")
    parser.add_argument("--mooncake", help="the same of Mooncake's transfer engine")
    parser.add_argument("--install-mooncake", action="store_true", help="in .cache/mooncake")
    parser.add_argument("--no-peer", action="store_true", help="ours and the limits only")
    parser.add_argument("--quick", action="store_true", help="only try the rows: tiny sizes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scratch", help="folder for files, on the file system to measure")
    parser.add_argument("--json", help="write all samples there")
    parser.add_argument("--keep", help="folder of files by machine in which the rows are kept")
    parser.add_argument("--urgent", action="store_true", help="go before other work (root)")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    wanted = [
        row
        for row in rows.ALL
        if not options.rows or any(re.search(part, row.name) for part in options.rows)
    ]
    if options.list or not wanted:
        print("\n".join(f"{row.name:<20} {row.title}" for row in rows.ALL))
        return 0 if options.list else 2
    if options.urgent:
        raise_priority()
    if options.quick:
        os.environ["NIXL_VERSUS_QUICK"] = "1"
        print("--quick: sizes are tiny whatever the rows say; the figures mean nothing")
    sides = sides_of(options, wanted)
    os.environ["NIXL_YARDSTICK"] = compile_yardstick()
    print(machine.facts(), flush=True)
    everything: dict[str, list[dict]] = {}
    kept: dict[str, dict[str, Any]] = {}
    lines: list[list[str]] = []
    failed = 0
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="nixl-versus-") as scratch:
        for row in wanted:
            load = os.getloadavg()[0]
            try:
                results = run_row(row, sides, options.rounds, scratch)
            except hosts.NoHosts as why:
                print(f"SKIP {row.name}: {why}", flush=True)
                continue
            except SideFailed as error:
                print(f"{row.title}: {error}", flush=True)
                failed += 1
                continue
            everything[row.name] = results
            kept[row.name] = {**record_of(row, results), "load": round(load, 1)}
            fresh = table_of(row, results)
            lines += fresh
            if not options.markdown:
                print(show(fresh, False), flush=True)
    if options.markdown:
        print(show(lines, True))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(everything))
    if options.keep and kept and not options.quick:
        print(f"kept in {keep(pathlib.Path(options.keep), kept)}")
    print("targets: {} reached, {} not, {} could not be told".format(*counts(kept)))
    print(machine.load())
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
