"""Unknown peers at a listener: what they claim, repeat, garble, never say, and how many."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import socket
import struct

import pytest

np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

import exchange_peer  # noqa: E402
import wire  # noqa: E402
from exchange_peer import ANSWER, EXCHANGE, FETCH, INVALIDATE, LOAD, Caller  # noqa: E402
from faults_support import MIB, eventually, open_descriptors, pattern  # noqa: E402

from peer import Refused  # noqa: E402

KEY = "a key of 16 bytes or more"
HERE = "127.0.0.1"
LISTENS = {"enable_listen_thread": True, "listen_host": HERE, "listen_port": 0}
PATIENCE = support.PATIENCE
NOT_ALLOWED, INVALID, MISMATCH = 6, 2, 5


@pytest.fixture
def make_target(make_far):
    """An agent in another process that listens; `far.port` is where."""

    def make(**options):
        far = make_far(MIB, **LISTENS, **options)
        far.port = far("agent.listen_port")
        return far

    return make


@pytest.fixture
def call():
    made: list[Caller] = []

    def make(far, *args, **options) -> Caller:
        made.append(Caller(far.port, *args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def fetches(near, far) -> None:
    near.agent.fetch_remote_metadata(far.name, HERE, far.port, timeout=PATIENCE)
    assert far.name in near.agent.peers()


def identity(agent) -> wire.Blob:
    return wire.Blob.decode(agent.get_agent_metadata())


def test_what_the_page_says(make_target, call):
    """A caller written from the page reads, hands over, updates, and takes back."""
    far = make_target()
    one = call(far)
    blob = wire.Blob.decode(one.fetch())
    assert blob.name == far.name.encode() and one.there == (blob.name, blob.incarnation)
    mine = wire.Blob(b"caller", one.me.incarnation, os.urandom(16))
    assert one.load(mine.encode()) == (0, "")
    assert far("agent.peers()") == ["caller"]
    assert one.load(mine.encode(), 7) == (0, "")
    assert one.invalidate() == (0, "")
    assert far("agent.peers()") == []


def test_who_has_not_the_key_gets_nothing(make_target, make_near, call):
    far, near = make_target(auth_key=KEY), make_near(auth_key=KEY)
    near.agent.send_local_metadata(HERE, far.port, timeout=PATIENCE)
    for key in (b"", b"another key of 16 bytes"):
        caller = call(far, near.name.encode(), auth_key=key, greet=False)
        with pytest.raises((Refused, wire.ProtocolError)):
            caller.greet()
        caller.sock.close()
    # Nor does who says all of it without waiting for a proof.
    impatient = call(far, near.name.encode(), greet=False)
    impatient.say(
        wire.MAGIC
        + wire.frame(wire.HELLO, wire.hello(impatient.me, EXCHANGE, bytes(16), 0))
        + wire.frame(wire.AUTH, bytes(88))
        + wire.frame(INVALIDATE, wire.varint(1))
    )
    assert impatient.ended()
    # Nor who repeats what a friend said.
    friend = call(far, b"friend", auth_key=KEY.encode())
    friend.load(wire.Blob(b"friend", friend.me.incarnation, os.urandom(16)).encode())
    friend.invalidate()
    assert far("agent.peers()") == [near.name]
    replay = call(far, greet=False)
    with contextlib.suppress(OSError):
        replay.say(friend.said)
    assert replay.ended()
    assert far("agent.peers()") == [near.name]
    fetches(near, far)


@pytest.mark.parametrize("door", ["session", "listener"])
def test_each_door_is_for_its_own_kind(make_target, make_near, call, door):
    """Sessions are not opened at the listener, nor metadata exchanged at the session's port."""
    far, near = make_target(), make_near()
    blob = wire.Blob.decode(far.metadata)
    if door == "session":
        far.port = blob.port
        with pytest.raises(Refused, match="listen_port"):
            call(far)
    else:
        one = call(far, greet=False)
        hello = wire.hello(one.me, wire.CONTROL, blob.incarnation, wire.grant_id(blob.grant))
        one.say(wire.MAGIC + wire.frame(wire.HELLO, hello))
        with pytest.raises(Refused, match="not valid here"):
            exchange_peer.expect(one.sock, wire.CHALLENGE)
    near.add_metadata_of(far)
    near.works_with(far)


