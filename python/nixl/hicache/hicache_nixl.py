"""HiCacheNixl: SGLang's hierarchical cache, or any tensors, on storage through NIXL.

Alone: `HiCacheNixl(file_path="/tmp/hicache_storage", plugin="auto")`. In SGLang: as backend
`dynamic` with module_path "nixl.hicache.hicache_nixl", class_name "HiCacheNixl" and interface_v1 1.
Thread-safe: set, get and exists may run on any threads at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from typing import Any

from nixl import _hicache

from . import config as configuration
from . import values as memory
from .arguments import check_keys, columns, first
from .blocks import PackedBlocks
from .cleaner import Cleaner
from .direct import DirectIo
from .keyed import KeyedBlocks
from .nixl_utils import NixlBackendConfig, NixlBackendSelection, NixlFileManager, NixlRegistration
from .objects import PackedObjects
from .pages import PageInterface
from .room import Room
from .stats import HiCacheStats, Statistics
from .telemetry import Exporter
from .transfers import Mover, rows_of
from .upkeep import Task, Upkeep

logger = logging.getLogger("nixl.hicache")

DEFAULT_PATH = "/tmp/hicache_storage"
PACKED_BELOW = 1 << 20
MAINTENANCE_SECONDS = 5.0
COLLECT_SECONDS = 60.0
CLEAN_SECONDS = 30.0

try:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage as _Base
except Exception:  # alone, or an SGLang that cannot be imported here

    class _Base:  # type: ignore[no-redef]
        """Stands in for SGLang's abstract class."""

        def register_mem_pool_host(self, mem_pool_host: Any) -> None:
            self.mem_pool_host = mem_pool_host

        def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
            if not hasattr(self, "registered_pools"):
                self.registered_pools: dict[Any, Any] = {}
            self.registered_pools[host_pool_name] = host_pool


