"""Clients as published that ask for OBJ by name: SGLang's connector, LMCache's storage agent."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
from obj_support import parameters
from weed import ACCESS, BUCKET, SECRET

PYTHON = pathlib.Path(__file__).parent.parent / "python"
sys.path += [str(PYTHON / "hicache"), str(PYTHON)]


def _their_fixtures():
    spec = importlib.util.spec_from_file_location(
        "hicache_fixtures", PYTHON / "hicache" / "conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Of this file alone: others find SGLang as it is installed.
sglang = pytest.fixture(scope="module", name="sglang")(_their_fixtures().sglang_modules)


def test_sglangs_own_connector(sglang, weed, witness, tmp_path, monkeypatch):
    """It writes pages as objects and reads them back, unchanged code over our package."""
    torch = pytest.importorskip("torch")
    from hicache_support import PagePool

    monkeypatch.setenv("SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", str(tmp_path))
    try:
        factory = importlib.import_module("sglang.srt.mem_cache.storage.backend_factory")
        importlib.import_module("sglang.srt.mem_cache.storage.nixl.hicache_nixl")
    except ImportError as error:
        pytest.skip(f"SGLang's own connector cannot be imported here: {error}")
    given = parameters(weed.endpoint)
    given["secrete_key"] = given.pop("secret_key")  # as its documents spell it
    given.pop("retry_delay")
    extra = {"l3_cleaner_enabled": False, "plugin": {"obj": {**given, "active": True}}}
    values = {
        "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0,
        "attn_cp_size": 1, "is_mla_model": False, "enable_storage_metrics": False,
        "is_page_first_layout": True, "model_name": "org/objects",
    }  # fmt: skip
    config = sglang.HiCacheStorageConfig(**values, extra_config=extra)
    pool = PagePool(16)
    pool.is_stride_page_aligned = lambda *_: True
    theirs = factory.StorageBackendFactory.create_backend("nixl", config, pool)
    theirs.register_mem_pool_host(pool)
    before = pool.fill(1)
    keys, pages = [f"{i:064x}" for i in range(16)], pool.indices(list(range(16)))
    assert all(theirs.batch_set_v1(keys, pages))
    assert theirs.batch_exists(keys) == 16
    assert theirs.batch_exists([*keys[:3], "missing"]) == 3
    pool.fill(2)
    assert all(theirs.batch_get_v1(keys, pages))
    assert torch.equal(pool.kv_buffer, before)
    listed = witness.list_objects_v2(Bucket=BUCKET, Prefix=keys[0])["Contents"]
    assert listed and all(entry["Size"] > 0 for entry in listed)


def test_lmcaches_storage_agent(weed):
    for name in ("lmcache", "msgspec", "torch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"not installed: {name}")
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join([str(PYTHON), str(PYTHON / "clients"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, here / "lmcache_objects.py", weed.endpoint, BUCKET],
        env=os.environ | {
            "PYTHONPATH": path, "NIXL_LOG_LEVEL": "ERROR",
            "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET,
        },
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "as it should be" in done.stdout, done.stdout + done.stderr
