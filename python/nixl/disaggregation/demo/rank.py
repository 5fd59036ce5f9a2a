"""One server of the demo, in a process of its own: prefill, decode, or both in one ("whole").

    python -m nixl.disaggregation.demo.rank prefill|decode|whole PORT

Requests are JSON objects, one a line from standard input; answers go to standard output likewise.
PORT: of the bootstrap server, which a prefill server runs itself (0: a free one; it tells which).
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any

import numpy as np

from ..conn import (
    DisaggregationMode,
    KVArgs,
    KVPoll,
    KVTransferError,
    NixlKVBootstrapServer,
    NixlKVManager,
    NixlKVReceiver,
    NixlKVSender,
    ServerArgs,
)
from ..settings import Settings
from .model import PagedCache, Shape, Transformer, decode, prefill

CHUNK = 32  # tokens of a prefill step; whole pages
SLOTS = 64


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


class Server:
    """A model, its cache, and slots for what goes along with a request: its first token."""

    def __init__(self, mode: str, port: int) -> None:
        self.shape = Shape()
        self.model = Transformer(self.shape)
        self.cache = PagedCache(self.shape)
        self.first = np.zeros((SLOTS, 8), np.int64)
        self.slots = list(range(SLOTS))
        if mode == "whole":
            return
        if mode == "prefill":
            self.bootstrap = NixlKVBootstrapServer("127.0.0.1", port)
            port = self.bootstrap.port
        self.port = port
        server = ServerArgs(host="127.0.0.1", disaggregation_bootstrap_port=port)
        kind = DisaggregationMode[mode.upper()]
        patience = Settings(heartbeat=0.2, peer_timeout=5.0, waiting_timeout=30.0)
        self.manager = NixlKVManager(self.args(), kind, server, settings=patience)

    def args(self) -> Any:
        buffers = [*self.cache.k, *self.cache.v]
        args = KVArgs()
        args.engine_rank, args.gpu_id, args.pp_rank, args.system_dp_rank = 0, 0, 0, 0
        args.kv_data_ptrs = [part.ctypes.data for part in buffers]
        args.kv_data_lens = [part.nbytes for part in buffers]
        args.kv_item_lens = [part[0].nbytes for part in buffers]
        args.aux_data_ptrs = [self.first.ctypes.data]
        args.aux_data_lens = [self.first.nbytes]
        args.aux_item_lens = [self.first[0].nbytes]
        args.kv_head_num, args.total_kv_head_num = self.shape.kv_heads, self.shape.kv_heads
        args.page_size, args.prefill_start_layer = self.shape.page_size, 0
        args.kv_cache_dtype_str, args.kv_layout = "float32", None
        args.kv_data_mem_kinds = ["DRAM"] * len(buffers)
        return args

    def whole(self, wish: dict[str, Any]) -> None:
        prompt, count = wish["prompt"], wish["count"]
        pages = self.cache.take(len(prompt) + count)
        first = prefill(self.model, prompt, self.cache, pages, CHUNK)
        tokens = decode(self.model, first, len(prompt), count, self.cache, pages)
        self.cache.give(pages)
        say(room=wish["room"], tokens=tokens)

    def prefill(self, wish: dict[str, Any]) -> Running:
        """Each layer's pages go out as soon as they are computed."""
        prompt, room = wish["prompt"], wish["room"]
        running = Running(self, wish, self.cache.take(len(prompt)))
        sender = NixlKVSender(self.manager, f"127.0.0.1:{self.port}", room)
        running.end = sender
        sender.init(len(running.pages), running.slot)
        size, last_layer = self.shape.page_size, self.shape.layers - 1

        def layer_done(start: int, end: int, layer: int) -> None:
            if layer == last_layer and end == len(prompt):
                return  # goes along with the first token, which is not known yet
            pages = running.pages[start // size : -(-end // size)]
            sender.send(np.array(pages, np.int32), range(layer, layer + 1))

        first = prefill(self.model, prompt, self.cache, running.pages, CHUNK, layer_done)
        self.first[running.slot] = first
        start = (len(prompt) - 1) // CHUNK * CHUNK // size
        last = range(last_layer, last_layer + 1)
        sender.send(np.array(running.pages[start:], np.int32), last)
        return running

    def decode(self, wish: dict[str, Any]) -> Running:
        tokens = len(wish["prompt"])
        running = Running(self, wish, self.cache.take(tokens + wish["count"]))
        receiver = NixlKVReceiver(self.manager, wish["prefill"], wish["room"])
        running.end = receiver
        filled = running.pages[: -(-tokens // self.shape.page_size)]
        receiver.init(np.array(filled, np.int32), running.slot)
        return running


class Running:
    """A request whose pages are on their way."""

    def __init__(self, server: Server, wish: dict[str, Any], pages: list[int]) -> None:
        self.server, self.wish, self.pages = server, wish, pages
        self.slot = server.slots.pop()
        self.end: Any = None
        self.failed = False

    def step(self) -> bool:
        """Whether it is over."""
        state = self.end.poll()
        if state == KVPoll.Failed and not self.failed:
            self.failed = True
            try:
                self.end.failure_exception()
            except KVTransferError as error:
                say(room=self.wish["room"], failed=str(error))
        safe = getattr(self.end, "is_abort_release_safe", lambda: True)
        if state not in (KVPoll.Success, KVPoll.Failed) or not safe():
            return False
        if state == KVPoll.Success and isinstance(self.end, NixlKVReceiver):
            server, prompt = self.server, self.wish["prompt"]
            first = int(server.first[self.slot][0])
            tokens = decode(
                server.model, first, len(prompt), self.wish["count"], server.cache, self.pages
            )
            say(room=self.wish["room"], tokens=tokens)
        self.end.clear()
        self.server.cache.give(self.pages)
        self.server.slots.append(self.slot)
        return True


def main() -> None:
    mode, server = sys.argv[1], Server(sys.argv[1], int(sys.argv[2]))
    say(up=getattr(server, "port", 0))
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    running: list[Running] = []
    while True:
        while not lines.empty() or not running:
            line = lines.get()
            if not line:
                return
            made = getattr(server, mode)(json.loads(line))
            if made is not None:
                running.append(made)
        running = [one for one in running if not one.step()]
        time.sleep(0.0005)


if __name__ == "__main__":
    main()
