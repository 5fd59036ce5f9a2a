"""Pages in 3FS, against the stand-in of its client: found by automatic selection before POSIX, by
both of its names, and passed over where it is not there."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

STANDIN = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", "")) / "lib/standins/libhf3fs_api_shared.so"
PAGES = [f"{i:064x}" for i in range(20)]


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """A folder that the stand-in takes for a mounted 3FS."""
    if not STANDIN.is_file():
        pytest.skip("the stand-in of the 3FS client is not built (NIXL_BUILD_DIR)")
    monkeypatch.setenv("NIXL_HF3FS_LIBRARY", str(STANDIN))
    (tmp_path / "3fs" / "3fs-virt" / "iovs").mkdir(parents=True)
    return tmp_path / "3fs"


def connector(folder: pathlib.Path, plugin: str, section: str, mount: pathlib.Path, layout: str):
    from nixl.hicache import HiCacheNixl

    options = {"mount_point": str(mount), "mem_config": "auto", "iopool_size": 128}
    hicache = {"layout": layout} | ({"file_io": "backend"} if layout == "packed" else {})
    config = {"plugin": {section: options}, "hicache": hicache}
    return HiCacheNixl(str(folder), plugin, config=config)


@pytest.mark.parametrize("layout", ["packed", "files"])
@pytest.mark.parametrize(
    ("plugin", "section"), [("auto", "3fs"), ("auto", "hf3fs"), ("3FS", "3fs")]
)
def test_pages_come_back(mount, plugin, section, layout) -> None:
    store = connector(mount / "store", plugin, section, mount, layout)
    try:
        assert store.backend_selector.backend_name == "HF3FS"
        values = [np.random.default_rng(i).integers(0, 255, 70_000, np.uint8) for i in range(20)]
        assert store.batch_set(PAGES, values)
        assert store.batch_exists(PAGES) == len(PAGES)
        for page, value in zip(PAGES, values, strict=True):
            target = np.zeros_like(value)
            assert store.get(page, target) is not None
            assert (target == value).all()
        assert not store.exists("f" * 64)
    finally:
        store.close()


ALONE = """
import sys
from nixl.hicache import HiCacheNixl
plugin = {"3fs": {"mount_point": sys.argv[2]}} if sys.argv[2] else {}
store = HiCacheNixl(sys.argv[1], "auto", config={"plugin": plugin} if plugin else {})
print(store.backend_selector.backend_name, store.backend_selector.reasons.get("3FS", ""))
store.close()
"""


@pytest.mark.parametrize(
    ("library", "where", "reason"),
    [
        ("/no/such/libhf3fs.so", "", "the 3FS client library cannot be opened"),
        ("libc.so.6", "", "the 3FS client library libc.so.6 has no hf3fs_is_hf3fs"),
        (str(STANDIN), "/usr", "not on a mounted 3FS"),
    ],
)
def test_without_3fs_posix_is_taken(tmp_path, library, where, reason) -> None:
    """In a process of its own: a library that was opened once stays."""
    if library == str(STANDIN) and not STANDIN.is_file():
        pytest.skip("the stand-in of the 3FS client is not built (NIXL_BUILD_DIR)")
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "store"), where],
        env={**os.environ, "NIXL_HF3FS_LIBRARY": library},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("POSIX ") and reason in ended.stdout


def test_parameters_are_checked(mount) -> None:
    import nixl

    with nixl.nixl_agent("asks", nixl.nixl_agent_config(backends=[])) as agent:
        for key, value in (
            ("mem_config", "vram"),
            ("iopool_size", "63"),
            ("iopool_size", "2000000"),
        ):
            with pytest.raises(nixl.nixlInvalidParamError, match=f"{key}.*{value}"):
                agent.create_backend("HF3FS", {"mount_point": str(mount), key: value})
        with pytest.raises(nixl.nixlNotFoundError, match=r'mount_point "/no/such/place"'):
            agent.create_backend("HF3FS", {"mount_point": "/no/such/place"})
        agent.create_backend("3FS", {"mount_point": str(mount)})


def test_named_memory_goes_without_a_copy(mount) -> None:
    import nixl

    agent = nixl.nixl_agent("zero-copy", nixl.nixl_agent_config(backends=[]))
    try:
        agent.create_backend("HF3FS", {"mount_point": str(mount), "mem_config": "dram_zc"})
        with pytest.raises(nixl.nixlNotSupportedError, match="cannot be an iov"):
            agent.register_memory(np.frombuffer(nixl.alloc(4096), np.uint8))
        buffer = nixl.alloc(300_000, named=True)
        memory = np.frombuffer(buffer, np.uint8)
        memory[:] = np.random.default_rng(4).integers(0, 256, memory.size, np.uint8)
        data = memory.tobytes()
        near = agent.register_memory(memory)
        agent.register_memory([(0, memory.size, 7, f"rw,create:{mount}/file")], "FILE")
        (link,) = (mount / "3fs-virt" / "iovs").iterdir()
        assert os.readlink(link) == buffer.path
        far = agent.get_xfer_descs([(0, memory.size, 7)], "FILE")
        for op in ("WRITE", "READ"):
            handle = agent.initialize_xfer(op, near.trim(), far, agent.name)
            assert "without a copy" in str(agent.explain(handle))
            agent.transfer(handle)
            assert handle.wait(30) == "DONE"
            handle.release()
            if op == "WRITE":
                assert (mount / "file").read_bytes() == data
                memory[:] = 0
        assert memory.tobytes() == data
        agent.deregister_memory(near)
    finally:
        agent.close()
