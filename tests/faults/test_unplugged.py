"""The cable between two hosts is pulled out (two network namespaces, an interface that goes down),
and put back."""

from __future__ import annotations

import time

import pytest

np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, PATIENCE, eventually  # noqa: E402

DISCONNECT = "nixlRemoteDisconnectError"
SIZE = 8 * MIB

# What each of the processes can be asked to do. Its own other transfers go to `beside`.
TOOLS = """
import time
def prepare(operation, peer, there, count=1, size=len(array), notif=b""):
    own = agent.get_xfer_descs([(array.ctypes.data, size, 0)] * count, "DRAM")
    other = agent.get_xfer_descs([(there, size, 0)] * count, "DRAM")
    return agent.initialize_xfer(operation, own, other, peer, notif)
def post(handle):
    try:
        agent.transfer(handle)
    except nixl.nixlError as error:
        return type(error).__name__
def outcome(handle):
    begin = time.monotonic()
    try:
        result = handle.wait(60), "", 0
    except nixl.nixlError as error:
        result = type(error).__name__, str(error), time.monotonic() - begin
    return result
def keep_on(handle):
    global rounds, wrong
    while going:
        agent.transfer(handle)
        if handle.wait(60) != "DONE":
            wrong += 1
        rounds += 1
        time.sleep(0.001)  # sleeps: it is to go on beside, not to be fast
rounds = wrong = 0
going = True
"""


class Host:
    """A process with an agent, and transfers to a neighbour that the cable has no part in."""

    def __init__(self, make_far, prefix, **options) -> None:
        self.far = make_far(SIZE, prefix=prefix, **options)
        self.beside = make_far(prefix=prefix)
        self.far(TOOLS)
        self.far(f"agent.add_remote_agent({self.beside.metadata!r})")
        self.far(f"other = prepare('WRITE', {self.beside.name!r}, {self.beside.base}, size=4096)")
        self.far("runner = threading.Thread(target=keep_on, args=[other]); runner.start()")

    def add_metadata_of(self, host: Host) -> None:
        self.far(f"agent.add_remote_agent({host.far.metadata!r})")

    def prepare(self, operation: str, host: Host, count: int = 1, notif: bytes = b"") -> None:
        there = f"{host.far.name!r}, {host.far.base}, {count}, notif={notif!r}"
        self.far(f"handle = prepare({operation!r}, {there})")

    def others_go_on(self) -> None:
        done = self.far("rounds")
        eventually(lambda: self.far("rounds") > done + 3)
        assert self.far("wrong") == 0

    def end(self) -> None:
        assert self.far("going = False; runner.join(); result = wrong") == 0


@pytest.fixture
def make_hosts(network, make_far):
    made: list[Host] = []

    def make(**options) -> list[Host]:
        for name in (network.near, network.far):
            made.append(Host(make_far, network.inside(name), **options))
        made[0].add_metadata_of(made[1])
        made[1].add_metadata_of(made[0])
        return made

    yield make
    for one in made:
        one.end()


def works(near: Host, far: Host, tag: bytes, tries: int = 1) -> None:
    """A whole WRITE with its notification, and a READ; the last of `tries` must do it."""
    for left in reversed(range(tries)):
        near.far.fill(tag[0])
        near.prepare("WRITE", far, notif=tag)
        refused = near.far("post(handle)")
        result = (refused, "") if refused else near.far("outcome(handle)")
        if result[0] == "DONE" or not left:
            break
        time.sleep(0.2)  # sleeps: between two tries
    assert result[0] == "DONE", result
    far.far.notifications(near.far.name, 1)
    assert far.far.holds(tag[0])
    near.far("array[:] = 0")
    near.prepare("READ", far)
    near.far("post(handle)")
    assert near.far("outcome(handle)")[0] == "DONE"
    assert near.far.holds(tag[0])


def unplug_in_the_middle(network, near: Host, far: Host, operation: str) -> None:
    """Larger and larger transfers, until one has not ended when the cable is out."""
    for exponent in range(12):
        near.prepare(operation, far, 16 << exponent, b"never")
        near.far("agent.transfer(handle)")
        network.unplug()
        if near.far("agent.check_xfer_state(handle)") == "PROC":
            return
        network.plug()
        near.far("outcome(handle)")
        far.far("agent.get_new_notifs()")
    pytest.fail("no transfer was large enough")


@pytest.mark.parametrize(
    ("when", "operation"),
    [
        ("before the first", "WRITE"),
        ("between two", "READ"),
        ("in the middle", "WRITE"),
        ("in the middle", "READ"),
    ],
)
def test_unplugged(network, make_hosts, operation, when):
    """Within about the peer timeout what was under way has failed, at either end; what has nothing
    to do with it goes on; and with the cable back all is as before."""
    near, far = make_hosts(peer_timeout=2)
    if when != "before the first":
        works(near, far, b"1")
        works(far, near, b"2")
    far.prepare(operation, near, notif=b"never")
    begin = time.monotonic()
    if when == "in the middle":
        unplug_in_the_middle(network, near, far, operation)
        begin = time.monotonic()
    else:
        near.prepare(operation, far, notif=b"never")
        network.unplug()
        near.far("post(handle)")
    far.far("post(handle)")
    for one, other in ((near, far), (far, near)):
        result, text, _ = one.far("outcome(handle)")
        assert result == DISCONNECT and other.far.name in text, (result, text)
    assert time.monotonic() - begin < 2 * 2 + 10  # the peer timeout, twice, and the machine's load
    for one in (near, far):
        one.others_go_on()
    network.plug()
    # One side may still have to learn that the other has given up.
    works(near, far, b"3", tries=10)
    works(far, near, b"4")
    for one in (near, far):
        assert "never" not in str(one.far("agent.get_new_notifs()"))
        one.others_go_on()


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_unplugged_for_less_than_the_timeout(network, make_hosts, operation):
    """Then nothing fails: transfers and messages wait."""
    near, far = make_hosts(peer_timeout=60)
    works(near, far, b"1")
    far.far.fill(9) if operation == "READ" else near.far.fill(9)
    unplug_in_the_middle(network, near, far, operation)
    near.far(f"agent.send_notif({far.far.name!r}, b'on the way')")
    time.sleep(0.5)  # sleeps: unplugged for that long
    assert near.far("agent.check_xfer_state(handle)") == "PROC"
    network.plug()
    assert near.far("outcome(handle)", 2 * PATIENCE)[0] == "DONE"
    got = far.far.notifications(near.far.name, 2)
    assert sorted(got) == [b"never", b"on the way"]
    assert near.far.holds(9) and far.far.holds(9)
    works(near, far, b"2")
