"""Agents of the library dial and use the Python peer: what they send is what the page says."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")

import wire  # noqa: E402
from interop_support import KEY  # noqa: E402
from wire import Region  # noqa: E402

from peer import COST, WINDOW  # noqa: E402


@pytest.fixture(params=["tcp", "abstract"])
def met(request, make_real, make_peer, key):
    """(real, peer): the agent has the peer's blob; nobody has dialled yet."""
    real = make_real(auth_key=key)
    peer = make_peer(key=key, abstract=request.param == "abstract")
    assert real.agent.add_remote_agent(peer.blob()) == peer.me.name
    return real, peer


@pytest.fixture
def simple(make_real, make_peer):
    real, peer = make_real(peer_timeout=5), make_peer()
    real.agent.add_remote_agent(peer.blob())
    return real, peer


def session_of(real, peer):
    """The peer's side of the session, once it stands."""
    blob = real.blob()

    def find():
        found = peer.sessions.get((blob.name, blob.incarnation))
        return found if found is not None and found.sock is not None else None

    with peer.arrived:
        return peer.arrived.wait_for(find, 10)


def test_write_and_read_with_notifications(met):
    real, peer = met
    data = os.urandom(300_000)
    real.buffer[: len(data)] = data
    handle = real.transfer("WRITE", peer, [(0, 100, len(data))], b"written\0")
    assert handle.wait(20) == "DONE"
    assert real.agent.explain(handle)["lane"] == "stream"
    assert bytes(peer.memory[100 : 100 + len(data)]) == data
    assert peer.memory[:100] == bytes(100) and peer.memory[100 + len(data)] == 0
    session = session_of(real, peer)
    assert session.take() == b"written\0"
    handle = real.transfer("READ", peer, [(1 << 20, 200, 250_000)], b"read")
    assert handle.wait(20) == "DONE"
    assert bytes(real.buffer[1 << 20 : (1 << 20) + 250_000]) == data[100:250_100]
    assert session.take() == b"read" and not session.inbox


def test_regular_lists_are_few_runs(simple):
    real, peer = simple
    real.buffer[: 1 << 16] = bytes(i % 251 for i in range(1 << 16))
    pieces = [(64 * i, 4096 + 128 * i, 64) for i in range(500)]
    assert real.transfer("WRITE", peer, pieces).wait(20) == "DONE"
    for own, there, size in pieces:
        assert peer.memory[there : there + size] == bytes(real.buffer[own : own + size])
    ((kind, flags, regions, runs),) = peer.requests
    assert kind == wire.WRITE and regions == [(7, 3)]
    assert runs == [(0, peer.base + 4096, 64, 128, 500)]


def test_large_transfers_are_many_requests_within_the_limits(make_real, make_peer):
    real, peer = make_real(size=96 << 20), make_peer()
    peer.memory = bytearray(96 << 20)
    peer.regions = [Region(peer.base, len(peer.memory), id=7, generation=3)]
    real.agent.add_remote_agent(peer.blob())
    real.buffer[-1] = 77
    handle = real.transfer("WRITE", peer, [(0, 0, 96 << 20)])
    assert handle.wait(60) == "DONE"
    sizes = [sum(size * count for _, _, size, _, count in runs) for _, _, _, runs in peer.requests]
    assert sum(sizes) == 96 << 20 and max(sizes) <= 64 << 20 and peer.memory[-1] == 77


def test_the_peers_refusals_are_typed_errors(simple):
    real, peer = simple
    assert real.transfer("WRITE", peer, [(0, 0, 8)]).wait(10) == "DONE"
    peer.regions[0].generation = 4  # registered anew; the blob that the agent has is old
    for operation in ("WRITE", "READ"):
        with pytest.raises(nixl.nixlNotFoundError, match="refused by the Python peer"):
            real.transfer(operation, peer, [(0, 0, 8)]).wait(10)
    real.agent.add_remote_agent(peer.blob())
    assert real.transfer("WRITE", peer, [(0, 0, 8)]).wait(10) == "DONE"


