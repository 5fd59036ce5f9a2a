"""The decode side: prefill groups found through bootstrap servers, and rooms whose pages arrive.

Threads: as prefill.py. What a bootstrap server is asked is asked on threads of their own, so that a
slow one holds up nobody.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _bindings
from ..logging import get_logger
from .bootstrap import get_ranks
from .frames import GUARD, BadFrames, KVArgsRegisterInfo, TransferInfo, note
from .layout import Layout
from .pages import as_pages, check_range
from .routes import sources, takers, told
from .types import FINAL, KVPoll
from .watched import WatchedRoom

logger = get_logger("nixl.disaggregation")

_ASK_TIMEOUT = 2.0
_ASK_AGAIN = 0.2
_ASK_WHETHER_SAME = 5.0  # while rooms are under way
# A server forgets ranks after 10 s: one that it still names later has registered since.
_LEASE = 12.0
_OF_A_ROOM = re.compile(rb"\d+_(kv_(\d+_[01]|end_\d+)|aux)_[0-9a-f]*")
_EMPTY = np.empty(0, dtype=np.int32)


@dataclasses.dataclass
class PrefillRank:
    """A prefill rank as this rank knows it."""

    row: dict[str, Any]
    registered: bool = False
    refused: str = ""
    heard: float = dataclasses.field(default_factory=time.monotonic)
    pinged: float = 0.0

    @property
    def where(self) -> tuple[str, int]:
        return self.row["rank_ip"], self.row["rank_port"]

    def __str__(self) -> str:
        row = self.row
        return (
            f"prefill rank {row['tp_rank']} (group {row['dp_rank']}, stage {row['pp_rank']}) at "
            f"{row['rank_ip']}:{row['rank_port']}"
        )


class Group:
    """What a bootstrap server told of its prefill ranks."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ranks: dict[tuple[int, int, int], PrefillRank] = {}  # dp, tp, pp
        self.asking = False
        self.asked = 0.0
        self.problem = "it has not answered yet"

    def chosen(self, dp: int | None, room: int) -> tuple[list[PrefillRank] | None, str]:
        """All ranks of a data-parallel group, or why there are not all of them."""
        first = next(iter(self.ranks.values()), None)
        if first is None:
            return None, self.problem
        sizes = first.row
        if dp is None:
            dp = room % sizes["dp_size"]
        if not 0 <= dp < sizes["dp_size"]:
            return None, f"there is no data-parallel rank {dp} of {sizes['dp_size']}"
        wanted = [(dp, tp, pp) for tp in range(sizes["tp_size"]) for pp in range(sizes["pp_size"])]
        missing = [key for key in wanted if key not in self.ranks]
        if missing:
            return None, (
                f"{len(missing)} of {len(wanted)} prefill ranks of group {dp} have not registered"
            )
        return [self.ranks[key] for key in wanted], ""


