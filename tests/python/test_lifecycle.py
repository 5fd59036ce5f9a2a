"""Beginning and end: closing, exit in every state, fork, agents destroyed with work in flight."""

from __future__ import annotations

import gc
import weakref

import nixl
import pytest
from nixl._api import nixl_agent, nixl_agent_config
from nixl.errors import nixlError, nixlNotAllowedError, nixlTimeoutError
from nixl_support import Pair

START = """
import os, sys, time, nixl
from nixl._api import nixl_agent, nixl_agent_config
def make(name, *backends):
    return nixl_agent(name, nixl_agent_config(backends=list(backends or ("UCX",))))
a, b = make("a"), make("b")
size = 64 << 20
src, dst = nixl.malloc_passthru(size), nixl.malloc_passthru(size)
ra = a.register_memory([(src, size, 0)], "DRAM")
rb = b.register_memory([(dst, size, 0)], "DRAM")
a.add_remote_agent(b.get_agent_metadata())
h = a.initialize_xfer("WRITE", ra, rb, "b", b"note")
"""

WAITS_AT_EXIT = """
import threading
def wait():
    try:
        while True:
            b.wait_notifs(b"never")
    except nixl.nixlError:
        pass
threading.Thread(target=wait, daemon=True).start()
while not b.stats()["wait_sleeps"]:
    pass
"""


def test_an_agent_is_a_context_manager(memory):
    piece = memory(4096)
    with nixl_agent("scoped", nixl_agent_config()) as agent:
        with agent.register_memory([(piece.address, 4096, 0)], "DRAM") as descs:
            assert len(descs) == 1
            assert agent.get_agent_metadata()
        with pytest.raises(nixlError):
            agent.deregister_memory(descs)
    with pytest.raises(
        nixlNotAllowedError, match='^NIXL_ERR_NOT_ALLOWED: agent "scoped" has been closed'
    ):
        agent.get_new_notifs()
    agent.close()


def test_a_registration_ends_even_when_the_body_raises(agent, memory):
    piece = memory(4096)
    with (
        pytest.raises(ZeroDivisionError),
        agent.register_memory([(piece.address, 4096, 0)], "DRAM") as descs,
    ):
        raise ZeroDivisionError
    with pytest.raises(nixlError):
        agent.deregister_memory(descs)


def test_registrations_are_counted(agent, memory):
    piece = memory(8192)
    whole = [(piece.address, 8192, 0)]
    half = [(piece.address, 4096, 0), (piece.address + 2048, 4096, 0)]
    first = agent.register_memory(whole, "DRAM")
    second = agent.register_memory(whole, "DRAM")
    overlapping = agent.register_memory(half, "DRAM")
    for descs in (first, overlapping, second):
        agent.deregister_memory(descs)
    with pytest.raises(nixl.nixlNotFoundError):
        agent.deregister_memory(first)


def test_using_handles_of_a_closed_agent(pair):
    handle = pair.write((0, 64))
    side = pair.near.prep_xfer_dlist("", [(pair.near_memory.address, 64, 0)], "DRAM")
    pair.near.transfer(handle)
    handle.wait(10)
    pair.near.close()
    for call in (
        lambda: pair.near.transfer(handle),
        lambda: pair.near.check_xfer_state(handle),
        lambda: handle.wait(1),
        lambda: handle.error,
        lambda: pair.near.make_prepped_xfer("READ", side, [0], side, [0]),
        lambda: pair.near.register_memory([bytearray(8)]),
    ):
        with pytest.raises(nixlNotAllowedError, match="has been closed"):
            call()
    handle.release()
    side.release()


def test_agents_go_when_nobody_holds_them(memory):
    piece = memory(4096)
    agent = nixl_agent("short-lived", nixl_agent_config())
    descs = agent.register_memory([(piece.address, 4096, 0)], "DRAM")
    raw = weakref.ref(agent.agent)
    whole = weakref.ref(agent)
    del agent
    gc.collect()
    assert whole() is None and raw() is None
    assert len(descs) == 1


def test_an_agent_destroyed_with_transfers_in_flight(make_agent, memory):
    pair = Pair(make_agent, memory, size=32 << 20)
    handles = [pair.write((0, 32 << 20)) for _ in range(4)]
    for handle in handles:
        pair.near.transfer(handle)
    pair.near.close()
    for handle in handles:
        with pytest.raises(nixlNotAllowedError):
            handle.wait(10)


