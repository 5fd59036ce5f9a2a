"""The connection to the peer is slow, half-open, or cut within a frame (a proxy does it)."""

from __future__ import annotations

import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import (  # noqa: E402
    MIB,
    no_descriptor_left,
    outcome,
    pattern,
    posted,
)
from proxy import CONTROL, DATA  # noqa: E402

DISCONNECT = "nixlRemoteDisconnectError"
WHOLE = [(0, 0, 8 * MIB)]


@pytest.fixture
def met(make_far, make_near, make_proxy):
    """(near, far, proxy): near reaches far through the proxy."""
    far, near = make_far(8 * MIB, peer_timeout=2), make_near(8 * MIB, peer_timeout=2)
    proxy, metadata = make_proxy(far)
    near.add_metadata_of(far, metadata)
    return near, far, proxy


def test_a_slow_connection_only_takes_time(met):
    """Longer than the peer timeout, with bytes that flow: nothing fails."""
    near, far, proxy = met
    near.works_with(far)
    proxy.rate = 2.5 * MIB  # 8 MiB take more than three seconds, the peer timeout is two
    near.array[:] = pattern(8 * MIB, 2)
    begin = time.monotonic()
    assert near.post("WRITE", far, WHOLE, b"slow").wait(60) == "DONE"
    assert time.monotonic() - begin > 2
    assert far.holds(2) and far.notifications(near.name, 1) == [b"slow"]
    near.array[:] = 0
    assert near.post("READ", far, WHOLE).wait(60) == "DONE"
    assert (near.array == pattern(8 * MIB, 2)).all()
    proxy.rate = 0
    near.works_with(far)


def test_a_delayed_connection_only_takes_time(met):
    near, far, proxy = met
    proxy.delay = 0.05
    for number in range(5):
        tag = f"{number}".encode()
        assert near.post("WRITE", far, [(0, 0, 1000 * number + 1)], tag).wait(60) == "DONE"
    assert far.notifications(near.name, 5) == [f"{i}".encode() for i in range(5)]


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
@pytest.mark.parametrize("frozen", ["everything", "data", "data down", "data up"])
def test_a_half_open_connection_ends_the_transfer(met, companion, operation, frozen):
    """Nothing says that the other side is gone: within about the peer timeout the transfer fails.
    Others go on, and when the connection is open again so is this one."""
    near, far, proxy = met
    near.works_with(far)
    others = companion(near)
    with no_descriptor_left(slack=2):
        if frozen == "everything":
            proxy.freeze_all()
        else:
            directions = frozen.split()[1:] or ["up", "down"]
            proxy.freeze(*((DATA, direction) for direction in directions))
        handle = near.prepare(operation, far, [(MIB, MIB, 7 * MIB)], b"never")
        begin = time.monotonic()
        result = posted(near, handle)
        took = time.monotonic() - begin
        assert result == DISCONNECT, (result, handle.error)
        assert far.name in str(handle.error)
        assert took < 2 * 2 + 10, took  # peer_timeout, twice, and the machine's load
        others.more()
        proxy.thaw()
        assert "never" not in str(far("agent.get_new_notifs()"))
        near.works_with(far)


def test_a_connection_that_never_answers_ends_the_transfer(met):
    near, far, proxy = met
    proxy.mute = True
    begin = time.monotonic()
    handle = near.post("WRITE", far, [(0, 0, 100)], b"never")
    assert outcome(handle) == DISCONNECT
    assert time.monotonic() - begin < 2 * 2 + 10
    proxy.mute = False
    near.works_with(far)


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
@pytest.mark.parametrize("where", [3, 21, 4096, 300_000, 5 * MIB + 7])
def test_cut_in_the_middle_of_payload(met, operation, where):
    """Inside a header, a chunk or between: the transfer fails, what it names as moved is right, and
    the next one makes a new connection."""
    near, far, proxy = met
    near.works_with(far)
    near.array[:] = pattern(8 * MIB, 2)
    far("array[:] = 0")
    source_seed = 2
    if operation == "READ":
        far.fill(3)
        near.array[:] = 0
        source_seed = 3
    handle = near.prepare(operation, far, [(i * MIB, i * MIB, MIB) for i in range(8)], b"end")
    proxy.cut_after(DATA, "up" if operation == "WRITE" else "down", where)
    result = posted(near, handle)
    assert proxy.wait(lambda: proxy.cuts == 1)
    assert result == DISCONNECT and handle.failed
    assert far("agent.get_new_notifs()") == {}
    source = pattern(8 * MIB, source_seed)
    if operation == "READ":
        for index in range(8):
            sound = index * MIB + (handle.failed[index][1] if index in handle.failed else MIB)
            begin = index * MIB
            assert (near.array[begin:sound] == source[begin:sound]).all(), index
    else:
        for index in set(range(8)) - set(handle.failed):
            assert far.holds(source_seed, index * MIB, MIB), index
    assert posted(near, handle) == "DONE"
    assert far.notifications(near.name, 1) == [b"end"]
    near.works_with(far)


@pytest.mark.parametrize("where", [1, 8, 40, 70_000, 900_000])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_cut_in_the_middle_of_a_notification(met, direction, where):
    """The session goes on over another connection: each message once, in order."""
    near, far, proxy = met
    near.works_with(far)
    messages = [f"{i}".encode() * (1 + 20_000 * (i % 4)) for i in range(60)]
    if direction == "down":
        where //= 20_000  # acknowledgements are short
    proxy.cut_after(CONTROL, direction, where + 1)
    for message in messages:
        near.agent.send_notif(far.name, message)
    assert far.notifications(near.name, len(messages)) == messages
    assert proxy.wait(lambda: proxy.cuts == 1)
    near.works_with(far)


def test_cut_again_and_again(met):
    """Connections of both kinds end at any moment: transfers end, messages come once and in
    order."""
    near, far, proxy = met
    near.works_with(far)
    handle = near.prepare("WRITE", far, WHOLE)
    silent = near.prepare("WRITE", far, WHOLE)  # the other one keeps its last message
    done = []
    with no_descriptor_left(slack=2):
        for number in range(40 * support.SOAK):
            tag = f"{number}".encode()
            try:
                near.agent.transfer(handle, tag)
            except nixl.nixlRemoteDisconnectError:
                continue  # the cut before was seen only now
            time.sleep(number % 9 / 2000)  # sleeps: to cut at another moment in each round
            proxy.cut((CONTROL, DATA, None)[number % 3], reset=number % 2 == 0)
            if outcome(handle) == "DONE":
                done.append(tag)
        assert posted(near, silent) in ("DONE", DISCONNECT)
    assert posted(near, silent) == "DONE"
    arrived = far("agent.get_new_notifs()").get(near.name, [])
    near.works_with(far)
    # A failed one may have arrived where its acknowledgement was lost; none comes twice.
    assert set(done) <= set(arrived) and len(set(arrived)) == len(arrived)
    assert arrived == sorted(arrived, key=int)
