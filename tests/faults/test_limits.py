"""Descriptors and memory run out, here or at the peer: an error that says so, no crash, and when
there is room again all is as before."""

from __future__ import annotations

import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, eventually, outcome, posted  # noqa: E402

DISCONNECT = "nixlRemoteDisconnectError"
SIZE = 4 * MIB
# The transport is the one preferred: there is another where it needs too many descriptors.
LANES = {"host": "", "mapped": "", "stream": "stream"}

# In the process that is to run out of them; `room`: how many it may still open.
TOOLS = """
import os, resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
def run_out(room=0):
    first = os.dup(0)
    os.close(first)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + room, hard))
def run_out_of_memory(room):
    size = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
def recover():
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
def describe(error):
    return type(error).__name__ + ": " + str(error)
def error_of(what):
    try:
        what()
    except Exception as error:
        return describe(error)
def move(operation, peer, there, size, notif=b""):
    try:
        own = agent.get_xfer_descs([(array.ctypes.data, size, 0)], "DRAM")
        other = agent.get_xfer_descs([(there, size, 0)], "DRAM")
        handle = agent.initialize_xfer(operation, own, other, peer, notif)
        agent.transfer(handle)
        return handle.wait(60)
    except Exception as error:
        return describe(error)
"""


def move(far, near, tag: bytes = b"") -> str:
    return far(f"move('WRITE', {near.name!r}, {near.base}, {SIZE}, {tag!r})")


def all_is_well(near, far, transport: str) -> None:
    """Both ways, over the transport that is preferred."""
    lane = "stream" if transport == "stream" else "host"
    # A session that was made without the lane host stays so: a new one.
    far(f"if {near.name!r} in agent.peers(): agent.remove_remote_agent({near.name!r})")
    if far.name not in near.agent.peers():
        near.add_metadata_of(
            far
        )  # else a session that the other side began, and now ends, would be used
    near.agent.remove_remote_agent(far.name)
    far("agent.get_new_notifs()")
    near.add_metadata_of(far)
    # The close reason of the session before may still be on its way.
    eventually(lambda: posted(near, near.prepare("WRITE", far, [(0, 0, 1)])) == "DONE")
    near.works_with(far)
    handle = near.prepare("WRITE", far, [(0, 0, 4096)])
    assert posted(near, handle) == "DONE" and near.agent.explain(handle)["lane"] == lane
    far(f"agent.add_remote_agent({near.agent.get_agent_metadata()!r})")
    far("array[:] = 3")
    assert move(far, near) == "DONE" and (near.array == 3).all()


@pytest.mark.parametrize("room", [0, 3])
def test_no_descriptor_for_the_one_who_asks(make_near, make_far, transport, room):
    near = make_near(SIZE, transport, lanes=LANES[transport])
    far = make_far(SIZE, transport, lanes=LANES[transport], peer_timeout=1)
    far(TOOLS)
    far(f"agent.add_remote_agent({near.agent.get_agent_metadata()!r})")
    far(f"run_out({room})")
    result = move(far, near, tag=b"1")
    if result != "DONE":
        assert result.startswith(("nixlRemoteDisconnectError", "nixlBackendError")), result
        assert near.name in result and "open files" in result, result
    assert "open files" in far("error_of(lambda: nixl.nixl_agent('another'))")
    far("recover()")
    far("array[:] = 4")
    assert move(far, near, tag=b"2") == "DONE" and (near.array == 4).all()
    all_is_well(near, far, transport)


def test_an_agent_has_its_backend_or_is_none(make_far):
    """However many descriptors are left: none comes without what it was to have."""
    far = make_far(SIZE)
    far(TOOLS)
    far("""
def another():
    with nixl.nixl_agent("another") as made:
        return list(made.backends)
made = None
""")
    for room in range(100):
        far(f"run_out({room})")
        error = far("error_of(lambda: globals().update(made=another()))")
        far("recover()")
        if error is None:
            assert far("made") == ["UCX"]
            return
        assert "open files" in error, error
    raise AssertionError("100 descriptors are not enough for an agent")


