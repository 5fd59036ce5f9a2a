"""Peers come and go, and connections of the session with them, under load: nothing is lost, nothing
comes twice, nothing grows."""

from __future__ import annotations

import pathlib
import random
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import (  # noqa: E402
    MIB,
    SOAK,
    eventually,
    no_descriptor_left,
    open_descriptors,
    pattern,
    posted,
)
from proxy import CONTROL  # noqa: E402

DISCONNECT = "nixlRemoteDisconnectError"
SIZE = MIB
ROUNDS = 1000 * SOAK


def resident(pid: int | str) -> int:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_removed_and_added_a_thousand_times(make_near, make_far, companion, transport):
    """In every state of a transfer. DONE means that the message comes, once; an end that is not
    marked means that it does not."""
    near, far = make_near(SIZE, transport), make_far(SIZE, transport)
    others = companion(near)
    choose = random.Random(21)
    done: list[bytes] = []
    unknown: list[bytes] = []
    arrived: list[bytes] = []
    sizes: dict[str, list[int]] = {"near": [], "far": []}
    for number in range(ROUNDS):
        near.add_metadata_of(far)
        size = choose.choice([1, 4096, 65536, SIZE])
        tag = f"{number}".encode()
        handle = near.post(choose.choice(["WRITE", "READ"]), far, [(0, 0, size)], tag)
        if number % 4 == 0:
            assert support.outcome(handle) == "DONE", handle.error
        elif number % 4 == 1:
            time.sleep(choose.random() / 500)  # sleeps: to meet it at any moment
        near.agent.remove_remote_agent(far.name)
        result = support.outcome(handle)
        assert result in ("DONE", DISCONNECT), handle.error
        if result == "DONE":
            done.append(tag)
        elif "remote_unconfirmed" in str(handle.error):
            unknown.append(tag)
        if number % 100 == 99:
            arrived += far("agent.get_new_notifs()").get(near.name, [])
            sizes["near"].append(resident("self"))
            sizes["far"].append(resident(far.pid))
            if number == 199:
                descriptors = open_descriptors(), open_descriptors(far.pid)
    near.add_metadata_of(far)
    near.agent.send_notif(far.name, b"last")
    while b"last" not in arrived:
        arrived += far("agent.get_new_notifs()").get(near.name, [])
    arrived.remove(b"last")
    assert len(set(arrived)) == len(arrived)
    assert set(done) <= set(arrived) <= set(done) | set(unknown)
    assert len(done) >= ROUNDS // 4
    near.works_with(far)
    near.agent.remove_remote_agent(far.name)
    eventually(lambda: open_descriptors() <= descriptors[0] + 4)
    eventually(lambda: open_descriptors(far.pid) <= descriptors[1] + 4)
    for several in sizes.values():  # KiB; the first rounds fill pools
        assert several[-1] < several[1] + (16 << 10), sizes
    others.more()


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_the_control_connection_is_made_again(make_near, make_far, make_proxy, operation):
    """Cut at any moment of transfers that need one data connection or several: these go on, and the
    session with every message."""
    near, far = make_near(24 * MIB), make_far(24 * MIB)
    proxy, metadata = make_proxy(far)
    near.add_metadata_of(far, metadata)
    near.works_with(far)
    choose = random.Random(22)
    tags: list[bytes] = []
    with no_descriptor_left(slack=4):
        for number in range(40 * SOAK):
            near.array[:] = pattern(24 * MIB, number % 7) if operation == "WRITE" else 0
            size = choose.choice([1, 100_000, 24 * MIB])
            tag = f"{number}".encode()
            handle = near.post(operation, far, [(0, 0, size)], tag)
            time.sleep(choose.random() / 100)  # sleeps: to cut at any moment
            proxy.cut(CONTROL, reset=number % 2 == 0)
            again = near.prepare(operation, far, [(0, 0, 24 * MIB)])
            assert posted(near, again) == "DONE", again.error
            assert support.outcome(handle) == "DONE", handle.error
            tags.append(tag)
            if operation == "WRITE" and number % 5 == 0:
                assert far.holds(number % 7)
    assert far.notifications(near.name, len(tags)) == tags
    near.works_with(far)
