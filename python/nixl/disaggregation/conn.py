"""The classes of the established interface: what a scheduler of disaggregated serving works with.

A prefill rank has a NixlKVManager and a NixlKVSender for each room; a decode rank the same with
NixlKVReceiver. No call of a sender or receiver blocks; poll() says how far a room is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import CONN
from .bootstrap import NixlKVBootstrapServer as NixlKVBootstrapServer
from .frames import BadFrames as BadFrames
from .frames import KVArgsRegisterInfo as KVArgsRegisterInfo
from .frames import TransferInfo as TransferInfo
from .manager import NixlKVManager
from .pages import TransferStatus as TransferStatus
from .types import DisaggregationMode as DisaggregationMode
from .types import KVArgs as KVArgs
from .types import KVPoll, KVTransferError, KVTransferMetric
from .types import LayoutMismatch as LayoutMismatch
from .types import ServerArgs as ServerArgs

__all__ = [*CONN]  # noqa: PLE0604


def _room_number(room: Any) -> int:
    if isinstance(room, bool) or not isinstance(room, (int, np.integer)):
        raise TypeError(f"bootstrap_room: {room!r} is not a number")
    if not 0 <= room < 1 << 63:
        raise ValueError(f"bootstrap_room: {room} is not within 0 and 2**63-1")
    return int(room)


class NixlKVSender:
    """Sends the pages of one room to the decode ranks that ask for them.

    `dest_tp_ranks` and `pp_rank` are those that the scheduler knows; the decode ranks themselves
    say what they want.
    """

    def __init__(
        self,
        mgr: NixlKVManager,
        bootstrap_addr: str,
        bootstrap_room: int,
        dest_tp_ranks: list[int] | None = None,
        pp_rank: int = 0,
    ) -> None:
        if not mgr.prefill:
            raise ValueError("a sender needs a manager in the mode PREFILL")
        self.kv_mgr, self.bootstrap_addr = mgr, bootstrap_addr
        self.bootstrap_room = _room_number(bootstrap_room)
        self.dest_tp_ranks, self.pp_rank = list(dest_tp_ranks or []), pp_rank
        self._room = mgr.new_prefill_room(self.bootstrap_room)
        self.send = self._room.send  # type: ignore[method-assign]
        self.poll = self._room.poll  # type: ignore[method-assign]  # one call less

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """How many pages the room has in all, and the slot of its auxiliary data."""
        self._room.init(num_kv_indices, aux_index)

    def send(self, kv_indices: npt.NDArray[np.int32], layers: slice | range | None = None) -> None:
        """The next pages, all layers of them or those whose turn it is. Returns at once; before
        the decode ranks have asked, they wait."""
        self._room.send(kv_indices, layers)

    def poll(self) -> int:
        """The room's state, a KVPoll."""
        return self._room.poll()

    def failure_exception(self) -> None:
        """Raises KVTransferError with the reason; nothing where the room has not failed."""
        if self._room.status == KVPoll.Failed:
            raise KVTransferError(self.bootstrap_room, self._room.reason)

    def abort(self) -> None:
        """Fails the room; the decode ranks are told once nothing is on its way any more."""
        self._room.fail("aborted by the prefill rank")

    def clear(self) -> None:
        """Forgets the room; one that is under way is aborted."""
        self.abort()
        self.kv_mgr.forget(self.bootstrap_room, self._room)

    def get_transfer_metric(self) -> Any:
        """A KVTransferMetric: seconds from the first send to the end, and bytes."""
        room = self._room
        with self.kv_mgr.lock:
            self.kv_mgr.collect()
        return KVTransferMetric(transfer_latency_s=room.latency, transfer_total_bytes=room.bytes)


class NixlKVReceiver:
    """Receives the pages of one room from the prefill ranks behind a bootstrap server."""

    def __init__(
        self,
        mgr: NixlKVManager,
        bootstrap_addr: str,
        bootstrap_room: int | None = None,
        data_parallel_rank: int | None = None,
    ) -> None:
        if mgr.prefill:
            raise ValueError("a receiver needs a manager in the mode DECODE")
        if not isinstance(bootstrap_addr, str) or ":" not in bootstrap_addr:
            raise ValueError(f'bootstrap_addr: {bootstrap_addr!r} is not "host:port"')
        self.kv_mgr, self.bootstrap_addr = mgr, bootstrap_addr
        self.bootstrap_room = _room_number(0 if bootstrap_room is None else bootstrap_room)
        self._room = mgr.new_decode_room(bootstrap_addr, self.bootstrap_room, data_parallel_rank)
        self.poll = self._room.poll  # type: ignore[method-assign]  # one call less

    def init(self, kv_indices: npt.NDArray[np.int32], aux_index: int | None = None) -> None:
        """Where the pages go, and the slot for the auxiliary data (None: none is wanted)."""
        self._room.init(kv_indices, aux_index)

    def poll(self) -> int:
        """The room's state, a KVPoll. Success: all bytes are in place."""
        return self._room.poll()

    def failure_exception(self) -> None:
        """Raises KVTransferError with the reason; nothing where the room has not failed."""
        if self._room.status == KVPoll.Failed:
            raise KVTransferError(self.bootstrap_room, self._room.reason)

    def abort(self) -> None:
        """Fails the room and tells the prefill ranks to stop writing."""
        self._room.fail("aborted by the decode rank")

    def is_abort_release_safe(self) -> bool:
        """Whether nobody writes into the pages of this room any more, so that they may be used for
        something else: after Success, and after Failed once every prefill rank has answered, was
        started anew, or has been silent for so long that nothing it sent can arrive."""
        room = self._room
        return room.status in (KVPoll.Failed, KVPoll.Success) and not room.unsafe

    def clear(self) -> None:
        """Forgets the room; one that is under way is aborted."""
        self.abort()
        self.kv_mgr.forget(self.bootstrap_room, self._room)

    def get_transfer_metric(self) -> Any:
        """A KVTransferMetric: seconds from asking to the end."""
        with self.kv_mgr.lock:
            self.kv_mgr.collect()
        return KVTransferMetric(transfer_latency_s=self._room.latency)
