"""Makes the golden files of version 1 from docs/protocol.md, with the encoders of tests/interop.

`python tests/golden/make.py` writes those that are missing and changes none: a file that differs
from what it would write is an error. Everything random is fixed here.
"""

from __future__ import annotations

import hashlib
import pathlib
import socket
import struct
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "interop"))

import wire  # noqa: E402
from wire import Resume, frame, text, varint, zigzag  # noqa: E402

ALICE = (b"alice", bytes(range(1, 17)))
BOB = (b"bob", bytes(range(33, 49)))
GRANT = bytes(range(65, 81))
AUTH_KEY = b"a golden key, 24 bytes.."
# Where the memory of the stream session stands; tests map it there.
MEMORY = 0x7EA0_0000_0000


def stream(byte: int):
    """A source of "random" bytes: each call one value further."""
    state = [byte - 1]

    def draw(size: int) -> bytes:
        state[0] += 1
        return bytes([state[0]]) * size

    return draw


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", wire.crc32c(body))


# Blobs.


def entry(address: int, size: int, number: int, count: int, generation: int | None = None) -> bytes:
    """Address and number as differences from the region before; steps follow where count > 1."""
    out = zigzag(address) + varint(size) + zigzag(number)
    out += varint(count << 1 | (generation is not None))
    return out + (b"" if generation is None else varint(generation))


def endpoints() -> bytes:
    return wire.Blob(
        *ALICE,
        GRANT,
        boot=bytes(range(97, 113)),
        user=1000,
        abstract=b"nixl-0123456789abcdef",
        path=b"/run/nixl/a.sock",
        port=48879,
        addresses=[
            socket.inet_pton(socket.AF_INET, "192.0.2.7"),
            socket.inet_pton(socket.AF_INET6, "2001:db8::7"),
        ],
    ).endpoints()


def regions() -> bytes:
    dram = bytes([0]) + varint(0) + varint(3) + varint(2)
    # Five of 0x1000 bytes, 0x2000 apart, ids 1 to 5; then one of 77 bytes, id 9, generation 4.
    dram += entry(0x7F00_0000_1000, 0x1000, 1, 5) + zigzag(0x2000) + zigzag(1)
    dram += entry(0x7F00_0010_0000 - 0x7F00_0000_9000, 77, 4, 1, 4)
    vram = bytes([1]) + varint(2) + varint(2) + varint(1) + entry(1 << 63, 4096, 10, 1)
    return dram + vram


def blob(flags: int, sections: list[tuple[int, bytes]]) -> bytes:
    identity = text(ALICE[0]) + bytes([flags]) + ALICE[1]
    out = b"NIXLMD" + struct.pack("<H", 1)
    for tag, body in [(1, identity), (2, GRANT), *sections]:
        out += bytes([tag]) + text(body)
    return sealed(out)


def blobs() -> dict[str, bytes]:
    ucx, other = (4, text(b"UCX") + text(b"")), (4, text(b"OTHER") + text(b"opaque\0"))
    full = [(3, endpoints()), ucx, other, (5, regions())]
    full += [(6, varint(1) + varint(10) + text(b"remote key"))]
    one = bytes([0]) + varint(0) + varint(1) + varint(1) + entry(0x7F00_0000_1000, 0x1000, 1, 1)
    return {
        "blob/1/full.bin": blob(1, full),
        "blob/1/partial.bin": blob(2, [ucx, (5, one)]),
        "blob/1/unknown_section.bin": blob(1, [*full, (200, b"of a later library")]),
    }


def descriptor_lists() -> dict[str, bytes]:
    head = b"NXDL\1"
    # 100 descriptors of 4096 bytes, 8192 apart, from 0x1000 on; then one of 5 on device 3.
    transfer = head + bytes([0, 0]) + varint(2)
    transfer += zigzag(0x1000) + varint(4096) + varint(0) + varint(100) + zigzag(8192)
    transfer += zigzag(2**63 - (0x1000 + 99 * 8192 + 4096)) + varint(5) + varint(3) + varint(1)
    files = head + bytes([1, 4]) + varint(2)
    files += zigzag(0) + varint(4096) + varint(1) + text(b"rw:/data/a\0b")
    files += zigzag(8192 - 4096) + varint(1) + varint(2) + text(b"")
    return {
        "descriptors/1/transfer.bin": sealed(transfer),
        "descriptors/1/registration.bin": sealed(files),
    }


# Sessions.


