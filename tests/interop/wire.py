"""The bytes of docs/protocol.md, written from that page alone: numbers, blob, frames, handshake.

Standard library only; knows nothing of the nixl package. Values and pure functions.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

MAGIC = b"NIXLSES1"
HELLO, CHALLENGE, AUTH, READY, REJECT = 1, 2, 3, 4, 5
PING, PONG, NOTIFICATION, ACK, BYE, HOST_OFFER = 16, 17, 18, 19, 20, 21
GRANT, WRITE, READ, REPLY = 32, 33, 34, 35
CONTROL, DATA = 0, 1
CHECKSUMS = 1  # flag of a request
ABORT = 0xFFFF_FFFF
CHUNK, PIECE = 256 << 10, 64 << 10
SMALL, LARGE, REQUEST = 4 << 10, 80 << 10, 1 << 20
LIMITS = {
    **dict.fromkeys((*range(1, 6), PING, PONG, ACK, BYE, HOST_OFFER, 22, 23, GRANT), SMALL),
    **dict.fromkeys((NOTIFICATION, 24), LARGE),
    **dict.fromkeys((WRITE, READ, REPLY), REQUEST),
}


class ProtocolError(Exception):
    """The other side sent what the page does not allow, or refused."""


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFF_FFFF


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def zigzag(value: int) -> bytes:
    value &= 2**64 - 1  # differences count modulo 2^64
    return varint((value << 1 & 2**64 - 1) ^ (2**64 - 1 if value >> 63 else 0))


def text(data: bytes) -> bytes:
    return varint(len(data)) + data


class Reader:
    """Takes numbers off the front of bytes; ProtocolError where they end too early."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def raw(self, size: int) -> bytes:
        if size > len(self.rest):
            raise ProtocolError("ends too early")
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def fixed(self, form: str) -> tuple:
        return struct.unpack("<" + form, self.raw(struct.calcsize("<" + form)))

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            (byte,) = self.raw(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if byte >= 0x80 or value >= 2**64:
            raise ProtocolError("a number past 64 bits")
        return value

    def zigzag(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def text(self) -> bytes:
        return self.raw(self.varint())

    def end(self) -> None:
        if self.rest:
            raise ProtocolError(f"{len(self.rest)} bytes too many")


@dataclass
class Region:
    address: int
    size: int
    id: int
    generation: int = 0
    device: int = 0
    kind: int = 0  # DRAM
    backends: int = 1


@dataclass
class Blob:
    name: bytes
    incarnation: bytes
    grant: bytes
    boot: bytes = bytes(16)
    user: int = 0
    abstract: bytes = b""
    path: bytes = b""
    port: int = 0
    addresses: list[bytes] = field(default_factory=list)
    backends: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"UCX", b"")])
    regions: list[Region] = field(default_factory=list)
    flags: int = 1

    def endpoints(self) -> bytes:
        return (
            b"\1"
            + self.boot
            + struct.pack("<I", self.user)
            + text(self.abstract)
            + text(self.path)
            + struct.pack("<H", self.port)
            + varint(len(self.addresses))
            + b"".join(map(text, self.addresses))
        )

    def encode(self) -> bytes:
        sections = [
            (1, text(self.name) + bytes([self.flags]) + self.incarnation),
            (2, self.grant),
            (3, self.endpoints()),
            *((4, text(name) + text(connection)) for name, connection in self.backends),
            (5, encode_regions(self.regions)),
        ]
        out = b"NIXLMD" + struct.pack("<H", 1)
        out += b"".join(bytes([tag]) + text(body) for tag, body in sections)
        return out + struct.pack("<I", crc32c(out))

    @staticmethod
    def decode(data: bytes) -> Blob:
        if data[:6] != b"NIXLMD" or struct.unpack("<I", data[-4:])[0] != crc32c(data[:-4]):
            raise ProtocolError("not a blob, or damaged")
        reader = Reader(data[6:-4])
        if reader.fixed("H") != (1,):
            raise ProtocolError("another version")
        blob = Blob(b"", b"", b"", backends=[])
        while reader.rest:
            (tag,) = reader.raw(1)
            body = Reader(reader.text())
            if tag == 1:
                blob.name, blob.flags, blob.incarnation = body.text(), body.raw(1)[0], body.raw(16)
            elif tag == 2:
                blob.grant = body.raw(16)
            elif tag == 3:
                if body.raw(1) != b"\1":
                    raise ProtocolError("endpoints of another version")
                blob.boot, (blob.user,) = body.raw(16), body.fixed("I")
                blob.abstract, blob.path, (blob.port,) = body.text(), body.text(), body.fixed("H")
                blob.addresses = [body.text() for _ in range(body.varint())]
                body.end()
            elif tag == 4:
                blob.backends.append((body.text(), body.text()))
            elif tag == 5:
                blob.regions = decode_regions(body)
        return blob