class DecodeRoom(WatchedRoom):
    """One use of a room by a receiver."""

    def __init__(self, mgr: Any, address: str, room: int, dp: int | None) -> None:
        self.mgr, self.address, self.room, self.dp = mgr, address, room, dp
        self.nonce = secrets.token_hex(8)
        self.reason = ""
        self.indices: npt.NDArray[np.int32] | None = None
        self.aux_index: int | None = None
        self.ranks: list[PrefillRank] = []  # all that are told
        self.writers: list[PrefillRank] = []  # those that write
        self.infos: dict[tuple[str, int], TransferInfo] = {}
        self.unsafe: set[tuple[str, int]] = set()  # may still be writing
        self.watch: Any = _bindings._KvWatch(mgr.inbox, self._late, mgr.settings.waiting_timeout)
        self.poll = self.watch.poll
        self.started = time.monotonic()
        self.asked = 0.0
        self.told = 0.0  # to stop
        self.latency: float | None = None
        self.deadline = self.started + mgr.settings.bootstrap_timeout
        self.set(KVPoll.Bootstrapping)

    # Called by the scheduler.

    def init(self, kv_indices: Any, aux_index: int | None) -> None:
        indices = as_pages(kv_indices).copy()
        layout = self.mgr.layout
        check_range(indices, layout.pages, f"room {self.room}: kv_indices")
        if aux_index is not None and not 0 <= aux_index < layout.aux_slots:
            raise ValueError(
                f"room {self.room}: aux_index {aux_index} is not one of {layout.aux_slots}"
            )
        if not indices.size and aux_index is None:
            raise ValueError(f"room {self.room}: neither pages nor auxiliary data are wanted")
        with self.mgr.lock:
            if self.indices is not None:
                raise RuntimeError(f"room {self.room}: init() was called before")
            self.indices, self.aux_index = indices, aux_index
            if self.status == KVPoll.WaitingForInput:
                self._ask()

    def _late(self) -> None:
        """Called by poll() where the deadline has passed."""
        patience = self.mgr.settings
        if self.status == KVPoll.Bootstrapping:
            group = self.mgr.groups[self.address]
            _, problem = group.chosen(self.dp, self.room)
            self.fail(
                f"bootstrap server {self.address}: {problem or group.problem} (waited "
                f"{patience.bootstrap_timeout:g} s)"
            )
        elif self.indices is None:
            self.fail(f"init() was not called within {patience.waiting_timeout:g} s")
        else:
            got, ended = self.watch.progress
            self.fail(
                f"no progress within {patience.waiting_timeout:g} s: {got} chunks came, the last "
                f"of {ended} of {len(self.writers)} prefill ranks"
            )

    def conclude(self) -> None:
        """Under the lock, after a success."""
        if self.mgr.rooms.pop(self.room, None) is not None:
            self.mgr.inbox.remove(self.room)
            self.latency = self.watch.ended_at - self.asked
            self.set(KVPoll.Success)
            self.mgr.count(rooms_succeeded=1, transfer_seconds=self.latency)

    def fail(self, reason: str, safe: PrefillRank | None = None) -> None:
        """From any thread. Prefill ranks that may still write (all but `safe`) are told to stop."""
        mgr = self.mgr
        with mgr.lock:
            if self.status in FINAL:
                return
            self.reason = reason
            self.set(KVPoll.Failed)
            mgr.rooms.pop(self.room, None)
            mgr.inbox.remove(self.room)
            mgr.count(rooms_failed=1)
            for where, info in self.infos.items():
                if safe is not None and where == safe.where:
                    continue
                if info.dst_kv_indices.size or info.dst_aux_index >= 0:
                    self.unsafe.add(where)
                words = {"agent": mgr.agent.name, "room": self.room, "nonce": self.nonce}
                mgr.tell(where, "abort", **words)
            self.told = time.monotonic()
            if self.unsafe:
                mgr.stopping.append(self)
        logger.info("room %d failed: %s", self.room, reason)

    # Under the lock.

    def resolve(self) -> None:
        """Goes on where the bootstrap server has told of all ranks."""
        if self.status != KVPoll.Bootstrapping:
            return
        mgr = self.mgr
        ranks, problem = mgr.groups[self.address].chosen(self.dp, self.room)
        if ranks is None:
            if problem.startswith("there is no"):
                self.fail(problem)
            return
        row, mine = ranks[0].row, mgr.layout
        for name, here, there in (
            ("page sizes", mine.page_size, row["page_size"]),
            ("KV head counts", mine.heads, row["heads"]),
        ):
            if here and there and here != there:
                self.fail(f"{name} differ: prefill {there}, decode {here}")
                return
        if mine.mla != row["mla"]:
            self.fail(f"MLA differs: prefill {row['mla']}, decode {mine.mla}")
            return
        problem = mgr.place_layers([rank.row for rank in ranks])
        if problem:
            self.fail(problem)
            return
        self.ranks = ranks
        self.deadline = time.monotonic() + mgr.settings.waiting_timeout
        self.set(KVPoll.WaitingForInput)
        if self.indices is not None:
            self._ask()

    def _ask(self) -> None:
        """Tells the prefill ranks where the pages go."""
        mgr, layout = self.mgr, self.mgr.layout
        assert self.indices is not None
        row = self.ranks[0].row
        sizes = (row["tp_size"], layout.heads or row["heads"], layout.mla)
        writers = sources(layout.tp_rank, layout.tp_size, *sizes)
        stages = row["pp_size"]
        self.asked = time.monotonic()
        self.deadline = self.asked + mgr.settings.waiting_timeout
        asked: list[tuple[PrefillRank, TransferInfo]] = []
        aux_from = (writers[0], stages - 1)
        refused = ""
        for tp in told(layout.tp_rank, layout.tp_size, *sizes):
            # Each stage of the decode side asks for itself.
            needed = mgr.pp_size * len(takers(tp, row["tp_size"], layout.tp_size, *sizes[1:]))
            for rank in (r for r in self.ranks if r.row["tp_rank"] == tp):
                aux = (tp, rank.row["pp_rank"]) == aux_from and self.aux_index is not None
                pages = tp in writers and _overlap(rank.row, layout)
                info = TransferInfo(
                    self.room,
                    mgr.local_ip,
                    mgr.control.port,
                    mgr.agent.name,
                    self.indices if pages else _EMPTY,
                    self.aux_index if aux and self.aux_index is not None else -1,
                    needed,
                    self.nonce,
                )
                if (pages and self.indices.size) or aux:
                    self.writers.append(rank)
                self.infos[rank.where] = info
                refused = refused or rank.refused
                asked.append((rank, info))
        mgr.inbox.add(self.room, self.watch)
        self.watch.expect(self.nonce, len(self.writers), self.aux_index is not None)
        for rank, info in asked:
            mgr.ask(rank, info)
        if refused:
            self.fail(refused)


