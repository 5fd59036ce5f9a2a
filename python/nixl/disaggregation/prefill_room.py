"""The prefill side: a room whose pages are sent, and a decode rank that has registered.

Threads: a room's methods are called by the scheduler and by the control thread; what changes it is
under the manager's lock. poll() takes that only where something has changed.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _bindings
from ..errors import nixlError
from ..logging import get_logger
from .frames import KVArgsRegisterInfo, TransferInfo
from .layout import Pairing
from .pages import as_pages
from .types import FINAL, KVPoll
from .watched import WatchedRoom

logger = get_logger("nixl.disaggregation")

_INT32 = np.dtype(np.int32)

Lists = tuple[Any, int, Any, int]  # both sides' prepared lists, each with its block


@dataclasses.dataclass
class DecodePeer:
    """A decode rank that has registered."""

    info: KVArgsRegisterInfo
    pairing: Pairing | None = None
    refused: str = ""
    kv: Lists | None = None
    aux: Lists | None = None
    others: dict[tuple[int, ...], Lists] = dataclasses.field(default_factory=dict)
    seen: float = dataclasses.field(default_factory=time.monotonic)


@dataclasses.dataclass
class Chunk:
    """Pages of some layers; `pages` is their place among the room's pages."""

    pages: slice
    indices: npt.NDArray[np.int32]
    layers: tuple[int, int]  # of this rank, [first, last)
    ends: bool  # these are the room's last pages


