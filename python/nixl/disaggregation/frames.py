"""The ZMQ messages between decode and prefill ranks.

The messages of a receiver begin with GUARD and have the established frames, to which some of our
own are added at the end. All others are two frames, TAG and a JSON object. What does not fit raises
BadFrames; nothing of a message is trusted before it was looked at.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from .layout import MAX_BUFFERS, Layout
from .types import LayoutMismatch

GUARD = b"NixlMsgGuard"
TAG = b"NixlKV1"
MAX_INDICES = 1 << 24
MAX_TEXT = 4096
MAX_ROOM = 1 << 63
_HOST = re.compile(r"[A-Za-z0-9.:_%-]+")


class BadFrames(ValueError):
    """A message that is not one of ours; says which frame and why."""


def _text(msg: list[bytes], at: int, what: str, limit: int = 256) -> str:
    if at >= len(msg):
        raise BadFrames(f"{len(msg)} frames: frame {at} ({what}) is missing")
    data = msg[at]
    if len(data) > limit:
        raise BadFrames(f"{what}: {len(data)} bytes, at most {limit}")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise BadFrames(f"{what}: {data[:40]!r} is not ASCII") from None


def _number(msg: list[bytes], at: int, what: str, low: int, high: int) -> int:
    text = _text(msg, at, what, 24)
    try:
        value = int(text)
    except ValueError:
        raise BadFrames(f"{what}: {text!r} is not a number") from None
    if not low <= value <= high:
        raise BadFrames(f"{what}: {value} is not within {low} and {high}")
    return value


def _pointers(msg: list[bytes], at: int, what: str) -> list[int]:
    if at >= len(msg):
        raise BadFrames(f"{len(msg)} frames: frame {at} ({what}) is missing")
    if len(msg[at]) % 8 or len(msg[at]) > 8 * MAX_BUFFERS:
        raise BadFrames(f"{what}: {len(msg[at])} bytes are not 64-bit addresses")
    return np.frombuffer(msg[at], dtype=np.uint64).tolist()


def _host(msg: list[bytes], at: int) -> str:
    text = _text(msg, at, "endpoint")
    if not _HOST.fullmatch(text):
        raise BadFrames(f"endpoint: {text!r:.80} is neither an address nor a name")
    return text


def pack_pointers(pointers: list[int]) -> bytes:
    return np.array(pointers, dtype=np.uint64).tobytes()


@dataclasses.dataclass
class KVArgsRegisterInfo:
    """A decode rank's agent and cache, told to a prefill rank once."""

    room: str
    endpoint: str
    dst_port: int
    agent_name: str
    agent_metadata: bytes
    dst_kv_ptrs: list[int]
    dst_aux_ptrs: list[int]
    gpu_id: int
    layout: Layout | None = None  # None: as the prefill rank's own

    @classmethod
    def from_zmq(cls, msg: list[bytes]) -> KVArgsRegisterInfo:
        """From the frames after GUARD; BadFrames where one is missing or wrong."""
        room = _text(msg, 0, "room")
        if room != "None":
            raise BadFrames(f"room: {room!r:.40} of a registration must be 'None'")
        info = cls(
            room=room,
            endpoint=_host(msg, 1),
            dst_port=_number(msg, 2, "port", 1, 65535),
            agent_name=_text(msg, 3, "agent name"),
            agent_metadata=msg[4] if len(msg) > 4 else b"",
            dst_kv_ptrs=_pointers(msg, 5, "KV addresses"),
            dst_aux_ptrs=_pointers(msg, 6, "auxiliary addresses"),
            gpu_id=_number(msg, 7, "GPU", 0, 65535),
        )
        if len(msg) > 8:
            try:
                info.layout = Layout.from_bytes(msg[8])
            except LayoutMismatch as error:
                raise BadFrames(f"layout: {error}") from None
            for what, pointers, sizes in (
                ("KV", info.dst_kv_ptrs, info.layout.item_lens),
                ("auxiliary", info.dst_aux_ptrs, info.layout.aux_item_lens),
            ):
                if len(pointers) != len(sizes):
                    raise BadFrames(
                        f"{len(pointers)} {what} addresses for {len(sizes)} buffers of the layout"
                    )
        return info

    def to_zmq(self) -> list[bytes]:
        """The frames after GUARD."""
        return [
            b"None",
            self.endpoint.encode("ascii"),
            str(self.dst_port).encode(),
            self.agent_name.encode("ascii"),
            self.agent_metadata,
            pack_pointers(self.dst_kv_ptrs),
            pack_pointers(self.dst_aux_ptrs),
            str(self.gpu_id).encode(),
            *([self.layout.to_bytes()] if self.layout else []),
        ]