@pytest.mark.parametrize("known_by", ["sending", "fetching", "bytes"])
def test_whoever_takes_anothers_name(make_target, make_near, call, known_by):
    """Without a key even who knows name and incarnation can neither replace, change nor evict."""
    far, near = make_target(), make_near(**LISTENS)
    if known_by == "sending":
        near.agent.send_local_metadata(HERE, far.port, timeout=PATIENCE)
    elif known_by == "fetching":
        far(
            f"agent.fetch_remote_metadata({near.name!r}, {HERE!r}, {near.agent.listen_port}, "
            f"timeout={PATIENCE})"
        )
    else:
        far(f"agent.add_remote_agent({near.agent.get_agent_metadata()!r})")
    real = identity(near.agent)
    false = wire.Blob(real.name, real.incarnation, os.urandom(16), regions=[])
    one = call(far, real.name, real.incarnation)
    code, why = one.load(false.encode())
    if known_by == "fetching":
        assert code == 0  # it is asked itself, where it was fetched from
    else:
        assert code == NOT_ALLOWED and near.name in why or "grant" in why
    assert one.invalidate()[0] == NOT_ALLOWED
    one.say(wire.frame(LOAD, wire.varint(0) + false.encode()))  # as if it were a change
    other = call(far, real.name)
    false.incarnation = other.me.incarnation
    assert other.load(false.encode())[0] == NOT_ALLOWED
    assert other.invalidate()[0] == NOT_ALLOWED
    assert far(
        f"agent.check_remote_metadata({near.name!r}, "
        f"agent.get_xfer_descs([({near.array.ctypes.data}, 64, 0)], 'DRAM'))"
    )
    near.add_metadata_of(far)
    near.works_with(far)


def test_metadata_of_another_or_damaged(make_target, call):
    far = make_target()
    one = call(far)
    other = wire.Blob(b"other", os.urandom(16), os.urandom(16))
    assert one.load(other.encode())[0] == NOT_ALLOWED
    mine = wire.Blob(b"caller", one.me.incarnation, os.urandom(16)).encode()
    for wrong, code in [
        (b"x", INVALID),
        (mine[:-1], INVALID),
        (mine[:20] + b"\xff" + mine[21:], INVALID),
        (b"NIXLMD\x09\x00" + mine[8:], MISMATCH),
    ]:
        assert one.load(wrong)[0] == code
    assert far("agent.peers()") == []
    assert one.load(mine) == (0, "")


def section(version: int, base: int, removed: bytes = b"\0") -> bytes:
    return bytes([7]) + wire.text(struct.pack("<QQ", version, base) + removed)


def versioned(blob: wire.Blob, version: int, base: int = 0) -> bytes:
    out = blob.encode()[:-4] + section(version, base)
    return out + struct.pack("<I", wire.crc32c(out))


def test_a_change_that_builds_on_what_never_came(make_target, call):
    """Whoever missed something asks for the rest, and takes nothing until it has come."""
    far = make_target()
    one = call(far)
    region = wire.Region(4096, 100, 1, 1)
    mine = wire.Blob(b"caller", one.me.incarnation, os.urandom(16), regions=[region])
    assert one.load(versioned(mine, 5)) == (0, "")

    def knows(address: int) -> bool:
        return far(
            "agent.check_remote_metadata('caller', "
            f"agent.get_xfer_descs([({address}, 100, 0)], 'DRAM'))"
        )

    assert knows(4096) and not knows(8192)
    mine.flags, mine.regions = 2, [wire.Region(8192, 100, 2, 1)]
    one.say(wire.frame(LOAD, wire.varint(0) + versioned(mine, 5, 4)))  # known: passed over
    one.say(wire.frame(LOAD, wire.varint(0) + versioned(mine, 9, 8)))
    length, kind, _, _ = struct.unpack("<IBBH", exchange_peer.receive(one.sock, 8))
    asked = wire.Reader(exchange_peer.receive(one.sock, length))
    request, flags = asked.varint(), asked.raw(1)[0]
    assert (kind, flags, asked.raw(16)) == (FETCH, 1, one.me.incarnation)
    assert asked.fixed("Q") == (5,) and not knows(8192)
    answer = wire.varint(request) + b"\0" + wire.text(b"") + versioned(mine, 9, 5)
    one.say(wire.frame(ANSWER, answer))
    eventually(lambda: knows(8192))
    assert knows(4096)
    gone = mine.encode()[:-4] + section(10, 9, b"\1" + wire.zigzag(1))
    gone += struct.pack("<I", wire.crc32c(gone))
    one.say(wire.frame(LOAD, wire.varint(0) + gone))
    eventually(lambda: not knows(4096))
    assert knows(8192)


