"""What holds for each lane over a library that has threads or progress of its own: tests that the
files of these lanes import by name, and the steps that their own tests share. They use the fixture
`pair`, so a file says SIZE and options_of()."""

from __future__ import annotations

import threading
import time

import nixl
import pytest
from faults_support import (
    MIB,
    eventually,
    fresh_name,
    in_progress,
    outcome,
    pattern,
    posted,
)

DISCONNECT = "nixlRemoteDisconnectError"
CANARY = 0xEE  # even: no pattern has it
SOON = 15  # seconds; "within a second" with room for a loaded machine


def skip_without(library: str, **options) -> None:
    """Skips where no agent of these options can be made."""
    try:
        nixl.nixl_agent(fresh_name("probe"), nixl.nixl_agent_config(**options)).close()
    except nixl.nixlError as error:
        pytest.skip(f"no {library} here: {error}")


def whole(far) -> list[tuple[int, int, int]]:
    return [(0, 0, far.size)]


def much(near, far, operation: str, notif: bytes = b"never"):
    """A transfer that takes a while: 4 GiB of the same few MiB."""
    return near.prepare(operation, far, whole(far) * (4096 * MIB // far.size), notif)


def much_under_way(near, far, operation: str):
    handle = much(near, far, operation)
    in_progress(near, far, operation, handle)
    return handle


def lost(handle, far) -> None:
    """It ends with the error that names the peer."""
    assert outcome(handle) == DISCONNECT and far.name in str(handle.error)


def killed_in_the_middle(near, far, operation: str):
    """The transfer, which has failed soon."""
    handle = much_under_way(near, far, operation)
    begin = time.monotonic()
    far.kill()
    lost(handle, far)
    assert time.monotonic() - begin < SOON
    assert handle.failed  # nothing is said to have been moved
    return handle


def goes_on_after_a_stop(near, far, operation: str) -> None:
    far.resume()
    again = near.prepare(operation, far, whole(far))
    eventually(lambda: posted(near, again) == "DONE")  # the peer may think that the session lives
    near.works_with(far)


def comes_back(near, make_far, far, options: dict):
    """Another process of the same name, which works."""
    far.gone()
    again = make_far(far.size, name=far.name, **options)
    near.add_metadata_of(again)
    near.works_with(again)
    return again


def unresolved(near) -> bool:
    """Whether its memory is still in use (it is registered again where it was not)."""
    try:
        near.agent.deregister_memory(near.registered)
    except nixl.nixlTimeoutError:
        return True
    near.registered = near.agent.register_memory(near.array)
    return False


def stays_as_it_is(near) -> None:
    """No byte of this side changes any more."""
    near.array[:] = CANARY
    time.sleep(0.2)  # sleeps: for what nobody stopped
    assert (near.array == CANARY).all()


def idles_and_wakes_up(near, far) -> None:
    near.works_with(far)
    # sleeps: idleness is what is measured
    used = "import time; start = time.process_time(); time.sleep(1)\n"
    used += "result = time.process_time() - start"
    eventually(lambda: far(used) < 0.05)  # sessions open first
    scope: dict[str, float] = {}
    eventually(lambda: (exec(used, scope), scope["result"] < 0.05)[1])
    near.works_with(far)


def eight_threads_move(near, far, stride: int, rounds: int) -> None:
    """Each has an eighth, to write and to read: as a whole, and in pieces of 1 KiB."""
    near.works_with(far)
    near.array[:] = pattern(far.size, 6)
    share = far.size // 8
    errors: list[BaseException] = []

    def move(number: int) -> None:
        try:
            at = number * share
            scattered = [(at + i, at + i, 1024) for i in range(0, share, stride)]
            for pieces in ([(at, at, share)], scattered):
                for operation in ("WRITE", "READ"):
                    for _ in range(rounds):
                        assert posted(near, near.prepare(operation, far, pieces)) == "DONE"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=move, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert far.holds(6) and (near.array == pattern(far.size, 6)).all()


def test_killed_before_anything(pair, operation):
    near, far = pair()
    far.kill()
    far.gone()
    begin = time.monotonic()
    handle = near.prepare(operation, far, whole(far))
    assert posted(near, handle) == DISCONNECT and far.name in str(handle.error)
    assert time.monotonic() - begin < SOON


def test_stopped_for_less_than_the_timeout(pair, operation):
    near, far = pair(peer_timeout=60)
    near.works_with(far)
    handle = near.prepare(operation, far, whole(far))
    for number in range(3):
        far.stop()
        near.agent.transfer(handle, f"{number}".encode())
        far.resume()
        assert outcome(handle) == "DONE"
    assert far.notifications(near.name, 3) == [b"0", b"1", b"2"]


def test_agent_ends_in_the_middle(pair, operation):
    near, far = pair(peer_timeout=60)
    _held = much_under_way(near, far, operation)
    near.agent.close()
    assert far("len(array)") == far.size


def test_removed_and_added_again(pair):
    near, far = pair()
    for _ in range(10):
        near.works_with(far)
        handle = much(near, far, "READ")
        near.agent.transfer(handle)
        near.agent.remove_remote_agent(far.name)
        assert outcome(handle) == DISCONNECT
        near.add_metadata_of(far)


def test_eight_threads(pair):
    eight_threads_move(*pair(), stride=2048, rounds=5)


def test_idle_takes_no_time_and_wakes_up(pair):
    idles_and_wakes_up(*pair())
