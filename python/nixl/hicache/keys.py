"""From keys to names: safe file names for any key, and the directory a key lives in. Pure
functions."""

from __future__ import annotations

import hashlib
import re

#: A file name may have 255 bytes.
MAX_NAME = 220
#: Files being written have such names, which no key's file has.
TEMPORARY = ".nixl-tmp-"

_SAFE = re.compile(r"[A-Za-z0-9_\-+=,@][A-Za-z0-9_.\-+=,@]*\Z")


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
