"""Fixtures of the HiCache tests: connectors over POSIX, and SGLang's own modules."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
import types
from typing import Any

import pytest
import sglang_parts
from hicache_support import hicache_section


@pytest.fixture
def make(tmp_path):
    """Makes connectors over POSIX that are closed at the end of the test."""
    from nixl.hicache import HiCacheNixl

    made = []

    def build(
        path: Any = None,
        layout: str | None = None,
        mode: str | None = None,
        storage_config: Any = None,
        top: dict[str, Any] | None = None,
        **hicache: Any,
    ) -> Any:
        config: dict[str, Any] = {"hicache": hicache, **(top or {})}
        for key in ("use_direct_io",):
            if key in hicache:
                config[key] = hicache.pop(key)
        if layout:
            hicache.update(hicache_section(layout))
        if mode:
            config["plugin"] = {"posix": {mode: "true"}}
        where = str(path or tmp_path / "store")
        if storage_config is None:
            connector = HiCacheNixl(where, "POSIX", config=config)
        else:
            storage_config.extra_config = config
            connector = HiCacheNixl(storage_config, where)
        made.append(connector)
        return connector

    yield build
    for connector in made:
        connector.close()


def sglang_modules():
    """SGLang's light modules, imported from its package with what is heavy replaced."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package sglang is not installed (pip install --no-deps sglang==0.5.23)")
    root = pathlib.Path(next(iter(spec.submodule_search_locations)))

    def package(name: str, path: pathlib.Path | None, **names: Any) -> None:
        module = types.ModuleType(name)
        if path is not None:
            module.__path__ = [str(path)]
        module.__dict__.update(names)
        sys.modules[name] = module

    before = set(sys.modules)
    package("sglang", root)
    package("sglang.srt", root / "srt")
    package("sglang.srt.mem_cache", root / "srt" / "mem_cache")
    package("sglang.srt.mem_cache.pool_host", None, HostKVCache=object)
    try:
        import sglang.srt.mem_cache.hicache_storage as storage
    except Exception as error:
        pytest.skip(f"SGLang's storage interface cannot be imported here: {error}")
    # The connector decides at its own import whether SGLang is there: import it anew.
    import nixl.hicache

    sys.modules.pop("nixl.hicache.hicache_nixl", None)
    importlib.import_module("nixl.hicache.hicache_nixl")
    yield storage
    for name in set(sys.modules) - before:
        if name.startswith("sglang"):
            del sys.modules[name]
    sys.modules.pop("nixl.hicache.hicache_nixl", None)
    nixl.hicache.__dict__.pop("hicache_nixl", None)


sglang = pytest.fixture(scope="session", name="sglang")(sglang_modules)


@pytest.fixture(scope="module")
def whole(sglang):
    """SGLang's own cache controller, host pools and factory on top of `sglang`."""
    try:
        yield sglang_parts.whole_sglang()
    except ImportError as error:
        pytest.skip(f"SGLang's controller cannot be imported here: {error}")
    finally:
        sglang_parts.leave_sglang()
