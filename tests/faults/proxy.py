"""A TCP proxy in this process that can be slow, half-open, or cut a connection anywhere.

It knows control from data connections by the HELLO that each begins with. "up" is from the one who
connected. All calls are thread-safe; a thread for each direction of each connection.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

CONTROL, DATA = "control", "data"
_KIND_AT = 8 + 8 + 4  # the connection's magic, the frame's header, two version numbers


class Flow:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.moved = 0
        self.done = False
        self.said = b""  # the first of it


class Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.kind = ""
        self.flows = {"up": Flow(client, server), "down": Flow(server, client)}
        self.ended = False

    def cut(self, reset: bool = True) -> None:
        self.ended = True
        for flow in self.flows.values():
            with contextlib.suppress(OSError):
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                flow.source.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        self.ended = True
        for flow in self.flows.values():
            flow.source.close()


class Proxy:
    def __init__(self, address: str, port: int) -> None:
        self.target = (address, port)
        self.changed = threading.Condition()
        self.connections: list[Connection] = []
        self.rate = 0.0  # bytes a second and direction; 0: as fast as it goes
        self.delay = 0.0  # seconds that every piece waits
        self.frozen: set[tuple[str, str]] = set()  # (kind, direction) that moves nothing
        self.limits: dict[tuple[str, str], int] = {}  # cut when so many bytes have moved
        self.freezes: dict[tuple[str, str], int] = {}  # stand still when so many have moved
        self.cuts = 0
        self.mute = False  # new connections are accepted and never served
        self.muted: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.muted:
            sock.close()
        self.cut()

    def freeze(self, *which: tuple[str, str]) -> None:
        with self.changed:
            self.frozen = set(which)
            self.changed.notify_all()

    def freeze_all(self) -> None:
        kinds = (CONTROL, DATA, "")
        self.freeze(*((kind, direction) for kind in kinds for direction in ("up", "down")))

    def thaw(self) -> None:
        self.freeze()

    def cut(self, kind: str | None = None, reset: bool = True) -> int:
        """Ends all connections (of one kind); how many."""
        with self.changed:
            chosen = [one for one in self.connections if not one.ended and kind in (None, one.kind)]
            for one in chosen:
                one.cut(reset)
            self.changed.notify_all()
        return len(chosen)

    def cut_after(self, kind: str, direction: str, size: int) -> None:
        """Cuts the first connection that has moved so many bytes more, exactly there."""
        with self.changed:
            self.limits[kind, direction] = size

    def freeze_after(self, kind: str, direction: str, size: int) -> None:
        """Stands still when one connection has moved so many bytes more (about)."""
        with self.changed:
            self.freezes[kind, direction] = size

    def moved(self, kind: str, direction: str) -> int:
        with self.changed:
            return sum(one.flows[direction].moved for one in self.connections if one.kind == kind)

    def said(self, kind: str) -> bytes:
        """What the first connection of that kind began with, as its client sent it."""
        with self.changed:
            return next(one.flows["up"].said for one in self.connections if one.kind == kind)

    def wait(self, what: Callable[[], object], timeout: float = 60) -> bool:
        with self.changed:
            return bool(self.changed.wait_for(what, timeout))

    def count(self, kind: str) -> int:
        """How many connections of that kind stand."""
        with self.changed:
            return sum(one.kind == kind and not one.ended for one in self.connections)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                if self.mute:
                    self.muted.append(client)
                    continue
                try:
                    server = socket.create_connection(self.target, 10)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(client, server)
                with self.changed:
                    self.connections.append(connection)
                for direction in ("up", "down"):
                    threading.Thread(
                        target=self._run, args=(connection, direction), daemon=True
                    ).start()

    def _run(self, connection: Connection, direction: str) -> None:
        flow = connection.flows[direction]
        head = b""
        with contextlib.suppress(OSError, ValueError):
            while data := flow.source.recv(64 << 10):
                if direction == "up" and not connection.kind:
                    head += data
                    if len(head) > _KIND_AT:
                        connection.kind = DATA if head[_KIND_AT] else CONTROL
                if not self._pass(connection, direction, flow, data):
                    return
            flow.sink.shutdown(socket.SHUT_WR)
        with self.changed:
            flow.done = True
            if all(one.done for one in connection.flows.values()):
                connection.close()
            self.changed.notify_all()

    def _pass(self, connection: Connection, direction: str, flow: Flow, data: bytes) -> bool:
        def free() -> bool:
            return connection.ended or (connection.kind, direction) not in self.frozen

        with self.changed:
            key = (connection.kind, direction)
            if key in self.freezes:
                self.freezes[key] -= len(data)
                if self.freezes[key] <= 0:
                    del self.freezes[key]
                    self.frozen.add(key)
                    self.changed.notify_all()
            self.changed.wait_for(free)
            if connection.ended:
                return False
            limit = self.limits.get(key)
            cut = limit is not None and limit <= len(data)
            if cut:
                data = data[:limit]
                del self.limits[key]
            elif limit is not None:
                self.limits[key] = limit - len(data)
        pause = self.delay + (len(data) / self.rate if self.rate else 0)
        if pause:
            time.sleep(pause)  # sleeps: a slow network is what it plays
        flow.sink.sendall(data)
        with self.changed:
            flow.moved += len(data)
            flow.said += data[: max(0, (1 << 20) - len(flow.said))]
            if cut:
                self.cuts += 1
                # What was passed on must arrive: no reset on this side.
                connection.cut(reset=False)
            self.changed.notify_all()
        return not cut
