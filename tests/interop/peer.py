"""An agent in Python, written from docs/protocol.md alone: sessions, notifications, stream payload.

One Peer is both sides: it dials an agent by its blob and serves whoever dials it. A thread a
connection; public methods may be called from any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading

import wire
from wire import Blob, ProtocolError, Reader, Region, Resume

COST = 64  # what a notification counts for besides its size
WINDOW = 64 << 20


class Refused(ProtocolError):
    """REJECT or BYE; `code` says why."""

    def __init__(self, body: bytes) -> None:
        reader = Reader(body)
        self.code = reader.raw(1)[0]
        super().__init__(f"code {self.code}: {reader.text().decode()}")
        reader.end()


class Failed(Exception):
    """REPLY with an error; `code` is the positive number in it."""

    def __init__(self, code: int, errno: int, offset: int, why: bytes) -> None:
        super().__init__(f"-{code}: {why.decode()}")
        self.code, self.errno, self.offset = code, errno, offset


def receive(sock: socket.socket, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
        part = sock.recv(size - len(out))
        if not part:
            raise ConnectionError("closed by the other side")
        out += part
    return bytes(out)


def receive_frame(sock: socket.socket) -> tuple[int, bytes]:
    length, kind = wire.frame_header(receive(sock, 8))
    return kind, receive(sock, length)


def expect(sock: socket.socket, wanted: int) -> bytes:
    kind, body = receive_frame(sock)
    if kind == wire.REJECT:
        raise Refused(body)
    if kind != wanted:
        raise ProtocolError(f"frame of type {kind} instead of {wanted}")
    return body


def boot_id() -> bytes:
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return hashlib.sha256(file.read()).digest()[:16]


class Session:
    """What is kept of one incarnation of another agent over all its control connections."""

    def __init__(self, who: tuple[bytes, bytes]) -> None:
        self.who = who
        self.key: bytes | None = None
        self.sock: socket.socket | None = None
        self.changed = threading.Condition()
        self.ended: Exception | None = None  # BYE, or a violation of the protocol
        self.restart(0)

    def restart(self, epoch: int) -> None:
        self.epoch, self.sent, self.acknowledged = epoch, 0, 0
        self.begun = self.credited = 0  # what was sent, and what the peer's application took
        self.received = self.consumed = 0
        self.unacknowledged: dict[int, bytes] = {}
        self.partial = b""
        self.inbox: list[bytes] = []

    def attach(self, sock: socket.socket, key: bytes, resumed: bool, there: Resume) -> None:
        with self.changed:
            if resumed:
                self.acknowledge(there.received, there.consumed)
            else:
                self.restart(there.epoch)
            self.partial = b""
            self.sock, self.key = sock, key
            if sock.family == socket.AF_UNIX:
                sock.sendall(wire.frame(wire.HOST_OFFER, bytes(8)))
            self.acknowledge_theirs()
            for number, message in self.unacknowledged.items():
                sock.sendall(wire.pieces(number, message))
            self.changed.notify_all()
        threading.Thread(target=self.run, args=(sock,), daemon=True).start()

    def resume(self) -> Resume:
        return Resume(self.epoch, self.received, self.consumed)

    def acknowledge_theirs(self) -> None:
        body = wire.varint(self.received) + wire.varint(self.consumed)
        self.sock.sendall(wire.frame(wire.ACK, body))

    def acknowledge(self, sequence: int, consumed: int) -> None:
        if sequence > self.sent or consumed > self.begun:
            raise ProtocolError("ACK of what was never sent")
        self.acknowledged = max(self.acknowledged, sequence)
        self.credited = max(self.credited, consumed)
        for number in [n for n in self.unacknowledged if n <= sequence]:
            del self.unacknowledged[number]

    def run(self, sock: socket.socket) -> None:
        try:
            while True:
                kind, body = receive_frame(sock)
                with self.changed:
                    self.on_frame(sock, kind, body)
                    self.changed.notify_all()
        except (ProtocolError, OSError) as error:
            with self.changed, contextlib.suppress(OSError):
                self.ended = error if isinstance(error, ProtocolError) else self.ended
                self.sock = None if self.sock is sock else self.sock
                self.changed.notify_all()
                sock.close()

    def on_frame(self, sock: socket.socket, kind: int, body: bytes) -> None:
        if kind == wire.PING:
            sock.sendall(wire.frame(wire.PONG, body[:8]))
        elif kind == wire.NOTIFICATION:
            self.on_piece(Reader(body))
        elif kind == wire.ACK:
            reader = Reader(body)
            self.acknowledge(reader.varint(), reader.varint())
            reader.end()
        elif kind == wire.BYE:
            raise Refused(body)
        elif kind not in (wire.PONG, wire.HOST_OFFER, 24):
            raise ProtocolError(f"frame of type {kind} on a control connection")

    def on_piece(self, reader: Reader) -> None:
        sequence, size, offset = reader.varint(), reader.varint(), reader.varint()
        if sequence <= self.received:
            return  # repeated
        if sequence != self.received + 1 or offset != len(self.partial) or size > 1 << 20:
            raise ProtocolError("a piece is missing")
        self.partial += reader.rest
        if len(self.partial) >= size:
            self.received = sequence
            self.inbox.append(self.partial)
            self.partial = b""
            self.acknowledge_theirs()

    def take(self, timeout: float = 10) -> bytes:
        """The next notification, as an application takes it."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.inbox, timeout):
                raise TimeoutError("no notification")
            message = self.inbox.pop(0)
            self.consumed += len(message) + COST
            self.acknowledge_theirs()
            return message

    def notify(self, message: bytes, timeout: float = 10) -> int:
        """Sends one as soon as the credit allows; its sequence number."""
        cost = len(message) + COST
        with self.changed:
            if not self.changed.wait_for(
                lambda: self.begun + cost - self.credited <= WINDOW, timeout
            ):
                raise TimeoutError("the other side gives no credit")
            self.sent += 1
            self.begun += cost
            self.unacknowledged[self.sent] = message
            if self.sock is not None:
                self.sock.sendall(wire.pieces(self.sent, message))
            return self.sent

    def flushed(self, sequence: int, timeout: float = 10) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.acknowledged >= sequence, timeout)

    def bye(self) -> None:
        self.sock.sendall(wire.frame(wire.BYE, b"\x09" + wire.text(b"done")))


