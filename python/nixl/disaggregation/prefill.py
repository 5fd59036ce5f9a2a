"""The prefill side: decode ranks that registered, and rooms whose pages are sent.

Threads: a room's methods are called by the scheduler and by the control thread; what changes it is
under the manager's lock. poll() takes that only where something has changed.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _bindings
from ..errors import nixlError
from ..logging import get_logger
from .frames import BadFrames, KVArgsRegisterInfo, TransferInfo
from .layout import Pairing, Side, pair
from .pages import as_pages, check_range
from .types import FINAL, KVPoll, LayoutMismatch

if TYPE_CHECKING:
    from .manager import NixlKVManager

logger = get_logger("nixl.disaggregation")

_DONE, _FAILED = 2, 3  # states of a _KvJob from 2 on are final

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


class PrefillRoom:
    """One use of a room by a sender."""

    def __init__(self, mgr: NixlKVManager, room: int) -> None:
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
        self.jobs: list[Any] = []
        self.chunks: dict[str, int] = {}  # decode agent -> chunks sent to it
        self.bytes = 0
        self.watch = _bindings._KvWatch(None, self._look)
        self.poll = self.watch.poll
        self.started = time.monotonic()
        self.first_send = 0.0
        self.latency: float | None = None
        self.deadline = self.started + mgr.settings.bootstrap_timeout
        self.bootstrapped = False
        self.told_abort: set[str] = set()
        self.set(KVPoll.Bootstrapping)

    def set(self, status: int) -> None:
        self.watch.status = status
        self.mgr.request_status[self.room] = status
        if status in FINAL:
            self.watch.end()

    @property
    def status(self) -> int:
        return self.watch.status

    @property
    def deadline(self) -> float:
        return self.watch.deadline

    @deadline.setter
    def deadline(self, when: float) -> None:
        self.watch.deadline = when

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

    def send(self, kv_indices: Any, layers: Any = None) -> None:
        indices = as_pages(kv_indices)
        with self.mgr.lock:
            if self.status == KVPoll.Failed:
                return  # poll() tells
            chunk = self._cut(indices, layers)
            if not self.first_send:
                self.first_send = time.monotonic()
            if not self.bootstrapped:
                chunk.indices = chunk.indices.copy()  # the caller may use its array again
                self.backlog.append(chunk)
                return
            idle = not self.jobs
            self._push(chunk)
            if idle and self.status not in FINAL:
                self._end_or_watch()

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
        """Called by poll() where a job has ended, or the deadline has passed."""
        with self.mgr.lock:
            ended = self._reap()
        if ended or self.status in FINAL or time.monotonic() <= self.deadline:
            return
        if self.jobs:
            self._late("of its transfers ended")
        else:
            self._late("happened" if self.bootstrapped else "")

    def _reap(self) -> bool:
        """Takes what has ended; whether anything has."""
        before = len(self.jobs)
        while self.jobs and self.status not in FINAL:
            state = self.jobs[0].state
            if state < _DONE:
                break
            job = self.jobs.pop(0)
            if state >= _FAILED:
                self.fail(job.error)
                return True
        ended = len(self.jobs) < before
        if ended:
            self.deadline = time.monotonic() + self.mgr.settings.waiting_timeout
        if self.status not in FINAL:
            self._end_or_watch()
        return ended

    def _end_or_watch(self) -> None:
        if self.jobs or not (self.ended and self.bootstrapped):
            self.watch.watch(self.jobs[0] if self.jobs else None)
            return
        self.set(KVPoll.Success)
        self.latency = time.monotonic() - self.first_send
        self.mgr.count(
            rooms_succeeded=1,
            chunks=sum(self.chunks.values()),
            bytes_sent=self.bytes,
            transfer_seconds=self.latency,
        )
        self.mgr.rooms.pop(self.room, None)

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
            self.mgr.count(rooms_failed=1)
            jobs = list(self.jobs)
        logger.info("room %d failed: %s", self.room, reason)
        for job in jobs:
            job.cancel()
        self.mgr.control.wake()

    def drained(self) -> bool:
        with self.mgr.lock:
            self.jobs = [job for job in self.jobs if job.state < _DONE]
            return not self.jobs

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
        if self.status not in FINAL:
            self._end_or_watch()

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
            self.jobs.append(
                mgr.push_pages(lists, chunk.indices, there, pairing, (first, last), notif)
            )
            size = pairing.page_bytes // pairing.layers * (last - first) * chunk.indices.size
            self.bytes += size
        elif is_last:  # all pages are there already
            mgr.agent.send_notif(name, f"{self.room}_kv_end_{number}_{info.nonce}")
        if is_last and info.dst_aux_index >= 0:
            assert self.aux_index is not None
            self.jobs.append(
                mgr.push_aux(
                    peer, self.aux_index, info.dst_aux_index, f"{self.room}_aux_{info.nonce}"
                )
            )


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


class PrefillPart:
    """Methods of NixlKVManager."""

    def _init_prefill(self: NixlKVManager) -> None:
        self.decode_kv_args_table: dict[str, DecodePeer] = {}
        self.rooms: dict[int, Any] = {}
        self.draining: list[PrefillRoom] = []
        self._stash: dict[int, dict[str, tuple[TransferInfo, float]]] = {}
        self._local_lists: dict[Side, Any] = {}
        self._aux_list: Any = None

    def new_prefill_room(self: NixlKVManager, room: int) -> PrefillRoom:
        with self.lock:
            if room in self.rooms:
                raise ValueError(f"room {room} is in use by another sender")
            made = self.rooms[room] = PrefillRoom(self, room)
            self.count(rooms_started=1)
            for info, _ in self._stash.pop(room, {}).values():
                made.attach(info)
            return made

    # Decode ranks.

    def register_decode(self: NixlKVManager, info: KVArgsRegisterInfo) -> None:
        known = self.decode_kv_args_table.get(info.agent_name)
        peer = known
        if peer is None or peer.refused or peer.info != info:
            peer = DecodePeer(info)
            try:
                self._prepare_peer(peer)
            except (LayoutMismatch, nixlError, TypeError) as error:
                peer.refused = str(error)
                self.count(refused_peers=1)
                logger.warning(
                    "the decode rank at %s:%d is refused: %s", info.endpoint, info.dst_port, error
                )
            if known is None or known.refused or not peer.refused:  # else the good one stays
                with self.lock:
                    self.decode_kv_args_table[info.agent_name] = peer
        peer.seen = time.monotonic()
        self.tell((info.endpoint, info.dst_port), "registered", refused=peer.refused)

    def _prepare_peer(self: NixlKVManager, peer: DecodePeer) -> None:
        info = peer.info
        theirs = info.layout or self.layout
        peer.pairing = pair(self.layout, theirs)
        got = self.agent.add_remote_agent(info.agent_metadata)
        if got != info.agent_name.encode():
            self.agent.remove_remote_agent(got)
            raise LayoutMismatch(f"the metadata is of agent {got!r}, not of {info.agent_name!r}")
        if peer.pairing is not None:
            peer.kv = self.prepare_kv(info.agent_name, peer.pairing, info.dst_kv_ptrs, theirs)
        if info.dst_aux_ptrs:
            if self._aux_list is None:
                self._aux_list = self._aux_rows("", self.kv_args.aux_data_ptrs, self.layout)
            remote = self._aux_rows(info.agent_name, info.dst_aux_ptrs, theirs)
            peer.aux = (self._aux_list, 1, remote, 1)

    def prepare_kv(
        self: NixlKVManager, name: str, pairing: Pairing, pointers: list[int], theirs: Any
    ) -> Lists:
        local = self._local_lists.get(pairing.local)
        if local is None:
            rows = pairing.local.rows(self.kv_args.kv_data_ptrs, self.layout.gpu_id)
            local = self._local_lists[pairing.local] = self._prepare("", rows, self.layout.mem_kind)
        rows = pairing.remote.rows(pointers, theirs.gpu_id)
        remote = self._prepare(name, rows, theirs.mem_kind)
        return local, pairing.local.count, remote, pairing.remote.count

    def _prepare(self: NixlKVManager, name: str, rows: list[Any], kind: str) -> Any:
        if kind == "DRAM":
            rows = [(address, length, 0, *rest) for address, length, _, *rest in rows]
        return self.agent.prep_xfer_dlist(name, np.array(rows, dtype=np.uint64), kind)

    def _aux_rows(self: NixlKVManager, name: str, pointers: list[int], layout: Any) -> Any:
        # Slot after slot, the buffers of each: a slot is one page of as many descriptors.
        rows = [
            (pointer + slot * length, length, 0, length, 1)
            for slot in range(layout.aux_slots)
            for pointer, length in zip(pointers, layout.aux_item_lens, strict=True)
        ]
        return self._prepare(name, rows, "DRAM")

    # Sending.

    def push_pages(
        self: NixlKVManager,
        lists: Lists,
        here: npt.NDArray[np.int32],
        there: npt.NDArray[np.int32],
        pairing: Pairing,
        layers: tuple[int, int],
        notif: str | bytes,
    ) -> Any:
        each = pairing.buffers_per_layer
        first, last = layers
        return self.pusher.push(
            self.agent.agent,
            lists[0],
            lists[1],
            here,
            lists[2],
            lists[3],
            there,
            pairing.each_page,
            first * each,
            (last - first) * each,
            notif,
        )

    def push_aux(
        self: NixlKVManager, peer: DecodePeer, here: int, there: int, notif: str | bytes
    ) -> Any:
        if peer.aux is None:
            raise ValueError("the decode rank has no buffers of auxiliary data")
        each = len(self.layout.aux_item_lens)
        theirs = peer.info.layout or self.layout
        return self.pusher.push(
            self.agent.agent,
            peer.aux[0],
            self.layout.aux_slots * each,
            np.array([here], dtype=np.int32),
            peer.aux[2],
            theirs.aux_slots * each,
            np.array([there], dtype=np.int32),
            each,
            0,
            1,
            notif,
        )

    # Messages and time.

    def on_transfer_info(self: NixlKVManager, info: TransferInfo) -> None:
        where = (info.endpoint, info.dst_port)
        peer = self.decode_kv_args_table.get(info.agent_name)
        if peer is None:
            self.tell(where, "unknown", room=info.room, nonce=info.nonce)
            return
        peer.seen = time.monotonic()
        theirs = peer.info.layout or self.layout
        reason = peer.refused
        if not reason:
            try:
                check_range(info.dst_kv_indices, theirs.pages, "dst_kv_indices")
                if info.dst_aux_index >= max(theirs.aux_slots, 0) and info.dst_aux_index >= 0:
                    raise ValueError(
                        f"aux_index {info.dst_aux_index} is not one of {theirs.aux_slots}"
                    )
            except ValueError as error:
                reason = str(error)
        with self.lock:
            room = self.rooms.get(info.room)
            if reason:
                if room is not None:
                    room.fail(reason)
                self.tell(where, "failed", room=info.room, nonce=info.nonce, reason=reason)
            elif room is not None and info.agent_name in room.infos:
                if room.infos[info.agent_name].nonce != info.nonce:
                    room.fail("the decode rank began the room anew")
                    self._keep(info)
            elif room is not None:
                room.attach(info)
            else:
                self._keep(info)

    def _keep(self: NixlKVManager, info: TransferInfo) -> None:
        self._stash.setdefault(info.room, {})[info.agent_name] = (info, time.monotonic())

    def on_prefill_note(self: NixlKVManager, note: dict[str, Any]) -> None:
        where = (note["endpoint"], note["port"])
        if note["kind"] == "ping":
            peer = self.decode_kv_args_table.get(note["agent"])
            if peer is not None:
                peer.seen = time.monotonic()
            self.tell(where, "pong")
        elif note["kind"] == "abort":
            self._on_abort(where, note)
        else:
            raise BadFrames(f"a prefill rank got the note {note['kind']!r}")

    def _on_abort(self: NixlKVManager, where: tuple[str, int], note: dict[str, Any]) -> None:
        name, number = note["agent"], note["room"]
        with self.lock:
            stashed = self._stash.get(number, {})
            if name in stashed and stashed[name][0].nonce == note["nonce"]:
                del stashed[name]
            active = self.rooms.get(number)
            for room in [active, *self.draining] if active else self.draining:
                info = room.infos.get(name)
                if info is not None and info.room == number and info.nonce == note["nonce"]:
                    room.told_abort.add(name)
                    room.fail("aborted by the decode rank")
                    return
        self.tell(where, "aborted", room=number, nonce=note["nonce"])

    def prefill_tick(self: NixlKVManager) -> None:
        now = time.monotonic()
        for room in list(self.draining):
            if room.drained():
                self.draining.remove(room)
                self._tell_failed(room)
        with self.lock:
            for number, infos in list(self._stash.items()):
                for name, (info, since) in list(infos.items()):
                    if now - since > self.settings.waiting_timeout:
                        del infos[name]
                        reason = f"no prefill request within {self.settings.waiting_timeout:g} s"
                        where = (info.endpoint, info.dst_port)
                        self.tell(where, "failed", room=number, nonce=info.nonce, reason=reason)
                if not infos:
                    del self._stash[number]
            for room in list(self.rooms.values()):
                if now > room.deadline:
                    room.poll()
        self._drop_silent_peers(now)

    def _tell_failed(self: NixlKVManager, room: PrefillRoom) -> None:
        for name, info in room.infos.items():
            where = (info.endpoint, info.dst_port)
            kind = "aborted" if name in room.told_abort else "failed"
            words = {"room": room.room, "nonce": info.nonce}
            if kind == "failed":
                words["reason"] = room.reason[:1000]
            self.tell(where, kind, **words)

    def _drop_silent_peers(self: NixlKVManager, now: float) -> None:
        # A decode rank pings while it waits for a room; one without rooms may be silent for long.
        with self.lock:
            used = {name for room in self.rooms.values() for name in room.infos}
            for name, peer in list(self.decode_kv_args_table.items()):
                silent = now - peer.seen
                if name in used and silent > 2 * self.settings.peer_timeout:
                    for room in list(self.rooms.values()):
                        if name in room.infos:
                            room.fail(
                                f"the decode rank at {peer.info.endpoint}:{peer.info.dst_port} has "
                                f"been silent for {silent:.0f} s"
                            )
                elif name not in used and silent > max(600.0, 4 * self.settings.peer_timeout):
                    del self.decode_kv_args_table[name]
                    try:
                        self.agent.remove_remote_agent(name)
                    except nixlError as error:
                        logger.debug("removing %s: %s", name, error)
