"""Disaggregated serving: nixl.disaggregation ("ours") beside SGLang's own nixl/conn.py over the
published package ("peer") and over this one ("client"), in one run, rounds alternating.

    python benchmarks/versus/disaggregation.py --peer-python PEER/bin/python [--hosts]

A prefill and a decode process a column; 32 layers of 8 heads of 128 numbers of 16 bits in host
memory, pages of 16 and 64 tokens, 1, 16 and 64 rooms at once of --tokens tokens each. A round: the
decode rank asks for all rooms, and once the prefill rank knows of all, its scheduler sends them and
both look at their rooms every millisecond. Figures are medians of the rounds, and of the rounds'
ratios:

    time     from the first send to the last Success at the decode rank
    CPU      seconds of both processes, per GB
    calls    time inside send and poll of both schedulers

Every page is checked at its place after each round. Who is not measured is stopped. --hosts puts
the ranks into two network namespaces (needs root). The interpreter that runs this needs torch,
numpy, msgspec, pyzmq, aiohttp, SGLang (--no-deps) and our package; the peer's the same with the
published one, and requests and psutil:

    python -m venv PEER && PEER/bin/pip install nixl==1.5.1 nixl-cu13==1.5.1 numpy torch \\
        msgspec pyzmq aiohttp requests psutil && PEER/bin/pip install --no-deps sglang==0.5.23
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from disagg_rank import LAYERS, TOKEN_BYTES
from hosts import FAR_ADDRESS, NEAR_ADDRESS, Cable, NoHosts, inside

HERE = pathlib.Path(__file__).parent
#: figure -> at most so much of the peer's: on one host, on two.
TARGETS = {"time": (0.4, 0.5), "cpu": (0.5, 0.5), "calls": (0.2, 0.2)}
NUMBERS = itertools.count()
SETTLE = 0.3  # seconds in which a side does what it would have done while it was stopped


class Rank:
    def __init__(self, python: str, words: list[Any], before: list[str], ours: bool) -> None:
        environment = os.environ | {"NIXL_LOG_LEVEL": "ERROR"}
        if not ours:
            environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [*before, python, str(HERE / "disagg_rank.py"), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
            start_new_session=True,
        )

    def ask(self, wish: dict[str, Any]) -> None:
        self.process.stdin.write(json.dumps(wish) + "\n")
        self.process.stdin.flush()

    def answer(self, key: str) -> dict[str, Any]:
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"a rank has died: {self.process.args}")
            if line.startswith("{") and key in (got := json.loads(line)):
                return got

    def signal(self, what: int) -> None:
        os.killpg(self.process.pid, what)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


class Column:
    """A pair of ranks."""

    def __init__(self, name: str, python: str, pages: int, tokens: int, cable: Any) -> None:
        kind = "ours" if name == "ours" else "sglang"
        near, far = (NEAR_ADDRESS, FAR_ADDRESS) if cable else ("127.0.0.1", "127.0.0.1")
        port = 20000 + os.getpid() % 20000 + next(NUMBERS) if cable else free_port()
        rest = [near, port, pages, tokens]
        self.ranks = []
        for role, own, place in (("prefill", near, "near"), ("decode", far, "far")):
            before = inside(getattr(cable, place)) if cable else []
            words = [kind, role, *rest, own]
            self.ranks.append(Rank(python, words, before, name != "peer"))
            self.ranks[-1].answer("up")

    def round(self, wish: dict[str, Any], size: int) -> dict[str, float]:
        prefill, decode = self.ranks
        for rank in self.ranks:
            rank.signal(signal.SIGCONT)
        time.sleep(SETTLE)
        prefill.ask(wish)
        prefill.answer("ready")
        decode.ask(wish)
        sent, got = prefill.answer("sent"), decode.answer("ended")
        for rank in self.ranks:
            rank.signal(signal.SIGSTOP)
        return {
            "time": got["ended"] - sent["sent"],
            "cpu": (sent["cpu"] + got["cpu"]) / (size / 1e9),
            "calls": sent["inside"] + got["inside"],
        }

    def end(self) -> None:
        for rank in self.ranks:
            rank.end()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def measure(words: Any, tokens: int, cable: Any) -> bool:
    pages = max(words.rooms) * words.tokens // tokens
    columns: dict[str, Column] = {}
    good = True
    try:
        for name in words.columns:
            python = words.peer_python if name == "peer" else sys.executable
            columns[name] = Column(name, python, pages, tokens, cable)
            for rank in columns[name].ranks:
                rank.signal(signal.SIGSTOP)
        for rooms in words.rooms:
            good &= case(words, columns, rooms, tokens, 1 if cable else 0)
    finally:
        for column in columns.values():
            column.end()
    return good


def case(words: Any, columns: dict[str, Column], rooms: int, tokens: int, place: int) -> bool:
    each = words.tokens // tokens
    size = rooms * each * tokens * TOKEN_BYTES * 2 * LAYERS
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in columns}
    for at in range(words.rounds + 1):  # the first one connects and is not counted
        order = list(columns) if at % 2 else list(columns)[::-1]
        for name in order:
            first = 1000 * (at + 1) + 100000 * rooms
            wish = {"rooms": list(range(first, first + rooms)), "each": each, "seed": at + 1}
            got = columns[name].round(wish, size)
            if at:
                figures[name].append(got)
    good = True
    for figure in TARGETS:
        texts = []
        for name, rows in figures.items():
            value = statistics.median(row[figure] for row in rows)
            texts.append(f"{name} {shown(figure, value)}")
        if "peer" in figures and "ours" in figures:
            ratios = [a[figure] / b[figure] for a, b in pairs(figures)]
            ratio, limit = statistics.median(ratios), TARGETS[figure][place]
            good &= ratio <= limit
            texts.append(
                f"ours/peer {ratio:.2f} (at most {limit}) "
                f"{'ok' if ratio <= limit else 'MISSED'}"
            )
        print(
            f"  {rooms:3d} rooms, pages of {tokens:2d}: {figure:5s} {'  '.join(texts)}", flush=True
        )
    return good


def pairs(figures: dict[str, list[dict[str, float]]]) -> Any:
    return zip(figures["ours"], figures["peer"], strict=True)


def shown(figure: str, value: float) -> str:
    return f"{value:.3f} s/GB" if figure == "cpu" else f"{value * 1e3:.2f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--peer-python", help="interpreter with the published package")
    parser.add_argument("--columns", nargs="+", default=["ours", "client", "peer"])
    parser.add_argument("--rooms", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--page-tokens", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--tokens", type=int, default=128, help="of a room")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hosts", action="store_true", help="two network namespaces")
    words = parser.parse_args()
    if not words.peer_python:
        words.columns = [name for name in words.columns if name != "peer"]
    place: Any = Cable() if words.hosts else contextlib.nullcontext()
    good, begun = True, time.monotonic()
    try:
        with place as cable:
            for tokens in words.page_tokens:
                good &= measure(words, tokens, cable)
    except NoHosts as error:
        print(f"SKIP two hosts: {error}")
        return 0
    print(f"{time.monotonic() - begun:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
