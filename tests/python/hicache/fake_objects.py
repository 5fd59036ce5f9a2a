"""An agent over an object store in memory, with faults on request: what the connector asks of an
agent, no more. Objects are written whole and read by range, as S3 does."""

from __future__ import annotations

import ctypes
import threading
from typing import Any


class ObjectAgent:
    """Stands in for nixl_agent; all instances of one `buckets` name share their objects."""

    buckets: dict[str, dict[str, bytes]] = {}

    def __init__(self, name: str, _config: Any = None, **_more: Any):
        self.name = name
        self.backends: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}
        self.keys: dict[int, str] = {}
        self.lock = threading.Lock()
        self.fail_every = 0  # the n-th transfer from now on fails
        self.transfers = 0

    def get_plugin_list(self) -> list[str]:
        return ["OBJ"]

    def create_backend(self, name: str, params: dict[str, str]) -> None:
        self.backends[name] = params
        self.objects = self.buckets.setdefault(params["bucket"], {})

    def get_backend_mem_types(self, _backend: str) -> list[str]:
        return ["DRAM", "OBJ"]

    def get_reg_descs(self, rows: Any, mem_type: str) -> Any:
        return (mem_type, [tuple(row) for row in rows])

    def register_memory(self, descs: Any, backends: Any = None) -> Any:
        mem_type, rows = descs
        if mem_type == "OBJ":
            with self.lock:
                for _, _, device, key in rows:
                    assert device not in self.keys, "a device id is used twice"
                    self.keys[device] = key
        return descs

    def deregister_memory(self, descs: Any) -> None:
        if descs[0] == "OBJ":
            with self.lock:
                for _, _, device, _ in descs[1]:
                    del self.keys[device]

    def get_xfer_descs(self, rows: Any, mem_type: str) -> Any:
        return (mem_type, [tuple(int(v) for v in row) for row in rows])

    def initialize_xfer(self, op: str, host: Any, storage: Any, _agent: str, backends=None) -> Any:
        assert len(host[1]) == len(storage[1])
        return (op, host[1], storage[1])

    def transfer(self, handle: Any) -> str:
        op, host, storage = handle
        self.transfers += 1
        if self.fail_every and self.transfers % self.fail_every == 0:
            raise RuntimeError("NIXL_ERR_BACKEND: OBJ: the test's fault")
        for (address, length, _), (offset, size, device) in zip(host, storage, strict=True):
            assert length == size
            key = self.keys[device]
            if op == "WRITE":
                assert offset == 0, "an object is written whole"
                self.objects[key] = ctypes.string_at(address, length)
            else:
                if key not in self.objects:
                    raise RuntimeError(f"NIXL_ERR_NOT_FOUND: OBJ: {key}")
                part = self.objects[key][offset : offset + length]
                if len(part) != length:
                    raise RuntimeError(f"NIXL_ERR_BACKEND: OBJ: {key} is too short")
                ctypes.memmove(address, part, length)
        return "DONE"

    def check_xfer_state(self, _handle: Any) -> str:
        return "DONE"

    def release_xfer_handle(self, _handle: Any) -> None:
        pass

    def query_memory(self, rows: Any, _backend: str, mem_type: str | None = None) -> list[Any]:
        return [
            {"size": str(len(self.objects[key]))} if key in self.objects else None
            for *_, key in rows
        ]

    def remove_storage(self, rows: Any, _backend: str, _mem_type: str | None = None) -> None:
        for *_, key in rows:
            self.objects.pop(key, None)