def test_the_wrong_grant_is_a_typed_error(make_real, make_peer):
    real, peer = make_real(), make_peer()
    good, peer.grant = peer.grant, os.urandom(16)
    forged = peer.blob()
    peer.grant = good
    real.agent.add_remote_agent(forged)
    with pytest.raises(nixl.nixlNotAllowedError, match="not here"):
        real.transfer("WRITE", peer, [(0, 0, 8)]).wait(10)


def test_regions_of_several_partial_blobs_are_asked_for_with_their_own_grants(make_real, make_peer):
    """One transfer over all of them; an earlier blob stays good when another is added."""
    real, peer = make_real(peer_timeout=5), make_peer()
    for index in range(3):
        region = Region(peer.base + 4096 * index, 4096, id=7 + index, generation=3)
        grant = peer.open_partial([region])
        assert real.agent.add_remote_agent(peer.blob(grant, [region])) == peer.me.name
    data = os.urandom(3 * 4096)
    real.buffer[: len(data)] = data
    pieces = [(4096 * index, 4096 * index, 4096) for index in (0, 2, 1)]
    assert real.transfer("WRITE", peer, pieces).wait(10) == "DONE"
    assert bytes(peer.memory[: len(data)]) == data
    assert real.transfer("READ", peer, [(1 << 20, 0, 3 * 4096)]).wait(10) == "DONE"
    assert bytes(real.buffer[1 << 20 : (1 << 20) + len(data)]) == data


def test_the_whole_blob_after_a_partial_one_opens_all(make_real, make_peer):
    real, peer = make_real(peer_timeout=5), make_peer()
    part = Region(peer.base, 4096, id=8, generation=3)
    real.agent.add_remote_agent(peer.blob(peer.open_partial([part]), [part]))
    real.agent.add_remote_agent(peer.blob())
    real.agent.add_remote_agent(peer.blob(peer.open_partial([part]), [part]))
    assert real.transfer("WRITE", peer, [(0, 8192, 64)]).wait(10) == "DONE"
    assert real.transfer("WRITE", peer, [(0, 0, 64)]).wait(10) == "DONE"


@pytest.mark.parametrize("code", [3, 4, 7])
def test_a_data_connection_refused_for_a_moment_is_asked_for_again(simple, monkeypatch, code):
    """While its control connection is being replaced a peer knows no session, or another key."""
    real, peer = simple
    refused, objection = [], peer.objection

    def objects(hello, session):
        if hello.kind == wire.DATA and len(refused) < 3:
            refused.append(code)
            return code
        return objection(hello, session)

    monkeypatch.setattr(peer, "objection", objects)
    real.buffer[0] = 77
    assert real.transfer("WRITE", peer, [(0, 9, 1)], b"late").wait(20) == "DONE"
    assert peer.memory[9] == 77 and refused == [code] * 3
    assert session_of(real, peer).take() == b"late"


def test_a_data_connection_that_is_always_refused_is_an_error(make_real, make_peer, monkeypatch):
    real, peer = make_real(peer_timeout=1), make_peer()
    real.agent.add_remote_agent(peer.blob())
    objection = peer.objection
    monkeypatch.setattr(
        peer,
        "objection",
        lambda hello, own: 3 if hello.kind == wire.DATA else objection(hello, own),
    )
    with pytest.raises(nixl.nixlRemoteDisconnectError, match="no data connection.*not here"):
        real.transfer("WRITE", peer, [(0, 9, 1)]).wait(20)


def test_keys_that_differ_are_a_typed_error(make_real, make_peer):
    for ours, theirs in ((KEY, b""), (b"", KEY), (KEY, KEY[::-1])):
        real, peer = make_real(auth_key=ours), make_peer(key=theirs)
        real.agent.add_remote_agent(peer.blob())
        with pytest.raises(nixl.nixlNotAllowedError, match="auth_key"):
            real.agent.make_connection(peer.me.name)


def test_another_agent_behind_the_address(make_real, make_peer):
    real, peer = make_real(peer_timeout=2), make_peer()
    real.agent.add_remote_agent(peer.blob())
    peer.me.incarnation = os.urandom(16)
    with pytest.raises(nixl.nixlRemoteDisconnectError):
        real.agent.make_connection(peer.me.name)