class HiCacheNixl(PageInterface, _Base):
    """A key-value store of tensors and KV pages over the best storage backend there is."""

    def __init__(
        self,
        storage_config: Any = None,
        file_path: Any = None,
        plugin: str = "auto",
        *,
        config: Any = None,
    ):
        """HiCacheNixl(file_path, plugin), HiCacheNixl(storage_config, file_path) or
        HiCacheNixl(storage_config, kwargs). `config` adds a configuration: "@file", an inline
        string or a dictionary."""
        if isinstance(storage_config, (str, os.PathLike)):
            if file_path is not None:
                plugin = file_path
            storage_config, file_path = None, storage_config
        if storage_config is not None and not hasattr(storage_config, "tp_rank"):
            raise configuration.ConfigError(
                f"storage_config of type {type(storage_config).__name__}: expected a path, or "
                "SGLang's HiCacheStorageConfig"
            )
        if plugin is not None and not isinstance(plugin, str):
            raise configuration.ConfigError(f'plugin = {plugin!r}: expected a name, or "auto"')
        kwargs = file_path if isinstance(file_path, dict) else {}
        if isinstance(file_path, dict):
            file_path = kwargs.get("file_path")
        self.storage_config = storage_config
        raw = config
        if raw is None and storage_config is not None:
            raw = getattr(storage_config, "extra_config", None)
        self.config = NixlBackendConfig(raw)
        self.stats = Statistics()
        self.use_direct_io = self.config.get_use_direct_io()
        self._closed = False
        self._lock = threading.Lock()
        self.storage_dirs = configuration.storage_dirs(
            self.config.parsed, file_path or DEFAULT_PATH
        )
        self._create_agent(plugin)
        self._create_blocks()
        self._set_up_pages(storage_config)
        if self.packed is not None:
            self.packed.owners = self._owners()
        self._exporter = Exporter(self.agent_name, self._snapshot)

    def _create_agent(self, plugin: str) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self.agent_name = f"hicache_nixl_{uuid.uuid4()}"
        self.agent = nixl_agent(self.agent_name, nixl_agent_config(backends=[]))
        if plugin is None or plugin.lower() == "auto":
            asked = self.config.get_specified_plugin()
            from_env = bool(os.environ.get(configuration.ENV_PLUGIN)) or bool(
                os.environ.get(configuration.ENV_PLUGIN_OLD)
            )
            plugin = asked if from_env else "auto"
        self.backend_selector = NixlBackendSelection(plugin, self.config)
        if not self.backend_selector.create_backend(self.agent):
            reasons = "; ".join(f"{k}: {v}" for k, v in self.backend_selector.reasons.items())
            raise RuntimeError(f"HiCacheNixl: no usable storage backend ({reasons})")
        self.mem_type = self.backend_selector.mem_type
        self.mover = Mover(
            self.agent,
            self.backend_selector.backend_name,
            self.mem_type,
            self.config.parsed.get("timeout"),
        )
        self.registration = NixlRegistration(self.agent)
        try:
            types = self.agent.get_backend_mem_types(self.backend_selector.backend_name)
        except Exception:
            types = []
        self._gpu_ok = any(str(t).startswith("VRAM") for t in types)

    def _create_blocks(self) -> None:
        parsed = self.config.parsed
        layout = parsed.get("layout")
        if layout == "auto" and parsed.get("max_bytes"):
            layout = "packed"  # the cap is kept there
        elif layout == "auto" and self.storage_config is None:
            layout = "files"  # a plain path: one file a key
        elif layout == "files" and parsed.get("max_bytes") and self.mem_type != "FILE":
            logger.warning("max_bytes is not kept for one object a key; use `packed` or `auto`")
        self.layout = layout
        files = None
        durable = parsed.get("durability") == "disk"
        if self.mem_type == "FILE":
            files = NixlFileManager(
                self.storage_dirs,
                self.use_direct_io,
                self.storage_config is not None,
                file_mode=parsed.get("file_mode"),
                durable=durable,
            )
            files.collect()
        self.file_manager = files
        self.direct = DirectIo(self.use_direct_io and files is not None, self.mover.region_of)
        self.keyed = KeyedBlocks(
            files,
            self.mover,
            self.stats,
            verify=parsed.get("verify"),
            direct=self.direct,
            durable=durable,
            own=self._own_io(),
        )
        if layout == "files" and files is not None and parsed.get("max_bytes"):
            self.keyed.room = Room(files, parsed.get("max_bytes"), self.keyed.is_unmarked)
        self.cleaner = self._set_up_cleaner()
        self.packed = self._open_packed() if layout != "files" else None
        self._set_up_upkeep()

    def _open_packed(self) -> PackedBlocks:
        parsed = self.config.parsed
        objects = self.mem_type == "OBJ"
        options = {
            "segment_bytes": parsed.get("segment_bytes"),
            "max_bytes": self._max_bytes(),
            "durable": parsed.get("durability") == "disk",
            "file_mode": parsed.get("file_mode"),
            "segment_per_batch": objects,
            "external_segments": objects,
        }
        try:
            store = _hicache.Store(self.storage_dirs, **options)
        except OSError as error:
            try:
                store = _hicache.Store(self.storage_dirs, read_only=True, **options)
            except OSError:
                raise error from None
            logger.warning("%s; opened for reading only", error)
        kind = PackedObjects if objects else PackedBlocks
        return kind(
            store,
            self.mover,
            self.stats,
            verify=parsed.get("verify") != "false",
            direct=self.direct,
            folders=self.storage_dirs,
            own=self._own_io(),
        )

    def _own_io(self) -> bool:
        """Whether payload goes to local files by the store's own calls: over POSIX, unless a mode
        or another parameter of that backend, or `file_io`, asks for its transfers."""
        parsed = self.config.parsed
        if self.mover.backend != "POSIX" or parsed.get("file_io") != "auto":
            return False
        known = configuration.SCHEMA["plugin.posix"]
        asked = dict(parsed.plugins.get("POSIX", {}))
        asked.update({key: value for key, value in parsed.flat.items() if key in known})
        asked.pop("active", None)
        return not any(str(value).lower() not in ("false", "none", "") for value in asked.values())

    # -- upkeep --------------------------------------------------------------------------------

    def _set_up_cleaner(self) -> Cleaner | None:
        parsed = self.config.parsed
        asked = parsed.of_top("l3_cleaner_enabled")
        if self.file_manager is None:
            if asked:
                logger.warning("l3_cleaner_enabled: does not apply to objects; see max_bytes")
            return None
        if not asked and (asked is not None or self.storage_config is None):
            return None
        return Cleaner(
            self.file_manager,
            parsed.of_top("l3_cleaner_high_watermark"),
            parsed.of_top("l3_cleaner_low_watermark"),
            parsed.of_top("l3_cleaner_min_free"),
        )

    def _set_up_upkeep(self) -> None:
        tasks = []
        if self.packed is not None:
            packed, fraction = self.packed, self.config.parsed.get("compact_dead_fraction")
            # What others store counts, too: with a cap there may be something to do at any time.
            capped = self._max_bytes() != 0
            tasks.append(
                Task("packed store", lambda: packed.maintain(fraction), MAINTENANCE_SECONDS, capped)
            )
        if self.file_manager is not None:
            files = self.file_manager
            tasks.append(
                Task("unfinished files", lambda: bool(files.collect()), COLLECT_SECONDS, True)
            )
        if self.cleaner is not None:
            tasks.append(Task("room on the disk", lambda: bool(self._clean()), CLEAN_SECONDS, True))
        if self.keyed.room is not None:
            tasks.append(Task("max_bytes", self.keyed.room.maintain, CLEAN_SECONDS, True))
        self._upkeep = Upkeep(tasks)
        self.keyed.make_room = self._make_room
        if self.packed is not None and self.cleaner is not None:
            self.packed.make_room = self._make_room

    def _max_bytes(self) -> int:
        """The cap of the packed layout: the one that is set, or that of the cleaner."""
        asked = self.config.parsed.get("max_bytes")
        return asked if asked or self.cleaner is None else self.cleaner.packed_cap()

    def _clean(self, wait: bool = False) -> int:
        removed = 0
        if self.cleaner is not None and self.layout != "packed":
            removed = self.cleaner.clean(wait)
        if removed and self.keyed.room is not None:
            self.keyed.room.forget()
        if self.cleaner is not None and self.packed is not None:
            removed += self.cleaner.trim(self.packed, wait)
        self.stats.count("cleaned_bytes", removed)
        return removed

    def _make_room(self, wanted: int) -> bool:
        """A disk is full for so many bytes more: whether there is more room now."""
        freed = self.file_manager.collect() + self._clean(wait=True)
        if self.keyed.room is not None and not freed:
            freed = self.keyed.room.free(wanted)
        cleaned = self.cleaner is not None and not any(map(self.cleaner.excess, self.storage_dirs))
        return freed > 0 or cleaned

    # -- registration --------------------------------------------------------------------------

    def register_buffers(self, buffers: Any) -> Any | None:
        """Registers memory once, so that later transfers from and to it register nothing: a tensor,
        a list of tensors, or a list of (address, length)."""
        if buffers is None or (isinstance(buffers, (list, tuple)) and not buffers):
            return None
        items = [buffers] if memory.is_tensor(buffers) or isinstance(buffers, tuple) else buffers
        try:
            if isinstance(items[0], (tuple, list)):
                return self.mover.register_host([(int(a), int(n)) for a, n, *_ in items])
            extents = [memory.source(item, None, None, self._gpu_ok) for item in items]
            for extent, item in zip(extents, items, strict=True):
                if (
                    extent.keep is not None
                    and memory.is_tensor(item)
                    and (extent.address != item.data_ptr())
                ):
                    raise ValueError(
                        "a tensor that is not contiguous, or on a GPU that "
                        "this backend cannot reach, cannot be registered"
                    )
            out = None
            for mem, device in sorted({(p.mem, p.device) for p in extents}):
                ranges = [
                    (p.address, p.length) for p in extents if (p.mem, p.device) == (mem, device)
                ]
                out = self.mover.register_host(ranges, mem, device)
            return out
        except Exception as error:
            logger.error("register_buffers: %s", error)
            return None

    def register_files(self, file_paths: Any, open_file: bool | None = True) -> Any | None:
        """Registers files by path, or by (offset, length, descriptor, path) tuples."""
        if not file_paths:
            return None
        if isinstance(file_paths[0], (tuple, list)):
            return self.registration.register_files(file_paths)
        if self.file_manager is None:
            logger.error("register_files: backend %s stores objects", self.mover.backend)
            return None
        tuples = self.file_manager.files_to_nixl_tuples(list(file_paths), open_file is not False)
        if not tuples:
            return None
        registered = self.registration.register_files(tuples)
        if registered is None and open_file is not False:
            for _, _, fd, _ in tuples:
                self.file_manager.close_file(fd)
        elif open_file is not False:
            with self._lock:
                self._open_files = [*getattr(self, "_open_files", []), (registered, tuples)]
        return registered

    def register_objects(self, keys: list[str], sizes: list[int] | None = None) -> Any | None:
        return self.registration.register_objects(keys, sizes)

    # -- tensors by key ------------------------------------------------------------------------

    def _suffix(self) -> str:
        return self.config_suffix if self.storage_config is not None else ""

    def _owners(self) -> list[str]:
        """The suffixes of what this connector stores, without pool and format."""
        if self.storage_config is None:
            return [""]
        return list(dict.fromkeys([self.config_suffix, self.tp_config_suffix]))

    def _blocks_for(self, length: int) -> Any:
        if self.packed is None:
            return self.keyed
        return self.packed if self.layout == "packed" or length < PACKED_BELOW else self.keyed

    def _move(self, op: str, keys: list[str], extents: list[memory.Extent]) -> list[bool]:
        """Stores or fetches each key's extent, grouped by what one transfer can hold."""
        done = [False] * len(keys)
        groups: dict[tuple[int, str], list[int]] = {}
        for i, extent in enumerate(extents):
            packed = self._blocks_for(extent.length) is self.packed
            groups.setdefault((packed and self.packed is not None, extent.mem), []).append(i)
        for (packed, mem), members in groups.items():
            blocks = self.packed if packed else self.keyed
            some = [keys[i] for i in members]
            rows = rows_of([(extents[i].address, extents[i].length, extents[i].device)
                            for i in members])  # fmt: skip
            own = blocks.own and mem == "DRAM"
            with contextlib.nullcontext() if own else self.mover.host(rows, mem):
                if op == "set":
                    replace = self.storage_config is None
                    more = {} if packed else {"mem": mem}
                    ok = blocks.put(some, self._suffix(), rows, 1, replace=replace, **more)
                    self._upkeep.wake()
                else:
                    more = {} if packed else {"mem": mem}
                    ok = blocks.get(some, self._suffix(), rows, 1, **more)
            for i, result in zip(members, ok, strict=True):
                done[i] = result
        return done

    def set(
        self,
        key: str,
        value: Any = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Stores a tensor, array or bytes, or `target_sizes` bytes at `target_location`."""
        return self.batch_set(
            [key],
            None if value is None else [value],
            None if target_location is None else [target_location],
            None if target_sizes is None else [first(target_sizes)],
        )

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Stores all; False, with the cause logged, if any could not be. No key is ever partial."""
        if not keys:
            return True
        try:
            check_keys(keys)
            rows = columns(keys, values, target_locations, target_sizes)
            gpu_ok = self._gpu_ok and self.layout == "files"
            extents = [memory.source(v, loc, size, gpu_ok) for v, loc, size in rows]
            with self.stats.timed("set"):
                done = self._move("set", keys, extents)
        except Exception as error:
            logger.error("set of %d keys: %s", len(keys), error)
            self.stats.count("set_failures", len(keys))
            return False
        self.stats.moved(
            "set", sum(done), sum(p.length for p, ok in zip(extents, done, strict=True) if ok), 0
        )
        self._exporter.maybe()
        if not all(done):
            logger.error("set: %d of %d keys were not stored", done.count(False), len(keys))
        return all(done)

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any | None:
        """Fetches into a tensor, an array, or `target_sizes` bytes at an address; gives the target,
        or None where the key is missing or corrupt."""
        return self.batch_get(
            [key],
            None if target_location is None else [target_location],
            None if target_sizes is None else [first(target_sizes)],
        )[0]

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[Any | None]:
        if not keys:
            return []
        check_keys(keys)
        rows = columns(keys, None, target_locations, target_sizes)
        gpu_ok = self._gpu_ok and self.layout == "files"
        extents = [memory.target(location, size, gpu_ok) for _, location, size in rows]
        try:
            with self.stats.timed("get"):
                done = self._move("get", keys, extents)
        except Exception as error:
            logger.error("get of %d keys: %s", len(keys), error)
            return [None] * len(keys)
        self.stats.moved(
            "get", sum(done), sum(p.length for p, ok in zip(extents, done, strict=True) if ok), 0
        )
        self._exporter.maybe()
        return [extent.finish() if ok else None for extent, ok in zip(extents, done, strict=True)]

    def exists(self, key: str) -> bool:
        return self._present([key])[0]

    def _present(self, keys: list[str]) -> list[bool]:
        with self.stats.timed("exists"):
            found = [False] * len(keys)
            if self.packed is not None:
                found = self.packed.present(keys, self._suffix())
            missing = [i for i, ok in enumerate(found) if not ok]
            if missing and self.layout != "packed":
                more = self.keyed.present([keys[i] for i in missing], self._suffix())
                for i, ok in zip(missing, more, strict=True):
                    found[i] = ok
            return found

    # -- the whole -----------------------------------------------------------------------------

    def clear(self) -> None:
        """Removes what is stored under this connector's suffix; the files and objects of others
        stay. (`python -m nixl.hicache clear` empties a whole directory.)"""
        if self.packed is not None:
            self.packed.clear()
        if self.layout != "packed":
            pools = [name for pool in self._host_pools.values() for name in pool.names]
            self.keyed.clear(self._owners(), list(dict.fromkeys(["", *pools])))

    def get_stats(self) -> HiCacheStats:
        return HiCacheStats(self._snapshot(), self.stats.take_recent())

    def _snapshot(self) -> dict[str, Any]:
        out = self.stats.as_dict()
        out["backend"] = self.mover.backend
        out["layout"] = self.layout
        if self.packed is not None:
            out.update(self.packed.store.stats())
        if self.keyed.room is not None:
            out.update(self.keyed.room.stats())
        return out

    def close(self) -> None:
        """Ends the upkeep and gives registrations and descriptors back. Twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            open_files = getattr(self, "_open_files", [])
        if hasattr(self, "_upkeep"):
            self._upkeep.stop()
        if hasattr(self, "_exporter"):
            self._exporter.write()
        for registered, tuples in open_files:
            self.registration.deregister(registered)
            for _, _, fd, _ in tuples:
                self.file_manager.close_file(fd)
        for blocks in (getattr(self, "packed", None), getattr(self, "keyed", None)):
            if blocks is not None:
                blocks.close()
        if hasattr(self, "mover"):
            self.mover.close()
        self._host_pools = {}

    def __enter__(self) -> HiCacheNixl:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
