"""A proxy before an HTTP server that spoils answers as it is told to. It passes requests on as
they are, one connection to the server for each request."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable

LIMIT = 1 << 16


@dataclasses.dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    number: int  # from 1, of all that came


@dataclasses.dataclass
class Fault:
    """What happens to one request. The first that is set."""

    answer: bytes | None = None  # instead of the server's; the request's body is read
    refuse: bool = False  # close without a word
    reset_after: int | None = None  # bytes of the answer's body, then a reset
    cut_after: int | None = None  # bytes of the answer's body, then an orderly end
    head: Callable[[bytes], bytes] | None = None  # changes the answer's head
    body: Callable[[bytes], bytes] | None = None  # changes the answer's body
    lose_answer: bool = False  # the server does it, and nobody hears of it
    hold: threading.Event | None = None  # the answer's body waits for it, after hold_after bytes
    hold_after: int = 0


Script = Callable[[Request], "Fault | None"]


def error_answer(status: str, code: str = "", headers: str = "", message: str = "told so") -> bytes:
    body = (
        f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>r-1</RequestId></Error>"
    )
    body = body if code else ""
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/xml\r\n{headers}\r\n{body}"
    ).encode()


class FaultProxy:
    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.script: Script = lambda request: None
        self.seen: list[Request] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        with self._lock:
            sockets = list(self._open)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def count(self, method: str) -> int:
        with self._lock:
            return sum(request.method == method for request in self.seen)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            while self._exchange(client):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def _exchange(self, client: socket.socket) -> bool:
        head, rest = _read_head(client)
        if not head:
            return False
        request = self._parse(head)
        left = int(request.headers.get("content-length", "0")) - len(rest)
        fault = self.script(request) or Fault()
        if fault.refuse:
            return False
        if fault.answer is not None:
            _skip(client, left)
            client.sendall(fault.answer)
            return b"connection: close" not in fault.answer.lower()
        with socket.create_connection(self.server) as server:
            server.sendall(head + rest)
            while left > 0:
                data = client.recv(min(left, LIMIT))
                if not data:
                    return False
                server.sendall(data)
                left -= len(data)
            return self._answer(client, server, request, fault)

    def _parse(self, head: bytes) -> Request:
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        with self._lock:
            request = Request(method, target, headers, len(self.seen) + 1)
            self.seen.append(request)
        return request

    def _answer(
        self, client: socket.socket, server: socket.socket, request: Request, fault: Fault
    ) -> bool:
        head, rest = _read_head(server)
        length = 0
        for line in head.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "content-length" and request.method != "HEAD":
                length = int(value)
        body = rest
        while len(body) < length:
            data = server.recv(LIMIT)
            if not data:
                break
            body += data
        if fault.lose_answer:
            return False
        if fault.head is not None:
            head = fault.head(head)
        if fault.body is not None:
            body = fault.body(body)
        if fault.hold is not None:
            client.sendall(head + body[: fault.hold_after])
            fault.hold.wait(60)
            client.sendall(body[fault.hold_after :])
            return True
        if fault.reset_after is not None:
            client.sendall(head + body[: fault.reset_after])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return False
        if fault.cut_after is not None:
            client.sendall(head + body[: fault.cut_after])
            return False
        client.sendall(head + body)
        return True


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(LIMIT)
        if not part:
            return b"", b""
        data += part
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def _skip(sock: socket.socket, left: int) -> None:
    while left > 0:
        data = sock.recv(min(left, LIMIT))
        if not data:
            return
        left -= len(data)


def first(count: int, fault: Fault, method: str | None = None, where: str = "") -> Script:
    """The first `count` requests of a method, and with a text in their target, meet `fault`."""
    left = [count]
    lock = threading.Lock()

    def script(request: Request) -> Fault | None:
        if (method is not None and request.method != method) or where not in request.target:
            return None
        with lock:
            left[0] -= 1
            return fault if left[0] >= 0 else None

    return script
