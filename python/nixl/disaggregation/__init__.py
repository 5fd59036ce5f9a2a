"""Disaggregated serving: KV caches from prefill to decode ranks. See docs/disaggregation.md."""

from __future__ import annotations

from typing import Any

#: What conn.py has for users.
CONN = (
    "BadFrames",
    "DisaggregationMode",
    "KVArgs",
    "KVArgsRegisterInfo",
    "KVPoll",
    "KVTransferError",
    "KVTransferMetric",
    "LayoutMismatch",
    "NixlKVBootstrapServer",
    "NixlKVManager",
    "NixlKVReceiver",
    "NixlKVSender",
    "ServerArgs",
    "TransferInfo",
    "TransferStatus",
)

__all__ = [*CONN, "NotificationCounter", "Settings"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in CONN:
        from . import conn

        return getattr(conn, name)
    if name == "NotificationCounter":
        from .counted import NotificationCounter

        return NotificationCounter
    if name == "Settings":
        from .settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
