"""A peer that is stopped (SIGSTOP) before the first transfer, between two and in the middle of one:
its transfers end by the peer timeout or by their own deadline, and when it goes on, nothing happens
that was taken back."""

from __future__ import annotations

import signal
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import (  # noqa: E402
    MIB,
    in_the_middle,
    outcome,
    pattern,
    posted,
    state_of,
)

DISCONNECT = "nixlRemoteDisconnectError"
TIMEOUT = "nixlTimeoutError"
SIZE = 8 * MIB
CANARY = 0xEE  # even: no pattern has it
SEED = 2
CASES = [
    ("before the first", "WRITE"),
    ("between two", "READ"),
    ("in the middle", "WRITE"),
    ("in the middle", "READ"),
]


@pytest.fixture
def make_pair(make_near, make_far, transport):
    """(near, far), acquainted; the far one never gives up first."""

    def make(when: str, **options):
        near, far = (
            make_near(SIZE, transport, **options),
            make_far(SIZE, transport, peer_timeout=60),
        )
        near.add_metadata_of(far)
        if when != "before the first":
            near.works_with(far)
        return near, far

    return make


def ready(near, far, operation: str) -> None:
    """Source and destination have nothing in common."""
    near.array[:] = pattern(SIZE, SEED) if operation == "WRITE" else 0
    far("array[:] = 0") if operation == "WRITE" else far.fill(SEED)


def post_to_stopped(near, far, operation: str, when: str):
    """The handle of a transfer that cannot end, since its peer has been stopped."""
    if when == "in the middle":
        return in_the_middle(near, far, operation, signal.SIGSTOP)
    handle = near.prepare(operation, far, [(0, 0, SIZE)], b"never")
    far.stop()
    near.agent.transfer(handle)
    return handle


def nothing_is_late(near, far, operation: str, text: str) -> None:
    """The transfer has ended, with `text`; then the canary was written, then the peer went on."""
    beside = pattern(4096, 1)
    near.agent.register_memory(beside)
    there = near.agent.get_xfer_descs([(far.base, 4096, 0)], "DRAM")
    after = near.agent.initialize_xfer("READ", beside, there, far.name, b"after")
    while posted(near, after) != "DONE":  # the peer may think that the session lives
        time.sleep(0.1)  # sleeps: between two tries
    arrived: list[bytes] = []
    while b"after" not in arrived:
        arrived += far("agent.get_new_notifs()").get(near.name, [])
    time.sleep(0.1)  # sleeps: for what nobody stopped
    arrived += far("agent.get_new_notifs()").get(near.name, [])
    assert arrived.count(b"after") == 1
    assert arrived.count(b"never") <= ("remote_unconfirmed" in text), (arrived, text)
    assert (near.array == CANARY).all()
    if operation == "WRITE":
        assert not far(f"bool((array == {CANARY}).any())"), "bytes that were never to be sent"
    near.works_with(far)


@pytest.mark.parametrize(("when", "operation"), CASES)
def test_stopped_for_longer_than_the_timeout(make_pair, companion, operation, when):
    near, far = make_pair(when, peer_timeout=1)
    others = companion(near)
    ready(near, far, operation)
    begin = time.monotonic()
    handle = post_to_stopped(near, far, operation, when)
    begin = begin if when != "in the middle" else time.monotonic()
    assert outcome(handle) == DISCONNECT and far.name in str(handle.error)
    assert time.monotonic() - begin < 2 * 1 + 10  # the peer timeout, twice, and the load
    text = str(handle.error)
    near.array[:] = CANARY
    others.more()
    far.resume()
    nothing_is_late(near, far, operation, text)


@pytest.mark.parametrize(("when", "operation"), CASES)
def test_the_deadline_of_a_transfer(make_pair, make_near, companion, operation, when):
    """The peer timeout is far away: the transfer's own limit ends it, and nothing else."""
    near, far = make_pair(when, peer_timeout=60, xfer_timeout=0.5)
    ready(near, far, operation)
    handle = post_to_stopped(near, far, operation, when)
    begin = time.monotonic()
    assert outcome(handle) == TIMEOUT
    assert time.monotonic() - begin < 0.5 + 10
    text = str(handle.error)
    assert "xfer_timeout" in text and far.name in text, text
    near.array[:] = CANARY
    companion(make_near()).more()
    far.resume()
    nothing_is_late(near, far, operation, text)
    assert posted(near, handle) in ("DONE", TIMEOUT)


@pytest.mark.parametrize(("when", "operation"), CASES[1:3])
def test_the_deadline_of_a_wait(make_pair, operation, when):
    """That ends the waiting alone: the transfer goes on when the peer does."""
    near, far = make_pair(when, peer_timeout=60)
    ready(near, far, operation)
    handle = post_to_stopped(near, far, operation, when)
    for _ in range(2):
        with pytest.raises(nixl.nixlTimeoutError, match="NIXL_ERR_TIMEOUT: .*") as waited:
            handle.wait(0.2)
        assert far.name in str(waited.value)
        assert state_of(near, handle) == "PROC" and handle.error is None
    far.resume()
    assert outcome(handle) == "DONE"
    assert far.notifications(near.name, 1) == [b"never"]
    near.works_with(far)
