"""Helpers of the HiCache connector that are useful alone: backend selection and configuration,
registration (and `NixlFileManager`, from files.py). `NixlRegistration` is thread-safe; the others
are set up by one thread."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

from . import config as configuration
from .config import OBJECT_PLUGINS, PRIORITY, SCHEMA, Config, plugin_name
from .files import NixlFileManager

logger = logging.getLogger("nixl.hicache")

__all__ = ["NixlBackendConfig", "NixlBackendSelection", "NixlFileManager", "NixlRegistration"]

#: Names under which a plugin may be listed.
_LISTED_AS = {"3FS": ("3FS", "HF3FS")}


class NixlBackendConfig:
    """What a configuration says about backends. Takes {'plugin': {'posix': {…}}}, the flat form
    {'use_uring': 'true'}, "@file", an inline string, or None."""

    def __init__(self, config: Any = None):
        self.parsed: Config = configuration.load(config)
        self.config = config if isinstance(config, dict) else {"plugin": self.parsed.plugins}

    def get_specified_plugin(self) -> str:
        """The plugin that environment or file ask for, else "auto"."""
        for variable in (configuration.ENV_PLUGIN, configuration.ENV_PLUGIN_OLD):
            name = os.environ.get(variable, "").strip()
            if name:
                return name if name.lower() == "auto" else plugin_name(name)
        active = self._active()
        return active[0] if active else "auto"

    def _active(self) -> list[str]:
        plugins = self.parsed.plugins
        return [name for name in self._by_priority(plugins) if plugins[name].get("active")]

    @staticmethod
    def _by_priority(names: Any) -> list[str]:
        known = [name for name in PRIORITY if name in names]
        return known + [name for name in names if name not in PRIORITY]

    def candidates(self) -> list[str]:
        """Plugins in the order in which they are tried."""
        plugins = self.parsed.plugins
        if not plugins:
            return list(PRIORITY)
        active = self._active()
        if len(active) > 1:
            logger.warning(
                "%s: several plugins are active (%s); the first usable of them is taken",
                self.parsed.source, ", ".join(active),
            )  # fmt: skip
        allowed = active or [
            name for name in self._by_priority(plugins) if plugins[name].get("active") is not False
        ]
        # POSIX is always the last resort, unless it was excluded.
        excluded = plugins.get("POSIX", {}).get("active") is False
        return allowed + (["POSIX"] if "POSIX" not in allowed and not excluded else [])

    def get_use_direct_io(self) -> bool:
        return self.parsed.direct

    def get_backend_initparams(self, backend_name: str) -> dict[str, str]:
        """The parameters for create_backend, all as strings."""
        name = plugin_name(backend_name)
        values = dict(self.parsed.plugins.get(name, {}))
        if not self.parsed.plugins and self.parsed.flat:
            values = dict(self.parsed.flat)
            known = SCHEMA.get(f"plugin.{name.lower()}", {})
            foreign = sorted(key for key in values if known and key not in known)
            if foreign:
                logger.warning(
                    "%s: %s has no %s; valid: %s", self.parsed.source, name, ", ".join(foreign),
                    ", ".join(sorted(known)),
                )  # fmt: skip
            values = {key: value for key, value in values.items() if key not in foreign}
        out = {}
        for key, value in values.items():
            if key == "active" or value is None or value == "":
                continue
            out[key] = str(value).lower() if isinstance(value, bool) else str(value)
        return out


class NixlBackendSelection:
    """Picks and creates the backend: the one asked for, or the first usable by priority."""

    FILE_PLUGINS = [name for name in PRIORITY if name not in OBJECT_PLUGINS]
    OBJ_PLUGINS = list(OBJECT_PLUGINS)

    def __init__(self, plugin: str = "auto", nixlconfig: NixlBackendConfig | None = None):
        self.plugin = plugin
        self.nixlconfig = nixlconfig
        self.backend_name: str | None = None
        self.mem_type: str | None = None
        #: Why each skipped plugin was skipped.
        self.reasons: dict[str, str] = {}

    def set_bucket(self, bucket_name: str) -> None:
        """Sets the bucket for object storage in the environment (AWS_DEFAULT_BUCKET)."""
        os.environ["AWS_DEFAULT_BUCKET"] = bucket_name
        logger.debug("bucket: %s", bucket_name)

    def _candidates(self) -> list[str]:
        if self.plugin and self.plugin.lower() != "auto":
            return [plugin_name(self.plugin)]
        config = self.nixlconfig or NixlBackendConfig()
        return config.candidates()

    def create_backend(self, agent: Any) -> bool:
        """Creates the first usable candidate on the agent; False with the reasons logged."""
        try:
            listed = {name.upper(): name for name in agent.get_plugin_list()}
        except Exception as error:
            logger.error("the agent's plugins cannot be listed: %s", error)
            return False
        explicit = bool(self.plugin) and self.plugin.lower() != "auto"
        configured = self.nixlconfig is not None and bool(self.nixlconfig.parsed.plugins)
        for name in self._candidates():
            reason = self._try(agent, name, listed)
            if reason is None:
                return True
            self.reasons[name] = reason
            told = explicit or (configured and name in self.nixlconfig.parsed.plugins)
            logger.log(
                logging.WARNING if told else logging.DEBUG, "backend %s skipped: %s", name, reason
            )
        logger.error(
            "no usable storage backend; %s",
            "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items()),
        )
        return False

    def _try(self, agent: Any, name: str, listed: dict[str, str]) -> str | None:
        """Creates one backend; the reason where that fails."""
        real = next((listed[n] for n in _LISTED_AS.get(name, (name,)) if n in listed), None)
        if real is None:
            return f"not among the agent's plugins ({', '.join(sorted(listed.values())) or 'none'})"
        params = self.nixlconfig.get_backend_initparams(name) if self.nixlconfig else {}
        if name in self.OBJ_PLUGINS and not params.get("bucket"):
            bucket = os.environ.get("AWS_DEFAULT_BUCKET")
            if not bucket:
                return "no bucket: set `bucket` in [plugin.obj] or AWS_DEFAULT_BUCKET"
            params["bucket"] = bucket
        if real not in getattr(agent, "backends", {}):
            try:
                agent.create_backend(real, params)
            except Exception as error:
                return str(error) or type(error).__name__
        self.backend_name = real
        self.mem_type = "OBJ" if name in self.OBJ_PLUGINS else "FILE"
        logger.info("Backend %s was selected for HiCache (%s)", real, self.mem_type)
        return None


class NixlRegistration:
    """Registers tensors, files and objects with an agent."""

    def __init__(self, agent: Any):
        self.agent = agent
        self._lock = threading.Lock()
        self._next_device = 1

    def create_query_tuples(
        self, key: str, mem_type: str, file_manager: NixlFileManager | None = None
    ) -> list[tuple[int, int, int, str]]:
        """What query_memory takes to ask for a key."""
        if mem_type == "FILE":
            if file_manager is None:
                logger.error("query for file %r: a file manager is needed", key)
                return []
            return [(0, 0, 0, file_manager.get_file_path(key))]
        return [(0, 0, 0, key)]

    def _register(self, items: Any, mem_type: str | None = None) -> Any | None:
        if items is None or (isinstance(items, (list, tuple)) and not items):
            return None
        try:
            descs = self.agent.get_reg_descs(items, mem_type)
            if descs is None:
                logger.error("registration: no descriptors for %s", mem_type or type(items))
                return None
            return self.agent.register_memory(descs)
        except Exception as error:
            logger.error("registration of %s memory: %s", mem_type or "tensor", error)
            return None

    def deregister(self, registered: Any) -> None:
        if registered is not None:
            self.agent.deregister_memory(registered)

    def register_buffers(self, buffers: Any) -> Any | None:
        """A tensor, a list of tensors (memory type by their device), or a list of (addr, len)."""
        if isinstance(buffers, tuple):
            buffers = [buffers]
        if isinstance(buffers, list) and buffers and isinstance(buffers[0], (tuple, list)):
            return self._register([(int(a), int(n), 0, "") for a, n, *_ in buffers], "DRAM")
        if isinstance(buffers, list) and not buffers:
            return None
        tensors = buffers if isinstance(buffers, list) else [buffers]
        return self._register(
            [(*_span(t), "") for t in tensors], "VRAM" if _is_gpu(tensors[0]) else "DRAM"
        )

    def register_files(self, tuples: Sequence[tuple[int, int, int, str]]) -> Any | None:
        return self._register([tuple(t) for t in tuples], "FILE")

    def register_objects(
        self, keys: Sequence[str], sizes: Sequence[int] | None = None
    ) -> Any | None:
        if not keys:
            return None
        if sizes is not None and len(sizes) != len(keys):
            logger.error("registration of %d objects with %d sizes", len(keys), len(sizes))
            return None
        with self._lock:
            first = self._next_device
            self._next_device += len(keys)
        return self._register(
            [(0, sizes[i] if sizes else 0, first + i, key) for i, key in enumerate(keys)], "OBJ"
        )


def _is_gpu(value: Any) -> bool:
    return bool(getattr(value, "is_cuda", False))


def _span(tensor: Any) -> tuple[int, int, int]:
    if hasattr(tensor, "data_ptr"):
        if not tensor.is_contiguous():
            raise ValueError("a tensor that is not contiguous cannot be registered")
        device = tensor.get_device() if _is_gpu(tensor) else 0
        return tensor.data_ptr(), tensor.numel() * tensor.element_size(), device
    interface = tensor.__array_interface__
    return interface["data"][0], tensor.nbytes, 0
