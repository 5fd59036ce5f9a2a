"""One rank of disaggregation.py: a prefill or decode scheduler reduced to what it asks of its
connector. Not to be started by hand.

    disagg_rank.py ours|sglang prefill|decode HOST PORT PAGES PAGE_TOKENS

A round is a JSON object a line from standard input: {"rooms": [...], "each": pages a room,
"first": whether pages lie in order, "seed": n}; its figures are one line to standard output. Both
connectors are asked the same in the same order; a scheduler looks at its rooms every PAUSE seconds.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
import time
from typing import Any

import numpy as np

LAYERS, TOKEN_BYTES = 32, 8 * 128 * 2  # 8 heads of 128 numbers of 16 bits
AUX_SLOTS = 128
PAUSE = 0.001
PATIENCE = 120.0


class Cache:
    def __init__(self, pages: int, page_tokens: int) -> None:
        self.page_size = page_tokens
        width = page_tokens * TOKEN_BYTES // 8
        self.kv = [np.zeros((pages, width), np.uint64) for _ in range(2 * LAYERS)]
        self.aux = [np.zeros((AUX_SLOTS, 64), np.uint64)]
        for part in self.kv:
            part.fill(0)  # so that its pages are there

    def fields(self) -> dict[str, Any]:
        return {
            "engine_rank": 0,
            "kv_data_ptrs": [part.ctypes.data for part in self.kv],
            "kv_data_lens": [part.nbytes for part in self.kv],
            "kv_item_lens": [part[0].nbytes for part in self.kv],
            "aux_data_ptrs": [part.ctypes.data for part in self.aux],
            "aux_data_lens": [part.nbytes for part in self.aux],
            "aux_item_lens": [part[0].nbytes for part in self.aux],
            "kv_head_num": 8,
            "total_kv_head_num": 8,
            "page_size": self.page_size,
        }

    def mark(self, seed: int) -> None:
        for at, part in enumerate(self.kv):
            numbers = np.arange(len(part), dtype=np.uint64) + seed * 1000003 + at * 7919
            part[...] = numbers[:, None]
        self.aux[0][...] = np.arange(AUX_SLOTS, dtype=np.uint64)[:, None] + seed

    def check(self, seed: int, here: Any, there: Any) -> None:
        for at, part in enumerate(self.kv):
            wanted = here.astype(np.uint64) + np.uint64(seed * 1000003 + at * 7919)
            if not (part[there] == wanted[:, None]).all():
                raise SystemExit(f"buffer {at}: bytes are not in place")
            part[there] = 0


class Ours:
    def __init__(self, role: str, host: str, port: int, cache: Cache) -> None:
        from nixl.disaggregation import conn

        self.conn, self.address = conn, f"{host}:{port}"
        if role == "prefill":
            self.server = conn.NixlKVBootstrapServer(host, port)
        args = conn.KVArgs(**cache.fields())
        server = conn.ServerArgs(host=host, disaggregation_bootstrap_port=port)
        if role == "decode":
            server.host = own_host()
        self.manager = conn.NixlKVManager(args, conn.DisaggregationMode[role.upper()], server)

    def sender(self, room: int, pages: int, aux: int) -> Any:
        made = self.conn.NixlKVSender(self.manager, self.address, room, [0], 0)
        made.init(pages, aux)
        return made

    def receiver(self, room: int, pages: Any, aux: int) -> Any:
        made = self.conn.NixlKVReceiver(self.manager, self.address, room)
        made.init(pages, aux)
        return made


class SGLang:
    def __init__(self, role: str, host: str, port: int, cache: Cache) -> None:
        import sglang_conn

        own = host if role == "prefill" else own_host()
        sglang = sglang_conn.load(1, 0, own, port)
        self.conn, self.address = sglang.conn, f"{host}:{port}"
        if role == "prefill":
            self.server = self.conn.NixlKVBootstrapServer(host, port)
        args = sglang_conn.kv_args(sglang, cache.fields())
        self.manager = self.conn.NixlKVManager(args, sglang.Mode[role.upper()], None, False)

    def sender(self, room: int, pages: int, aux: int) -> Any:
        made = self.conn.NixlKVSender(self.manager, self.address, room)
        made.init(pages, aux)
        return made

    def receiver(self, room: int, pages: Any, aux: int) -> Any:
        end = time.monotonic() + PATIENCE
        while not self.manager.try_ensure_parallel_info(self.address):
            if time.monotonic() > end:
                raise SystemExit("no prefill rank has registered")
            time.sleep(0.1)
        made = self.conn.NixlKVReceiver(self.manager, self.address, room)
        made.init(0)
        made.send_metadata(pages, aux)
        return made


def own_host() -> str:
    return sys.argv[7] if len(sys.argv) > 7 else "127.0.0.1"


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Scheduler:
    """Counts the time inside the connector's calls."""

    def __init__(self) -> None:
        self.inside = 0.0

    def begin(self) -> None:
        self._start = time.perf_counter()

    def end(self) -> None:
        self.inside += time.perf_counter() - self._start

    def until(self, ends: dict[int, Any], state: int) -> float:
        """When the last one got there."""
        left, limit = dict(ends), time.monotonic() + PATIENCE
        while left:
            self.begin()  # all rooms in a row: a clock for each would cost more than a poll
            states = [end.poll() for end in left.values()]
            self.end()
            for (room, end), now in zip(list(left.items()), states, strict=True):
                if now == state or (now == 4 and state != 4):
                    del left[room]
                elif now == 0:
                    end.failure_exception()
                    raise SystemExit(f"room {room} failed")
            if not left:
                break
            if time.monotonic() > limit:
                raise SystemExit(f"rooms {list(left)} are not in state {state}")
            time.sleep(PAUSE)
        return time.monotonic()

    def send(self, sender: Any, pages: Any) -> None:
        self.begin()
        sender.send(pages)
        self.end()


