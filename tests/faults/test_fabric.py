"""The lane fabric over the real libfabric, by its tcp: peers that die or stand still, cancel,
deregistered memory, idling, rails. SKIP where libfabric is not installed."""

from __future__ import annotations

import mmap
import os
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, eventually, in_progress, outcome, posted  # noqa: E402
from lane_tests import (  # noqa: E402, F401
    CANARY,
    DISCONNECT,
    comes_back,
    goes_on_after_a_stop,
    killed_in_the_middle,
    lost,
    much,
    much_under_way,
    skip_without,
    stays_as_it_is,
    test_agent_ends_in_the_middle,
    test_idle_takes_no_time_and_wakes_up,
    test_killed_before_anything,
    test_removed_and_added_again,
    test_stopped_for_less_than_the_timeout,
)

SIZE = 4 * MIB


def options_of(**more) -> dict:
    params = {"LIBFABRIC": {"provider": "tcp", "device_list": "lo"}}
    return {"backends": ["LIBFABRIC"], "lanes": "fabric", "backend_params": params, **more}


@pytest.fixture(scope="module", autouse=True)
def libfabric() -> None:
    skip_without("libfabric", **options_of())


# The other process writes 7 to this one's memory, again and again.
WRITE_TO = """
descs = agent.get_xfer_descs([(array.ctypes.data, array.nbytes, 0)] * 1024, "DRAM")
there = agent.get_xfer_descs([({address}, {size}, 0)] * 1024, "DRAM")
array[:] = 7
write = agent.initialize_xfer("WRITE", descs, there, {name!r})
agent.transfer(write)
"""


def test_moves_bytes_and_notifies(pair):
    near, far = pair()
    near.works_with(far)
    handle = near.prepare("WRITE", far, [(0, 0, SIZE)])
    how = near.agent.explain(handle)
    assert how["lane"] == "fabric" and "tcp" in how["device"]


def test_killed_in_the_middle(pair, make_far, operation):
    """Its transfers fail; its name can come back."""
    near, far = pair(peer_timeout=60)
    near.works_with(far)
    handle = killed_in_the_middle(near, far, operation)
    comes_back(near, make_far, far, options_of(peer_timeout=60))
    assert posted(near, handle) == DISCONNECT  # of the one before


def test_stopped_for_longer_than_the_timeout(pair, operation):
    near, far = pair(peer_timeout=2)
    near.works_with(far)
    handle = much_under_way(near, far, operation)
    far.stop()
    lost(handle, far)
    goes_on_after_a_stop(near, far, operation)


@pytest.mark.parametrize("stopped", [False, True])
def test_cancelled_read_changes_no_byte(pair, stopped):
    """Where the end could not be had at once, the memory stays in use until there is one."""
    near, far = pair(peer_timeout=60)
    near.works_with(far)
    handle = much_under_way(near, far, "READ")
    if stopped:
        far.stop()
    handle.cancel()
    assert outcome(handle) == "nixlCancelledError"
    if "remote_unconfirmed" in str(handle.error):
        near.agent.deregister_memory(near.registered)  # waits for the end
        near.registered = near.agent.register_memory(near.array)
    stays_as_it_is(near)
    far.resume()
    handle.release()
    near.works_with(far)


def test_cancelled_write_goes_no_further(pair):
    near, far = pair(peer_timeout=60)
    handle = much_under_way(near, far, "WRITE")
    handle.cancel()
    assert outcome(handle) == "nixlCancelledError"
    handle.release()
    near.works_with(far)
    assert far.notifications(near.name, 0) == []


def test_deregistered_in_the_middle(pair, operation):
    """Once deregistering has returned the target's memory does not change any more."""
    near, far = pair(peer_timeout=60)
    handle = much_under_way(near, far, operation)
    far("agent.deregister_memory(registered)")
    at_rest = far("array.tobytes()")
    assert outcome(handle) == "nixlNotFoundError", str(handle.error)
    time.sleep(0.2)  # sleeps: for what nobody stopped
    assert far("array.tobytes()") == at_rest
    assert posted(near, handle) == "nixlNotFoundError"
    far("registered = agent.register_memory(array)")
    assert posted(near, handle) == "nixlNotFoundError"  # of the registration before


def test_deregistered_while_its_peer_stands_still(pair):
    """The target does not wait for ever, and what the peer sends later hits nothing."""
    near, far = pair(peer_timeout=60)
    metadata = near.agent.get_agent_metadata()
    far(f"agent.add_remote_agent({metadata!r})")
    far(WRITE_TO.format(address=near.base, size=SIZE, name=near.name))
    eventually(lambda: (near.array[::4096] == 7).any())
    far.stop()
    near.agent.deregister_memory(near.registered)
    near.array[:] = CANARY
    far.resume()
    time.sleep(0.3)  # sleeps: for what nobody stopped
    assert (near.array == CANARY).all()


def test_the_initiator_is_killed(make_near, make_far):
    """The target lets go of its memory, and others go on."""
    options = options_of(peer_timeout=60)
    near, far = make_near(SIZE, **options), make_far(SIZE, **options)
    other = make_far(SIZE, **options)
    metadata = near.agent.get_agent_metadata()
    for one in (far, other):
        one(f"agent.add_remote_agent({metadata!r})")
        one(WRITE_TO.format(address=near.base, size=SIZE, name=near.name))
    eventually(lambda: (near.array[::4096] == 7).any())
    far.kill()
    far.gone()
    assert other("write.wait(60)") == "DONE"
    near.agent.deregister_memory(near.registered)
    stays_as_it_is(near)


def test_forks_in_the_middle(pair, operation):
    """A child changes nothing, whether it ends at once or lives on."""
    near, far = pair(peer_timeout=60)
    handle = much(near, far, operation, b"done")
    in_progress(near, far, operation, handle)
    ready, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go_on)
        os.read(ready, 1)  # ends with its parent, or is told
        os._exit(0)
    os.close(ready)
    assert outcome(handle) == "DONE"
    os.close(go_on)
    os.waitpid(child, 0)
    assert far.notifications(near.name, 1) == [b"done"]
    near.works_with(far)


def test_a_process_that_just_ends(pair, operation):
    """Without closing its agent, in the middle; nothing of it is left in /dev/shm."""
    before = set(os.listdir("/dev/shm"))
    near, far = pair(peer_timeout=60)
    handle = much_under_way(near, far, operation)
    far.order("os._exit(0)")
    assert outcome(handle) == DISCONNECT
    far.gone()
    assert not [name for name in set(os.listdir("/dev/shm")) - before if str(far.pid) in name]


def test_memory_that_is_gone(pair):
    """Unmapped without a word: an error, for this transfer alone. (A READ into it would be the end
    of the process, as libfabric copies there itself.)"""
    near, far = pair()
    near.works_with(far)
    gone = mmap.mmap(-1, SIZE)
    where = np.frombuffer(gone, np.uint8).ctypes.data
    near.agent.register_memory([(where, SIZE, 0, "")], "DRAM")
    here = near.agent.get_xfer_descs([(where, SIZE, 0)], "DRAM")
    there = near.agent.get_xfer_descs([(far.base, SIZE, 0)], "DRAM")
    handle = near.agent.initialize_xfer("WRITE", here, there, far.name)
    gone.close()
    assert posted(near, handle) == DISCONNECT and "Bad address" in str(handle.error)
    near.works_with(far)