@pytest.mark.parametrize("when", ["before the first", "between two"])
@pytest.mark.parametrize("room", [0, 3])
def test_no_descriptor_at_the_target(make_near, make_far, companion, transport, room, when):
    """Who connects waits for one, for as long as its peer timeout; or his connection ends."""
    near = make_near(SIZE, transport, lanes=LANES[transport], peer_timeout=60)
    far = make_far(SIZE, transport, lanes=LANES[transport])
    others = companion(near)
    far(TOOLS)
    near.add_metadata_of(far)
    if when == "between two":
        near.agent.send_notif(far.name, b"the session is there")
        far.notifications(near.name, 1)
    far(f"run_out({room})")
    handle = near.prepare("WRITE", far, [(0, 0, SIZE)], b"moved")
    broken = ""
    try:
        near.agent.transfer(handle)
    except nixl.nixlRemoteDisconnectError:  # as it was posted
        broken = DISCONNECT
    time.sleep(0.4)  # sleeps: it tries, and waits, without a descriptor
    far("recover()")
    result = broken or outcome(handle)
    assert result == "DONE" or (room > 0 and result == DISCONNECT), handle.error
    far.notifications(near.name, 1 if result == "DONE" else 0)
    others.more()
    all_is_well(near, far, transport)


@pytest.mark.parametrize("room", [3 * MIB, 16 * MIB])
def test_no_memory_for_the_one_who_asks(make_near, make_far, transport, room):
    """Every call ends with an error that says so, or does what it should. With 1 MiB and less the
    interpreter's own compiler fails now and then (SystemError without a cause)."""
    near = make_near(SIZE, transport, lanes=LANES[transport])
    far = make_far(SIZE, transport, lanes=LANES[transport], peer_timeout=1)
    far(TOOLS)
    far(f"agent.add_remote_agent({near.agent.get_agent_metadata()!r})")
    far(f"run_out_of_memory({room})")
    words = ("memory", "Resource temporarily unavailable", "bad_alloc", "MemoryError")
    calls = [
        f"lambda: nixl.alloc({64 * MIB})",
        "lambda: agent.get_xfer_descs([(i * i, 8, 0) for i in range(1 << 20)], 'DRAM')",
        f"lambda: [agent.send_notif({near.name!r}, bytes(1 << 20)) for _ in range(64)]",
        "lambda: nixl.nixl_agent('another')",
    ]
    for call in calls:
        error = far(f"error_of({call})")
        assert error and any(word in error for word in words), (call, error)
    result = move(far, near, tag=b"moved")
    assert result == "DONE" or any(word in result for word in words), result
    far("recover()")
    all_is_well(near, far, transport)


@pytest.mark.parametrize("when", ["before the first", "between two"])
def test_no_memory_at_the_target(make_near, make_far, companion, transport, when):
    """Its process lives on; whoever asks it for something gets it, or an error."""
    near = make_near(SIZE, transport, lanes=LANES[transport], peer_timeout=2)
    far = make_far(SIZE, transport, lanes=LANES[transport])
    others = companion(near)
    far(TOOLS)
    near.add_metadata_of(far)
    if when == "between two":
        near.works_with(far)
    far(f"run_out_of_memory({2 * MIB})")  # less, and the interpreter fails
    pieces = [(i * 4096 % SIZE, i * 4096 % SIZE, 100 + i % 50) for i in range(20_000)]
    for operation in ("WRITE", "READ"):
        handle = near.prepare(operation, far, pieces, b"x" * (1 << 20))
        assert posted(near, handle) in ("DONE", DISCONNECT)
        assert handle.error is None or far.name in str(handle.error)
    others.more()
    far("recover()")
    all_is_well(near, far, transport)
