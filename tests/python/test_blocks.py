"""Block devices through the Python package: GUSLI's list of devices, BLOCK descriptors, errors."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import nixl
import pytest

np = pytest.importorskip("numpy")
ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture
def blocks(make_agent, tmp_path):
    """An agent with two files as devices, 11 and 12; the second is read only."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(os.urandom(MIB))
    devices = f"11 F W N {tmp_path}/one sec=0x3\n12 F R N {tmp_path}/two sec=0x3\n"
    devices += f"14 K W D {tmp_path}/one sec=0x7\n20 N W N t192.0.2.1 sec=0x10\n"
    agent = make_agent("blocks", backends=())
    agent.create_backend("GUSLI", {"config_file": f"# Config file\nversion=1\n{devices}"})
    return agent


def test_descriptors_are_offset_length_and_device(blocks, tmp_path) -> None:
    data = np.frombuffer(os.urandom(64 * 4096), np.uint8).copy()
    target = np.zeros_like(data)
    regs = blocks.register_memory([data, target])
    blocks.register_memory([(0, MIB, 11, "")], "BLOCK")
    places = [(4096 * (i * 7 % 64), 4096, 11) for i in range(64)]
    far = blocks.get_xfer_descs(places, "BLOCK")
    for operation, near in (("WRITE", data), ("READ", target)):
        pieces = [(near.ctypes.data + i * 4096, 4096, 0) for i in range(64)]
        handle = blocks.initialize_xfer(
            operation, blocks.get_xfer_descs(pieces, "DRAM"), far, blocks.name, b"done"
        )
        blocks.transfer(handle)
        assert handle.wait(30) == "DONE"
        assert "O_DIRECT" in str(blocks.explain(handle))
    assert (target == data).all()
    on_disk = (tmp_path / "one").read_bytes()
    assert all(on_disk[o : o + 4096] == data.tobytes()[i * 4096 : (i + 1) * 4096]
               for i, (o, _, _) in enumerate(places))  # fmt: skip
    blocks.deregister_memory(regs)


def test_what_does_not_fit_says_so(blocks, tmp_path) -> None:
    data = np.zeros(8192, np.uint8)
    near = blocks.register_memory(data)
    blocks.register_memory([(0, MIB, 11, ""), (0, MIB, 12, "")], "BLOCK")
    with pytest.raises(nixl.nixlInvalidParamError, match=r"multiples of its block size, \d+ bytes"):
        blocks.initialize_xfer("READ", near.trim(), blocks.get_xfer_descs([(100, 8192, 11)],
                               "BLOCK"), blocks.name)  # fmt: skip
    with pytest.raises(Exception, match="its access is R, read only"):
        blocks.initialize_xfer("WRITE", near.trim(), blocks.get_xfer_descs([(0, 8192, 12)],
                               "BLOCK"), blocks.name)  # fmt: skip
    with pytest.raises(nixl.nixlInvalidParamError, match=r"device 12 .* only 1048576 bytes"):
        blocks.register_memory([(0, 2 * MIB, 12, "")], "BLOCK")
    with pytest.raises(nixl.nixlInvalidParamError, match="a plain file; kind K wants a block dev"):
        blocks.register_memory([(0, 4096, 14, "")], "BLOCK")
    with pytest.raises(nixl.nixlNotFoundError, match="has none of that id; it has 11, 12, 14, 20"):
        blocks.register_memory([(0, 4096, 15, "")], "BLOCK")
    with pytest.raises(nixl.nixlNotFoundError, match="20 .*goes through the GUSLI client"):
        blocks.register_memory([(0, 4096, 20, "")], "BLOCK")
    past_the_end = blocks.get_xfer_descs([(MIB - 4096, 8192, 11)], "BLOCK")
    handle = blocks.initialize_xfer("READ", near.trim(), past_the_end, blocks.name)
    with pytest.raises(Exception, match="4096 of 8192 bytes, end of file"):
        blocks.transfer(handle)
        handle.wait(30)


@pytest.fixture
def short() -> Iterator[pathlib.Path]:
    """A folder of few letters: the client takes paths of 64 bytes."""
    with tempfile.TemporaryDirectory(prefix="nixl_gusli_", dir="/tmp") as folder:
        yield pathlib.Path(folder)