def pages_of(wish: dict[str, Any], pages: int, salt: int) -> Any:
    random = np.random.default_rng(wish["seed"] * 2 + salt)
    return random.permutation(pages)[: len(wish["rooms"]) * wish["each"]].astype(np.int32)


def do_round(side: Any, role: str, cache: Cache, wish: dict[str, Any], pages: int) -> dict:
    rooms, each = wish["rooms"], wish["each"]
    here, there = pages_of(wish, pages, 0), pages_of(wish, pages, 1)
    share = {room: slice(at * each, (at + 1) * each) for at, room in enumerate(rooms)}
    scheduler = Scheduler()
    out: dict[str, Any] = {}
    if role == "decode":
        begun = cpu()
        ends = {r: side.receiver(r, there[share[r]], r % AUX_SLOTS) for r in rooms}
        out["ended"] = scheduler.until(ends, 4)
        out["cpu"] = cpu() - begun
        cache.check(wish["seed"], here, there)
    else:
        cache.mark(wish["seed"])
        begun = cpu()
        ends = {r: side.sender(r, each, r % AUX_SLOTS) for r in rooms}
        print(json.dumps({"ready": True}), flush=True)
        scheduler.until(ends, 2)
        scheduler = Scheduler()
        out["sent"] = time.monotonic()
        for room, end in ends.items():
            scheduler.send(end, here[share[room]])
        out["ended"] = scheduler.until(ends, 4)
        out["cpu"] = cpu() - begun
    out["inside"] = scheduler.inside
    for end in ends.values():
        end.clear()
    return out


def main() -> None:
    # PR_SET_PDEATHSIG: it ends with the benchmark, also while it is stopped or its threads go on.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    kind, role, host = sys.argv[1:4]
    port, pages, page_tokens = (int(word) for word in sys.argv[4:7])
    cache = Cache(pages, page_tokens)
    side = (Ours if kind == "ours" else SGLang)(role, host, port, cache)
    print(json.dumps({"up": True}), flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        print(json.dumps(do_round(side, role, cache, wish, pages)), flush=True)


if __name__ == "__main__":
    main()
