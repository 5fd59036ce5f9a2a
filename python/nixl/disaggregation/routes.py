"""Which prefill ranks a decode rank needs, and how many decode ranks a prefill rank waits for.

Both sides reckon the same from the sizes alone. Each prefill rank hears of each room: from those
who need its heads, or, where nobody does (others hold the same), from one that tells it so.
"""

from __future__ import annotations

from .layout import share


def sources(
    decode_rank: int, decode_size: int, prefill_size: int, heads: int, mla: bool
) -> list[int]:
    """Prefill ranks whose heads this decode rank takes, each head from one of them."""
    if mla or not heads:
        if not mla and decode_size == prefill_size:
            return [decode_rank]
        return [decode_rank * prefill_size // decode_size]
    first, last = share(decode_rank, decode_size, heads)
    if prefill_size <= heads:
        each = heads // prefill_size
        return list(range(first // each, (last - 1) // each + 1))
    copies = prefill_size // heads
    chosen = decode_rank % copies  # so that replicas share the work
    return [head * copies + chosen for head in range(first, last)]


def takers(
    prefill_rank: int, prefill_size: int, decode_size: int, heads: int, mla: bool
) -> list[int]:
    """Decode ranks that tell this prefill rank of a room; without a need, one tells it so."""
    found = [
        rank
        for rank in range(decode_size)
        if prefill_rank in sources(rank, decode_size, prefill_size, heads, mla)
    ]
    return found or [prefill_rank % decode_size]


def told(decode_rank: int, decode_size: int, prefill_size: int, heads: int, mla: bool) -> list[int]:
    """Prefill ranks that this decode rank tells of a room."""
    return [
        rank
        for rank in range(prefill_size)
        if decode_rank in takers(rank, prefill_size, decode_size, heads, mla)
    ]