def encode_regions(regions: list[Region]) -> bytes:
    """Each region as a group and an entry of its own: legal, if not the shortest."""
    out = b""
    for one in regions:
        out += bytes([one.kind]) + varint(one.device) + varint(one.backends) + varint(1)
        out += zigzag(one.address) + varint(one.size) + zigzag(one.id)
        out += varint(1 << 1 | 1) + varint(one.generation)
    return out


def decode_regions(body: Reader) -> list[Region]:
    regions = []
    while body.rest:
        (kind,), device, backends = body.raw(1), body.varint(), body.varint()
        address = number = generation = 0
        for _ in range(body.varint()):
            address += body.zigzag()
            size = body.varint()
            number += body.zigzag()
            packed = body.varint()
            if packed & 1:
                generation = body.varint()
            count = packed >> 1
            step, id_step = (body.zigzag(), body.zigzag()) if count > 1 else (0, 0)
            for i in range(count):
                address += step if i else 0
                number += id_step if i else 0
                address, number = address % 2**64, number % 2**64
                regions.append(Region(address, size, number, generation, device, kind, backends))
    return regions


def frame(kind: int, body: bytes) -> bytes:
    return struct.pack("<IBBH", len(body), kind, 0, 0) + body


def frame_header(header: bytes) -> tuple[int, int]:
    """Length and type."""
    length, kind, flags, reserved = struct.unpack("<IBBH", header)
    if flags or reserved or length > LIMITS.get(kind, -1):
        raise ProtocolError(f"not a frame header: {header.hex()}")
    return length, kind


def grant_id(grant: bytes) -> int:
    return int.from_bytes(hashlib.sha256(b"nixl grant id" + grant).digest()[:8], "little")


def mac(key: bytes, *message: bytes) -> bytes:
    return hmac.new(key, b"".join(message), hashlib.sha256).digest()


@dataclass
class Resume:
    """What a side has of a session: epoch, notifications received, credit consumed."""

    epoch: int = 0
    received: int = 0
    consumed: int = 0

    def encode(self) -> bytes:
        return struct.pack("<QQQ", self.epoch, self.received, self.consumed)

    @staticmethod
    def decode(reader: Reader) -> Resume:
        return Resume(*reader.fixed("QQQ"))


@dataclass
class Self:
    """Who speaks: what HELLO and CHALLENGE say of the sender."""

    name: bytes
    incarnation: bytes
    auth_key: bytes
    random: Callable[[int], bytes]
    cookie: tuple[int, bytes] = (0, bytes(16))

    def flags(self) -> int:
        return 1 if self.auth_key else 0

    def tail(self) -> bytes:
        return struct.pack("<Q", self.cookie[0]) + self.cookie[1]


def hello(me: Self, kind: int, to: bytes, grant: int, versions: tuple[int, int] = (1, 1)) -> bytes:
    return (
        struct.pack("<HHBB", *versions, kind, me.flags())
        + text(me.name)
        + me.incarnation
        + to
        + me.random(16)
        + struct.pack("<Q", grant)
        + me.tail()
    )


