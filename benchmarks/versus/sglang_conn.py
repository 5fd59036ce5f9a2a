"""SGLang's own nixl/conn.py as published, without what is heavy around it.

Modules below HOLLOW are stand-ins whose every name is an empty class; what the connector asks of
them is set here. Managers, senders, receivers, the bootstrap server, its ZMQ and HTTP messages and
the network helpers are SGLang's own code. Works over whatever package is imported as `nixl`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pathlib
import sys
import types
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "python"))

from hollow import HollowFinder, without_their_init

HOLLOW = [
    "triton", "sgl_kernel", "orjson", "sglang.kernels", "sglang.srt.configs",
    "sglang.srt.distributed", "sglang.srt.runtime_context", "sglang.srt.server_args",
    "sglang.srt.utils.common", "sglang.srt.mem_cache", "sglang.srt.observability.trace",
    "sglang.srt.speculative", "sglang.srt.disaggregation.common.dcp_pack",
    "sglang.srt.disaggregation.common.staging_buffer",
]  # fmt: skip


class _NoTrace:
    tracing_enable = False

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


def _any_name(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return None


def _warning_once(self: logging.Logger, text: str, *words: Any) -> None:
    self.debug(text, *words)


def load(
    tp_size: int, tp_rank: int, host: str, port: int, slices: bool = False
) -> types.SimpleNamespace:
    """The connector for one rank, with `slices` for unequal numbers of ranks too. Changes what is
    imported for good: once in a process."""
    import torch

    hollow = [name for name in HOLLOW if not (slices and name.endswith("staging_buffer"))]
    missing = [name for name in ("psutil",) if importlib.util.find_spec(name) is None]
    sys.meta_path.insert(0, HollowFinder(hollow + missing))
    without_their_init("sglang", "srt", "srt.utils", "srt.disaggregation", "srt.observability")
    logging.Logger.warning_once = _warning_once  # type: ignore[attr-defined]
    if not hasattr(torch, "get_device_module"):
        torch.get_device_module = lambda _: types.SimpleNamespace(set_device=lambda _: None)
    utils = sys.modules["sglang.srt.utils"]
    utils.is_npu = lambda: False
    utils.is_hip = utils.is_cuda = utils.is_npu
    utils.__getattr__ = _any_name  # type: ignore[method-assign]
    common = importlib.import_module("sglang.srt.utils.common")
    common.run_with_deadline = lambda call, **_: call()
    common.ceil_align = lambda value, to: -(-value // to) * to
    trace = importlib.import_module("sglang.srt.observability.trace")
    trace.TraceNullContext = trace.TraceReqContext = _NoTrace
    _context(tp_size, tp_rank, host, port)
    utils_module = importlib.import_module("sglang.srt.disaggregation.utils")
    utils_module.get_dsv41_spec_layout = lambda _: None
    conn = importlib.import_module("sglang.srt.disaggregation.nixl.conn")
    common_conn = sys.modules["sglang.srt.disaggregation.common.conn"]
    common_conn.get_local_ip_auto = lambda *_: host
    base = sys.modules["sglang.srt.disaggregation.base.conn"]
    return types.SimpleNamespace(
        conn=conn, KVArgs=base.KVArgs, KVPoll=base.KVPoll, Mode=utils_module.DisaggregationMode
    )


def _context(tp_size: int, tp_rank: int, host: str, port: int) -> None:
    context = importlib.import_module("sglang.srt.runtime_context")
    parallel = types.SimpleNamespace(
        dist_init_addr=None, attn_tp_size=tp_size, attn_tp_rank=tp_rank, attn_cp_size=1,
        attn_cp_rank=0, attn_dcp_size=1, attn_dcp_rank=0, attn_dp_size=1, attn_dp_rank=0,
        dp_size=1, pp_size=1, pp_group=None, nnodes=1, enable_kv_cache_sharding=False,
        enable_dsa_cache_layer_split=False, enable_cp_tp_group_sharing=False,
        load_balance_method="round_robin", num_dp_ranks=1, tp_size=tp_size, tp_rank=tp_rank,
    )  # fmt: skip
    context.get_parallel = lambda: parallel
    disagg = types.SimpleNamespace(
        disaggregation_bootstrap_port=port, disaggregation_decode_allocation_policy="early"
    )
    context.get_disagg = lambda: disagg
    context.get_serving = lambda: types.SimpleNamespace(host=host, port=1)
    context.get_device = lambda: types.SimpleNamespace(device="cpu")
    context.get_observability = lambda: types.SimpleNamespace(enable_trace=False)
    context.get_schedule = lambda: types.SimpleNamespace(chunked_prefill_size=8192)
    context.linear_attn_tp_size = lambda: tp_size
    context.max_prefill_buffer_tokens = lambda: 8192


def kv_args(sglang: Any, fields: dict[str, Any]) -> Any:
    """SGLang's KVArgs of a cache in host memory, without the states of other models."""
    args = sglang.KVArgs()
    empty = (
        "state_types state_data_ptrs state_data_lens state_item_lens state_layer_ids "
        "state_dim_per_tensor state_slice_outer_counts state_conv_shard_groups kv_layer_ids"
    )
    for name in empty.split():
        setattr(args, name, [])
    defaults = {
        "kv_cache_dtype_str": "bfloat16", "is_hybrid_mla_backend": False, "ib_device": "",
        "gpu_id": 0, "system_dp_rank": 0, "pp_rank": 0, "prefill_start_layer": 0,
        "prefill_end_layer": None, "mla_compression_ratios": None, "swa_kv_cache_layout": None,
        "kv_data_mem_kinds": ["DRAM"] * len(fields["kv_data_ptrs"]), "rust_http_port": None,
    }  # fmt: skip
    for name, value in (defaults | fields).items():
        setattr(args, name, value)
    return args