def _overlap(row: dict[str, Any], layout: Layout) -> bool:
    first, last = row["first_layer"], row["first_layer"] + row["layers"]
    return first < layout.first_layer + layout.layers and layout.first_layer < last


def _spans(layers: list[tuple[int, int]]) -> str:
    return ", ".join(f"{first} to {last - 1}" for first, last in layers)


class DecodePart:
    """Methods of NixlKVManager."""

    inbox: Any

    def _init_decode(self: Any) -> None:
        self.rooms: dict[int, Any] = {}
        self.inbox = _bindings._KvInbox(self.agent.agent, self._on_came)
        self.stopping: list[DecodeRoom] = []
        self.groups: dict[str, Group] = {}
        self._by_address: dict[tuple[str, int], PrefillRank] = {}
        self._lost: dict[str, float] = {}  # instance -> when
        # Ranks that fell silent and may only be unplugged or stopped: address -> when their writes
        # are over in any case. By then this agent's session with them has ended, and with it what
        # was on its way; and they have given this rank up themselves.
        self._silent: dict[tuple[str, int], float] = {}
        self._silence = 3 * self.settings.peer_timeout + self.settings.heartbeat

    def new_decode_room(self: Any, address: str, room: int, dp: Any) -> DecodeRoom:
        with self.lock:
            self.collect()
            if room in self.rooms:
                raise ValueError(f"room {room} is in use by another receiver")
            group = self.groups.setdefault(address, Group(address))
            made = self.rooms[room] = DecodeRoom(self, address, room, dp)
            self.count(rooms_started=1)
            made.resolve()
            if made.status == KVPoll.Bootstrapping:
                self._ask_group(group, 0.0)
            return made

    def place_layers(self: Any, rows: list[dict[str, Any]]) -> str:
        """Why these prefill ranks do not have the layers of this rank; empty where they do."""
        mine = self.layout
        held = sorted({(row["first_layer"], row["first_layer"] + row["layers"]) for row in rows})
        if self.pp_rank and not mine.first_layer:  # schedulers tell it of prefill stages only
            same = [row for row in rows if row["pp_rank"] == self.pp_rank]
            if rows[0]["pp_size"] != self.pp_size or same[0]["layers"] != mine.layers:
                return (
                    f"prefill_start_layer of decode stage {self.pp_rank} is not known, which it "
                    f"must be where the stages differ (prefill {rows[0]['pp_size']} with layers "
                    f"{_spans(held)}, decode {self.pp_size}, this one of {mine.layers} layers)"
                )
            mine = dataclasses.replace(mine, first_layer=same[0]["first_layer"])
        at, end = mine.first_layer, mine.first_layer + mine.layers
        for first, last in held:
            at = last if first <= at < last else at
        if at < end or (self.pp_size == 1 and at > end):
            return (
                f"layers differ: prefill {_spans(held)}, decode "
                f"{_spans([(mine.first_layer, end)])}"
            )
        self.layout = mine
        return ""

    # Bootstrap servers.

    def _ask_group(self: Any, group: Group, after: float) -> None:
        if not group.asking and time.monotonic() - group.asked >= after:
            group.asking = True
            self.helpers.submit(self._answer_of, group)

    def _answer_of(self: Any, group: Group) -> None:
        rows: list[dict[str, Any]] = []
        problem = "no prefill rank has registered"
        try:
            rows = get_ranks(group.address, _ASK_TIMEOUT)
        except ConnectionError as error:
            problem = str(error)
        with self.lock:
            group.asking, group.asked, group.problem = False, time.monotonic(), problem
            self._take_rows(group, rows)
            for room in list(self.rooms.values()):
                if room.address == group.address:
                    room.resolve()

    def _take_rows(self: Any, group: Group, rows: list[dict[str, Any]]) -> None:
        if rows:  # else the server was restarted, or is away: the ranks need it no more
            keys = {(r["dp_rank"], r["tp_rank"], r["pp_rank"]) for r in rows}
            for key in set(group.ranks) - keys:
                if not any(group.ranks[key] in room.ranks for room in self.rooms.values()):
                    del group.ranks[key]
        now = time.monotonic()
        self._lost = {name: at for name, at in self._lost.items() if now - at < _LEASE}
        for row in rows:
            if row["instance"] in self._lost:
                continue
            key = (row["dp_rank"], row["tp_rank"], row["pp_rank"])
            known = group.ranks.get(key)
            if known is not None and known.row["instance"] == row["instance"]:
                continue
            rank = PrefillRank(row)
            if known is not None:
                self._rank_lost(known, "was started anew", dead=known.where == rank.where)
            group.ranks[key] = rank
            self._by_address[rank.where] = rank

    def _rank_lost(self: Any, rank: PrefillRank, what: str, dead: bool) -> None:
        """`dead`: its process is known to have ended, so that it writes no more."""
        self.count(peers_lost=1)
        self._lost[rank.row["instance"]] = time.monotonic()
        self._by_address.pop(rank.where, None)
        for group in self.groups.values():
            for key, known in list(group.ranks.items()):
                if known is rank:
                    del group.ranks[key]
        for room in list(self.rooms.values()):
            if rank in room.ranks:
                room.fail(f"{rank} {what}", safe=rank if dead else None)
        if dead:
            self._silent.pop(rank.where, None)
            for room in self.stopping:
                room.unsafe.discard(rank.where)
        else:
            self._silent[rank.where] = rank.heard + self._silence

    # Prefill ranks.

    def ask(self: Any, rank: PrefillRank, info: TransferInfo) -> None:
        if not rank.registered:
            rank.registered = True
            self._by_address[rank.where] = rank
            self.control.send(*rank.where, [GUARD, *self.registration().to_zmq()])
        self._ping(rank)
        self.control.send(*rank.where, [GUARD, *info.to_zmq()])

    def registration(self: Any) -> KVArgsRegisterInfo:
        return KVArgsRegisterInfo(
            "None",
            self.local_ip,
            self.control.port,
            self.agent.name,
            self.metadata,
            list(self.kv_args.kv_data_ptrs),
            list(self.kv_args.aux_data_ptrs),
            self.layout.gpu_id,
            self.layout,
        )

    def _ping(self: Any, rank: PrefillRank) -> None:
        now = time.monotonic()
        if now - rank.pinged < self.settings.heartbeat:
            return
        if now - rank.pinged > 2 * self.settings.heartbeat + 1:
            rank.heard = now  # nobody asked it for a while
        rank.pinged = now
        words = {"endpoint": self.local_ip, "port": self.control.port, "agent": self.agent.name}
        self.control.send(*rank.where, note("ping", **words))

    def on_decode_note(self: Any, got: dict[str, Any]) -> None:
        if "instance" not in got:
            raise BadFrames(f"a decode rank got the note {got['kind']!r}")
        with self.lock:
            rank = self._by_address.get((got["endpoint"], got["port"]))
            if rank is None:
                self._on_stopped(got)
                return
            rank.heard = time.monotonic()
            if rank.row["instance"] != got["instance"]:
                self._rank_lost(rank, "was started anew", dead=True)
                return
            kind = got["kind"]
            if kind == "registered" and got["refused"]:
                rank.refused = f"{rank} refused this rank: {got['refused']}"
                for room in list(self.rooms.values()):
                    if rank.where in room.infos:
                        room.fail(rank.refused, safe=rank)
            elif kind in ("unknown", "failed", "aborted"):
                self._on_room_note(rank, got)

    def _on_room_note(self: Any, rank: PrefillRank, got: dict[str, Any]) -> None:
        room = self.rooms.get(got["room"])
        if room is not None and room.nonce == got["nonce"] and rank.where in room.infos:
            if got["kind"] == "unknown":
                rank.registered = False
                self.ask(rank, room.infos[rank.where])
            else:
                room.fail(f"{rank}: {got.get('reason', 'aborted')}", safe=rank)
        else:
            self._on_stopped(got)

    def _on_stopped(self: Any, got: dict[str, Any]) -> None:
        if got["kind"] in ("failed", "aborted"):
            for room in self.stopping:
                if room.room == got["room"] and room.nonce == got["nonce"]:
                    room.unsafe.discard((got["endpoint"], got["port"]))

    # Notifications.

    def update_transfer_status(self: Any) -> None:
        """Takes the notifications that came and counts them for their rooms."""
        self.inbox.look()

    def _on_came(self: Any, source: str, message: bytes) -> None:
        """What is of no room under way."""
        if _OF_A_ROOM.fullmatch(message):
            self.count(late_notifications=1)
        else:
            self.count(foreign_notifications=1)
            self.other_notifications.add(source, message)

    def check_transfer_done(self: Any, room: int) -> bool:
        """Whether all of a room's pages and its auxiliary data have arrived."""
        found = self.rooms.get(room)
        status = found.status if found is not None else self.request_status.get(room)
        return bool(status == KVPoll.Success)

    # Time.

    def decode_tick(self: Any) -> None:
        now = time.monotonic()
        self.inbox.tell()
        with self.lock:
            self.collect()
            rooms = list(self.rooms.values())
            waiting = {r.address for r in rooms if r.status == KVPoll.Bootstrapping}
            for address in {room.address for room in rooms}:
                patience = _ASK_AGAIN if address in waiting else _ASK_WHETHER_SAME
                self._ask_group(self.groups[address], patience)
            for rank in {id(r): r for room in rooms for r in room.ranks if room.infos}.values():
                self._ping(rank)
                if now - rank.heard > self.settings.peer_timeout:
                    silent = now - rank.heard
                    self._rank_lost(rank, f"has not answered for {silent:.1f} s", dead=False)
            for room in self.stopping:
                self._stop_writers(room, now)
            self.stopping = [room for room in self.stopping if room.unsafe]
            self._silent = {where: end for where, end in self._silent.items() if now < end}
            for room in rooms:
                if now > room.deadline:
                    room.poll()

    def _stop_writers(self: Any, room: DecodeRoom, now: float) -> None:
        again = now - room.told >= self.settings.heartbeat  # the note may have been lost
        room.told = now if again else room.told
        for where in list(room.unsafe):
            rank = self._by_address.get(where)
            if rank is not None:
                self._ping(rank)
            if again:
                words = {"agent": self.agent.name, "room": room.room, "nonce": room.nonce}
                self.tell(where, "abort", **words)
            over = self._silent.get(where, now) if rank is None else rank.heard + self._silence
            if now >= over:
                room.unsafe.discard(where)
