"""What the KV cache of a rank looks like, and which parts of two ranks belong together.

A rank holds, for each of its layers, pages of K and of V (or of both in one, MLA) with its share of
the heads. Whatever the shares of two ranks are, what they have in common is on either side a list
of runs of equal length and stride, which the library keeps compressed.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from .types import LayoutMismatch

#: Bounds of what a peer may claim.
MAX_BUFFERS = 1 << 16
MAX_SIZE = 1 << 62
_WORDS = ("dtype", "kv_layout", "mem_kind")
_LISTS = ("item_lens", "data_lens", "aux_item_lens", "aux_data_lens")


def share(rank: int, size: int, heads: int) -> tuple[int, int]:
    """The heads [first, last) of a rank; where ranks outnumber heads, neighbours hold the same."""
    if size <= heads:
        each = heads // size
        return rank * each, (rank + 1) * each
    head = rank * heads // size
    return head, head + 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """The cache of one rank, without its addresses."""

    mla: bool
    layers: int
    first_layer: int
    item_lens: tuple[int, ...]  # bytes of a page, of each buffer
    data_lens: tuple[int, ...]
    aux_item_lens: tuple[int, ...]
    aux_data_lens: tuple[int, ...]
    page_size: int  # tokens; 0: not known
    heads: int  # of all ranks together; 0: not known
    tp_size: int
    tp_rank: int
    gpu_id: int = 0
    dtype: str = ""
    kv_layout: str = ""  # "nhd" (tokens, then heads; the default) or "hnd"
    mem_kind: str = "DRAM"

    def __post_init__(self) -> None:
        for name in _LISTS:
            values = getattr(self, name)
            if len(values) > MAX_BUFFERS or any(
                type(v) is not int or not 0 < v < MAX_SIZE for v in values
            ):
                raise LayoutMismatch(f"{name}: {values!r:.200} are not sizes in bytes")
        per_layer = 1 if self.mla else 2
        if len(self.item_lens) != len(self.data_lens):
            raise LayoutMismatch(
                f"{len(self.item_lens)} kv_item_lens but {len(self.data_lens)} kv_data_lens"
            )
        if len(self.aux_item_lens) != len(self.aux_data_lens):
            raise LayoutMismatch(
                f"{len(self.aux_item_lens)} aux_item_lens but {len(self.aux_data_lens)} "
                "aux_data_lens"
            )
        if self.layers * per_layer != len(self.item_lens):
            raise LayoutMismatch(
                f"{len(self.item_lens)} KV buffers are not {per_layer} for each of "
                f"{self.layers} layers"
            )
        if not 0 <= self.tp_rank < self.tp_size:
            raise LayoutMismatch(f"rank {self.tp_rank} is not one of {self.tp_size} ranks")
        if self.heads > self.tp_size and self.heads % self.tp_size:
            raise LayoutMismatch(f"{self.heads} heads are not divided by {self.tp_size} ranks")
        if self.heads and self.tp_size > self.heads and self.tp_size % self.heads:
            raise LayoutMismatch(f"{self.tp_size} ranks are not divided by {self.heads} heads")
        if self.kv_layout not in ("", "nhd", "hnd"):
            raise LayoutMismatch(f'kv_layout {self.kv_layout!r} is neither "nhd" nor "hnd"')
        if self.mem_kind not in ("DRAM", "VRAM"):
            raise LayoutMismatch(f'memory {self.mem_kind!r} is neither "DRAM" nor "VRAM"')

    @property
    def pages(self) -> int:
        """Pages that every buffer has."""
        pairs = zip(self.data_lens, self.item_lens, strict=True)
        return min((length // item for length, item in pairs), default=0)

    @property
    def aux_slots(self) -> int:
        pairs = zip(self.aux_data_lens, self.aux_item_lens, strict=True)
        return min((length // item for length, item in pairs), default=0)

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Layout:
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise LayoutMismatch(f"a layout that is not JSON: {error}") from None
        known = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != set(known):
            raise LayoutMismatch(f"a layout of other fields than {', '.join(known)}")
        for name, value in fields.items():
            if name in _LISTS:
                fits = isinstance(value, list)
                fields[name] = tuple(value) if fits else value
            elif name in _WORDS:
                fits = isinstance(value, str) and len(value) <= 64
            elif name == "mla":
                fits = isinstance(value, bool)
            else:
                fits = type(value) is int and 0 <= value < 1 << 31
            if not fits:
                raise LayoutMismatch(f"{name}: {value!r:.100} has the wrong type or size")
        return cls(**fields)


def layout_of(args: Any, mla: bool, tp_size: int, tp_rank: int) -> Layout:
    """The layout that KVArgs tell."""
    items = tuple(int(n) for n in args.kv_item_lens)
    heads = int(getattr(args, "total_kv_head_num", 0) or 0)
    if not heads:
        heads = int(getattr(args, "kv_head_num", 0) or 0) * tp_size
    if len(args.kv_data_ptrs) != len(items):
        raise LayoutMismatch(f"{len(args.kv_data_ptrs)} kv_data_ptrs but {len(items)} kv_item_lens")
    if len(args.aux_data_ptrs) != len(args.aux_item_lens):
        raise LayoutMismatch(
            f"{len(args.aux_data_ptrs)} aux_data_ptrs but {len(args.aux_item_lens)} aux_item_lens"
        )
    if not mla and len(items) % 2:
        raise LayoutMismatch(f"{len(items)} KV buffers are not K and V of each layer")
    kinds = set(getattr(args, "kv_data_mem_kinds", None) or ("DRAM",))
    if len(kinds) != 1:
        raise LayoutMismatch(f"kv_data_mem_kinds {sorted(kinds)}: all must be of one kind")
    return Layout(
        mla=bool(mla),
        layers=len(items) if mla else len(items) // 2,
        first_layer=int(getattr(args, "prefill_start_layer", 0) or 0),
        item_lens=items,
        data_lens=tuple(int(n) for n in args.kv_data_lens),
        aux_item_lens=tuple(int(n) for n in args.aux_item_lens),
        aux_data_lens=tuple(int(n) for n in args.aux_data_lens),
        page_size=int(getattr(args, "page_size", 0) or 0),
        heads=0 if mla else heads,
        tp_size=tp_size,
        tp_rank=tp_rank,
        gpu_id=int(getattr(args, "gpu_id", 0) or 0),
        dtype=str(getattr(args, "kv_cache_dtype_str", "") or ""),
        kv_layout=str(getattr(args, "kv_layout", "") or "").lower(),
        mem_kind=kinds.pop(),
    )


@dataclasses.dataclass(frozen=True)
class Side:
    """How one side of a pair is listed: for each buffer of it (in the order of layers, K before V)
    `count` descriptors of `length` bytes, `stride` apart, from `offset` on."""

    buffers: tuple[int, ...]
    offset: int
    length: int
    strides: tuple[int, ...]  # of each of `buffers`
    count: int

    def rows(self, pointers: list[int], device: int) -> list[tuple[int, int, int, int, int]]:
        return [
            (pointers[buffer] + self.offset, self.length, device, stride, self.count)
            for buffer, stride in zip(self.buffers, self.strides, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Pairing:
    """What a prefill rank has for a decode rank."""

    first_layer: int
    layers: int
    buffers_per_layer: int
    each_page: int  # descriptors of a page
    local: Side
    remote: Side

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers."""
        return self.layers * self.buffers_per_layer * self.each_page * self.local.length


