"""The thread of a rank that talks ZMQ: receives messages, sends those of other threads, ticks.

Nobody else touches the sockets. Sending never blocks: what a peer does not take (it is gone, or
slow) waits in its socket up to a limit, and what exceeds that is dropped and counted; time-outs and
repeated messages deal with it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..logging import get_logger
from .frames import BadFrames

logger = get_logger("nixl.disaggregation")

_WAITING_MESSAGES = 10000  # at most, for one peer
_MAX_MESSAGE = 1 << 28
_PEERS = 900  # open sockets at most; ZMQ has 1023 in all
_IDLE_PEER = 600.0  # seconds without a message until its socket is closed


def endpoint_of(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class Control:
    """`on_message(frames)` and `on_tick()` are called on the thread; what they raise is logged."""

    def __init__(
        self,
        name: str,
        host: str,
        on_message: Callable[[list[bytes]], None],
        on_tick: Callable[[], None],
        tick: float,
    ) -> None:
        try:
            import zmq
        except ImportError as error:
            raise ImportError(
                "nixl.disaggregation needs pyzmq: pip install nixl[disaggregation]"
            ) from error
        self._zmq = zmq
        self._on_message, self._on_tick, self._tick = on_message, on_tick, tick
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 0), (zmq.MAXMSGSIZE, _MAX_MESSAGE)):
            self._inbox.setsockopt(option, value)
        if ":" in host:
            self._inbox.setsockopt(zmq.IPV6, 1)
        try:
            self.port = self._inbox.bind_to_random_port(endpoint_of(host, 0).rpartition(":")[0])
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise OSError(f"cannot listen at {host!r}: {error}") from error
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._out: deque[tuple[str, list[bytes]]] = deque()
        self._peers: dict[str, tuple[Any, float]] = {}
        self._closed = False
        self.garbage = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"nixl-kv-{name}", daemon=True)
        self._thread.start()

    def send(self, host: str, port: int, frames: list[bytes]) -> None:
        """Hands a message to the thread. From any thread."""
        self._out.append((endpoint_of(host, port), frames))
        self.wake()

    def wake(self) -> None:
        if not self._closed:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        if self._closed:
            return
        self.wake()
        self._closed = True
        if threading.current_thread() is not self._thread:
            self._thread.join(10)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _run(self) -> None:
        zmq = self._zmq
        poller = zmq.Poller()
        poller.register(self._inbox, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        next_tick = time.monotonic()
        while not self._closed:
            self._flush()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + self._tick
                self._guarded(self._on_tick)
                continue
            for ready, _ in poller.poll(max(1, int((next_tick - now) * 1000))):
                if ready == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._receive()
        self._flush()
        self._context.destroy(200)  # the last messages have so many milliseconds

    def _receive(self) -> None:
        while True:
            try:
                frames = self._inbox.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            self._guarded(self._on_message, frames)

    def _guarded(self, call: Callable[..., None], *words: object) -> None:
        try:
            call(*words)
        except BadFrames as error:
            self.garbage += 1
            if self.garbage & (self.garbage - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                logger.warning("message %d that is none of ours: %s", self.garbage, error)
        except Exception:
            logger.exception("in the control thread")

    def _flush(self) -> None:
        while self._out:
            where, frames = self._out.popleft()
            try:
                socket = self._socket(where)
                socket.send_multipart(frames, self._zmq.NOBLOCK)
            except self._zmq.ZMQError as error:
                self.dropped += 1
                logger.warning("a message to %s is lost: %s", where, error)

    def _close_idle(self, now: float) -> None:
        oldest = sorted(self._peers.items(), key=lambda item: item[1][1])
        spare = len(oldest) - _PEERS
        for at, (where, (socket, used)) in enumerate(oldest):
            if at <= spare or now - used > _IDLE_PEER:
                socket.close(0)
                del self._peers[where]

    def _socket(self, where: str) -> Any:
        zmq, now = self._zmq, time.monotonic()
        found = self._peers.get(where)
        if found is None:
            self._close_idle(now)
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.LINGER, 200)
            socket.setsockopt(zmq.SNDHWM, _WAITING_MESSAGES)
            socket.setsockopt(zmq.RECONNECT_IVL, 50)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            if "[" in where:
                socket.setsockopt(zmq.IPV6, 1)
            socket.connect(where)
        else:
            socket = found[0]
        self._peers[where] = (socket, now)
        return socket
