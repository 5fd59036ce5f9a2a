"""The lane mooncake over the real engine of the PyPI package, by tcp: peers that die or stand
still, cancel, deregistered memory, two hosts, fork and exit. SKIP where the tests' adapter was not
built."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, eventually, open_descriptors, outcome, pattern, posted  # noqa: E402
from lane_tests import (  # noqa: E402, F401
    CANARY,
    DISCONNECT,
    SOON,
    comes_back,
    goes_on_after_a_stop,
    killed_in_the_middle,
    lost,
    much_under_way,
    skip_without,
    stays_as_it_is,
    test_eight_threads,
    test_idle_takes_no_time_and_wakes_up,
    test_killed_before_anything,
    test_removed_and_added_again,
    test_stopped_for_less_than_the_timeout,
    unresolved,
)
from programs import run  # noqa: E402

BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", ""))
ADAPTER = BUILD / "lib" / "standins" / "libmooncake_adapter.so"
SIZE = 8 * MIB


def options_of(**more) -> dict:
    params = {"MOONCAKE": {"protocol": "tcp", "local_hostname": "127.0.0.1"}}
    return {"backends": ["MOONCAKE"], "lanes": "mooncake", "backend_params": params, **more}


@pytest.fixture(scope="module", autouse=True)
def mooncake():
    if not ADAPTER.exists():
        pytest.skip("built without PyPI's mooncake-transfer-engine-non-cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIXL_MOONCAKE_LIBRARY", str(ADAPTER))
        patch.setenv("MC_LOG_LEVEL", "ERROR")
        skip_without("Mooncake", **options_of())
        yield


def test_moves_bytes_and_notifies(pair):
    near, far = pair()
    near.works_with(far)
    how = near.agent.explain(near.prepare("WRITE", far, [(0, 0, SIZE)]))
    assert how["lane"] == "mooncake" and how["device"] == str(ADAPTER) and "tcp" in how["reason"]


def test_scattered_blocks_arrive_where_they_belong(pair, operation):
    """Many more than the engine takes at a time."""
    near, far = pair()
    count, block = 4096, 1024
    order = np.random.default_rng(5).permutation(count)
    far.fill(3)
    near.array[:] = pattern(SIZE, 4)
    pieces = [(2 * i * 1024, 2 * int(order[i]) * 1024, block) for i in range(count)]
    assert posted(near, near.prepare(operation, far, pieces)) == "DONE"
    there = np.frombuffer(far("array.tobytes()"), np.uint8).reshape(count, 2, block)
    here = near.array.reshape(count, 2, block)
    assert (there[order, 0] == here[:, 0]).all()
    mine, theirs = pattern(SIZE, 4).reshape(count, 2, block), pattern(SIZE, 3)
    assert (here[:, 1] == mine[:, 1]).all()
    assert (there[:, 1] == theirs.reshape(count, 2, block)[:, 1]).all()


def test_registrations_that_overlap(pair, operation):
    """The engine's may not: it gets ranges that share no byte, and nothing is moved across."""
    near, far = pair()
    near.agent.register_memory(near.array[MIB : 3 * MIB])
    far(f"parts = [agent.register_memory(array[i * {MIB}:(i + 2) * {MIB}]) for i in range(6)]")
    far("agent.deregister_memory(registered)")
    near.add_metadata_of(far, far("agent.get_agent_metadata()"))
    far.fill(3)
    near.array[:] = pattern(SIZE, 4)
    whole = [(i * MIB + 5, i * MIB + 5, 2 * MIB - 5) for i in range(6)]
    assert posted(near, near.prepare(operation, far, whole)) == "DONE"
    covered = slice(5, 7 * MIB)
    there = np.frombuffer(far("array.tobytes()"), np.uint8)
    seed = 4 if operation == "WRITE" else 3
    assert (there[covered] == pattern(SIZE, seed)[covered]).all()
    assert (near.array[covered] == pattern(SIZE, seed)[covered]).all()


def test_memory_that_is_registered_no_more(pair, operation):
    """The target refuses it, and its neighbours are moved."""
    near, far = pair()
    far(f"parts = [agent.register_memory(array[i * {MIB}:(i + 1) * {MIB}]) for i in range(4)]")
    far("agent.deregister_memory(registered)")
    near.add_metadata_of(far, far("agent.get_agent_metadata()"))
    pieces = [(i * MIB, i * MIB, MIB) for i in range(4)]
    handle = near.prepare(operation, far, pieces)
    assert posted(near, handle) == "DONE"
    far("agent.deregister_memory(parts.pop(1))")
    assert posted(near, handle) == "nixlBackendError"
    assert list(handle.failed) == [1]
    assert far.name in str(handle.error) and "registered" in str(handle.error)
    others = near.prepare(operation, far, [pieces[0], *pieces[2:]])
    assert posted(near, others) == "DONE"


def test_killed_in_the_middle(pair, make_far, operation):
    """Its own transfers fail, soon; the others go on; its name can come back."""
    near, far = pair(peer_timeout=60)
    others = support.Companion(near, make_far(MIB, **options_of()))
    try:
        near.works_with(far)
        others.more()
        before = open_descriptors()
        handle = killed_in_the_middle(near, far, operation)
        others.more()
        comes_back(near, make_far, far, options_of())
        busy = "nixlRepostActiveError"  # until the engine has nothing of it any more
        assert eventually(lambda: {posted(near, handle)} - {busy}) == {DISCONNECT}
        handle.release()
        near.agent.remove_remote_agent(far.name)
        others.more()
        eventually(lambda: open_descriptors() <= before + 4)  # one peer's connections
    finally:
        others.end()