class PrefillRoom(WatchedRoom):
    """One use of a room by a sender."""

    def __init__(self, mgr: Any, room: int) -> None:
        self.mgr, self.room = mgr, room
        self.reason = ""
        self.infos: dict[str, TransferInfo] = {}
        self.expected: int | None = None
        self.aux_index: int | None = None
        self.position = 0
        self.layer = 0  # of the pages from `position` on, these layers are sent
        self.pending_pages = 0  # pages of the chunk whose layers are being sent
        self.ended = False
        self.backlog: list[Chunk] = []
        self.pushed: list[Any] = []  # jobs of the last chunk that Python sent
        self.routes: list[DecodePeer] = []  # those that C++ sends to
        self.chunks: dict[str, int] = {}  # decode agent -> chunks sent to it
        self.bytes = 0
        self.watch = _bindings._KvWatch(None, self._look, mgr.settings.waiting_timeout)
        self.poll = self.watch.poll
        self.started = time.monotonic()
        self.first_send = 0.0
        self.latency: float | None = None
        self.deadline = self.started + mgr.settings.bootstrap_timeout
        self.bootstrapped = False
        self.told_abort: set[str] = set()
        self.set(KVPoll.Bootstrapping)

    # Called by the scheduler.

    def init(self, pages: int, aux_index: int | None) -> None:
        if isinstance(pages, bool) or not isinstance(pages, (int, np.integer)) or pages < 0:
            raise ValueError(f"room {self.room}: num_kv_indices {pages!r} is not a number of pages")
        slots = self.mgr.layout.aux_slots
        if aux_index is not None and not 0 <= aux_index < max(slots, 1):
            raise ValueError(f"room {self.room}: aux_index {aux_index} is not one of {slots}")
        with self.mgr.lock:
            if self.expected is not None:
                raise RuntimeError(f"room {self.room}: init() was called before")
            self.expected, self.aux_index = int(pages), aux_index
            self._check_counts()
            self._open()

    def send(self, kv_indices: Any, layers: Any = None) -> None:
        plain = layers is None and getattr(kv_indices, "dtype", None) == _INT32
        if plain and kv_indices.ndim == 1 and self.watch.send(kv_indices):
            return
        indices = as_pages(kv_indices)
        with self.mgr.lock:
            if self.status == KVPoll.Failed:
                return  # poll() tells
            self._shut()
            chunk = self._cut(indices, layers)
            if not self.first_send:
                self.first_send = time.monotonic()
            if not self.bootstrapped:
                chunk.indices = chunk.indices.copy()  # the caller may use its array again
                self.backlog.append(chunk)
                return
            self._push(chunk)

    def _open(self) -> None:
        """Lets C++ send whole pages from now on, where every decode rank takes all layers."""
        if not self.bootstrapped or not self.expected or self.ended or self.layer:
            return
        if self.status in FINAL or self.routes or len(set(self.chunks.values())) > 1:
            return
        mgr, aux = self.mgr, self.aux_index
        wanted = [(name, info) for name, info in self.infos.items() if self._wants(info)]
        peers = [mgr.decode_kv_args_table.get(name) for name, _ in wanted]
        if any(p is None or p.kv is None or p.pairing is None for p in peers):
            return
        raw, each = mgr.agent.agent, len(mgr.layout.aux_item_lens)
        for peer, (_, info) in zip(peers, wanted, strict=True):
            assert peer is not None and peer.kv is not None and peer.pairing is not None
            pairing = peer.pairing
            self.watch.route(
                raw, *peer.kv, info.dst_kv_indices, pairing.each_page,
                pairing.layers * pairing.buffers_per_layer, f"{self.room}_kv_", info.nonce,
            )  # fmt: skip
            if info.dst_aux_index >= 0 and peer.aux is not None and aux is not None:
                theirs = peer.info.layout or mgr.layout
                self.watch.tail(
                    raw, peer.aux[0], mgr.layout.aux_slots * each, _one(aux),
                    peer.aux[2], theirs.aux_slots * each, _one(info.dst_aux_index), each,
                    f"{self.room}_aux_{info.nonce}",
                )  # fmt: skip
            self.routes.append(peer)
        number = max(self.chunks.values(), default=0)
        limit = mgr.settings.queue_limit
        self.watch.open(mgr.pusher, self.position, number, self.expected, limit)

    def _shut(self) -> None:
        """Python goes on from where C++ is."""
        if not self.routes:
            return
        at, number = self.watch.shut()
        for peer in self.routes:
            assert peer.pairing is not None
            self.chunks[peer.info.agent_name] = number
            self.bytes += peer.pairing.page_bytes * (at - self.position)
        self.position, self.ended = at, self.ended or self.watch.ended
        self.first_send = self.first_send or self.watch.first_send
        self.routes = []

    def _cut(self, indices: npt.NDArray[np.int32], layers: Any) -> Chunk:
        whole, count = self.mgr.layout.layers, int(indices.size)
        if self.expected is None:
            raise RuntimeError(f"room {self.room}: send() before init()")
        if self.ended:
            raise RuntimeError(f"room {self.room}: send() after all {self.expected} pages")
        if self.position + count > self.expected:
            raise ValueError(
                f"room {self.room}: {self.position + count} pages sent, but init() said "
                f"{self.expected}"
            )
        first, last = (0, whole) if layers is None else _range(layers, whole)
        if first != self.layer or (self.layer and count != self.pending_pages):
            raise ValueError(
                f"room {self.room}: layers from {first} of {count} pages, but layer {self.layer} "
                f"of {self.pending_pages if self.layer else 'the next'} pages comes next"
            )
        ends = self.position + count == self.expected
        chunk = Chunk(slice(self.position, self.position + count), indices, (first, last), ends)
        self.layer, self.pending_pages = last, count
        if last == whole:
            self.layer = 0
            self.position += count
            self.ended = ends
        return chunk

    def _look(self) -> None:
        """Called by poll() where a job has failed, or the deadline has passed."""
        error = self.watch.error
        if error:
            self.fail(error)
        elif time.monotonic() > self.deadline:
            if self.watch.unfinished:
                self._late("of its transfers ended")
            else:
                self._late("happened" if self.bootstrapped else "")

    def conclude(self) -> None:
        """Under the lock, after a success."""
        if self.mgr.rooms.pop(self.room, None) is None:
            return
        self._shut()
        self.latency = self.watch.ended_at - self.first_send
        self.set(KVPoll.Success)
        self.mgr.count(
            rooms_succeeded=1,
            chunks=sum(self.chunks.values()),
            bytes_sent=self.bytes,
            transfer_seconds=self.latency,
        )

    def _late(self, what: str) -> None:
        patience = self.mgr.settings
        if what:
            self.fail(f"nothing {what} within {patience.waiting_timeout:g} s")
        else:
            got = ", ".join(f"{i.endpoint}:{i.dst_port}" for i in self.infos.values()) or "nobody"
            wanted = next((i.required_dst_info_num for i in self.infos.values()), 1)
            self.fail(
                f"{len(self.infos)} of {wanted} decode ranks asked for it within "
                f"{patience.bootstrap_timeout:g} s ({got})"
            )

    def fail(self, reason: str) -> None:
        """From any thread; the decode ranks are told once nothing is on its way any more."""
        with self.mgr.lock:
            if self.status in FINAL:
                return
            self.reason = reason
            self.set(KVPoll.Failed)
            self.backlog.clear()
            self.mgr.rooms.pop(self.room, None)
            self.mgr.draining.append(self)
            self.mgr.remember_failed(self)
            self.mgr.count(rooms_failed=1)
        jobs = self.watch.unfinished
        logger.info("room %d failed: %s", self.room, reason)
        for job in jobs:
            job.cancel()
        self.mgr.control.wake()

    def drained(self) -> bool:
        return not self.watch.unfinished

    # Called by the control thread, under the lock.

    def attach(self, info: TransferInfo) -> None:
        self.infos[info.agent_name] = info
        if len(self.infos) < info.required_dst_info_num or self.bootstrapped:
            return
        self.bootstrapped = True
        self.deadline = time.monotonic() + self.mgr.settings.waiting_timeout
        self.set(KVPoll.WaitingForInput)
        self._check_counts()
        for chunk in self.backlog:
            if self.status not in FINAL:
                self._push(chunk)
        self.backlog.clear()
        self._open()

    def _check_counts(self) -> None:
        if self.expected is None or not self.bootstrapped:
            return
        for info in self.infos.values():
            wanted = info.dst_kv_indices.size
            peer = self.mgr.decode_kv_args_table.get(info.agent_name)
            paired = peer is not None and peer.pairing is not None
            if (wanted or (paired and self._wants(info))) and wanted != self.expected:
                self.fail(
                    f"the decode rank at {info.endpoint}:{info.dst_port} wants {wanted} pages, the "
                    f"prefill rank has {self.expected}"
                )
                return
            if info.dst_aux_index >= 0 and self.aux_index is None:
                self.fail(
                    f"the decode rank at {info.endpoint}:{info.dst_port} wants auxiliary data, but "
                    "init() named no aux_index"
                )
                return

    @staticmethod
    def _wants(info: TransferInfo) -> bool:
        return info.dst_aux_index >= 0 or not info.is_dummy()

    def _push(self, chunk: Chunk) -> None:
        mgr = self.mgr
        self.set(KVPoll.Transferring)
        self.pushed = []
        self.deadline = time.monotonic() + mgr.settings.waiting_timeout
        if mgr.pusher.queued >= mgr.settings.queue_limit:
            self.fail(f"{mgr.pusher.queued} chunks wait to be sent, the limit")
            return
        try:
            for name, info in self.infos.items():
                if self._wants(info):
                    self._push_to(name, info, chunk)
        except (nixlError, KeyError, ValueError) as error:
            self.fail(f"cannot be sent: {error}")
            return
        if self.ended and chunk.ends and chunk.layers[1] == mgr.layout.layers:
            self.watch.set_ended()

    def _add(self, job: Any) -> None:
        self.pushed.append(job)
        self.watch.add(job)

    def _push_to(self, name: str, info: TransferInfo, chunk: Chunk) -> None:
        mgr = self.mgr
        peer = mgr.decode_kv_args_table.get(name)
        if peer is None:
            raise ValueError(f"the decode rank {name} is not known any more")
        pairing, lists, number = peer.pairing, peer.kv, self.chunks.get(name, 0)
        if pairing is None or lists is None:  # of this rank it wants auxiliary data alone
            first, last, is_last = 0, 0, chunk.ends and chunk.layers[1] == mgr.layout.layers
        else:
            start = mgr.layout.first_layer - pairing.first_layer
            first = max(chunk.layers[0] + start, 0)
            last = min(chunk.layers[1] + start, pairing.layers)
            is_last = chunk.ends and first < last == pairing.layers
        if pairing is not None and lists is not None and chunk.indices.size and first < last:
            self.chunks[name] = number + 1
            there = info.dst_kv_indices[chunk.pages]
            notif = f"{self.room}_kv_{number}_{int(is_last)}_{info.nonce}"
            self._add(mgr.push_pages(lists, chunk.indices, there, pairing, (first, last), notif))
            size = pairing.page_bytes // pairing.layers * (last - first) * chunk.indices.size
            self.bytes += size
        elif is_last:  # all pages are there already
            mgr.agent.send_notif(name, f"{self.room}_kv_end_{number}_{info.nonce}")
        if is_last and info.dst_aux_index >= 0:
            assert self.aux_index is not None
            self._add(
                mgr.push_aux(
                    peer, self.aux_index, info.dst_aux_index, f"{self.room}_aux_{info.nonce}"
                )
            )


def _one(number: int) -> npt.NDArray[np.int32]:
    return np.array([number], dtype=np.int32)


def _range(layers: Any, whole: int) -> tuple[int, int]:
    if isinstance(layers, slice):
        first, last, step = layers.indices(whole)
    elif isinstance(layers, range):
        first, last, step = layers.start, layers.stop, layers.step
    else:
        raise TypeError(f"layers: {layers!r} is neither a slice nor a range")
    if step != 1 or not 0 <= first < last <= whole:
        raise ValueError(f"layers: {layers!r} are not neighbours among {whole} layers")
    return first, last
