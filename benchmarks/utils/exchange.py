"""How the processes of a benchmark talk: JSON lines over TCP, metadata in base64.

Only what a transfer needs ahead of it goes this way; the transfers themselves are NIXL's.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from .errors import Refused

_LONGEST = 64 << 20  # bytes of one message
_HELLO_SECONDS = 10.0
_CONNECT_SECONDS = 3.0
_LOOK_SECONDS = 0.5


class Channel:
    """One connection; each message is one line of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A host that vanishes is noticed within half a minute, however long a step takes.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.connection = connection
        self.lines = connection.makefile("rb")

    def send(self, **message: Any) -> None:
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise RuntimeError(f"the other side of the benchmark is gone: {error}") from error

    def receive(self) -> dict[str, Any]:
        try:
            line = self.lines.readline(_LONGEST)
        except OSError as error:
            raise RuntimeError(f"the other side of the benchmark is gone: {error}") from error
        if not line.endswith(b"\n"):
            raise RuntimeError("the other side of the benchmark closed its connection")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise RuntimeError("what came from the other side of the benchmark is no message")
        if "error" in message:
            raise RuntimeError(f"the other side of the benchmark failed: {message['error']}")
        return message

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


def _cause(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def listen(ip: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        return socket.create_server((ip, port), family=family)
    except OSError as error:
        raise Refused(f"cannot listen at {ip} port {port}: {_cause(error)}") from error


def accept(
    server: socket.socket, program: str, token: str, timeout: float, check: Callable[[], None]
) -> Channel:
    """The next connection that begins with our greeting; others are closed."""
    end = time.monotonic() + timeout
    while True:
        check()
        left = end - time.monotonic()
        if left <= 0:
            raise Refused(f"nobody came within {timeout:g} s")
        server.settimeout(min(left, _LOOK_SECONDS))
        try:
            connection, address = server.accept()
        except TimeoutError:
            continue
        connection.settimeout(_HELLO_SECONDS)
        channel = Channel(connection)
        with contextlib.suppress(RuntimeError):  # whoever only looks whether somebody listens
            hello = channel.receive()
            if hello.get("program") == program and hello.get("token") == token:
                channel.send(welcome=program)
                connection.settimeout(None)
                return channel
            other = hello.get("program")
            print(f"{program}: {address[0]} came as {other!r}, and was refused", file=sys.stderr)
            channel.send(error=f"here is {program}, or another run of it, not {other!r}")
        channel.close()


def dial(ip: str, port: int, timeout: float, program: str, token: str = "") -> Channel:
    """Waits for the other side to listen and to welcome us: the two are started by hand, in any
    order. A timeout of 0 tries once."""
    end = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection(
                (ip, port), timeout=max(_CONNECT_SECONDS, timeout)
            )
            break
        except OSError as error:
            if time.monotonic() >= end:
                raise Refused(
                    f"no target at {ip} port {port} within {timeout:g} s: {error}"
                ) from error
            time.sleep(0.05)
    connection.settimeout(max(_HELLO_SECONDS, timeout))
    channel = Channel(connection)
    try:
        channel.send(program=program, token=token)
        channel.receive()
    except RuntimeError as error:
        channel.close()
        raise Refused(f"at {ip} port {port}: {error}") from error
    connection.settimeout(None)
    return channel


def pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpack(text: str) -> bytes:
    return base64.b64decode(text)
