"""What the HiCache tests share: POSIX modes, SGLang's configuration, host pools."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

MODES = ["use_uring", "use_aio", "use_posix_aio"]
#: `backend` is the packed layout whose payload travels by the backend's transfers.
LAYOUTS = ["packed", "backend", "files"]


def hicache_section(layout: str, **more: Any) -> dict[str, Any]:
    """The [hicache] section of one of LAYOUTS."""
    if layout == "backend":
        return {"layout": "packed", "file_io": "backend", **more}
    return {"layout": layout, **more}


def called_as(real: type) -> Callable[[type], type]:
    """For a class that stands in for `real`: its methods take what those of `real` take, by the
    names that `real` gives them, and a call that `real` would refuse is a TypeError here too."""

    def binding(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(getattr(real, name))
        wanted = set(inspect.signature(call).parameters)
        unknown = wanted - set(signature.parameters)
        assert not unknown, f"{real.__name__}.{name} has no parameter {unknown}"

        @functools.wraps(call)
        def bound(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return call(**{k: v for k, v in given.arguments.items() if k in wanted})

        return bound

    def wrap(fake: type) -> type:
        for name, call in list(vars(fake).items()):
            if inspect.isfunction(call) and not name.startswith("_"):
                assert callable(getattr(real, name, None)), f"{real.__name__} has no {name}"
                setattr(fake, name, binding(name, call))
        return fake

    return wrap


def storage_config(**changes: Any) -> types.SimpleNamespace:
    """What SGLang hands to a storage backend."""
    values = {
        "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0,
        "attn_cp_size": 1, "is_mla_model": False, "enable_storage_metrics": False,
        "is_page_first_layout": True, "model_name": "org/model", "extra_config": None,
    }  # fmt: skip
    values.update(changes)
    return types.SimpleNamespace(**values)


class PagePool:
    """A host pool of pages with a K and a V part, laid out as SGLang lays out `page_first` pools
    (kv_buffer[2, tokens, layers, heads, dim]), or `layer_first`, which cannot be copied whole."""

    def __init__(self, pages: int, part_bytes: int = 4096, layout: str = "page_first", page_size=4):
        import torch

        self.layout = layout
        self.page_size = page_size
        self.size = pages * page_size
        self.dtype = torch.uint8
        width = part_bytes // page_size
        raw = torch.empty(2 * pages * part_bytes + 4096, dtype=torch.uint8)
        start = -raw.data_ptr() % 4096
        flat = raw[start : start + 2 * pages * part_bytes]
        if layout == "layer_first":
            self.kv_buffer = flat.view(2, 2, self.size, width // 2)
        else:
            self.kv_buffer = flat.view(2, self.size, width)
        self.part_bytes = part_bytes

    def fill(self, seed: int = 0) -> Any:
        import torch

        generator = torch.Generator().manual_seed(seed)
        shape = self.kv_buffer.shape
        self.kv_buffer.copy_(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        return self.kv_buffer.clone()

    def get_page_buffer_meta(self, indices: Any) -> tuple[list[int], list[int]]:
        pointers = []
        base = self.kv_buffer.data_ptr()
        half = self.kv_buffer.numel() // 2
        for index in indices.tolist()[:: self.page_size]:
            first = base + index // self.page_size * self.part_bytes
            pointers += [first, first + half]
        return pointers, [self.part_bytes] * len(pointers)

    def get_data_page(self, index: int, flat: bool = True) -> Any:
        page = self.kv_buffer[..., index : index + self.page_size, :]
        return page.flatten() if flat else page

    def get_dummy_flat_data_page(self) -> Any:
        import torch

        return torch.zeros(2 * self.part_bytes, dtype=torch.uint8)

    def set_from_flat_data_page(self, index: int, data_page: Any) -> None:
        target = self.kv_buffer[..., index : index + self.page_size, :]
        target.copy_(data_page.reshape(target.shape))

    def get_hybrid_pool_buffer(self) -> list[Any]:
        return [self.kv_buffer] if self.layout == "page_first" else []

    def indices(self, pages: list[int]) -> Any:
        import torch

        starts = torch.tensor(pages, dtype=torch.int64) * self.page_size
        return (starts[:, None] + torch.arange(self.page_size)).reshape(-1)