class Channel:
    """A data connection on which this side asks."""

    def __init__(self, sock: socket.socket, key: bytes) -> None:
        self.sock, self.key, self.number = sock, key, 0

    def prove(self, grant: bytes) -> None:
        proof = wire.mac(grant, b"nixl grant", self.key)
        body = struct.pack("<Q", wire.grant_id(grant)) + proof
        self.sock.sendall(wire.frame(wire.GRANT, body))

    def ask(
        self, kind: int, grant: bytes, regions, runs, flags: int = 0, after: bytes = b""
    ) -> None:
        self.number += 1
        body = wire.request(self.number, wire.grant_id(grant), flags, regions, runs)
        self.sock.sendall(wire.frame(kind, body) + after)

    def answer(self) -> None:
        reader = Reader(expect(self.sock, wire.REPLY))
        number, code = reader.fixed("QB")
        errno, offset, why = reader.varint(), reader.varint(), reader.text()
        reader.end()
        if number != self.number:
            raise ProtocolError("a reply to another request")
        if code:
            raise Failed(code, errno, offset, why)

    def write(self, grant: bytes, regions, runs, data: bytes, flags: int = 0) -> None:
        self.ask(wire.WRITE, grant, regions, runs, flags, wire.payload(data, flags))
        self.answer()

    def read(self, grant: bytes, regions, runs, flags: int = 0) -> bytes:
        self.ask(wire.READ, grant, regions, runs, flags)
        self.answer()
        out = b""
        for _ in range(0, sum(size * count for _, _, size, _, count in runs)):
            length, crc = struct.unpack("<II", receive(self.sock, 8))
            if length == wire.ABORT:
                self.answer()
                raise ProtocolError("an abort without a reason")
            data = receive(self.sock, length)
            if flags & wire.CHECKSUMS and crc != wire.crc32c(data):
                raise ProtocolError("checksum")
            out += data
            if len(out) == sum(size * count for _, _, size, _, count in runs):
                break
        return out


