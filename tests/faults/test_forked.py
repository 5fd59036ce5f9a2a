"""A process forks while its agents move bytes, as the one who asks and as the one who serves."""

from __future__ import annotations

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, outcome, pattern, posted  # noqa: E402

SIZE = 8 * MIB

# The child says what the parent's agent tells it, then stays until the pipe is closed.
FORK = """
told, tell = os.pipe()
stay, leave = os.pipe()
child = os.fork()
if child == 0:
    os.close(leave)
    try:
        agent.get_new_notifs()
        text = "no error"
    except BaseException as error:
        text = type(error).__name__ + " " + str(error)
    try:
        own = nixl.nixl_agent("of the child")
        own.register_memory(np.zeros(4096, np.uint8))
        own.get_agent_metadata()
        own.close()
        del own
    except BaseException as error:
        text += " own: " + str(error)
    os.write(tell, text.encode())
    os.read(stay, 1)
    os._exit(0)
os.close(tell)
os.close(stay)
result = os.read(told, 4096).decode(), os.getpid(), child
"""
LEAVE = "os.close(leave); os.close(told); result = os.waitpid(child, 0)[1]"


def check(answer) -> None:
    text, parent, child = answer
    assert text.startswith("nixlNotAllowedError") and "own:" not in text, text
    assert str(parent) in text and str(child) in text, text


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_the_target_forks(make_near, make_far, companion, transport, operation):
    """Under a transfer; the memory that is moved is the parent's, before and after."""
    near, far = make_near(SIZE, transport), make_far(SIZE, transport)
    others = companion(near)
    near.add_metadata_of(far)
    near.works_with(far)
    for number in range(2):
        near.array[:] = pattern(SIZE, number) if operation == "WRITE" else 0
        far("array[:] = 0") if operation == "WRITE" else far.fill(number)
        handle = near.post(operation, far, [(0, 0, SIZE)] * 100, b"moved")
        check(far(FORK))
        assert outcome(handle) == "DONE"
        assert far.notifications(near.name, 1) == [b"moved"]
        assert far.holds(number) and (near.array == pattern(SIZE, number)).all()
        near.works_with(far)  # the child still lives
        assert far(LEAVE) == 0
        near.works_with(far)
    others.more()


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_the_initiator_forks(make_near, make_far, transport, operation):
    asks, serves = make_far(SIZE, transport), make_far(SIZE, transport)
    code = f"""
agent.add_remote_agent({serves.metadata!r})
descs = lambda at: agent.get_xfer_descs([(at, {SIZE}, 0)] * 100, "DRAM")
handle = agent.initialize_xfer(
    {operation!r}, descs(array.ctypes.data), descs({serves.base}), {serves.name!r}, b"moved")
"""
    asks(code)
    source, sink = (asks, serves) if operation == "WRITE" else (serves, asks)
    for number in range(2):
        source.fill(number + 2)
        sink("array[:] = 0")
        asks("agent.transfer(handle)")
        check(asks(FORK))
        assert asks("handle.wait(60)") == "DONE"
        assert serves.notifications(asks.name, 1) == [b"moved"]
        assert sink.holds(number + 2) and source.holds(number + 2)
        assert asks(LEAVE) == 0
    asks("agent.transfer(handle)")
    assert asks("handle.wait(60)") == "DONE"


def test_killed_with_a_child_that_lives_on(make_near, make_far, companion, transport):
    """The child keeps the sockets open, so nothing hangs up: its parent's end is seen all the
    same, on one host at once."""
    near, far = make_near(SIZE, transport, peer_timeout=60), make_far(SIZE, transport)
    others = companion(near)
    near.add_metadata_of(far)
    near.works_with(far)
    child = far(FORK)[2]
    handle = near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert posted(near, handle) == "DONE"
    far.kill()
    far.process.wait(60)
    try:
        import time

        end = time.monotonic() + 20
        while (result := posted(near, handle)) == "DONE":
            assert time.monotonic() < end
        assert result == "nixlRemoteDisconnectError"
        assert time.monotonic() < end, "only the peer timeout saw it"
        others.more()
    finally:
        import os
        import signal

        os.kill(child, signal.SIGKILL)
