"""The prefill side: decode ranks that registered, their prepared lists, messages and time.

Threads: as prefill_room.py.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import nixlError
from ..logging import get_logger
from .frames import BadFrames, KVArgsRegisterInfo, TransferInfo
from .layout import Pairing, Side, pair
from .pages import check_range
from .prefill_room import DecodePeer, Lists, PrefillRoom
from .types import KVPoll, LayoutMismatch

logger = get_logger("nixl.disaggregation")


class PrefillPart:
    """Methods of NixlKVManager."""

    def _init_prefill(self: Any) -> None:
        self.decode_kv_args_table: dict[str, DecodePeer] = {}
        self.rooms: dict[int, Any] = {}
        self.draining: list[PrefillRoom] = []
        self._stash: dict[int, dict[str, tuple[TransferInfo, float]]] = {}
        # Rooms that failed, oldest first: why, the decode ranks that are told of it, and when.
        self._failed: dict[int, tuple[str, set[str], float]] = {}
        self._local_lists: dict[Side, Any] = {}
        self._aux_list: Any = None

    def new_prefill_room(self: Any, room: int) -> PrefillRoom:
        with self.lock:
            self.collect()
            if room in self.rooms:
                raise ValueError(f"room {room} is in use by another sender")
            self._failed.pop(room, None)
            made = self.rooms[room] = PrefillRoom(self, room)
            self.count(rooms_started=1)
            for info, _ in self._stash.pop(room, {}).values():
                made.attach(info)
            return made

    # Decode ranks.

    def register_decode(self: Any, info: KVArgsRegisterInfo) -> None:
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

    def _prepare_peer(self: Any, peer: DecodePeer) -> None:
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
        self: Any, name: str, pairing: Pairing, pointers: list[int], theirs: Any
    ) -> Lists:
        local = self._local_lists.get(pairing.local)
        if local is None:
            rows = pairing.local.rows(self.kv_args.kv_data_ptrs, self.layout.gpu_id)
            local = self._local_lists[pairing.local] = self._prepare("", rows, self.layout.mem_kind)
        rows = pairing.remote.rows(pointers, theirs.gpu_id)
        remote = self._prepare(name, rows, theirs.mem_kind)
        return local, pairing.local.count, remote, pairing.remote.count

    def _prepare(self: Any, name: str, rows: list[Any], kind: str) -> Any:
        if kind == "DRAM":
            rows = [(address, length, 0, *rest) for address, length, _, *rest in rows]
        return self.agent.prep_xfer_dlist(name, np.array(rows, dtype=np.uint64), kind)

    def _aux_rows(self: Any, name: str, pointers: list[int], layout: Any) -> Any:
        # Slot after slot, the buffers of each: a slot is one page of as many descriptors.
        rows = [
            (pointer + slot * length, length, 0, length, 1)
            for slot in range(layout.aux_slots)
            for pointer, length in zip(pointers, layout.aux_item_lens, strict=True)
        ]
        return self._prepare(name, rows, "DRAM")

    # Sending.

    def push_pages(
        self: Any,
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

    def push_aux(self: Any, peer: DecodePeer, here: int, there: int, notif: str | bytes) -> Any:
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

    def on_transfer_info(self: Any, info: TransferInfo) -> None:
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
                why, told, _ = self._failed.get(info.room, ("", set(), 0.0))
                if why and info.agent_name not in told:  # one that asks when it is over
                    told.add(info.agent_name)
                    self.tell(where, "failed", room=info.room, nonce=info.nonce, reason=why)
                else:
                    self._keep(info)

    def remember_failed(self: Any, room: PrefillRoom) -> None:
        """Under the lock: decode ranks that have not asked for it yet will be told."""
        self._failed.pop(room.room, None)
        self._failed[room.room] = (room.reason[:1000], set(room.infos), time.monotonic())

    def _keep(self: Any, info: TransferInfo) -> None:
        self._stash.setdefault(info.room, {})[info.agent_name] = (info, time.monotonic())

    def on_prefill_note(self: Any, note: dict[str, Any]) -> None:
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

    def _on_abort(self: Any, where: tuple[str, int], note: dict[str, Any]) -> None:
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
                    if room.status == KVPoll.Failed:
                        return  # told once it is drained
        self.tell(where, "aborted", room=number, nonce=note["nonce"])

    def prefill_tick(self: Any) -> None:
        now = time.monotonic()
        for room in list(self.draining):
            if room.drained():
                self.draining.remove(room)
                self._tell_failed(room)
        with self.lock:
            self.collect()
            for number, infos in list(self._stash.items()):
                for name, (info, since) in list(infos.items()):
                    if now - since > self.settings.waiting_timeout:
                        del infos[name]
                        reason = f"no prefill request within {self.settings.waiting_timeout:g} s"
                        where = (info.endpoint, info.dst_port)
                        self.tell(where, "failed", room=number, nonce=info.nonce, reason=reason)
                if not infos:
                    del self._stash[number]
            for number, (_, _, since) in list(self._failed.items()):
                if now - since < self.settings.bootstrap_timeout:
                    break
                del self._failed[number]
            for room in list(self.rooms.values()):
                if now > room.deadline:
                    room.poll()
        self._drop_silent_peers(now)

    def _tell_failed(self: Any, room: PrefillRoom) -> None:
        for name, info in room.infos.items():
            where = (info.endpoint, info.dst_port)
            kind = "aborted" if name in room.told_abort else "failed"
            words = {"room": room.room, "nonce": info.nonce}
            if kind == "failed":
                words["reason"] = room.reason[:1000]
            self.tell(where, kind, **words)

    def _drop_silent_peers(self: Any, now: float) -> None:
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
