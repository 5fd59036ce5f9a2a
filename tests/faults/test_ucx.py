"""The lane ucx over the real UCX library, by its transport tcp: peers that die or stand still,
cancel, idling, workers, transports that cannot connect. SKIP where UCX is not installed."""

from __future__ import annotations

import threading
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import (  # noqa: E402
    MIB,
    UCX_OVER_TCP,
    eventually,
    fresh_name,
    in_progress,
    open_descriptors,
    outcome,
    pattern,
    posted,
)

DISCONNECT = "nixlRemoteDisconnectError"
SIZE = 8 * MIB
CANARY = 0xEE  # even: no pattern has it
SOON = 15  # seconds; "within a second" with room for a loaded machine
TWO_WORKERS = {"UCX": {**UCX_OVER_TCP, "num_workers": "2"}}


@pytest.fixture(scope="module", autouse=True)
def ucx() -> None:
    config = nixl.nixl_agent_config(backends=["UCX"], lanes="ucx")
    try:
        nixl.nixl_agent(fresh_name("probe"), config).close()
    except nixl.nixlError as error:
        pytest.skip(f"no UCX here: {error}")


@pytest.fixture(params=["WRITE", "READ"])
def operation(request) -> str:
    return request.param


@pytest.fixture
def pair(make_near, make_far):
    def make(**options):
        near, far = make_near(SIZE, "ucx", **options), make_far(SIZE, "ucx", **options)
        near.add_metadata_of(far)
        return near, far

    return make


def much(near, far, operation: str, notif: bytes = b"never"):
    """A transfer that takes a while: some GB of the same 8 MiB."""
    return near.prepare(operation, far, [(0, 0, SIZE)] * 512, notif)


def companion_of(near, make_far):
    return support.Companion(near, make_far(MIB, near.transport))


def test_moves_bytes_and_notifies(pair):
    near, far = pair()
    near.works_with(far)
    handle = near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert near.agent.explain(handle)["lane"] == "ucx"


def test_killed_before_anything(pair, operation):
    near, far = pair()
    far.kill()
    far.gone()
    begin = time.monotonic()
    handle = near.prepare(operation, far, [(0, 0, SIZE)])
    assert posted(near, handle) == DISCONNECT and far.name in str(handle.error)
    assert time.monotonic() - begin < SOON


def test_killed_in_the_middle(pair, make_far, operation):
    """Its own transfers fail, soon; the others go on; its name can come back."""
    near, far = pair(peer_timeout=60)
    others = companion_of(near, make_far)
    try:
        near.works_with(far)
        others.more()
        before = open_descriptors()
        handle = much(near, far, operation)
        in_progress(near, far, operation, handle)
        begin = time.monotonic()
        far.kill()
        assert outcome(handle) == DISCONNECT and far.name in str(handle.error)
        assert time.monotonic() - begin < SOON
        assert handle.failed  # nothing is said to have been moved
        others.more()
        far.gone()
        again = make_far(SIZE, near.transport, name=far.name)
        near.add_metadata_of(again)
        near.works_with(again)
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
        handle = much(near, far, operation)
        in_progress(near, far, operation, handle)
        far.stop()
        begin = time.monotonic()
        assert outcome(handle) == DISCONNECT and far.name in str(handle.error)
        assert time.monotonic() - begin < 2 + SOON
        others.more()
        far.kill()  # going on, UCX could abort it: see the plugin's README
        far.gone()
        far = make_far(SIZE, near.transport, name=far.name)
        near.add_metadata_of(far)
        near.works_with(far)
    finally:
        others.end()


def test_stopped_for_longer_than_the_timeout(pair, operation):
    """With nothing of it under way there, the peer can be used again when it goes on."""
    near, far = pair(peer_timeout=2)
    near.works_with(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)], b"never")
    far.stop()
    near.agent.transfer(handle)
    assert outcome(handle) == DISCONNECT and far.name in str(handle.error)
    far.resume()
    again = near.prepare(operation, far, [(0, 0, SIZE)])
    eventually(lambda: posted(near, again) == "DONE")  # the peer may think that the session lives
    near.works_with(far)


def test_stopped_for_less_than_the_timeout(pair, operation):
    near, far = pair(peer_timeout=60)
    near.works_with(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)])
    for number in range(3):
        far.stop()
        near.agent.transfer(handle, f"{number}".encode())
        far.resume()
        assert outcome(handle) == "DONE"
    assert far.notifications(near.name, 3) == [b"0", b"1", b"2"]


def test_agent_ends_in_the_middle(pair, operation):
    near, far = pair(peer_timeout=60)
    handle = much(near, far, operation)
    in_progress(near, far, operation, handle)
    near.agent.close()
    assert far("len(array)") == SIZE


def test_agent_ends_while_its_peer_stands_still(pair, operation):
    near, far = pair(peer_timeout=60)
    handle = much(near, far, operation)
    in_progress(near, far, operation, handle)
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


def unresolved(near) -> bool:
    """Whether its memory is still in use (it is registered again where it was not)."""
    try:
        near.agent.deregister_memory(near.registered)
    except nixl.nixlTimeoutError:
        return True
    near.registered = near.agent.register_memory(near.array)
    return False


def test_idle_takes_no_time_and_wakes_up(pair):
    near, far = pair(backend_params=TWO_WORKERS)
    near.works_with(far)
    # sleeps: idleness is what is measured
    used = "import time; start = time.process_time(); time.sleep(1)\n"
    used += "result = time.process_time() - start"
    eventually(lambda: far(used) < 0.05)  # sessions open first
    scope: dict[str, float] = {}
    eventually(lambda: (exec(used, scope), scope["result"] < 0.05)[1])
    near.works_with(far)


def test_eight_threads_over_several_workers(pair):
    near, far = pair(backend_params=TWO_WORKERS)
    whole = near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert "2 workers" in near.agent.explain(whole)["reason"]
    near.works_with(far)
    near.array[:] = pattern(SIZE, 6)
    share = SIZE // 8
    errors: list[BaseException] = []

    def move(number: int) -> None:
        try:
            at = number * share
            scattered = [(at + i, at + i, 1024) for i in range(0, share, 1024)]
            for pieces in ([(at, at, share)], scattered):
                for operation in ("WRITE", "READ"):
                    for _ in range(10):
                        assert posted(near, near.prepare(operation, far, pieces)) == "DONE"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=move, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert far.holds(6) and (near.array == pattern(SIZE, 6)).all()


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


def test_removed_and_added_again(pair):
    near, far = pair()
    for _ in range(10):
        near.works_with(far)
        handle = much(near, far, "READ")
        near.agent.transfer(handle)
        near.agent.remove_remote_agent(far.name)
        assert outcome(handle) == DISCONNECT
        near.add_metadata_of(far)
