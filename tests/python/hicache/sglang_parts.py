"""SGLang's cache controller and host pools as published, without what is heavy around them.

Modules below HOLLOW (kernels, models, distribution, packages that SGLang needs elsewhere) are
stand-ins whose every name is an empty class; what the controller asks of them is set here, and
pages are hashed in Python, not in the extension that SGLang compiles for it. The controller, its
threads, the reader of the extra configuration, the storage factory, the connectors and the host
pools are SGLang's own code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import pathlib
import sys
import threading
import types
from typing import Any

from hollow import HollowFinder, HollowModule

CACHE = "sglang.srt.mem_cache"
HOLLOW = [
    "msgspec", "psutil", "zmq", "triton", "sgl_kernel", "sglang.kernels", "sglang.srt.layers",
    "sglang.srt.disaggregation", "sglang.srt.distributed", "sglang.srt.platforms",
    "sglang.srt.runtime_context", "sglang.srt.utils", f"{CACHE}.allocator",
    f"{CACHE}.base_prefix_cache", f"{CACHE}.deepseek_v4_memory_pool", f"{CACHE}.device_pool_info",
    f"{CACHE}.l2_transfer", f"{CACHE}.memory_pool", f"{CACHE}.pool_host.hisparse",
    f"{CACHE}.pool_host.page_interleave", f"{CACHE}.pool_host.page_unified",
    f"{CACHE}.pool_host.unified", f"{CACHE}.radix_cache",
]  # fmt: skip
MHA = f"{CACHE}.pool_host.mha"


class Finder(HollowFinder):
    """Makes hollow modules, and loads one module with a word replaced for an older torch."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == MHA:
            return importlib.machinery.ModuleSpec(name, self)
        return super().find_spec(name, path, target)

    def create_module(self, spec: Any) -> Any:
        return types.ModuleType(MHA) if spec.name == MHA else super().create_module(spec)

    def exec_module(self, module: Any) -> None:
        if module.__name__ != MHA:
            super().exec_module(module)
            return
        import torch

        folder = pathlib.Path(sys.modules[f"{CACHE}.pool_host"].__path__[0], "mha.py")
        text = folder.read_text()
        if not hasattr(torch.float32, "itemsize"):  # torch < 2.1
            text = text.replace("self.dtype.itemsize", "_itemsize(self)")
            module._itemsize = lambda pool: torch.empty(0, dtype=pool.dtype).element_size()
        exec(compile(text, str(folder), "exec"), module.__dict__)


def page_hashes(tokens, count, width, bigram, prior, page_size):
    """One hash for each whole page, over the pages before it too."""
    assert width == 1 and not bigram and page_size
    out, digest = [], prior or b""
    for at in range(0, count - count % page_size, page_size):
        page = bytes(memoryview(tokens[at : at + page_size]))
        digest = hashlib.sha256(digest + page).digest()
        out.append(digest.hex())
    return out


def whole_sglang() -> types.SimpleNamespace:
    """SGLang's modules; to be called where `sglang` in sys.modules is its package."""
    import torch

    if not hasattr(torch, "uint64"):  # torch < 2.3; only tables of addresses are of this type
        torch.uint64, torch._lent = torch.int64, True
    root = pathlib.Path(sys.modules["sglang"].__path__[0])
    sys.meta_path.insert(0, Finder(HOLLOW))
    for name in ("srt/managers", "srt/mem_cache/pool_host", "srt/mem_cache/hybrid_cache"):
        dotted = "sglang." + name.replace("/", ".")
        sys.modules.pop(dotted, None)
        module = types.ModuleType(dotted)
        module.__path__ = [str(root / name)]
        sys.modules[dotted] = module
    utils = importlib.import_module("sglang.srt.utils")
    for what in ("is_cuda", "is_hip", "is_npu", "is_xpu", "is_mps"):
        setattr(utils, what, lambda: False)
    event = type("Event", (), {"record": lambda self: None})
    utils.get_device_module = lambda: types.SimpleNamespace(Event=event)
    importlib.import_module("sglang.srt.platforms").current_platform = types.SimpleNamespace(
        capabilities=types.SimpleNamespace(hicache_device_kernels=False)
    )
    native = importlib.import_module(f"{CACHE}.cpp_utils.native_hash")
    native._load_native_hash_module = lambda: types.SimpleNamespace(get_hash=page_hashes)
    parallel = types.SimpleNamespace(
        attn_dcp_size=1, attn_dcp_rank=0, tp_rank=0, tp_size=1, pp_rank=0, pp_size=1
    )
    importlib.import_module("sglang.srt.runtime_context").get_parallel = lambda: parallel
    attention = importlib.import_module("sglang.srt.layers.dp_attention")
    attention.is_dp_attention_enabled = lambda: False
    base = importlib.import_module(f"{CACHE}.pool_host.base")
    base.host_memory_budget_bytes = lambda _: 1 << 40
    pools = sys.modules[f"{CACHE}.pool_host"]
    pools.HostKVCache = base.HostKVCache
    group = importlib.import_module(f"{CACHE}.pool_host.group")
    pools.HostPoolGroup, pools.PoolEntry = group.HostPoolGroup, group.PoolEntry
    hybrid = importlib.import_module(f"{CACHE}.hybrid_cache.hybrid_cache_controller")
    return types.SimpleNamespace(
        controller=importlib.import_module("sglang.srt.managers.cache_controller"),
        parse=hybrid.HybridCacheController.parse_storage_backend_extra_config,
        pool_class=importlib.import_module(MHA).MHATokenToKVPoolHost,
        hashes=importlib.import_module(f"{CACHE}.utils").get_storage_hash_str,
        storage=importlib.import_module(f"{CACHE}.hicache_storage"),
    )


def leave_sglang() -> None:
    torch = sys.modules.get("torch")
    if getattr(torch, "_lent", False):
        del torch.uint64, torch._lent
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    for name, module in list(sys.modules.items()):
        if isinstance(module, HollowModule):
            del sys.modules[name]


def make_pool(sglang: Any, layout: str, pages: int, page_size: int = 4) -> Any:
    """SGLang's host pool of K and V pages over a device pool of which only the shape is asked."""
    import torch

    layers, heads, width, tokens = 3, 2, 64, pages * page_size
    keys = [torch.zeros(tokens, heads, width) for _ in range(layers)]
    buffers = types.SimpleNamespace(
        k=keys, v=keys, k_data_ptrs=torch.zeros(layers), v_data_ptrs=torch.zeros(layers)
    )
    info = types.SimpleNamespace(
        scales=None, validate=lambda: None, transfer_buffers=None, buffers=buffers, head_num=heads,
        head_dim=width, v_head_dim=width, dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    return sglang.pool_class(
        info, 1.0, 0, page_size, layout, pin_memory=False, device="cpu",
        device_capacity_tokens=tokens, start_layer=0, end_layer=layers,
    )  # fmt: skip


def make_controller(sglang: Any, pool: Any, backend: str, extra: str) -> Any:
    """SGLang's controller with its storage attached, as the server makes it from its arguments."""
    device = types.SimpleNamespace(
        device="cpu", layer_num=3, register_layer_transfer_counter=lambda _: None
    )
    config, threshold, *_ = sglang.parse(extra)
    return sglang.controller.HiCacheController(
        types.SimpleNamespace(get_kvcache=lambda: device), pool, pool.page_size, None,
        threading.Event(), write_policy="write_through", storage_backend=backend,
        prefetch_threshold=threshold, model_name="org/model", storage_backend_extra_config=config,
        enable_storage_metrics=True,
    )  # fmt: skip
