"""From keys to names and back: safe file names for any key, the directory a key lives in, whose a
name is and which page it is of. Pure functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

#: A file name may have 255 bytes.
MAX_NAME = 220
#: Files of our own beside the keys' begin with this, as no key's file does.
OURS = ".nixl-"
PACKED = ".nixl-packed"
#: The folder of files being written, and what such a file was called beside its target once.
WORKSHOP = ".nixl-tmp"
TEMPORARY = ".nixl-tmp-"

_SAFE = re.compile(r"[A-Za-z0-9_\-+=,@][A-Za-z0-9_.\-+=,@]*\Z")
_HASH = re.compile(r"[0-9a-f]{16,}\Z")
#: Pools that SGLang knows, as the parts of a page are called after them.
_POOLS = "kv|mamba|(?:auxiliary_)?swa|indexer|draft|deepseek_v4_[a-z0-9_]+?"
_PAGE = re.compile(
    r"(?P<page>[0-9a-f]{16,}_.*?)"
    r"(?:_\d+_\d+)*(?:_cp\d+_\d+)?(?:_tp\d+_dcp\d+_\d+_page\d+)?"
    rf"(?:_(?:{_POOLS}))?(?:_(?:k|v|\d+|temporal|conv_\d+))?\Z"
)


def file_name(key: str) -> str:
    """A name that is the key itself where that is safe, and never two keys' at once.

    Every other byte becomes %XX (the percent sign, too); what gets too long keeps its start and
    ends in a 256-bit digest of the key behind "%~", which no encoded key contains.
    """
    if _SAFE.match(key) and len(key) <= MAX_NAME:
        return key
    raw = key.encode("utf-8", "surrogatepass")
    name = "".join(
        chr(byte) if _SAFE.match("x" + chr(byte)) and (i > 0 or byte != 0x2E) else f"%{byte:02X}"
        for i, byte in enumerate(raw)
    )
    if name == "":
        return "%~empty"
    if len(name) <= MAX_NAME:
        return name
    return f"{name[:100]}%~{hashlib.blake2b(raw, digest_size=32).hexdigest()}"


def route(key: str, directories: int) -> tuple[int, str]:
    """The directory and the two-digit bucket of a key, as SGLang's own connector has them."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return (number >> 16) % directories, f"{number & 0xFF:02x}"


def tails(suffixes: Iterable[str], parts: Iterable[str], encoded: bool) -> list[str]:
    """How the names of pages with these suffixes and parts end; `encoded`: as file names."""
    wanted = [suffix + part for suffix in suffixes if suffix for part in parts]
    return [file_name("x" + end)[1:] if encoded else end for end in wanted]


def is_page(name: str, ends: Iterable[str]) -> bool:
    """Whether a name is a page's hash and one of the ends, with nothing between the two: "_m_0_1"
    is no end of a page of the model "other_m"."""
    return any(name.endswith(end) and _HASH.match(name[: -len(end)]) for end in ends)


def page_of(name: str) -> str | None:
    """What the names of all parts and ranks of a page have in common; None where a name is not
    that of a page."""
    match = _PAGE.match(name)
    return match["page"] if match else None


def mark_of(suffix: str) -> bytes:
    """What tells the files of one suffix from those of others, in a few bytes."""
    return (
        hashlib.blake2b(suffix.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest().encode()
    )
