"""NixlKVManager: one rank's agent, its registered cache, and the rooms under way.

A rank has one manager for the life of its process. Prefill and decode share what is here; what each
does is in prefill.py and decode.py.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _bindings
from ..agent import nixl_agent
from ..config import nixl_agent_config
from ..logging import get_logger
from .bootstrap import put_route
from .control import Control
from .counted import NotificationCounter
from .decode import DecodePart
from .frames import GUARD, TAG, BadFrames, KVArgsRegisterInfo, TransferInfo, note, read_note
from .layout import layout_of
from .pages import as_pages, check_range
from .prefill import PrefillPart
from .prefill_room import PrefillRoom
from .settings import Settings
from .types import DisaggregationMode, KVPoll

logger = get_logger("nixl.disaggregation")

_TICK = 0.05
_REGISTER_AGAIN = 2.0
_REGISTER_TIMEOUT = 2.0


def _memory_kind(pointer: int) -> str:
    """Whether CUDA, where a driver is, knows this address as a GPU's."""
    return "VRAM" if _bindings._deviceOf(pointer) >= 0 else "DRAM"


def _own_address(server_args: Any) -> str:
    host = os.environ.get("NIXL_DISAGG_HOST") or getattr(server_args, "host", "") or ""
    if host and host not in ("0.0.0.0", "::", "localhost"):
        return host
    if host == "localhost":
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: asks which way would be taken
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


