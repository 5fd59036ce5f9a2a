"""Cancel and release in every phase of a transfer: bounded, and no byte moves afterwards that must
not. A canary is written into the local memory at once; it may neither change nor travel."""

from __future__ import annotations

import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, eventually, pattern  # noqa: E402
from proxy import CONTROL, DATA  # noqa: E402

SIZE = 8 * MIB
CANARY = 0xEE  # even: no pattern has it
SEED = 2
BOUND = 0.1 + 6.0  # 100 ms, and what a loaded machine may take; less than the peer timeout


class Stage:
    """A transfer that has got exactly as far as a phase and cannot go on until open()."""

    def __init__(self, near, far, operation: str, phase: str) -> None:
        self.near, self.far, self.operation, self.phase = near, far, operation, phase
        self.source_here = operation == "WRITE"
        near.array[:] = pattern(SIZE, SEED) if self.source_here else 0
        if self.source_here:
            far("array[:] = 0")
        else:
            far.fill(SEED)

    def handle(self, pieces=((0, 0, SIZE),), notif: bytes = b"never"):
        return self.near.prepare(self.operation, self.far, list(pieces), notif)

    def data_is_there(self) -> None:
        if self.source_here:
            memory = f"/proc/{self.far.pid}/mem"  # it may be stopped

            def arrived() -> bool:
                with open(memory, "rb") as file:
                    file.seek(self.far.base)
                    return file.read(SIZE) == pattern(SIZE, SEED).tobytes()

            eventually(arrived)
        else:
            eventually(lambda: (self.near.array == pattern(SIZE, SEED)).all())
        eventually(lambda: self.near.agent.stats()["notifications_waiting"])


class StreamStage(Stage):
    def __init__(self, near, far, operation, phase, proxy) -> None:
        super().__init__(near, far, operation, phase)
        self.proxy = proxy

    def start(self):
        handle = self.handle()
        if self.phase == "waiting":
            # What is posted before the agent has seen the cut may fail by it.
            before = self.near.agent.stats()["connections"]
            self.proxy.freeze_all()
            left = before - self.proxy.cut()
            eventually(lambda: self.near.agent.stats()["connections"] <= left)
            self.near.agent.transfer(handle)
        elif self.phase == "moving":
            direction = "up" if self.source_here else "down"
            self.proxy.freeze_after(DATA, direction, 3 * MIB)
            self.near.agent.transfer(handle)
            assert self.proxy.wait(lambda: (DATA, direction) in self.proxy.frozen)
        else:
            self.proxy.freeze((CONTROL, "up"))
            self.near.agent.transfer(handle)
            self.data_is_there()
        return handle

    def open(self) -> None:
        self.proxy.thaw()


class HostStage(Stage):
    def start(self):
        if self.phase == "moving":
            handle = self.handle([(0, 0, SIZE)] * 1024)  # seconds of copying
            self.near.agent.transfer(handle)
            assert self.near.agent.check_xfer_state(handle) == "PROC"
            return handle
        self.far.stop()
        handle = self.handle()
        self.near.agent.transfer(handle)
        if self.phase == "notifying":
            self.data_is_there()
        return handle

    def open(self) -> None:
        self.far.resume()


@pytest.fixture(params=["waiting", "moving", "notifying"])
def phase(request) -> str:
    return request.param


@pytest.fixture
def make_stage(make_near, make_far, make_proxy, transport, phase, operation):
    def make() -> Stage:
        near = make_near(SIZE, transport, peer_timeout=60)
        far = make_far(SIZE, transport, peer_timeout=60)
        proxy = None
        if transport == "stream":
            proxy, metadata = make_proxy(far)
            near.add_metadata_of(far, metadata)
        else:
            near.add_metadata_of(far)
        if phase != "waiting" or transport == "stream":
            near.works_with(far)
        if proxy is not None:
            return StreamStage(near, far, operation, phase, proxy)
        return HostStage(near, far, operation, phase)

    return make


