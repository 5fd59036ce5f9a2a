"""Unknown peers on an agent's sockets: what they say wrongly, repeat after others, or never say."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
import time

import pytest

np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

import wire  # noqa: E402
from faults_support import MIB, eventually, open_descriptors, pattern  # noqa: E402
from proxy import CONTROL, DATA  # noqa: E402

from peer import Peer, Refused, expect, receive  # noqa: E402

SIZE = MIB


@pytest.fixture(params=["tcp", "abstract"])
def door(request) -> str:
    return request.param


@pytest.fixture
def make_peer():
    """An agent in Python that knows the protocol, and lives by it or not."""
    made: list[Peer] = []

    def make(name: bytes = b"outsider") -> Peer:
        made.append(Peer(name))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ended(sock: socket.socket) -> bool:
    """The other side hangs up, whatever it says before."""
    sock.settimeout(20)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def untouched(far) -> bool:
    return far("bool((array == 0x5A).all())") and far("agent.get_new_notifs()") == {}


@pytest.mark.parametrize("who", ["the peer", "an unknown peer"])
@pytest.mark.parametrize("key", ["guessed", "of another session"])
def test_a_data_connection_that_proves_nothing(
    make_near, make_far, make_peer, unknown_peer, door, who, key
):
    """Whoever names a session must hold its key, not one that it has itself."""
    near, far = make_near(SIZE), make_far(SIZE)
    near.add_metadata_of(far)
    near.works_with(far)
    far("array[:] = 0x5A")
    there = wire.Blob.decode(far.metadata)
    other = make_peer()
    secret = os.urandom(32)
    if key == "of another session":
        other.dial(there)
        secret = other.sessions[there.name, there.incarnation].key
    name, incarnation = near.name.encode(), wire.Blob.decode(near.agent.get_agent_metadata())
    me = wire.Self(name, incarnation.incarnation, b"", os.urandom)
    if who == "an unknown peer":
        me = wire.Self(b"nobody knows", os.urandom(16), b"", os.urandom)
    sock = unknown_peer(far.metadata, door)
    hello = wire.hello(me, wire.DATA, there.incarnation, 0)
    sock.sendall(wire.MAGIC + wire.frame(wire.HELLO, hello))
    with pytest.raises(Refused):
        body = expect(sock, wire.CHALLENGE)
        assert who == "the peer"
        transcript = wire.hashlib.sha256(hello + body[:-32]).digest()
        with pytest.raises(wire.ProtocolError):  # nor has the agent proved to know its key
            wire.check_challenge(secret, hello, body, (there.name, there.incarnation))
        sock.sendall(wire.frame(wire.AUTH, wire.auth(secret, transcript, wire.Resume(), None)))
        expect(sock, wire.READY)
    assert ended(sock) and untouched(far)
    near.works_with(far)


@pytest.mark.parametrize("kind", [CONTROL, DATA])
@pytest.mark.parametrize("patient", [False, True], ids=["at once", "in turn"])
def test_what_another_said_is_repeated(
    make_near, make_far, make_proxy, unknown_peer, kind, patient
):
    """A whole connection that was overheard, with the WRITE and the message in it."""
    near, far = make_near(SIZE), make_far(SIZE)
    proxy, metadata = make_proxy(far)
    near.add_metadata_of(far, metadata)
    assert near.post("WRITE", far, [(0, 0, SIZE)], b"heard").wait(60) == "DONE"
    assert far.notifications(near.name, 1) == [b"heard"]
    said = proxy.said(kind)
    assert (near.array[4096:8192].tobytes() in said) == (kind == DATA)
    assert (b"heard" in said) == (kind == CONTROL)
    far("array[:] = 0x5A")
    for door in ("tcp", "abstract"):
        sock = unknown_peer(far.metadata, door)
        hello = 8 + 8 + struct.unpack("<I", said[8:12])[0]
        try:
            sock.sendall(said[:hello])
            if patient:
                expect(sock, wire.CHALLENGE)
            sock.sendall(said[hello:])
        except OSError:
            pass  # it has hung up already
        assert ended(sock) and untouched(far)
    near.works_with(far)


GARBAGE = {
    "noise": pattern(100_000).tobytes(),
    "a frame without end": struct.pack("<IBBH", 0xFFFF_FFFF, wire.WRITE, 0, 0),
    "of the other kind of connection": b"",
    "a handshake": wire.MAGIC + wire.frame(wire.HELLO, bytes(100)),
    "half a frame": wire.frame(wire.WRITE, bytes(1000))[:500],
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("kind", [wire.CONTROL, wire.DATA], ids=[CONTROL, DATA])
def test_garbage_after_the_handshake(
    make_near, make_far, make_peer, companion, door, kind, garbage
):
    """It costs whoever sends it its connection, and nobody anything else."""
    far, other = make_far(SIZE), make_peer()
    near = make_near(SIZE)
    near.add_metadata_of(far)
    near.works_with(far)
    far("array[:] = 0x5A")
    there = wire.Blob.decode(far.metadata)
    session = other.dial(there, path=door)
    sock = session.sock if kind == wire.CONTROL else other.dial(there, wire.DATA, door).sock
    wrong = GARBAGE[garbage] or wire.frame(wire.GRANT if kind == wire.CONTROL else wire.PING, b"")
    with contextlib.suppress(OSError):  # it may hang up before it has all of it
        sock.sendall(wrong)
    if garbage == "half a frame":
        sock.shutdown(socket.SHUT_WR)
    if kind == wire.CONTROL:
        with session.changed:
            assert session.changed.wait_for(lambda: session.sock is None, 20)
    else:
        assert ended(sock)
    assert untouched(far)
    near.works_with(far)
    again = other.dial(there, path=door)
    again.notify(b"sorry")
    assert far.notifications("outsider", 1) == [b"sorry"]


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"only {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def sent_away(socks: list[socket.socket]) -> int:
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    return len(poll.poll(0))


def connected(unknown_peer, metadata: bytes, door: str) -> socket.socket:
    while True:
        try:
            return unknown_peer(metadata, door)
        except BlockingIOError:  # more at once than the system lets wait
            time.sleep(0.001)  # sleeps: between two tries


@pytest.mark.parametrize(("door", "count"), [("tcp", 300), ("abstract", 1100)])
def test_idle_unknown_peers_delay_nobody(
    make_near, make_far, unknown_peer, many_descriptors, door, count
):
    """Nobody waits until they are sent away: the oldest goes where there are too many."""
    near, far = make_near(SIZE), make_far(SIZE)
    before = open_descriptors(far.pid)
    for _ in range(5):  # where the machine needs longer than unknown peers are given time
        idle = [connected(unknown_peer, far.metadata, door) for _ in range(count)]
        eventually(lambda: open_descriptors(far.pid) > before + min(count, 1000) - 10)
        near.add_metadata_of(far)
        near.works_with(far)
        gone = sent_away(idle[-300:])
        if not gone:
            break
        near.agent.remove_remote_agent(far.name)
    assert not gone
    for one in idle:
        if count == 300:
            assert ended(one)  # in the end they are
        one.close()
    near.agent.remove_remote_agent(far.name)
    # With the first session come those of the stream lane and of callers who poll, two each.
    eventually(lambda: open_descriptors(far.pid) <= before + 4)


def test_more_data_connections_than_are_served(make_far, make_peer, door):
    """A peer that has lost connections without its agent's knowledge gets new ones, and the one
    that has been idle for longest goes."""
    far, other = make_far(SIZE), make_peer()
    there = wire.Blob.decode(far.metadata)
    other.dial(there, path=door)
    region = there.regions[0]
    lost = []
    for number in range(80):
        channel = other.dial(there, wire.DATA, door)
        if door == "tcp":
            channel.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel.prove(there.grant)
        where = [(0, region.address + number, 1, 0, 1)]
        channel.sock.settimeout(20)
        channel.write(there.grant, [(region.id, region.generation)], where, bytes([number + 1]))
        lost.append(channel)
    assert far("array[:80].tolist()") == list(range(1, 81))
    assert ended(lost[0].sock)
    with pytest.raises(TimeoutError):
        lost[-1].sock.settimeout(0.1)
        receive(lost[-1].sock, 1)