@dataclasses.dataclass
class TransferInfo:
    """Where a decode rank wants the pages of a room."""

    room: int
    endpoint: str
    dst_port: int
    agent_name: str
    dst_kv_indices: npt.NDArray[np.int32]
    dst_aux_index: int  # -1: none is wanted of this rank
    required_dst_info_num: int  # so many decode ranks tell a prefill rank of the room
    nonce: str = ""  # tells this use of the room from others

    def is_dummy(self) -> bool:
        """Whether nothing is wanted of this rank, which only has to know."""
        return self.dst_kv_indices.size == 0

    @classmethod
    def from_zmq(cls, msg: list[bytes]) -> TransferInfo:
        """From the frames after GUARD; BadFrames where one is missing or wrong."""
        if len(msg) > 4 and (len(msg[4]) % 4 or len(msg[4]) > 4 * MAX_INDICES):
            raise BadFrames(f"indices: {len(msg[4])} bytes are not 32-bit numbers")
        return cls(
            room=_number(msg, 0, "room", 0, MAX_ROOM),
            endpoint=_host(msg, 1),
            dst_port=_number(msg, 2, "port", 1, 65535),
            agent_name=_text(msg, 3, "agent name"),
            dst_kv_indices=np.frombuffer(msg[4] if len(msg) > 4 else b"", dtype=np.int32),
            dst_aux_index=_number(msg, 5, "auxiliary index", -1, 1 << 31),
            required_dst_info_num=_number(msg, 6, "number of decode ranks", 1, 65535),
            nonce=_text(msg, 7, "nonce", 32) if len(msg) > 7 else "",
        )

    def to_zmq(self) -> list[bytes]:
        """The frames after GUARD."""
        return [
            str(self.room).encode(),
            self.endpoint.encode("ascii"),
            str(self.dst_port).encode(),
            self.agent_name.encode("ascii"),
            self.dst_kv_indices.astype(np.int32, copy=False).tobytes(),
            str(self.dst_aux_index).encode(),
            str(self.required_dst_info_num).encode(),
            self.nonce.encode("ascii"),
        ]


_FROM = {"endpoint": str, "port": int}  # where the sender of a note listens

#: Fields of the JSON messages: name -> type. "instance" is new each time a prefill rank starts.
NOTES: dict[str, dict[str, type]] = {
    "registered": {**_FROM, "instance": str, "refused": str},
    "ping": {**_FROM, "agent": str},
    "pong": {**_FROM, "instance": str},
    "unknown": {**_FROM, "instance": str, "room": int, "nonce": str},
    "failed": {**_FROM, "instance": str, "room": int, "nonce": str, "reason": str},
    "abort": {**_FROM, "agent": str, "room": int, "nonce": str},
    "aborted": {**_FROM, "instance": str, "room": int, "nonce": str},
}


def note(kind: str, **fields: Any) -> list[bytes]:
    return [TAG, json.dumps({"kind": kind, **fields}).encode()]


def read_note(msg: list[bytes]) -> dict[str, Any]:
    if len(msg) != 2 or len(msg[1]) > 4 * MAX_TEXT:
        raise BadFrames(f"a note of {len(msg)} frames and {len(msg[-1])} bytes")
    try:
        fields = json.loads(msg[1])
    except (ValueError, RecursionError) as error:
        raise BadFrames(f"a note that is not JSON: {error}") from None
    kind = fields.get("kind") if isinstance(fields, dict) else None
    wanted = NOTES.get(kind) if isinstance(kind, str) else None
    if wanted is None:
        raise BadFrames(f"a note of an unknown kind: {msg[1][:80]!r}")
    for name, wanted_type in wanted.items():
        value = fields.get(name)
        high = 65535 if name == "port" else MAX_ROOM
        number = value if isinstance(value, int) else 0
        wrong = name == "endpoint" and not _HOST.fullmatch(str(value))
        if wrong or type(value) is not wanted_type or not 0 <= number <= high:
            raise BadFrames(f"{kind}: {name} is {value!r:.80}")
    return fields
