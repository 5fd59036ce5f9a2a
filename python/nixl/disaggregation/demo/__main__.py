"""Prefill and decode servers with a small transformer on the CPU, each a process of its own.

    python -m nixl.disaggregation.demo [--prefill 2] [--decode 2] [--requests 12] [--kill]

Prompts go to a prefill server, which sends the KV cache of each layer as soon as it is computed; a
decode server goes on from the cache that arrived. What it writes is compared with what one process
writes by itself, token by token. --kill kills servers in the middle: their requests are done again
by others, and they are started anew. Exits with 0 when all tokens are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from typing import Any

PATIENCE = 120.0
RANK = "nixl.disaggregation.demo.rank"


class Process:
    """A server; its answers arrive in `answers`, and None when it has ended."""

    def __init__(self, mode: str, number: int, answers: queue.SimpleQueue[Any], port: int = 0):
        self.mode, self.number, self.answers = mode, number, answers
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", RANK, mode, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | one_thread,  # the same sums in the same order everywhere
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self} did not start")
        self.port = int(json.loads(line)["up"])
        threading.Thread(target=self._read, daemon=True).start()

    def __str__(self) -> str:
        return f"{self.mode} {self.number}"

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith("{"):
                self.answers.put((self, json.loads(line)))
        self.answers.put((self, None))

    def ask(self, wish: dict[str, Any]) -> None:
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(wish) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it is dead, of which its reader tells

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Router:
    """Hands requests to pairs of servers, and again where one fails."""

    def __init__(self, prefills: int, decodes: int) -> None:
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.servers = {
            "prefill": [Process("prefill", i, self.answers) for i in range(prefills)],
            "decode": [Process("decode", i, self.answers) for i in range(decodes)],
        }
        self.room = 0
        self.turn = 0
        self.open: dict[int, tuple[dict[str, Any], Process, Process]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.again = 0

    def begin(self, request: dict[str, Any]) -> None:
        self.room += 1
        self.turn += 1
        prefills, decodes = self.servers["prefill"], self.servers["decode"]
        prefill = prefills[self.turn % len(prefills)]
        decode = decodes[self.turn // len(prefills) % len(decodes)]
        wish = request | {"room": self.room, "prefill": f"127.0.0.1:{prefill.port}"}
        self.open[self.room] = (request, prefill, decode)
        decode.ask(wish)
        prefill.ask(wish)

    def next_answer(self) -> None:
        try:
            server, answer = self.answers.get(timeout=PATIENCE)
        except queue.Empty:
            raise SystemExit(f"no answer within {PATIENCE:g} s to {sorted(self.open)}") from None
        if answer is None:
            self._restart(server)
        elif answer["room"] not in self.open:
            return  # of a try that was given up
        elif "failed" in answer:
            print(f"  {server}: {answer['failed']}")
            self._repeat(answer["room"])
        else:
            request, _, decode = self.open.pop(answer["room"])
            self.tokens[request["id"]] = answer["tokens"]

    def _repeat(self, room: int) -> None:
        self.again += 1
        self.begin(self.open.pop(room)[0])

    def _restart(self, server: Process) -> None:
        print(f"  {server} has died; it is started anew")
        server.process.wait()
        group = self.servers[server.mode]
        group[group.index(server)] = Process(server.mode, server.number, self.answers)
        for room, (_, prefill, decode) in list(self.open.items()):
            if server in (prefill, decode):
                self._repeat(room)

    def close(self) -> None:
        for group in self.servers.values():
            for server in group:
                server.end()


def one_process(requests: list[dict[str, Any]]) -> dict[int, list[int]]:
    """What one process writes by itself."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    server = Process("whole", 0, answers)
    try:
        out = {}
        for request in requests:
            server.ask(request | {"room": request["id"]})
            _, answer = answers.get(timeout=PATIENCE)
            out[answer["room"]] = answer["tokens"]
        return out
    finally:
        server.end()


def make_requests(count: int) -> list[dict[str, Any]]:
    chance = random.Random(3)
    return [
        {
            "id": number,
            "prompt": [chance.randrange(512) for _ in range(chance.randint(5, 150))],
            "count": chance.randint(4, 24),
        }
        for number in range(count)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--prefill", type=int, default=2, help="prefill servers")
    parser.add_argument("--decode", type=int, default=2, help="decode servers")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--kill", action="store_true", help="kill one of each in the middle")
    words = parser.parse_args()
    if min(words.prefill, words.decode, words.requests) < 1:
        parser.error("--prefill, --decode and --requests must be at least 1")
    requests = make_requests(words.requests)
    truth = one_process(requests)
    router = Router(words.prefill, words.decode)
    begun = time.monotonic()
    try:
        for request in requests:
            router.begin(request)
        to_kill = [router.servers["prefill"][0], router.servers["decode"][-1]] if words.kill else []
        while router.open:
            router.next_answer()
            if 3 * len(router.tokens) >= len(requests) and to_kill:
                to_kill.pop().process.kill()
    finally:
        router.close()
    took = time.monotonic() - begun
    for request in requests:
        number, got = request["id"], router.tokens[request["id"]]
        same = "same" if got == truth[number] else f"DIFFERENT from {truth[number]}"
        print(f"request {number:2d}: {len(request['prompt']):3d} tokens -> {got[:8]} ... {same}")
    same_ones = sum(router.tokens[r["id"]] == truth[r["id"]] for r in requests)
    print(
        f"{same_ones} of {len(requests)} requests: the same tokens as in one process "
        f"({words.prefill} prefill x {words.decode} decode servers, {router.again} tries again, "
        f"{took:.1f} s)"
    )
    return 0 if same_ones == len(requests) else 1


if __name__ == "__main__":
    sys.exit(main())
