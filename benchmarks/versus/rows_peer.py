"""Rows of what an agent does with its peer besides moving bytes: notifications, alone and beside
streams; the first transfer; sleeping; losing it. Each on one host and between two.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
import time
from typing import Any

from rows_base import Metric, Row, at_most, quick
from rows_network import LARGE, TwoProcesses

PINGS = 20 if quick() else 1000
BESIDE = 20 if quick() else 200  # rounds beside streams
PATIENCE = 2.0 if quick() else 15.0  # seconds; what has not failed by then is noted as this


class Notify(TwoProcesses):
    name = "pair_notify"
    title = "two processes, both polling"
    polls = True
    rounds = PINGS
    metrics = (
        Metric("notification and its answer, p50", "us", (at_most("value", 15),)),
        Metric("notification and its answer, p99", "us", (at_most("value", 100),)),
    )

    def room(self) -> int:
        return LARGE

    def prepare(self) -> None:
        self.ask(b"warm")

    def ask(self, message: bytes) -> list[bytes]:
        """What has come back when something has."""
        agent = self.end.agent
        agent.send_notif(self.end.other, message)
        while True:
            for messages in agent.get_new_notifs().values():
                return messages

    def measure(self) -> None:
        spent = []
        for number in range(self.rounds):
            message = b"ping %d" % number
            start = time.perf_counter()
            answer = self.ask(message)
            spent.append((time.perf_counter() - start) * 1e6)
            if answer != [message]:
                raise RuntimeError(f"sent {message}, and got {answer}")
        spent.sort()
        self.note("notification and its answer, p50", spent[len(spent) // 2])
        self.note("notification and its answer, p99", spent[len(spent) * 99 // 100])


class NotifyBeside(Notify):
    """64 MiB goes both ways all the while, posted again and again by another thread: written from
    the first half of this side's memory, and read into the second."""

    name = "pair_notify_beside"
    title = "two processes, both polling, 64 MiB streams both ways"
    rounds = BESIDE
    metrics = (
        Notify.metrics[0],
        Metric(Notify.metrics[1].name, "us", (at_most("value", 100), at_most("value", 500))),
        Metric("streams meanwhile", "GB/s", higher=True),
    )

    def room(self) -> int:
        return 2 * LARGE

    def prepare(self) -> None:
        super().prepare()
        self.check_bytes()  # the far side has what the streams read
        self.fetched = self.source[LARGE:].copy()
        self.streams = [self.transfer("WRITE", LARGE), self.transfer("READ", LARGE, LARGE)]

    def measure(self) -> None:
        self.source[:LARGE] += 1
        self.source[LARGE:] = 0
        going = threading.Event()
        going.set()
        moved = [0]
        thread = threading.Thread(target=self.stream, args=(going, moved))
        start = time.perf_counter()
        thread.start()
        time.sleep(0.02)
        super().measure()
        self.note("streams meanwhile", moved[0] * LARGE / (time.perf_counter() - start) / 1e9)
        going.clear()
        thread.join()
        self.compare_sums()
        if not (self.source[LARGE:] == self.fetched).all():
            raise RuntimeError("what was read differs")

    def stream(self, going: threading.Event, moved: list[int]) -> None:
        agent = self.end.agent
        states = [agent.transfer(handle) for handle in self.streams]
        while True:
            for index, handle in enumerate(self.streams):
                if states[index] == "PROC":
                    states[index] = agent.check_xfer_state(handle)
                if states[index] == "DONE":
                    moved[0] += 1
                    states[index] = agent.transfer(handle) if going.is_set() else "OVER"
            if states == ["OVER", "OVER"]:
                return
            time.sleep(0.0005)  # a thread that polls without a rest starves the other