def handshake(kind: int, auth_key: bytes, secret: bytes | None = None, resumed: bool = False):
    """What the connector (alice) and the acceptor (bob) send, and the key they end with."""
    alice = wire.Self(*ALICE, auth_key, stream(0xA1), (0x1000, b"\xaa" * 16))
    bob = wire.Self(*BOB, auth_key, stream(0xB1), (0x2000, b"\xbb" * 16))
    secret = secret or wire.mac(auth_key, GRANT)
    hello = wire.hello(alice, kind, BOB[1], 0 if kind == wire.DATA else wire.grant_id(GRANT))
    challenge, transcript = wire.challenge(bob, secret, hello)
    kept = Resume(0x1122_3344_5566_7788, 5, 700) if resumed else Resume()
    auth = wire.auth(secret, transcript, kept, bytes(range(32)) if resumed else None)
    epoch = int.from_bytes(bob.random(8), "little") | 1
    ready = Resume(kept.epoch, 9, 1300) if resumed else Resume(epoch)
    connector = wire.MAGIC + frame(wire.HELLO, hello) + frame(wire.AUTH, auth)
    acceptor = frame(wire.CHALLENGE, challenge) + frame(wire.READY, ready.encode())
    return connector, acceptor, wire.session_key(secret, transcript)


def handshakes() -> dict[str, bytes]:
    made = {
        "open": handshake(wire.CONTROL, b""),
        "key": handshake(wire.CONTROL, AUTH_KEY),
        "resumed": handshake(wire.CONTROL, AUTH_KEY, resumed=True),
    }
    made["data"] = handshake(wire.DATA, b"", secret=made["open"][2])
    out = {}
    for name, parts in made.items():
        for role, content in zip(("connector", "acceptor", "key"), parts, strict=True):
            out[f"protocol/1/handshake_{name}.{role}.bin"] = content
    return out


def ack(sequence: int, consumed: int) -> bytes:
    return frame(wire.ACK, varint(sequence) + varint(consumed))


def notifications() -> dict[str, bytes]:
    messages = [b"", b"a\0b", bytes(i % 251 for i in range(65537))]
    sender = frame(wire.PING, b"12345678") + ack(0, 0)
    sender += b"".join(wire.pieces(i, message) for i, message in enumerate(messages, 1))
    receiver = frame(wire.PONG, b"12345678") + ack(3, sum(len(m) + 64 for m in messages))
    return {
        "protocol/1/notifications.sender.bin": sender,
        "protocol/1/notifications.receiver.bin": receiver,
        "protocol/1/bye.bin": frame(wire.BYE, b"\x09" + text(b"the agent has been closed")),
    }


def stream_session() -> dict[str, bytes]:
    """A WRITE with checksums of two shapes, a READ of the same bytes, and a refused READ."""
    grant, key = wire.grant_id(GRANT), hashlib.sha256(b"connection key").digest()
    proof = struct.pack("<Q", grant) + wire.mac(GRANT, b"nixl grant", key)
    data = bytes(i * 7 % 256 for i in range(1000))
    where = [(5, 2), (6, 0)]
    runs = [(0, MEMORY + 64, 100, 200, 5), (0, MEMORY + 2048, 50, 2**64 - 100, 8)]
    runs += [(1, MEMORY + 4096, 100, 0, 1)]
    client = frame(wire.GRANT, proof)
    client += frame(wire.WRITE, wire.request(1, grant, wire.CHECKSUMS, where, runs))
    client += wire.chunk(data, wire.CHECKSUMS)
    client += frame(wire.READ, wire.request(2, grant, wire.CHECKSUMS, where, runs))
    client += frame(wire.READ, wire.request(3, grant, 0, [(5, 1)], [(0, MEMORY, 8, 0, 1)]))
    target = frame(wire.REPLY, wire.reply(1)) + frame(wire.REPLY, wire.reply(2))
    target += wire.chunk(data, wire.CHECKSUMS)
    target += frame(wire.REPLY, wire.reply(3, 4, 0, 0, b"no region 5"))
    return {
        "protocol/1/stream.client.bin": client,
        "protocol/1/stream.target.bin": target,
        "protocol/1/stream.key.bin": key,
        "protocol/1/stream.data.bin": data,
    }


def everything() -> dict[str, bytes]:
    return {
        **blobs(),
        **descriptor_lists(),
        **handshakes(),
        **notifications(),
        **stream_session(),
    }


def main() -> int:
    wrong = 0
    for name, content in everything().items():
        path = HERE / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"wrote {name}, {len(content)} bytes")
        elif path.read_bytes() != content:
            print(f"{name} differs from what would be written", file=sys.stderr)
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