def test_stopped_for_longer_than_the_timeout(pair, make_far, operation):
    """The session tells that the peer is silent; others do not notice that the engine goes."""
    near, far = pair(peer_timeout=2)
    others = support.Companion(near, make_far(MIB, **options_of()))
    try:
        near.works_with(far)
        handle = much_under_way(near, far, operation)
        far.stop()
        lost(handle, far)
        others.more()
        goes_on_after_a_stop(near, far, operation)
    finally:
        others.end()


def test_stopped_for_good(pair, make_far, operation):
    near, far = pair(peer_timeout=2)
    near.works_with(far)
    handle = much_under_way(near, far, operation)
    far.stop()
    lost(handle, far)
    eventually(lambda: not unresolved(near))  # once that engine has ended
    stays_as_it_is(near)
    far.kill()
    comes_back(near, make_far, far, options_of())


@pytest.mark.parametrize("stopped", [False, True])
def test_agent_ends_in_the_middle(pair, operation, stopped):
    near, far = pair(peer_timeout=60)
    _held = much_under_way(near, far, operation)
    if stopped:
        far.stop()
    begin = time.monotonic()
    near.agent.close()
    assert time.monotonic() - begin < SOON
    near.array[:] = CANARY
    far.resume()
    assert far("len(array)") == SIZE
    time.sleep(0.2)  # sleeps: for what nobody stopped
    assert (near.array == CANARY).all()


def test_cancelled_in_the_middle(pair, operation):
    """What the engine has is waited for; afterwards no byte changes, here or there."""
    near, far = pair(peer_timeout=60)
    for _ in range(3):
        handle = much_under_way(near, far, operation)
        handle.cancel()
        assert outcome(handle) == "nixlCancelledError"
        eventually(lambda: not unresolved(near))
        near.array[:] = CANARY
        at_rest = far("array.tobytes()")
        time.sleep(0.2)  # sleeps: for what nobody stopped
        assert (near.array == CANARY).all() and far("array.tobytes()") == at_rest
        handle.release()
    near.works_with(far)
    assert far("agent.get_new_notifs()") == {}


def test_cancelled_while_its_peer_stands_still(pair, operation):
    near, far = pair(peer_timeout=60)
    near.works_with(far)
    handle = much_under_way(near, far, operation)
    far.stop()
    begin = time.monotonic()
    handle.cancel()
    assert outcome(handle) == "nixlCancelledError"
    assert time.monotonic() - begin < SOON
    assert "remote_unconfirmed" in str(handle.error)
    eventually(lambda: not unresolved(near))
    near.array[:] = CANARY
    far.resume()
    time.sleep(0.2)  # sleeps: for what nobody stopped
    assert (near.array == CANARY).all()
    near.works_with(far)


def test_a_peer_without_the_backend(make_near, make_far):
    near, far = make_near(SIZE, **options_of()), make_far(SIZE, backends=["UCX"])
    near.add_metadata_of(far)
    with pytest.raises(nixl.nixlError, match="MOONCAKE") as error:
        near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert far.name in str(error.value)


def test_two_hosts(make_far, network):
    """Each in a network of its own, by the address that it finds itself."""
    options = options_of()
    del options["backend_params"]["MOONCAKE"]["local_hostname"]
    options["lanes"] = "stream,mooncake"  # they are on one host all the same
    first = make_far(SIZE, prefix=network.inside(network.near), **options)
    second = make_far(SIZE, prefix=network.inside(network.far), **options)
    first.fill(5)
    state, how = first(f"""
agent.add_remote_agent({second.metadata!r})
here = agent.get_xfer_descs([(array.ctypes.data, {SIZE}, 0)], "DRAM")
there = agent.get_xfer_descs([({second.base}, {SIZE}, 0)], "DRAM")
handle = agent.initialize_xfer("WRITE", here, there, {second.name!r}, b"here")
agent.transfer(handle)
result = handle.wait(60), agent.explain(handle)
""")
    assert (state, how["lane"]) == ("DONE", "mooncake"), how
    assert second.notifications(first.name, 1) == [b"here"] and second.holds(5)
    first("array[:] = 0")
    back = first(f"""
back = agent.initialize_xfer("READ", here, there, {second.name!r})
agent.transfer(back)
result = back.wait(60)
""")
    assert back == "DONE" and first.holds(5)


FORKS = """
import os, sys
import numpy as np
import nixl
config = nixl.nixl_agent_config(backends=["MOONCAKE"], lanes="mooncake", backend_params={params!r})
agent = nixl.nixl_agent("forks", config)
array = np.ones({size}, np.uint8)
agent.register_memory(array)
here = agent.get_xfer_descs([(array.ctypes.data, {size}, 0)], "DRAM")
handle = agent.initialize_xfer("WRITE", here, here, "forks")
agent.transfer(handle)
child = os.fork()
if child == 0:
    try:
        agent.transfer(handle)
    except nixl.nixlError:
        sys.exit(3)  # as it ends it drops the agent
    sys.exit(4)
assert handle.wait(60) == "DONE"
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
agent.transfer(handle)
if sys.argv[1] == "close":
    assert handle.wait(60) == "DONE"
    agent.close()
print("ended")
"""


@pytest.mark.parametrize("how", ["close", "exit"])
def test_fork_and_exit(how):
    """A child leaves the engine alone; whoever exits in the middle ends."""
    params = options_of()["backend_params"]
    program = FORKS.format(params=params, size=32 * MIB)
    done = run(program, how)
    assert done.returncode == 0 and "ended" in done.stdout, done.stderr
