"""How two processes of a benchmark find each other: JSON lines over TCP, metadata in base64.

Only what a transfer needs ahead of it goes this way; the transfers themselves are NIXL's.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from typing import Any


class Channel:
    """One connection; each message is one line of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.lines = connection.makefile("rb")

    def send(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        line = self.lines.readline()
        if not line:
            raise RuntimeError("the other side of the benchmark closed its connection")
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise RuntimeError(f"the other side of the benchmark failed: {message['error']}")
        return message

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


def listen(ip: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return socket.create_server((ip, port), family=family)


def dial(ip: str, port: int, timeout: float) -> Channel:
    """Waits for the other side to listen: the two are started by hand, in any order."""
    end = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((ip, port), timeout=timeout)
            connection.settimeout(None)
            return Channel(connection)
        except OSError as error:
            if time.monotonic() >= end:
                raise SystemExit(
                    f"no target at {ip} port {port} within {timeout:g} s: {error}"
                ) from error
            time.sleep(0.05)


def pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpack(text: str) -> bytes:
    return base64.b64decode(text)
