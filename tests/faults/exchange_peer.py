"""One side of an exchange connection, written from docs/metadata.md alone: it knows the rules, and
keeps them or not. Standard library only."""

from __future__ import annotations

import os
import socket
import struct

import wire
from wire import ProtocolError, Reader, varint

from peer import expect, receive

EXCHANGE = 2
FETCH, LOAD, INVALIDATE, ANSWER, PART = range(48, 53)
SECRET = b"metadata exchange"


class Caller:
    """Connected to a listener, after the handshake unless told otherwise."""

    def __init__(
        self,
        port: int,
        name: bytes = b"caller",
        incarnation: bytes = b"",
        auth_key: bytes = b"",
        greet: bool = True,
    ) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.me = wire.Self(name, incarnation or os.urandom(16), auth_key, os.urandom)
        self.said = b""
        if greet:
            self.greet()

    def say(self, data: bytes) -> None:
        self.said += data
        self.sock.sendall(data)

    def greet(self) -> None:
        secret = wire.mac(self.me.auth_key, SECRET)
        hello = wire.hello(self.me, EXCHANGE, bytes(16), 0)
        self.say(wire.MAGIC + wire.frame(wire.HELLO, hello))
        body = expect(self.sock, wire.CHALLENGE)
        reader = Reader(body)
        reader.fixed("HB")
        self.there = reader.text(), reader.raw(16)
        transcript = wire.check_challenge(secret, hello, body, self.there)
        self.say(wire.frame(wire.AUTH, wire.auth(secret, transcript, wire.Resume(), None)))
        expect(self.sock, wire.READY)

    def fetch(self, request: int = 1, follow: bool = False) -> bytes:
        body = varint(request) + bytes([follow]) + bytes(16) + struct.pack("<Q", 0)
        self.say(wire.frame(FETCH, body))
        code, _, blob = self.answer(request)
        assert code == 0
        return blob

    def load(self, blob: bytes, request: int = 2) -> tuple[int, str]:
        self.say(wire.frame(LOAD, varint(request) + blob))
        return self.answer(request)[:2]

    def invalidate(self, request: int = 3) -> tuple[int, str]:
        self.say(wire.frame(INVALIDATE, varint(request)))
        return self.answer(request)[:2]

    def answer(self, request: int) -> tuple[int, str, bytes]:
        length, kind, flags, reserved = struct.unpack("<IBBH", receive(self.sock, 8))
        body = Reader(receive(self.sock, length))
        if (kind, flags, reserved) != (ANSWER, 0, 0) or body.varint() != request:
            raise ProtocolError(f"type {kind} instead of the answer to {request}")
        return body.raw(1)[0], body.text().decode(), body.rest

    def ended(self) -> bool:
        """The other side hangs up, whatever it says before."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self.sock.close()
