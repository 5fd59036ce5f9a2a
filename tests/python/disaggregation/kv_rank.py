"""A rank in a process of its own, which tests kill.

    kv_rank.py prefill|decode BOOTSTRAP_PORT SEED

One JSON object a line from standard input: {"room": ..., "pages": [...], "hold": bool}. A prefill
rank sends these pages of its cache ("hold": all but the last); a decode rank wants them there. One
line a step goes to standard output: "ready", "ROOM sent", "ROOM asked", "ROOM done", "ROOM failed
REASON".
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time

from kv_support import Cache, patient
from nixl.disaggregation import conn


def say(*words: object) -> None:
    print(*words, flush=True)


def main() -> None:
    mode, port, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    cache = Cache(pages=64)
    prefill = mode == "prefill"
    if prefill:
        cache.fill(seed)
    server = conn.ServerArgs(host="127.0.0.1", disaggregation_bootstrap_port=port)
    kind = conn.DisaggregationMode[mode.upper()]
    settings = patient(heartbeat=0.2, peer_timeout=20.0)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(
        target=lambda: [lines.put(line) for line in sys.stdin] and lines.put(""), daemon=True
    )
    with conn.NixlKVManager(cache.args(), kind, server, settings=settings) as manager:
        say("ready")
        reader.start()
        ends: dict[int, conn.NixlKVSender | conn.NixlKVReceiver] = {}
        while True:
            while not lines.empty():
                line = lines.get()
                if not line:
                    return
                begin(json.loads(line), manager, f"127.0.0.1:{port}", ends)
            for room, end in list(ends.items()):
                state = end.poll()
                if state == conn.KVPoll.Success:
                    say(room, "done")
                elif state == conn.KVPoll.Failed:
                    try:
                        end.failure_exception()
                    except conn.KVTransferError as error:
                        say(room, "failed", error)
                if state in (conn.KVPoll.Success, conn.KVPoll.Failed):
                    ends.pop(room).clear()
            time.sleep(0.001)  # sleeps: a scheduler's other work


def begin(wish: dict, manager, address: str, ends: dict) -> None:
    room, pages = wish["room"], wish["pages"]
    if manager.prefill:
        end = conn.NixlKVSender(manager, address, room)
        end.init(len(pages), 0)
        end.send(pages[:-1] if wish.get("hold") else pages)
        say(room, "sent")
    else:
        end = conn.NixlKVReceiver(manager, address, room)
        end.init(pages, 0)
        say(room, "asked")
    ends[room] = end


if __name__ == "__main__":
    main()
