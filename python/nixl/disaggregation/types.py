"""Names that SGLang's scheduler shares with a connector: SGLang's own where it can be imported,
else equal ones of this file. NIXL_DISAGG_SGLANG=0 takes these in any case."""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
import os
import sys
from typing import Any


class _KVArgs:
    """What a rank tells of its KV cache; see docs/disaggregation.md for the fields."""

    engine_rank: int = 0
    kv_data_ptrs: list[int]
    kv_data_lens: list[int]
    kv_item_lens: list[int]
    aux_data_ptrs: list[int]
    aux_data_lens: list[int]
    aux_item_lens: list[int]
    ib_device: str = ""
    gpu_id: int = 0
    kv_head_num: int = 0
    total_kv_head_num: int = 0
    page_size: int = 0
    system_dp_rank: int = 0
    pp_rank: int = 0
    prefill_start_layer: int = 0
    kv_cache_dtype_str: str = ""
    kv_layout: str | None = None
    kv_data_mem_kinds: list[str] | None = None

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)


class _DisaggregationMode(enum.Enum):
    NULL = "null"
    PREFILL = "prefill"
    DECODE = "decode"


class _KVPoll:
    """States of a room, as poll() returns them."""

    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3
    Success = 4


@dataclasses.dataclass
class _KVTransferMetric:
    transfer_latency_s: float | None = None
    alloc_latency_s: float | None = None
    transfer_total_bytes: int | None = None


@dataclasses.dataclass
class ServerArgs:
    """The fields of SGLang's ServerArgs that are looked at; any object with them will do."""

    tp_size: int = 1
    dp_size: int = 1
    pp_size: int = 1
    enable_dp_attention: bool = False
    host: str = "127.0.0.1"
    disaggregation_bootstrap_port: int = 8998


def _of_sglang() -> tuple[Any, Any, Any, Any] | None:
    if os.environ.get("NIXL_DISAGG_SGLANG", "1") == "0":
        return None
    if "sglang" not in sys.modules and importlib.util.find_spec("sglang") is None:
        return None
    before = set(sys.modules)
    try:
        from sglang.srt.disaggregation.base.conn import KVArgs, KVPoll, KVTransferMetric
        from sglang.srt.disaggregation.utils import DisaggregationMode
    except Exception:  # installed without what it needs: as if it were not there
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "sglang":
                del sys.modules[name]
        return None
    return KVArgs, DisaggregationMode, KVPoll, KVTransferMetric


_found = _of_sglang()
KVArgs: Any = _found[0] if _found else _KVArgs
DisaggregationMode: Any = _found[1] if _found else _DisaggregationMode
KVPoll: Any = _found[2] if _found else _KVPoll
KVTransferMetric: Any = _found[3] if _found else _KVTransferMetric

FINAL = (KVPoll.Success, KVPoll.Failed)


class KVTransferError(RuntimeError):
    """Why a room failed."""

    def __init__(self, bootstrap_room: int | None, failure_reason: str) -> None:
        super().__init__(f"room {bootstrap_room}: {failure_reason}")
        self.bootstrap_room = bootstrap_room
        self.failure_reason = failure_reason


class LayoutMismatch(ValueError):
    """The caches of two ranks do not fit; the text names both values."""