def check_afterwards(stage: Stage, confirmed: bool) -> None:
    """The canary has been written; now everything may move that still can."""
    near, far = stage.near, stage.far
    stage.open()
    beside = pattern(4096, 1)
    near.agent.register_memory(beside)
    there = near.agent.get_xfer_descs([(far.base, 4096, 0)], "DRAM")
    after = near.agent.initialize_xfer("READ", beside, there, far.name, b"after")
    near.agent.transfer(after)
    assert after.wait(60) == "DONE"
    assert far.notifications(near.name, 1 if confirmed else 2)[-1] == b"after"
    time.sleep(0.1)  # sleeps: for what nobody stopped
    assert (near.array == CANARY).all()
    if stage.source_here:
        clean = "from faults_support import pattern\n"
        clean += f"result = bool(((array == 0) | (array == pattern({SIZE}, {SEED}))).all())"
        far.holds(1)  # the path to faults_support
        assert far(clean), "bytes that were never to be sent"
    near.works_with(far)


def test_cancel(make_stage, companion, transport, phase, operation):
    stage = make_stage()
    others = companion(stage.near)
    with others.paused():
        handle = stage.start()
    begin = time.monotonic()
    handle.cancel()
    took = time.monotonic() - begin
    stage.near.array[:] = CANARY
    assert took < BOUND, took
    with pytest.raises(nixl.nixlCancelledError) as error:
        handle.wait(0)
    unconfirmed = "remote_unconfirmed" in str(error.value)
    if transport == "stream":
        # Nobody at the other side could answer; a READ and what was not sent need no answer.
        sent = phase == "notifying" or (phase == "moving" and operation == "WRITE")
        assert unconfirmed == sent, error.value
    elif phase == "notifying":
        assert unconfirmed, error.value
    others.more()
    check_afterwards(stage, confirmed=phase != "notifying")


def test_release(make_stage, companion, transport, phase, operation):
    stage = make_stage()
    others = companion(stage.near)
    with others.paused():
        handle = stage.start()
    begin = time.monotonic()
    handle.release()
    took = time.monotonic() - begin
    stage.near.array[:] = CANARY
    assert took < BOUND, took
    with pytest.raises(nixl.nixlError):
        handle.wait(0)
    others.more()
    check_afterwards(stage, confirmed=phase != "notifying")


def test_cancel_before_the_session_can_be_made(make_near, make_far, operation):
    """Nothing was ever sent: the notification is taken back."""
    near, far = make_near(SIZE, peer_timeout=60), make_far(SIZE, peer_timeout=60)
    near.add_metadata_of(far)
    far.stop()
    handle = near.post(operation, far, [(0, 0, SIZE)], b"never")
    handle.cancel()
    near.array[:] = CANARY
    far.resume()
    near.agent.send_notif(far.name, b"after")
    assert far.notifications(near.name, 1) == [b"after"]
    assert (near.array == CANARY).all() and not far("array.any()")


def test_cancel_at_any_moment(make_near, make_far, transport, operation):
    """DONE or cancelled, never both: a notification comes if and only if it was DONE (or the end
    was not confirmed)."""
    near, far = make_near(SIZE, transport), make_far(SIZE, transport)
    near.add_metadata_of(far)
    near.works_with(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)])
    done, unknown = [], []
    for number in range(24 * support.SOAK):
        tag = f"{number}".encode()
        near.array[:] = pattern(SIZE, SEED)
        near.agent.transfer(handle, tag)
        time.sleep(number % 20 / 4000)  # sleeps: to cancel at another moment in each round
        handle.cancel()
        canary = near.array.copy()
        try:
            handle.wait(60)
            done.append(tag)
        except nixl.nixlCancelledError as error:
            if "remote_unconfirmed" in str(error):
                unknown.append(tag)
        if operation == "READ":
            assert (near.array == canary).all()
    near.agent.send_notif(far.name, b"last")
    arrived: list[bytes] = []
    while b"last" not in arrived:
        arrived += far("agent.get_new_notifs()").get(near.name, [])
    arrived.remove(b"last")
    assert len(set(arrived)) == len(arrived)
    assert set(done) <= set(arrived) <= set(done) | set(unknown)
    near.works_with(far)