def pair(prefill: Layout, decode: Layout) -> Pairing | None:
    """None where the two have nothing in common; raises LayoutMismatch where they do not fit."""
    for name, what in (
        ("mla", "kinds of attention (MLA)"),
        ("page_size", "page sizes"),
        ("dtype", "KV data types"),
        ("kv_layout", "KV layouts"),
        ("heads", "KV head counts"),
        ("aux_item_lens", "sizes of auxiliary data"),
    ):
        here, there = getattr(prefill, name), getattr(decode, name)
        if here != there and (name == "mla" or (here and there) or name == "aux_item_lens"):
            raise LayoutMismatch(f"{what} differ: prefill {_told(here)}, decode {_told(there)}")
    first = max(prefill.first_layer, decode.first_layer)
    last = min(prefill.first_layer + prefill.layers, decode.first_layer + decode.layers)
    if last <= first:
        return None
    if prefill.mla or not prefill.heads or not decode.heads:
        if not prefill.mla and prefill.tp_size != decode.tp_size:
            raise LayoutMismatch(
                f"tensor-parallel sizes differ (prefill {prefill.tp_size}, decode "
                f"{decode.tp_size}) and kv_head_num is not known"
            )
        mine, theirs, common = (0, 1), (0, 1), (0, 1)
    else:
        mine = share(prefill.tp_rank, prefill.tp_size, prefill.heads)
        theirs = share(decode.tp_rank, decode.tp_size, decode.heads)
        common = (max(mine[0], theirs[0]), min(mine[1], theirs[1]))
        if common[1] <= common[0]:
            return None
    per_layer = 1 if prefill.mla else 2
    pages = [
        _side(layout, range(first - layout.first_layer, last - layout.first_layer), heads, common)
        for layout, heads in ((prefill, mine), (decode, theirs))
    ]
    whole = mine == common == theirs or prefill.kv_layout == "hnd"
    if pages[0].length != pages[1].length:
        raise LayoutMismatch(
            "bytes of a page differ for the same heads: prefill "
            f"{pages[0].length}, decode {pages[1].length}"
        )
    if whole:
        return Pairing(first, last - first, per_layer, 1, pages[0], pages[1])
    size = prefill.page_size or decode.page_size
    tokens = [_by_token(side, size) for side in pages]
    return Pairing(first, last - first, per_layer, size, tokens[0], tokens[1])


def _told(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _side(layout: Layout, layers: range, heads: tuple[int, int], common: tuple[int, int]) -> Side:
    """A page's common heads as one piece (of "nhd", the first token's times the tokens)."""
    if layout.mla:
        buffers = tuple(layers)
    else:
        buffers = tuple(b for at in layers for b in (at, at + layout.layers))
    items = {layout.item_lens[b] for b in buffers}
    if len(items) != 1:
        raise LayoutMismatch(f"pages of {sorted(items)} bytes: all layers must have equal ones")
    (item,) = items
    mine = heads[1] - heads[0]
    if item % mine:
        raise LayoutMismatch(f"a page of {item} bytes is not divided by {mine} heads")
    each = item // mine
    return Side(
        buffers,
        (common[0] - heads[0]) * each,
        (common[1] - common[0]) * each,
        tuple(layout.item_lens[b] for b in buffers),
        layout.pages,
    )


def _by_token(side: Side, tokens: int) -> Side:
    if not tokens:
        raise LayoutMismatch("page_size is not known, which a share of the heads needs")
    item = side.strides[0]
    if item % tokens or side.offset % tokens or side.length % tokens:
        raise LayoutMismatch(f"a page of {item} bytes is not divided by {tokens} tokens")
    stride = item // tokens
    return Side(
        side.buffers,
        side.offset // tokens,
        side.length // tokens,
        (stride,) * len(side.buffers),
        side.count * tokens,
    )
