"""The handles an agent gives out: transfers and prepared descriptor lists.

They release themselves when they go; releasing earlier, and twice, is harmless.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from . import _bindings as nixlBind

# What create_backend keeps in nixl_agent.backends.
nixl_backend_handle = int


class nixl_xfer_handle(nixlBind.nixlXferHandle):
    """One transfer. ``wait(timeout)`` and ``await handle`` give "DONE" or raise its error;
    ``progress`` is (bytes moved, bytes in all) of the last post."""

    def __await__(self) -> Generator[Any, None, str]:
        from .aio import wait_handle

        return wait_handle(self).__await__()


class nixl_prepped_dlist_handle(nixlBind.nixlDlistHandle):
    """One side of many transfers: descriptors resolved once, then used by index."""