@dataclass
class Hello:
    oldest: int
    newest: int
    kind: int
    flags: int
    name: bytes
    incarnation: bytes
    to: bytes
    nonce: bytes
    grant: int

    @staticmethod
    def decode(body: bytes) -> Hello:
        reader = Reader(body)
        head = reader.fixed("HHBB")
        names = (reader.text(), reader.raw(16), reader.raw(16), reader.raw(16))
        found = Hello(*head, *names, *reader.fixed("Q"))
        reader.raw(24)  # the cookie
        reader.end()
        return found


def challenge(me: Self, secret: bytes, hello_body: bytes) -> tuple[bytes, bytes]:
    """The body, and the transcript both go on with."""
    signed = struct.pack("<HB", 1, me.flags()) + text(me.name) + me.incarnation
    signed += me.random(16) + me.tail()
    transcript = hashlib.sha256(hello_body + signed).digest()
    return signed + mac(secret, b"nixl acceptor", transcript), transcript


def check_challenge(secret: bytes, hello_body: bytes, body: bytes, who: tuple) -> bytes:
    """The transcript, where CHALLENGE comes from `who` (name, incarnation) and is proved."""
    reader = Reader(body)
    version, _ = reader.fixed("HB")
    found = reader.text(), reader.raw(16)
    reader.raw(16 + 24)
    proof = reader.raw(32)
    reader.end()
    transcript = hashlib.sha256(hello_body + body[:-32]).digest()
    if version != 1 or found != who or proof != mac(secret, b"nixl acceptor", transcript):
        raise ProtocolError(f"CHALLENGE of {found[0]!r} is not as it must be")
    return transcript


def auth(secret: bytes, transcript: bytes, resume: Resume, earlier_key: bytes | None) -> bytes:
    proof = mac(secret, b"nixl connector", transcript, resume.encode())
    again = mac(earlier_key, b"nixl resume", transcript) if earlier_key else bytes(32)
    return proof + resume.encode() + again


def session_key(secret: bytes, transcript: bytes) -> bytes:
    return mac(secret, b"nixl session", transcript)


def request(number: int, grant: int, flags: int, regions: list, runs: list) -> bytes:
    """regions: (id, generation); runs: (region index, address, size, stride, count)."""
    out = struct.pack("<QQB", number, grant, flags) + varint(len(regions))
    out += b"".join(varint(who) + varint(generation) for who, generation in regions)
    out += varint(len(runs))
    last = 0
    for region, address, size, stride, count in runs:
        many = count > 1
        out += varint(region << 1 | many) + zigzag(address - last) + varint(size)
        out += zigzag(stride) + varint(count) if many else b""
        last = address
    return out


def decode_request(body: bytes) -> tuple[int, int, int, list, list]:
    """As the arguments of request()."""
    reader = Reader(body)
    number, grant, flags = reader.fixed("QQB")
    regions = [(reader.varint(), reader.varint()) for _ in range(reader.varint())]
    runs, last = [], 0
    for _ in range(reader.varint()):
        packed = reader.varint()
        last = (last + reader.zigzag()) % 2**64
        size = reader.varint()
        stride, count = (reader.zigzag(), reader.varint()) if packed & 1 else (0, 1)
        runs.append((packed >> 1, last, size, stride, count))
    reader.end()
    return number, grant, flags, regions, runs


def reply(number: int, code: int = 0, errno: int = 0, offset: int = 0, why: bytes = b"") -> bytes:
    return struct.pack("<QB", number, code) + varint(errno) + varint(offset) + text(why)


def chunk(data: bytes, flags: int) -> bytes:
    return struct.pack("<II", len(data), crc32c(data) if flags & CHECKSUMS else 0) + data


def payload(data: bytes, flags: int) -> bytes:
    return b"".join(chunk(data[at : at + CHUNK], flags) for at in range(0, len(data), CHUNK))


def pieces(sequence: int, message: bytes) -> bytes:
    """The NOTIFICATION frames of one message."""
    head = varint(sequence) + varint(len(message))
    parts = range(0, len(message), PIECE) if message else [0]
    return b"".join(
        frame(NOTIFICATION, head + varint(at) + message[at : at + PIECE]) for at in parts
    )
