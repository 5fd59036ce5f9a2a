"""An agent over an object store in memory, with faults on request: what the connector asks of an
agent, no more. Objects are written whole and read by range, as S3 does."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from hicache_support import called_as
from nixl._api import nixl_agent
from nixl.errors import nixlNotFoundError


@called_as(nixl_agent)
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
        self.fail_removals = False

    def get_plugin_list(self) -> list[str]:
        return ["OBJ"]

    def create_backend(self, backend: str, initParams: dict[str, str]) -> None:
        self.backends[backend] = initParams
        self.objects = self.buckets.setdefault(initParams["bucket"], {})

    def get_backend_mem_types(self, backend: str) -> list[str]:
        return ["DRAM", "OBJ"]

    def get_reg_descs(self, descs: Any, mem_type: str) -> Any:
        return (mem_type, [tuple(row) for row in descs])

    def register_memory(self, reg_list: Any) -> Any:
        mem_type, rows = reg_list
        if mem_type == "OBJ":
            with self.lock:
                for _, _, device, key in rows:
                    assert device not in self.keys, "a device id is used twice"
                    self.keys[device] = key
        return reg_list

    def deregister_memory(self, dereg_list: Any) -> None:
        if dereg_list[0] == "OBJ":
            with self.lock:
                for _, _, device, _ in dereg_list[1]:
                    del self.keys[device]

    def get_xfer_descs(self, descs: Any, mem_type: str) -> Any:
        return (mem_type, [tuple(int(v) for v in row) for row in descs])

    def initialize_xfer(self, operation: str, local_descs: Any, remote_descs: Any) -> Any:
        assert len(local_descs[1]) == len(remote_descs[1])
        return (operation, local_descs[1], remote_descs[1])

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

    def check_xfer_state(self, handle: Any) -> str:
        return "DONE"

    def release_xfer_handle(self, handle: Any) -> None:
        pass

    def query_memory(self, reg_list: Any, backend: str) -> list[Any]:
        return [
            {"size": str(len(self.objects[key]))} if key in self.objects else None
            for *_, key in reg_list
        ]

    def list_storage(self, backend: str, prefix: str, limit: int) -> dict[str, dict[str, str]]:
        names = sorted(name for name in self.objects if name.startswith(prefix))[:limit]
        return {name: {"size": str(len(self.objects[name]))} for name in names}

    def remove_storage(self, backend: str, name: list[str]) -> dict[str, Exception]:
        errors: dict[str, Exception] = {}
        for one in name:
            if self.fail_removals:
                errors[one] = RuntimeError("NIXL_ERR_BACKEND: OBJ: the test's fault")
            elif self.objects.pop(one, None) is None:
                errors[one] = nixlNotFoundError(f"NIXL_ERR_NOT_FOUND: OBJ: {one}")
        return errors