class NixlKVManager(PrefillPart, DecodePart):
    """One rank of a prefill or decode server.

    `args`: KVArgs; `server_args`: sizes, host and the port of the bootstrap server; `settings`:
    times and limits, from the environment where left out. close() ends it.
    """

    def __init__(
        self,
        args: Any,
        disaggregation_mode: Any,
        server_args: Any,
        is_mla_backend: bool | None = False,
        *,
        settings: Settings | None = None,
        backends: list[str] | None = None,
    ) -> None:
        if disaggregation_mode not in (DisaggregationMode.PREFILL, DisaggregationMode.DECODE):
            raise ValueError(
                f"disaggregation_mode: {disaggregation_mode!r} is neither PREFILL nor " "DECODE"
            )
        self.kv_args, self.server_args = args, server_args
        self.disaggregation_mode = disaggregation_mode
        self.is_mla_backend = bool(is_mla_backend)
        self.settings = settings or Settings.from_env()
        self._read_sizes()
        if not getattr(args, "kv_data_mem_kinds", None):
            args.kv_data_mem_kinds = [_memory_kind(int(p)) for p in args.kv_data_ptrs[:1]] or [
                "DRAM"
            ]
        self.layout = layout_of(args, self.is_mla_backend, self.attn_tp_size, self.attn_tp_rank)
        self.instance = uuid.uuid4().hex
        self.lock = threading.RLock()
        self.request_status: dict[int, int] = {}
        self._counts: dict[str, float] = {}
        self.local_ip = _own_address(server_args)
        self.prefill = disaggregation_mode == DisaggregationMode.PREFILL
        name = f"{'prefill' if self.prefill else 'decode'}-{self.instance}"
        # The sessions of a rank that is silent end before its pages count as safe (decode.py).
        config = nixl_agent_config(
            backends=backends or self._backends(),
            peer_timeout=min(10.0, 2 * self.settings.peer_timeout),
        )
        self.agent = nixl_agent(name, config)
        self._closed = threading.Event()
        try:
            self.register_buffer_to_engine()
            self._start()
        except BaseException:
            self.agent.close()
            raise

    def _backends(self) -> list[str]:
        return [os.environ.get("NIXL_DISAGG_BACKEND", "UCX")]

    def _read_sizes(self) -> None:
        server, args = self.server_args, self.kv_args
        tp, dp = int(getattr(server, "tp_size", 1)), int(getattr(server, "dp_size", 1))
        inside = bool(getattr(server, "enable_dp_attention", False))
        rank = int(getattr(args, "engine_rank", 0))
        if inside and tp % dp:
            raise ValueError(f"tp_size {tp} is not divided by dp_size {dp}")
        self.attn_tp_size = tp // dp if inside else tp
        self.attn_tp_rank = rank % self.attn_tp_size
        self.dp_size = dp
        self.dp_rank = (
            rank // self.attn_tp_size if inside else int(getattr(args, "system_dp_rank", 0) or 0)
        )
        self.pp_size = int(getattr(server, "pp_size", 1) or 1)
        self.pp_rank = int(getattr(args, "pp_rank", 0) or 0)
        if not inside and rank >= tp:
            raise ValueError(f"engine_rank {rank} is not one of {tp} ranks")
        if not 0 <= self.dp_rank < self.dp_size or not 0 <= self.pp_rank < self.pp_size:
            raise ValueError(
                f"data-parallel rank {self.dp_rank} of {self.dp_size}, pipeline rank "
                f"{self.pp_rank} of {self.pp_size}"
            )

    def _start(self) -> None:
        self.metadata = self.agent.get_agent_metadata()
        self.other_notifications = NotificationCounter(None)
        self.helpers = ThreadPoolExecutor(4, thread_name_prefix="nixl-kv-http")
        if self.prefill:
            self._init_prefill()
            self.pusher = _bindings._KvPusher(self.agent.agent, self.settings.window)
            tick = self.prefill_tick
        else:
            self._init_decode()
            tick = self.decode_tick
        self.control = Control(self.instance[:8], self.local_ip, self._on_message, tick, _TICK)
        if self.prefill:
            self._registrar = threading.Thread(
                target=self._keep_registered, name="nixl-kv-register", daemon=True
            )
            self._registrar.start()

    def register_buffer_to_engine(self) -> None:
        """Registers the cache and the auxiliary buffers with the agent. Called once."""
        args, kind = self.kv_args, self.layout.mem_kind
        device = self.layout.gpu_id if kind == "VRAM" else 0
        kv = [
            (int(pointer), int(length), device, "")
            for pointer, length in zip(args.kv_data_ptrs, args.kv_data_lens, strict=True)
        ]
        aux = [
            (int(pointer), int(length), 0, "")
            for pointer, length in zip(args.aux_data_ptrs, args.aux_data_lens, strict=True)
        ]
        self.kv_descs = self.agent.register_memory(kv, kind) if kv else None
        self.aux_descs = self.agent.register_memory(aux, "DRAM") if aux else None

    def close(self) -> None:
        """Fails what is under way and ends the rank. Twice is harmless."""
        if self._closed.is_set():
            return
        self._closed.set()
        for room in list(self.rooms.values()):
            room.fail("the rank was closed")
        if self.prefill:
            self.prefill_tick()
            self.pusher.close()
            self._registrar.join(2 * _REGISTER_TIMEOUT)
        else:
            self.inbox.end()
        self.helpers.shutdown(wait=False, cancel_futures=True)
        self.control.close()
        self.agent.close()

    def __enter__(self) -> NixlKVManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The bootstrap server.

    @property
    def bootstrap_address(self) -> str:
        port = getattr(self.server_args, "disaggregation_bootstrap_port", 8998)
        first = getattr(self.server_args, "dist_init_addr", None)
        host = first.rpartition(":")[0] if first else self.local_ip
        return f"{host}:{port}"

    def _keep_registered(self) -> None:
        row = {
            "tp_size": self.attn_tp_size,
            "dp_size": self.dp_size,
            "pp_size": self.pp_size,
            "tp_rank": self.attn_tp_rank,
            "dp_rank": self.dp_rank,
            "pp_rank": self.pp_rank,
            "heads": self.layout.heads,
            "page_size": self.layout.page_size,
            "rank_port": self.control.port,
            "rank_ip": self.local_ip,
            "instance": self.instance,
            "mla": self.is_mla_backend,
            "first_layer": self.layout.first_layer,
            "layers": self.layout.layers,
        }
        problem: str | None = ""
        while not self._closed.is_set():
            try:
                put_route(self.bootstrap_address, row, _REGISTER_TIMEOUT)
                if problem:
                    logger.warning("registered at %s again", self.bootstrap_address)
                problem = None
            except ConnectionError as error:
                if str(error) != problem:
                    problem = str(error)
                    logger.warning("bootstrap server %s: %s", self.bootstrap_address, error)
            self._closed.wait(_REGISTER_AGAIN if problem is None else _REGISTER_AGAIN / 4)

    # Messages.

    def tell(self, where: tuple[str, int], kind: str, **words: Any) -> None:
        words |= {"endpoint": self.local_ip, "port": self.control.port}
        if self.prefill:
            words["instance"] = self.instance
        self.control.send(*where, note(kind, **words))

    def _on_message(self, frames: list[bytes]) -> None:
        if frames[0] == TAG:
            got = read_note(frames)
            self.on_prefill_note(got) if self.prefill else self.on_decode_note(got)
        elif frames[0] == GUARD and self.prefill and len(frames) > 1:
            if frames[1] == b"None":
                self.register_decode(KVArgsRegisterInfo.from_zmq(frames[1:]))
            else:
                self.on_transfer_info(TransferInfo.from_zmq(frames[1:]))
        else:
            raise BadFrames(f"{len(frames)} frames that begin with {frames[0][:40]!r}")

    # States.

    def check_status(self, bootstrap_room: int) -> int:
        """The state of a room; KeyError for one that was never begun, or was cleared."""
        try:
            room = self.rooms.get(bootstrap_room)
            return room.status if room is not None else self.request_status[bootstrap_room]
        except KeyError:
            raise KeyError(f"room {bootstrap_room} is not known") from None

    def update_status(self, bootstrap_room: int, status: int) -> None:
        """Moves a room on: never back, and not from a final state. Failed fails it."""
        if status not in range(KVPoll.Failed, KVPoll.Success + 1):
            raise ValueError(f"room {bootstrap_room}: {status!r} is not a state of KVPoll")
        with self.lock:
            room = self.rooms.get(bootstrap_room)
            before = self.request_status.get(bootstrap_room) if room is None else room.status
            if before in (KVPoll.Failed, KVPoll.Success):
                return
            if status == KVPoll.Failed and room is not None:
                room.fail("failed by update_status()")
                return
            final = status == KVPoll.Failed or before is None
            self.request_status[bootstrap_room] = status if final else max(before or 0, status)
            if room is not None:
                room.set(self.request_status[bootstrap_room])

    def collect(self) -> None:
        """Under the lock: books rooms whose last poll was a success."""
        for room in list(self.rooms.values()):
            if room.status == KVPoll.Success:
                room.conclude()

    def count(self, **figures: float) -> None:
        with self.lock:
            for name, value in figures.items():
                self._counts[name] = self._counts.get(name, 0) + value

    def metrics(self) -> dict[str, float]:
        """Counts since the start, and what is under way."""
        names = (
            "rooms_started rooms_succeeded rooms_failed chunks bytes_sent transfer_seconds "
            "refused_peers peers_lost late_notifications foreign_notifications"
        )
        with self.lock:
            self.collect()
            out = {name: self._counts.get(name, 0) for name in names.split()}
            out["rooms_active"] = len(self.rooms)
        out["garbage_messages"] = self.control.garbage
        out["dropped_messages"] = self.control.dropped
        out["queued_chunks"] = self.pusher.queued if self.prefill else 0
        return out

    def metrics_text(self) -> str:
        """The same as text for Prometheus."""
        role = "prefill" if self.prefill else "decode"
        labels = f'{{role="{role}",rank="{self.attn_tp_rank}",dp="{self.dp_rank}"}}'
        return "".join(
            f"nixl_disagg_{name}{labels} {value:g}\n" for name, value in self.metrics().items()
        )

    # Calls of the established interface, a level below senders and receivers.

    def send_kvcache(
        self,
        peer_name: str,
        prefill_kv_indices: npt.NDArray[np.int32],
        dst_kv_ptrs: list[int],
        dst_kv_indices: npt.NDArray[np.int32],
        dst_gpu_id: int,
        notif: str | bytes,
    ) -> Any:
        """Writes pages to a registered decode rank, into its cache or into buffers of the same
        layout at other addresses; `notif` reaches it after them. Returns a job: `state` (2 done,
        from 3 on failed), `error`, `cancel()`."""
        peer = self._peer(peer_name)
        here = as_pages(prefill_kv_indices, "prefill_kv_indices")
        there = as_pages(dst_kv_indices, "dst_kv_indices")
        if here.size != there.size:
            raise ValueError(f"{here.size} prefill_kv_indices but {there.size} dst_kv_indices")
        theirs = peer.info.layout or self.layout
        check_range(here, self.layout.pages, "prefill_kv_indices")
        check_range(there, theirs.pages, "dst_kv_indices")
        pairing, lists = peer.pairing, peer.kv
        if pairing is None or lists is None:
            raise ValueError(f"{peer_name} takes nothing of this rank")
        if list(dst_kv_ptrs) != peer.info.dst_kv_ptrs:
            if len(dst_kv_ptrs) != len(theirs.item_lens):
                raise ValueError(
                    f"{len(dst_kv_ptrs)} dst_kv_ptrs, but the layout has {len(theirs.item_lens)}"
                )
            key = tuple(dst_kv_ptrs)
            if key not in peer.others:
                peer.others[key] = self.prepare_kv(peer_name, pairing, list(key), theirs)
            lists = peer.others[key]
        return self.push_pages(lists, here, there, pairing, (0, pairing.layers), notif)

    def send_aux(
        self,
        peer_name: str,
        prefill_aux_index: int,
        dst_aux_ptrs: list[int],
        dst_aux_index: int,
        notif: str | bytes,
    ) -> Any:
        """Writes one slot of the auxiliary buffers; as send_kvcache."""
        peer = self._peer(peer_name)
        if list(dst_aux_ptrs) != peer.info.dst_aux_ptrs:
            raise ValueError("dst_aux_ptrs are not those that the decode rank registered")
        return self.push_aux(peer, prefill_aux_index, dst_aux_index, notif)

    def _peer(self, name: str) -> Any:
        peer = self.decode_kv_args_table.get(name)
        if peer is None:
            raise KeyError(f"no decode rank {name!r} has registered")
        if peer.refused:
            raise ValueError(f"the decode rank {name!r} was refused: {peer.refused}")
        return peer

    def add_transfer_request(
        self,
        bootstrap_room: int,
        kv_indices: npt.NDArray[np.int32],
        index_slice: slice,
        is_last: bool,
        chunk_id: int,
        aux_index: int | None = None,
    ) -> list[Any]:
        """Sends pages of a room to all decode ranks that asked for them; `index_slice` is their
        place among the room's pages. The jobs, one for each transfer."""
        with self.lock:
            room = self.rooms.get(bootstrap_room)
            if not isinstance(room, PrefillRoom) or not room.bootstrapped:
                raise KeyError(f"room {bootstrap_room} is not bootstrapped")
            if is_last and aux_index is None:
                raise ValueError(f"room {bootstrap_room}: the last chunk needs an aux_index")
            if room.expected is None:
                sizes = [i.dst_kv_indices.size for i in room.infos.values() if not i.is_dummy()]
                room.expected = max(sizes, default=0)
            room.aux_index = aux_index if aux_index is not None else room.aux_index
            place = range(*index_slice.indices(room.expected or 0))
            next_one = max(room.chunks.values(), default=0)
            if place.start != room.position or chunk_id != next_one:
                raise ValueError(
                    f"room {bootstrap_room}: chunk {chunk_id} at page {place.start}, but chunk "
                    f"{next_one} at page {room.position} comes next"
                )
            if is_last != (place.stop == room.expected):
                raise ValueError(
                    f"room {bootstrap_room}: is_last is {is_last} after {place.stop} of "
                    f"{room.expected} pages"
                )
            if len(place) != len(kv_indices):
                raise ValueError(
                    f"room {bootstrap_room}: {len(kv_indices)} kv_indices for {len(place)} pages"
                )
            room.send(list(kv_indices))  # which is not left to C++
            return room.pushed

    def forget(self, room: int, status: Any) -> None:
        """Drops what is remembered of an ended room."""
        with self.lock:
            self.collect()
            if self.rooms.get(room) is None:
                self.request_status.pop(room, None)

    def wait_idle(self, timeout: float) -> bool:
        """Waits until no room is under way; for a server that ends."""
        end = time.monotonic() + timeout
        while self.metrics()["rooms_active"] and time.monotonic() < end:
            time.sleep(0.01)  # sleeps: rooms end by their schedulers' polls
        return not self.rooms