def test_cancel(make_agent, memory):
    pair = Pair(make_agent, memory, size=64 << 20)
    handle = pair.write((0, 64 << 20))
    handle.cancel()  # nothing is posted: nothing happens
    for _ in range(5):
        pair.near.transfer(handle)
        handle.cancel()
        try:
            assert handle.wait(10) == "DONE"
        except nixl.nixlCancelledError as error:
            assert str(error).startswith("NIXL_ERR_CANCELED")
            assert type(handle.error) is nixl.nixlCancelledError
    pair.near.transfer(handle)
    pair.near.release_xfer_handle(handle)


@pytest.mark.parametrize(
    "end",
    [
        "",
        "a.transfer(h)",
        "a.transfer(h); a.release_xfer_handle(h)",
        "a.transfer(h); a.close()",
        "a.transfer(h); del a, h",
        "a.transfer(h); del h; a.close(); b.close()",
        "a.transfer(h); sys.exit(0)",
        "keep = [h]; keep.append(keep); a.transfer(h); del a, b, h",
        "nixl.leak = (a, b, h); a.transfer(h)",
        "c = [make(f'x{i}') for i in range(20)]; a.transfer(h)",
        WAITS_AT_EXIT,
    ],
)
def test_exit_is_clean(run_python, end):
    import time

    start = time.monotonic()
    result = run_python(START + end)
    assert result.stderr == ""
    assert time.monotonic() - start < 30


def test_an_interrupt_ends_a_wait(run_python):
    program = """
import signal, threading, time, nixl, os
from nixl._api import nixl_agent
agent = nixl_agent("waiter")
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    agent.wait_notifs(b"never", timeout=30)
except KeyboardInterrupt:
    assert time.monotonic() - start < 10
    print("interrupted")
"""
    assert run_python(program).stdout.strip() == "interrupted"


def test_the_child_of_a_fork_is_told(run_python):
    program = (
        START
        + """
a.transfer(h); h.wait(10)
pid = os.fork()
if pid == 0:
    told = 0
    for call in (
        lambda: a.transfer(h), lambda: a.check_xfer_state(h), lambda: a.get_agent_metadata(),
        lambda: a.register_memory([bytearray(8)]), lambda: a.send_notif("b", b"x"),
        lambda: a.get_new_notifs(), lambda: a.wait_notifs(b"x", timeout=1),
        lambda: a.initialize_xfer("WRITE", ra, rb, "b"), lambda: h.wait(1),
    ):
        try:
            call()
        except nixl.nixlNotAllowedError as error:
            told += str(os.getpid()) in str(error) and str(os.getppid()) in str(error)
    del a, b, h
    sys.exit(told)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
a.transfer(h); h.wait(10)
print("parent goes on")
"""
    )
    assert run_python(program).stdout.strip() == "parent goes on"


def test_a_child_may_make_agents_of_its_own(run_python):
    program = (
        START
        + """
pid = os.fork()
if pid == 0:
    with make("child") as c:
        d = c.register_memory([bytearray(64)])
        t = c.initialize_xfer("WRITE", d, d, "child", b"mine")
        c.transfer(t); t.wait(10)
        sys.exit(c.wait_notifs(b"mine", timeout=10) != [("child", b"mine")])
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    )
    run_python(program)


def test_waiting_for_peers(make_agent):
    first, second = make_agent(), make_agent()
    with pytest.raises(nixlTimeoutError, match="0 of 1 peers"):
        first.wait_for_peers(1, timeout=0.02)
    first.add_remote_agent(second.get_agent_metadata())
    assert first.peers() == [second.name]
    assert first.wait_for_peers(1, timeout=1) == [second.name]


def test_memory_views_need_a_gpu(agent):
    descs = agent.get_xfer_descs([(4096, 1, 0)], "DRAM")
    with pytest.raises(nixl.nixlNotSupportedError, match="memory views"):
        agent.prep_mem_view(descs)
    with pytest.raises(nixl.nixlInvalidParamError, match="memory view 5"):
        agent.release_mem_view(5)
