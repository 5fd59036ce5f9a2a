"""HiCache: SGLang's hierarchical KV cache on storage, and tensors by key, through NIXL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hicache_nixl import HiCacheNixl
    from .nixl_utils import (
        NixlBackendConfig,
        NixlBackendSelection,
        NixlFileManager,
        NixlRegistration,
    )

__all__ = [
    "HiCacheNixl",
    "NixlBackendConfig",
    "NixlBackendSelection",
    "NixlFileManager",
    "NixlRegistration",
]


def __getattr__(name: str) -> Any:
    if name == "HiCacheNixl":
        from .hicache_nixl import HiCacheNixl

        return HiCacheNixl
    if name in __all__:
        from . import nixl_utils

        return getattr(nixl_utils, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
