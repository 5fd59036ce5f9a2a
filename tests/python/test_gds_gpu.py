"""GDS and GDS_MT with GPU memory, over stand-ins of the CUDA driver and of cuFile.

tests/gpu/test_gpu_gds.py does the same where there is a GPU.
"""

from __future__ import annotations

import os
import pathlib

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
gds_support = pytest.importorskip("gds_support")

BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", gds_support.ROOT / "build" / "release"))
DRIVER = BUILD / "lib" / "standins" / "libcuda.so"
BOTH = pytest.mark.parametrize("backend", ["GDS", "GDS_MT"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    if not DRIVER.exists():
        pytest.skip(f"{DRIVER} is not built")
    runner = gds_support.Runner(tmp_path_factory.mktemp("gds"))
    return lambda *words, **env: runner(*words, NIXL_CUDA_LIBRARY=DRIVER, **env)


def calls(log: pathlib.Path, name: str) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.split()[0] == name]


@BOTH
@pytest.mark.parametrize("fault", ["", "delay=5", "nobuf=1"])
def test_round_trip(run, tmp_path, backend, fault) -> None:
    log = tmp_path / "calls"
    text = run(
        gds_support.GPU_ROUND_TRIP, backend, tmp_path, 3 << 20,
        NIXL_STANDIN_CUFILE=fault, NIXL_STANDIN_LOG=log, NIXL_LOG_LEVEL="INFO",
    )  # fmt: skip
    assert "round trip done" in text
    assert len(calls(log, "register")) == 2
    if fault == "nobuf=1":
        assert text.count("go through cuFile's own buffers") == 1 and "5036" in text
        assert not calls(log, "deregister")
    else:
        assert len(calls(log, "deregister")) == 2


@BOTH
def test_memory_that_is_no_gpus(run, tmp_path, backend) -> None:
    program = (
        gds_support.GPU_PRELUDE
        + """
agent = make(sys.argv[1])
memory = Memory(4096)
for region in ((memory.address, 4096, 0, ""), (Gpu(4096).address, 4096, 1, "")):
    try:
        agent.register_memory([region], "VRAM")
        print("taken")
    except Exception as error:
        print(type(error).__name__, error)
"""
    )
    text = run(program, backend)
    assert text.count("nixlInvalidParamError") == 2 and "belongs to device 0" in text, text


@BOTH
def test_one_of_a_hundred_fails(run, tmp_path, backend) -> None:
    program = (
        gds_support.GPU_PRELUDE
        + """
agent = make(sys.argv[1])
path = sys.argv[2] + "/f"
content = b"".join(bytes([i + 1]) * 4096 for i in range(100))
open(path, "wb").write(content)
gpu = Gpu(len(content))
gpu.set(bytes(gpu.size))
local = agent.register_memory([(gpu.address, gpu.size, 0, "")], "VRAM")
file = agent.register_memory([(0, gpu.size, 5, "ro:" + path)], "FILE")
order = list(range(99, -1, -1))
near = agent.get_xfer_descs([(gpu.address + i * 4096, 4096, 0) for i in order], "VRAM")
far = agent.get_xfer_descs([(i * 4096, 4096, 5) for i in order], "FILE")
try:
    move(agent, "READ", near, far)
except Exception as error:
    print(error)
print("failed", [order[index] for index in move.handle.failed])
got = gpu.get()
pieces = [slice(i * 4096, (i + 1) * 4096) for i in range(100)]
print("wrong", [i for i, piece in enumerate(pieces) if got[piece] != content[piece]])
"""
    )
    text = run(program, backend, tmp_path, NIXL_STANDIN_CUFILE=f"bad={37 * 4096}")
    assert "failed [37]" in text and "wrong [37]" in text
