"""The established interface: agents, their configuration and their handles."""

from __future__ import annotations

from . import _bindings as nixlBind
from .agent import logger, nixl_agent
from .config import DEFAULT_COMM_PORT, nixl_agent_config, nixl_thread_sync_t
from .handles import nixl_backend_handle, nixl_prepped_dlist_handle, nixl_xfer_handle
from .logging import get_logger

__all__ = [
    "DEFAULT_COMM_PORT",
    "get_logger",
    "logger",
    "nixlBind",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]