def test_devices_of_servers_go_through_the_client(make_agent, short, monkeypatch) -> None:
    """Against the stand-in of the GUSLI client, whose servers serve plain files."""
    build = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", ROOT / "build/release"))
    standin = build / "lib/standins/libnixl_gusli_adapter.so"
    if not standin.is_file():
        pytest.skip(f"{standin} is not built (the target gusli_standin)")
    monkeypatch.setenv("NIXL_GUSLI_LIBRARY", str(standin))
    (short / "served").write_bytes(bytes(MIB))
    devices = f"version=1\n20 N W D {short}/served sec=0x10\n11 F W N {short}/local\n"
    agent = make_agent("client", backends=())
    agent.create_backend("GUSLI", {"config_file": devices, "client_name": "the-tests"})
    data = np.frombuffer(os.urandom(64 * 4096 + 3), np.uint8)[3:].copy()
    target = np.zeros_like(data)
    regs = [agent.register_memory([data, target])]
    regs.append(agent.register_memory([(0, MIB, 20, "")], "BLOCK"))
    places = [(4096 * (i * 7 % 64), 4096, 20) for i in range(64)]
    far = agent.get_xfer_descs(places, "BLOCK")
    for operation, near in (("WRITE", data), ("READ", target)):
        pieces = [(near.ctypes.data + i * 4096, 4096, 0) for i in range(64)]
        handle = agent.initialize_xfer(
            operation, agent.get_xfer_descs(pieces, "DRAM"), far, agent.name
        )
        agent.transfer(handle)
        assert handle.wait(30) == "DONE"
        assert "the GUSLI client" in str(agent.explain(handle))
        handle.release()
    assert (target == data).all()
    served = (short / "served").read_bytes()
    assert all(served[o : o + 4096] == data.tobytes()[i * 4096 : (i + 1) * 4096]
               for i, (o, _, _) in enumerate(places))  # fmt: skip
    (there,) = agent.query_memory([(0, 0, 20, "")], "GUSLI", "BLOCK")
    assert there == {"block_size": "4096", "kind": "N", "path": f"{short}/served",
                     "size": str(MIB)}  # fmt: skip
    for reg in regs:
        agent.deregister_memory(reg)


def test_the_list_of_devices_is_checked(make_agent, tmp_path) -> None:
    agent = make_agent("lists", backends=())
    with pytest.raises(nixl.nixlInvalidParamError, match="config_file is missing"):
        agent.create_backend("GUSLI", {})
    with pytest.raises(nixl.nixlInvalidParamError, match='line 2: the kind "Q"'):
        agent.create_backend("GUSLI", {"config_file": "version=1\n1 Q W N /dev/x sec=0x3\n"})
    with pytest.raises(nixl.nixlNotFoundError, match='none": No such file or directory'):
        agent.create_backend("GUSLI", {"config_file": str(tmp_path / "none")})
    with pytest.raises(nixl.nixlInvalidParamError, match="max_num_simultaneous_requests"):
        agent.create_backend("GUSLI", {"config_file": "version=1\n1 F W N /a\n",
                                       "max_num_simultaneous_requests": "0"})  # fmt: skip


def test_query_tells_of_devices(blocks) -> None:
    asked = [(0, 0, 11, ""), (0, 0, 13, "")]
    there, missing = blocks.query_memory(asked, "GUSLI", "BLOCK")
    assert there["size"] == str(MIB) and int(there["block_size"]) % 512 == 0
    assert missing is None


def test_the_benchmark_runs_on_a_file(tmp_path) -> None:
    """As the guide prints it, but shorter; bytes are compared by plain reads."""
    place = tmp_path / "device"
    place.write_bytes(os.urandom(MIB))
    program = ROOT / "benchmarks" / "storage" / "gusli_block.py"
    words = ["--device_path", str(place), "--buffer_sizes", "4KB,256KB", "--iterations", "3"]
    for more in (["--operation", "READ"], ["--operation", "WRITE", "--overwrite"]):
        done = subprocess.run(
            [sys.executable, str(program), *words, "--warmup", "1", *more],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "GUSLI" in done.stdout