class FirstTransfer(TwoProcesses):
    """A new agent adds the peer and writes 4 KiB: from the metadata to DONE."""

    name = "pair_first"
    title = "first transfer to a new peer, 4 KiB WRITE"
    fresh = True
    acquainted = False
    metrics = (Metric("add_remote_agent until DONE", "ms", (at_most("value", 5),)),)

    def room(self) -> int:
        return 1 << 20

    def prepare(self) -> None:
        """Whatever is done ahead would make it the second."""

    def measure(self) -> None:
        start = time.perf_counter()
        self.end.set_metadata(self.far.invitation)
        self.end.move(self.transfer("WRITE", 4096))
        self.note("add_remote_agent until DONE", (time.perf_counter() - start) * 1e3)


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads, by the scheduler's own clock."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class IdlePair(TwoProcesses):
    """Both sides know each other, have moved bytes, and sleep."""

    name = "pair_idle"
    title = "two connected agents with progress threads, idle"
    metrics = (
        Metric("initiator", "% of a core", (at_most("value", 0.1),)),
        Metric("target", "% of a core", (at_most("value", 0.1),)),
    )

    def room(self) -> int:
        return 1 << 20

    def prepare(self) -> None:
        self.check_bytes()

    def measure(self) -> None:
        pids = {"initiator": os.getpid(), "target": self.pid}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        start = time.perf_counter()
        time.sleep(0.1 if quick() else 1)
        for name, pid in pids.items():
            spent = cpu_seconds(pid) - before[name]
            self.note(name, spent / (time.perf_counter() - start) * 100)


class Loss(TwoProcesses):
    """The target is killed, or stopped, while 64 MiB is written to it again and again: how long
    until a transfer fails. Stopped it is still there, and on one host its memory is too."""

    name = "pair_loss"
    title = "losing the peer amid 64 MiB WRITEs, until a transfer fails (watched for 15 s)"
    fresh = True
    most_rounds = 3
    silent_for = 10.0  # the default
    metrics = (
        Metric("killed", "s", (at_most("value", 1),)),
        Metric("stopped", "s", (at_most("value", 12),)),
    )

    def room(self) -> int:
        return LARGE

    def prepare(self) -> None:
        """Each needs a far process of its own."""
        self.far.close()

    def measure(self) -> None:
        for metric, number in zip(self.metrics, (signal.SIGKILL, signal.SIGSTOP), strict=True):
            far = self.make_far(f"far{number}")
            self.end.set_metadata(far.invitation)
            self.address = far.address
            handle = self.transfer("WRITE", LARGE)
            self.move(handle)
            seconds = self.time_to_fail(handle, far.pid, number)
            far.close()
            self.note(metric.name, seconds)

    def time_to_fail(self, handle: Any, pid: int, number: int) -> float:
        agent, state = self.end.agent, "DONE"
        begun = time.perf_counter()
        lost = 0.0
        while not lost or time.perf_counter() - lost < PATIENCE:
            try:
                if state == "DONE":
                    state = agent.transfer(handle)
                if not lost and time.perf_counter() - begun > 0.2:
                    lost = time.perf_counter()
                    os.kill(pid, number)
                if state == "PROC":
                    state = agent.check_xfer_state(handle)
            except Exception:
                state = "ERR"
            if state == "ERR":
                if not lost:
                    raise RuntimeError("a transfer failed before the peer was lost")
                return time.perf_counter() - lost
        return PATIENCE


def between_hosts(row: type[TwoProcesses]) -> type[TwoProcesses]:
    """The same row between two hosts."""
    title = row.title.replace("two processes", "two hosts")
    names = {
        "name": row.name.replace("pair_", "hosts_"),
        "title": title if title != row.title else f"two hosts, {title}",
        "hosts": True,
    }
    return type(f"{row.__name__}Hosts", (row,), names)


_ON_ONE_HOST = (Notify, NotifyBeside, FirstTransfer, IdlePair, Loss)
PEER_ROWS: list[type[Row]] = [*_ON_ONE_HOST, *(between_hosts(row) for row in _ON_ONE_HOST)]