def test_the_agent_comes_back_and_repeats_nothing(simple):
    real, peer = simple
    name = peer.me.name.decode()
    for i in range(5):
        real.agent.send_notif(name, b"a%d" % i)
    session = session_of(real, peer)
    got = [session.take() for _ in range(5)]
    epoch = session.epoch
    session.notify(b"to the agent")
    assert real.notifications(name, 1) == [b"to the agent"]
    for i in range(5):
        session.sock.shutdown(2)
        with session.changed:
            assert session.changed.wait_for(lambda: session.sock is None, 5)
        real.agent.send_notif(name, b"b%d" % i)  # makes the agent dial again
        assert session_of(real, peer) is session and session.epoch == epoch
        got.append(session.take())
    assert got == [b"a%d" % i for i in range(5)] + [b"b%d" % i for i in range(5)]
    assert session.received == 10
    session.notify(b"and back")
    assert real.notifications(name, 1) == [b"and back"]


def test_a_peer_that_forgot_the_session_starts_anew(simple):
    real, peer = simple
    name = peer.me.name.decode()
    real.agent.send_notif(name, b"one")
    session = session_of(real, peer)
    assert session.take() == b"one"
    epoch = session.epoch
    session.sock.shutdown(2)
    with session.changed:
        assert session.changed.wait_for(lambda: session.sock is None, 5)
        session.restart(0)  # its epoch is 0 now: nothing is kept
    # What was begun before the agent saw the end of the connection is lost with the session, and
    # its sender is told so; what comes after arrives, and is the first of its epoch.
    for _ in range(10):
        real.agent.send_notif(name, b"two")
        with contextlib.suppress(TimeoutError):
            assert session.take(timeout=2) == b"two"
            break
    assert session.epoch != epoch and session.received >= 1


def test_the_agent_keeps_within_the_peers_credit(simple):
    real, peer = simple
    name, message = peer.me.name.decode(), bytes(1 << 20)
    most = WINDOW // (len(message) + COST)
    for _ in range(most + 10):
        try:
            real.agent.send_notif(name, message)
        except nixl.nixlNotAllowedError:
            break  # its own queue is full, too
    session = session_of(real, peer)
    with session.changed:
        assert session.changed.wait_for(lambda: len(session.inbox) >= most, 20)
    time.sleep(0.3)  # sleeps: for one too many
    assert len(session.inbox) == most
    session.take()
    real.agent.send_notif(name, b"last")
    with session.changed:
        assert session.changed.wait_for(lambda: len(session.inbox) >= most, 20)


def test_checksums_where_the_agent_asks_for_them(make_real, make_peer):
    try:
        real = make_real(backend_params={"UCX": {"checksum": "true"}}, size=1 << 20)
        asked = "checksum" in real.agent.get_backend_params("UCX")
    except nixl.nixlError:
        asked = False
    if not asked:
        pytest.skip("this library's UCX backend has no parameter checksum")
    peer = make_peer()
    real.agent.add_remote_agent(peer.blob())
    real.buffer[:3000] = os.urandom(3000)
    assert real.transfer("WRITE", peer, [(0, 0, 3000)]).wait(10) == "DONE"
    assert peer.memory[:3000] == bytes(real.buffer[:3000])
    assert real.transfer("READ", peer, [(8000, 0, 3000)]).wait(10) == "DONE"
    assert bytes(real.buffer[8000:11000]) == peer.memory[:3000]
    assert [flags for _, flags, _, _ in peer.requests] == [wire.CHECKSUMS] * 2
    peer.spoil = True
    with pytest.raises(nixl.nixlBackendError, match="checksum"):
        real.transfer("READ", peer, [(8000, 0, 3000)]).wait(10)


def test_a_peer_that_goes_fails_its_transfers(simple):
    real, peer = simple
    assert real.transfer("WRITE", peer, [(0, 0, 8)]).wait(10) == "DONE"
    session_of(real, peer).bye()
    peer.close()
    with pytest.raises(nixl.nixlRemoteDisconnectError):
        real.transfer("WRITE", peer, [(0, 0, 8)]).wait(20)
