"""The lane ucx over the real UCX library, by its transport tcp: peers that die or stand still,
cancel, idling, workers, transports that cannot connect. SKIP where UCX is not installed."""

from __future__ import annotations

import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import (  # noqa: E402
    MIB,
    UCX_OVER_TCP,
    eventually,
    in_progress,
    open_descriptors,
    outcome,
    pattern,
    posted,
)
from lane_tests import (  # noqa: E402, F401
    CANARY,
    DISCONNECT,
    SOON,
    comes_back,
    eight_threads_move,
    goes_on_after_a_stop,
    idles_and_wakes_up,
    killed_in_the_middle,
    lost,
    much,
    much_under_way,
    skip_without,
    test_agent_ends_in_the_middle,
    test_killed_before_anything,
    test_removed_and_added_again,
    test_stopped_for_less_than_the_timeout,
    unresolved,
)

SIZE = 8 * MIB
TWO_WORKERS = {"UCX": {**UCX_OVER_TCP, "num_workers": "2"}}


def options_of(**more) -> dict:
    return {"transport": "ucx", **more}


@pytest.fixture(scope="module", autouse=True)
def ucx() -> None:
    skip_without("UCX", backends=["UCX"], lanes="ucx")


def companion_of(near, make_far):
    return support.Companion(near, make_far(MIB, near.transport))


def test_moves_bytes_and_notifies(pair):
    near, far = pair()
    near.works_with(far)
    handle = near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert near.agent.explain(handle)["lane"] == "ucx"


def test_killed_in_the_middle(pair, make_far, operation):
    """Its own transfers fail, soon; the others go on; its name can come back."""
    near, far = pair(peer_timeout=60)
    others = companion_of(near, make_far)
    try:
        near.works_with(far)
        others.more()
        before = open_descriptors()
        handle = killed_in_the_middle(near, far, operation)
        others.more()
        comes_back(near, make_far, far, {"transport": near.transport})
        assert posted(near, handle) == DISCONNECT  # of the one before
        handle.release()
        near.agent.remove_remote_agent(far.name)
        others.more()
        eventually(lambda: open_descriptors() <= before)
    finally:
        others.end()


def test_stopped_for_good(pair, make_far, operation):
    """UCX itself would wait for ever: the session tells that the peer is silent."""
    near, far = pair(peer_timeout=2)
    others = companion_of(near, make_far)
    try:
        near.works_with(far)
        handle = much_under_way(near, far, operation)
        far.stop()
        begin = time.monotonic()
        lost(handle, far)
        assert time.monotonic() - begin < 2 + SOON
        others.more()
        far.kill()  # going on, UCX could abort it: see the plugin's README
        comes_back(near, make_far, far, {"transport": near.transport})
    finally:
        others.end()


def test_stopped_for_longer_than_the_timeout(pair, operation):
    """With nothing of it under way there, the peer can be used again when it goes on."""
    near, far = pair(peer_timeout=2)
    near.works_with(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)], b"never")
    far.stop()
    near.agent.transfer(handle)
    lost(handle, far)
    goes_on_after_a_stop(near, far, operation)


def test_agent_ends_while_its_peer_stands_still(pair, operation):
    near, far = pair(peer_timeout=60)
    _held = much_under_way(near, far, operation)
    far.stop()
    begin = time.monotonic()
    near.agent.close()
    assert time.monotonic() - begin < SOON
    far.kill()  # going on, UCX could abort it: see the plugin's README


@pytest.mark.parametrize("stopped", [False, True])
def test_cancelled_read_changes_no_byte(pair, stopped):
    """Also where the peer has stopped in the middle; another READ does not notice."""
    near, far = pair(peer_timeout=60)
    near.works_with(far)
    beside = np.zeros(SIZE, np.uint8)
    near.agent.register_memory(beside)
    there = near.agent.get_xfer_descs([(far.base, SIZE, 0)], "DRAM")
    other = near.agent.initialize_xfer("READ", beside, there, far.name)
    for _ in range(3):
        handle = much(near, far, "READ")
        in_progress(near, far, "READ", handle)
        if stopped:
            far.stop()
            near.agent.transfer(other)
        handle.cancel()
        near.array[:] = CANARY
        with pytest.raises(nixl.nixlCancelledError) as error:
            handle.wait(0)
        assert "remote_unconfirmed" not in str(error.value)
        far.resume()
        if not stopped:
            near.agent.transfer(other)
        assert outcome(other) == "DONE"
        assert (beside == pattern(SIZE, 3)).all()
        time.sleep(0.2)  # sleeps: for what nobody stopped
        assert (near.array == CANARY).all()
        handle.release()
    near.works_with(far)


def test_cancelled_write_ends(pair):
    near, far = pair(peer_timeout=60)
    handle = much(near, far, "WRITE")
    in_progress(near, far, "WRITE", handle)
    handle.cancel()
    assert outcome(handle) == "nixlCancelledError"
    eventually(lambda: not unresolved(near))
    at_rest = far("array.tobytes()")
    near.array[:] = CANARY
    time.sleep(0.2)  # sleeps: for what nobody stopped
    assert far("array.tobytes()") == at_rest
    near.works_with(far)
    assert far("agent.get_new_notifs()") == {}


def test_idle_takes_no_time_and_wakes_up(pair):
    idles_and_wakes_up(*pair(backend_params=TWO_WORKERS))


def test_eight_threads_over_several_workers(pair):
    near, far = pair(backend_params=TWO_WORKERS)
    whole = near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert "2 workers" in near.agent.explain(whole)["reason"]
    eight_threads_move(near, far, stride=1024, rounds=10)


def test_agents_with_different_numbers_of_workers(make_near, make_far):
    near = make_near(SIZE, "ucx", backend_params={"UCX": {**UCX_OVER_TCP, "num_threads": "3"}})
    far = make_far(SIZE, "ucx")
    near.add_metadata_of(far)
    near.works_with(far)


@pytest.mark.parametrize("transports", ["self", "sysv"])
def test_transports_that_cannot_connect(make_near, make_far, transports, operation):
    params = {"UCX": {"UCX_TLS": transports}}
    near = make_near(SIZE, "ucx", backend_params=params)
    far = make_far(SIZE, "ucx", backend_params=params)
    near.add_metadata_of(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)])
    if (result := posted(near, handle)) == "DONE":
        assert transports != "self"  # some versions of UCX can wire up over shared memory
    else:
        assert result == DISCONNECT and "add tcp to UCX_TLS" in str(handle.error)
