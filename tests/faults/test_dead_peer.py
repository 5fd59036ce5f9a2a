"""A peer is stopped or killed before, in the middle of and after a transfer, and comes back."""

from __future__ import annotations

import signal
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import (  # noqa: E402
    MIB,
    eventually,
    in_the_middle,
    no_descriptor_left,
    open_descriptors,
    outcome,
    pattern,
    posted,
    state_of,
)

DISCONNECT = "nixlRemoteDisconnectError"
SIZE = 8 * MIB
SOON = 15  # seconds; "within a second" with room for a loaded machine


def test_killed_before_anything(make_far, make_near, transport, operation, companion):
    far, near = make_far(SIZE, transport), make_near(SIZE, transport)
    companion(near).more()
    near.add_metadata_of(far)
    far.kill()
    far.gone()
    handle = near.prepare(operation, far, [(0, 0, SIZE)])
    with no_descriptor_left():
        begin = time.monotonic()
        assert posted(near, handle) == DISCONNECT and far.name in str(handle.error)
        assert time.monotonic() - begin < SOON


def test_killed_between_two(make_far, make_near, transport, operation, companion):
    far, near = make_far(SIZE, transport), make_near(SIZE, transport)
    near.add_metadata_of(far)
    near.works_with(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)], b"never")
    assert posted(near, handle) == "DONE"
    far.kill()
    far.gone()
    end = time.monotonic() + SOON
    while (result := posted(near, handle)) == "DONE":  # its memory may still be mapped here
        assert transport == "mapped" and time.monotonic() < end
    assert result == DISCONNECT and far.name in str(handle.error)
    assert time.monotonic() < end


def test_killed_in_the_middle(make_far, make_near, transport, operation, companion):
    """Its own transfers fail, soon; the others go on, and nothing is left of it."""
    near = make_near(SIZE, transport, peer_timeout=60)
    others = companion(near)
    before = open_descriptors()
    for _ in range(8):
        far = make_far(SIZE, transport)
        near.add_metadata_of(far)
        near.works_with(far)
        try:
            handle = in_the_middle(near, far, operation, signal.SIGKILL)
        except AssertionError:
            near.agent.remove_remote_agent(far.name)
            continue  # too fast; another one
        begin = time.monotonic()
        assert outcome(handle) == DISCONNECT and far.name in str(handle.error)
        assert time.monotonic() - begin < SOON
        break
    else:
        pytest.fail("no transfer was large enough")
    others.more()
    far.gone()
    handle.release()
    near.agent.remove_remote_agent(far.name)
    eventually(lambda: open_descriptors() <= before)


def test_stopped_for_less_than_the_timeout(make_far, make_near, transport, operation):
    """Nothing is lost: messages wait, transfers end well, each once."""
    near, far = (
        make_near(SIZE, transport, peer_timeout=60),
        make_far(SIZE, transport, peer_timeout=60),
    )
    near.add_metadata_of(far)
    near.works_with(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)])
    for number in range(3):
        far.stop()
        near.agent.transfer(handle, f"{number}".encode())
        assert state_of(near, handle) == "PROC"  # the peer has not queued its message
        far.resume()
        assert outcome(handle) == "DONE"
    assert far.notifications(near.name, 3) == [b"0", b"1", b"2"]


def test_restarted_under_its_name(make_far, make_near, transport, operation, companion):
    """Handles of the one before are errors; the new one works at once and gets no old message."""
    near = make_near(SIZE, transport)
    others = companion(near)
    far = make_far(SIZE, transport)
    near.add_metadata_of(far)
    near.works_with(far)
    old = near.prepare(operation, far, [(0, 0, SIZE)], b"old")
    for _ in range(3):
        far.kill()
        far.gone()
        far = make_far(SIZE, transport, name=far.name)
        near.add_metadata_of(far)
        near.works_with(far)
        canary = pattern(SIZE, 9)
        near.array[:] = canary
        assert posted(near, old) == DISCONNECT
        assert (near.array == canary).all() and far("agent.get_new_notifs()") == {}
        old = near.prepare(operation, far, [(0, 0, SIZE)], b"old")
        assert posted(near, old) == "DONE"
        assert far.notifications(near.name, 1) == [b"old"]
    others.more()


def test_a_newcomer_of_the_same_name_takes_over_when_added(make_far, make_near, transport):
    """Both live: whoever was added last is meant; the other's transfers end."""
    near, first = make_near(SIZE, transport), make_far(SIZE, transport)
    near.add_metadata_of(first)
    near.works_with(first)
    handle = near.prepare("WRITE", first, [(0, 0, SIZE)])
    second = make_far(SIZE, transport, name=first.name)
    near.add_metadata_of(second)
    near.works_with(second)
    first("array[:] = 0")
    assert posted(near, handle) == DISCONNECT
    assert not first("array.any()")