class Peer:
    """The agent: identity, memory at `base` of which `regions` are open to others by one grant, and
    more grants that each open only some regions."""

    def __init__(self, name: bytes, auth_key: bytes = b"", abstract: str = "") -> None:
        self.me = wire.Self(name, os.urandom(16), auth_key, os.urandom)
        self.grant = os.urandom(16)
        self.base, self.memory = 0x7F00_0000_0000, bytearray(1 << 20)
        self.regions: list[Region] = []
        self.partial: dict[bytes, list[Region]] = {}  # by grant
        self.sessions: dict[tuple[bytes, bytes], Session] = {}
        self.requests: list[tuple] = []  # what others asked
        self.spoil = False  # send wrong checksums
        self.arrived = threading.Condition()
        self.abstract = abstract
        self.accepted: list[socket.socket] = []
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        if abstract:
            self.listeners.append(socket.socket(socket.AF_UNIX))
            self.listeners[-1].bind("\0" + abstract)
            self.listeners[-1].listen()
        for one in self.listeners:
            threading.Thread(target=self.accept, args=(one,), daemon=True).start()

    def close(self) -> None:
        for one in (*self.listeners, *self.accepted):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
            one.close()
        for session in self.sessions.values():
            if session.sock is not None:
                session.sock.close()

    def open_partial(self, regions: list[Region]) -> bytes:
        """A new grant of these regions."""
        grant = os.urandom(16)
        self.partial[grant] = regions
        return grant

    def blob(self, grant: bytes = b"", regions: list[Region] | None = None) -> bytes:
        """The whole one, or a partial one."""
        return Blob(
            self.me.name,
            self.me.incarnation,
            grant or self.grant,
            flags=3 if grant else 1,
            boot=boot_id(),
            user=os.geteuid(),
            abstract=self.abstract.encode(),
            port=self.listeners[0].getsockname()[1],
            addresses=[socket.inet_aton("127.0.0.1")],
            regions=self.regions if regions is None else regions,
        ).encode()

    def grants(self) -> dict:
        """All grants by their public names, as they are on the wire."""
        return {wire.grant_id(grant): grant for grant in (self.grant, *self.partial)}

    def secret(self, kind: int, grant: bytes, session: Session | None) -> bytes:
        return session.key if kind == wire.DATA else wire.mac(self.me.auth_key, grant)

    # The connecting side.

    def open(self, blob: Blob, path: str) -> socket.socket:
        if path == "tcp":
            address = next(a for a in reversed(blob.addresses) if len(a) == 4)
            return socket.create_connection((socket.inet_ntoa(address), blob.port), 5)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(b"\0" + blob.abstract if path == "abstract" else blob.path)
        return sock

    def dial(self, blob: Blob, kind: int = wire.CONTROL, path: str = "tcp", **options):
        """A Session (control) or a Channel (data)."""
        who = (blob.name, blob.incarnation)
        session = self.sessions.setdefault(who, Session(who))
        kept = session.resume() if session.epoch and kind == wire.CONTROL else None
        secret = self.secret(kind, blob.grant, session)
        grant = wire.grant_id(blob.grant) if kind == wire.CONTROL else 0
        sock = self.open(blob, path)
        hello = wire.hello(self.me, kind, options.get("to", who[1]), grant,
                           options.get("versions", (1, 1)))  # fmt: skip
        sock.sendall(wire.MAGIC + wire.frame(wire.HELLO, hello))
        transcript = wire.check_challenge(secret, hello, expect(sock, wire.CHALLENGE), who)
        resume_key = session.key if kept else None
        body = wire.auth(secret, transcript, kept or Resume(), resume_key)
        sock.sendall(wire.frame(wire.AUTH, body))
        reader = Reader(expect(sock, wire.READY))
        there = Resume.decode(reader)
        reader.end()
        sock.settimeout(None)
        key = wire.session_key(secret, transcript)
        if kind == wire.DATA:
            return Channel(sock, key)
        session.attach(sock, key, bool(kept) and there.epoch == kept.epoch, there)
        return session

    # The accepting side.

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self.accepted.append(sock)
                threading.Thread(target=self.accept_handshake, args=(sock,), daemon=True).start()

    def accept_handshake(self, sock: socket.socket) -> None:
        try:
            if receive(sock, 8) != wire.MAGIC:
                raise ProtocolError("an unknown peer")
            body = expect(sock, wire.HELLO)
            hello = wire.Hello.decode(body)
            who = (hello.name, hello.incarnation)
            session = self.sessions.setdefault(who, Session(who))
            code = self.objection(hello, session)
            if code:
                sock.sendall(wire.frame(wire.REJECT, bytes([code]) + wire.text(b"not here")))
                return
            secret = self.secret(hello.kind, self.grants().get(hello.grant, b""), session)
            answer, transcript = wire.challenge(self.me, secret, body)
            sock.sendall(wire.frame(wire.CHALLENGE, answer))
            proof, theirs = self.check_auth(expect(sock, wire.AUTH), secret, transcript)
            key = wire.session_key(secret, transcript)
            again = session.key is not None and proof == wire.mac(
                session.key, b"nixl resume", transcript
            )
            resumed = hello.kind == wire.CONTROL and again and theirs.epoch == session.epoch != 0
            fresh = Resume(int.from_bytes(self.me.random(8), "little") | 1)
            ready = session.resume() if resumed else fresh
            if hello.kind == wire.CONTROL:
                session.key = key  # data connections may follow at once
            sock.sendall(wire.frame(wire.READY, ready.encode()))
            if hello.kind == wire.DATA:
                self.serve(sock, key)
            else:
                session.attach(sock, key, resumed, theirs if resumed else ready)
                with self.arrived:
                    self.arrived.notify_all()
        except (ProtocolError, OSError):
            sock.close()

    def objection(self, hello: wire.Hello, session: Session) -> int:
        if not hello.oldest <= 1 <= hello.newest:
            return 1
        if hello.to != self.me.incarnation:
            return 2
        known = session.key if hello.kind == wire.DATA else hello.grant in self.grants()
        return 0 if known else 3

    def check_auth(self, body: bytes, secret: bytes, transcript: bytes) -> tuple[bytes, Resume]:
        reader = Reader(body)
        proof, theirs, again = reader.raw(32), Resume.decode(reader), reader.raw(32)
        reader.end()
        if proof != wire.mac(secret, b"nixl connector", transcript, theirs.encode()):
            raise ProtocolError("AUTH")
        return again, theirs

    def serve(self, sock: socket.socket, key: bytes) -> None:
        """Answers the requests of one data connection."""
        proved = set()
        while True:
            kind, body = receive_frame(sock)
            if kind == wire.GRANT:
                (named,) = struct.unpack("<Q", body[:8])
                if body[8:] == wire.mac(self.grants().get(named, b""), b"nixl grant", key):
                    proved.add(named)
                continue
            number, grant, flags, regions, runs = wire.decode_request(body)
            self.requests.append((kind, flags, regions, runs))
            code = 0 if grant in proved else 6
            opened = self.partial.get(self.grants().get(grant, b""), self.regions)
            spans = [] if code else self.spans(opened, regions, runs)
            code = code or (0 if spans is not None else 4)
            why = b"" if not code else b"refused by the Python peer"
            total = sum(size * count for _, _, size, _, count in runs)
            if kind == wire.WRITE:
                data = b""
                while len(data) < total:
                    length, crc = struct.unpack("<II", receive(sock, 8))
                    if length == wire.ABORT:
                        code, why = 11, b"ended by the sender"
                        break
                    part = receive(sock, length)
                    if flags & wire.CHECKSUMS and crc != wire.crc32c(part):
                        code, why = 3, b"checksum"
                    data += part
                for at, size in spans if not code else []:
                    self.memory[at : at + size], data = data[:size], data[size:]
            sock.sendall(wire.frame(wire.REPLY, wire.reply(number, code, why=why)))
            if kind == wire.READ and not code:
                data = b"".join(self.memory[at : at + size] for at, size in spans)
                out = bytearray(wire.payload(bytes(data), flags))
                if self.spoil and out:
                    out[-1] ^= 1
                sock.sendall(out)

    def spans(self, opened: list, regions: list, runs: list) -> list[tuple[int, int]] | None:
        """(offset in memory, size) of all pieces; None where one is not in its region."""
        known = {(r.id, r.generation): r for r in opened}
        out = []
        for index, address, size, stride, count in runs:
            region = known.get(regions[index])
            for i in range(count):
                at = address + i * stride
                if region is None or not (
                    region.address <= at and at + size <= region.address + region.size
                ):
                    return None
                out.append((at - self.base, size))
        return out