GARBAGE = {
    "noise": pattern(100_000).tobytes(),
    "text": b"NIXLCOMM:INVL:agent\n" * 10,
    "a frame without end": struct.pack("<IBBH", 0xFFFF_FFFF, LOAD, 0, 0),
    "a frame of a session": wire.frame(wire.PING, bytes(8)),
    "an unknown type": wire.frame(99, b""),
    "flags": struct.pack("<IBBH", 1, INVALIDATE, 1, 0) + b"\1",
    "an empty LOAD": wire.frame(LOAD, b"\1"),
    "a FETCH that is too long": wire.frame(FETCH, bytes(5000)),
    "a FETCH that is too short": wire.frame(FETCH, b"\1"),
    "an answer to nothing": wire.frame(ANSWER, b"\5\0\0"),
    "INVALIDATE of nothing": wire.frame(INVALIDATE, b"\0"),
    "half a message": wire.frame(LOAD, bytes(50_000))[:20_000],
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_after_the_handshake(make_target, make_near, call, garbage):
    """It costs whoever sends it his connection, and nobody anything else."""
    far, near = make_target(), make_near()
    one = call(far)
    with contextlib.suppress(OSError):  # it may hang up before it has all of it
        one.sock.sendall(GARBAGE[garbage])
    if garbage == "half a message":
        one.sock.shutdown(socket.SHUT_WR)
    assert one.ended()
    assert far("agent.peers()") == []
    fetches(near, far)
    near.works_with(far)


def test_large_messages_wait_for_each_other(make_target, make_near, call):
    """Who announces much and sends little takes no memory, and not for ever what others need."""
    far, near = make_target(), make_near()
    greedy = [call(far) for _ in range(20)]
    for one in greedy:
        one.say(struct.pack("<IBBH", 60 << 20, LOAD, 0, 0) + bytes(100))
    before = resident(far.pid)
    fetches(near, far)
    near.works_with(far)
    for one in greedy:
        with contextlib.suppress(OSError):
            one.sock.settimeout(0.05)
            one.sock.sendall(bytes(4 << 20))
    assert resident(far.pid) - before < 400 * MIB
    fetches(near, far)


def resident(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


@pytest.fixture
def ten_thousand():
    """How many connections this process may hold; 10,000 where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, hard - 500)
    if count < 3000:
        pytest.skip(f"only {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


SAYS = {
    "nothing": b"",
    "garbage": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "half a handshake": wire.MAGIC + wire.frame(wire.HELLO, bytes(60))[:30],
    "a whole handshake and then nothing": None,
}


@pytest.mark.parametrize("says", SAYS)
def test_ten_thousand_strangers_delay_nobody(make_target, make_near, ten_thousand, says):
    far, near = make_target(), make_near()
    fetches(near, far)
    near.agent.remove_remote_agent(far.name)
    opened, memory = open_descriptors(far.pid), resident(far.pid)
    count = ten_thousand if SAYS[says] is not None else min(ten_thousand, 6000)
    sockets = []
    try:
        for number in range(count):
            if SAYS[says] is None:
                sockets.append(Caller(far.port).sock)
            else:
                sockets.append(socket.create_connection((HERE, far.port), 20))
                with contextlib.suppress(OSError):
                    sockets[-1].sendall(SAYS[says])
            if number % (count // 4) == count // 8:
                fetches(near, far)  # in the middle of it
                near.agent.remove_remote_agent(far.name)
        fetches(near, far)
        near.works_with(far)
        assert resident(far.pid) - memory < 100 * MIB
    finally:
        for one in sockets:
            one.close()
    eventually(lambda: open_descriptors(far.pid) <= opened + 32)  # those of the session are left


def test_nothing_is_left_of_many_callers(make_target, call):
    far = make_target()
    call(far).fetch()
    eventually(lambda: far("agent.stats()['exchange_connections']") == 1)
    before = open_descriptors(far.pid)
    for _ in range(200):
        one = call(far)
        one.fetch(follow=True)
        one.close()
    eventually(lambda: far("agent.stats()['exchange_connections']") == 1)
    assert open_descriptors(far.pid) <= before
