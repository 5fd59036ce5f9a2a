"""Plain memory for examples and tests, by address (established names)."""

from __future__ import annotations

from ._bindings import _baBuf, _freePassthru, _mallocPassthru, _verifyTransfer
from .arguments import plain_errors

__all__ = ["ba_buf", "free_passthru", "malloc_passthru", "verify_transfer"]


@plain_errors
def malloc_passthru(size: int) -> int:
    """Allocates ``size`` bytes and returns their address."""
    return _mallocPassthru(size)


@plain_errors
def free_passthru(address: int) -> None:
    """Frees what malloc_passthru returned."""
    _freePassthru(address)


@plain_errors
def ba_buf(address: int, size: int) -> None:
    """Fills ``size`` bytes from ``address`` with 0xba."""
    _baBuf(address, size)


@plain_errors
def verify_transfer(src: int, dst: int, size: int) -> None:
    """Raises nixlMismatchError, naming the first byte that differs, unless both are equal."""
    _verifyTransfer(src, dst, size)
