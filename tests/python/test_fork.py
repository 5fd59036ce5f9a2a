"""A forked child's own agents: they are of another process than the parent's."""

from __future__ import annotations

CHILD_AND_PARENT = """
import multiprocessing, nixl, sys, time
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

SIZE = {size}

def make(name):
    return nixl_agent(name, nixl_agent_config(backends=["UCX"]))

def child(blob, descs, parent_name):
    own = make("child")
    there = own.deserialize_descs(descs)
    peer = own.add_remote_agent(blob)
    memory = np.full(SIZE, 7, np.uint8)
    own.register_memory(memory)
    here = own.get_xfer_descs(memory)
    write = own.initialize_xfer("WRITE", here, there, peer, b"written")
    own.transfer(write)
    assert write.wait(30) == "DONE"
    assert own.wait_notifs(b"go on", timeout=30)
    read = own.initialize_xfer("READ", here, there, peer)
    own.transfer(read)
    assert read.wait(30) == "DONE"
    assert (memory == 9).all(), "a READ gave the child's copy"
    own.send_notif(peer, b"read")
    own.close()

parent = make("parent")
memory = np.zeros(SIZE, np.uint8)
parent.register_memory(memory)
descs = parent.get_serialized_descs(parent.get_xfer_descs(memory))
process = multiprocessing.get_context("fork").Process(
    target=child, args=(parent.get_agent_metadata(), descs, parent.name))
process.start()
assert parent.wait_notifs(b"written", timeout=30) == [("child", b"written")]
assert (memory == 7).all(), "a WRITE went to the child's copy"
memory[:] = 9
parent.send_notif("child", b"go on")
assert parent.wait_notifs(b"read", timeout=30) == [("child", b"read")]
process.join(30)
sys.exit(process.exitcode)
"""

MANY_FORKS = """
import os, signal, sys, threading
from nixl._api import nixl_agent, nixl_agent_config

def make(name):
    return nixl_agent(name, nixl_agent_config(backends=["UCX"]))

a, b = make("a"), make("b")
a.add_remote_agent(b.get_agent_metadata())
stop = False

def talk():
    while not stop:
        a.send_notif("b", b"x")
        b.get_new_notifs()

threads = [threading.Thread(target=talk) for _ in range(3)]
for thread in threads:
    thread.start()
failed = []
for number in range(60):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        make("c").close()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status != 0:
        failed.append((number, status))
stop = True
for thread in threads:
    thread.join()
assert not failed, failed
"""


def test_a_childs_agent_reaches_the_parents(run_python):
    for size in (4096, 8 << 20):  # moved inside post, and in pieces
        run_python(CHILD_AND_PARENT.format(size=size))


def test_a_child_makes_an_agent_while_the_parents_threads_send(run_python):
    run_python(MANY_FORKS)
