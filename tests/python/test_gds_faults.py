"""GDS and GDS_MT where something is wrong: the library, its driver, events of a batch, files."""

from __future__ import annotations

import os

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
gds_support = pytest.importorskip("gds_support")

BOTH = pytest.mark.parametrize("backend", ["GDS", "GDS_MT"])

CREATE = """
began = time.monotonic()
try:
    make(sys.argv[1], driver_timeout=sys.argv[2])
    print("made")
except Exception as error:
    print(type(error).__name__, error)
print("seconds", time.monotonic() - began)
"""

# A hundred pieces of 4 KiB, each with a content of its own, written and read back.
HUNDRED = """
backend, path, op = sys.argv[1:4]
parameters = dict(word.split("=") for word in sys.argv[4:])
agent = make(backend, **parameters)
memory = Memory(100 * 4096)
content = b"".join(bytes([i + 1]) * 4096 for i in range(100))
fd = os.open(path, os.O_RDWR | os.O_CREAT)
if op == "READ":
    os.write(fd, content)
else:
    memory.set(content)
    os.ftruncate(fd, len(content))
local = agent.register_memory([(memory.address, memory.size, 0, "")], "DRAM")
file = agent.register_memory([(0, memory.size, fd, "data")], "FILE")
order = list(range(99, -1, -1))  # so that no two are neighbours
near = [(memory.address + i * 4096, 4096, 0) for i in order]
far = [(i * 4096, 4096, fd) for i in order]
near, far = agent.get_xfer_descs(near, "DRAM"), agent.get_xfer_descs(far, "FILE")
try:
    print("state", move(agent, op, near, far))
except Exception as error:
    print("state", type(error).__name__, error)
    print("failed", [order[index] for index in move.handle.failed])
got = memory.get() if op == "READ" else os.pread(fd, memory.size, 0)
pieces = [slice(i * 4096, (i + 1) * 4096) for i in range(100)]
print("wrong", [i for i, piece in enumerate(pieces) if got[piece] != content[piece]])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> gds_support.Runner:
    return gds_support.Runner(tmp_path_factory.mktemp("gds"))


@BOTH
def test_no_library(run, backend) -> None:
    text = run(CREATE, backend, 5, library="/nonexistent/libcufile.so.0")
    assert "nixlNotFoundError" in text and "made" not in text
    assert "NIXL_CUFILE_LIBRARY=/nonexistent/libcufile.so.0" in text
    assert f"{backend}: the library libcufile.so.0" in text and "install nvidia-cufile" in text


def test_every_place_is_named(run) -> None:
    text = run(CREATE, "GDS", 5, library="", CUDA_HOME="/nonexistent/cuda")
    if "made" in text:
        pytest.skip("there is a libcufile.so.0 on this machine")
    assert "/nonexistent/cuda/lib64/libcufile.so.0: not there" in text
    assert "/usr/local/cuda/lib64/libcufile.so.0" in text


def test_another_library(run) -> None:
    text = run(CREATE, "GDS", 5, library="libm.so.6")
    assert "is no cuFile, or too old: it has no cuFileDriverOpen" in text


def test_the_driver_says_no(run) -> None:
    text = run(CREATE, "GDS_MT", 5, NIXL_STANDIN_CUFILE="open=5001")
    assert "cannot be opened: 5001, no nvidia-fs driver, and allow_compat_mode is off" in text


def test_the_driver_hangs(run) -> None:
    """The error comes after the time allowed, and the process ends."""
    text = run(CREATE, "GDS", 0.5, NIXL_STANDIN_CUFILE="open=hang")
    assert "did not open in 0 s" in text or "did not open in 0.5 s" in text, text
    assert "driver_timeout" in text and "made" not in text


@BOTH
def test_the_driver_would_spin(run, backend) -> None:
    """cuFile looks for the end of /proc/modules for ever where there is no such file."""
    text = run(CREATE, backend, 60, NIXL_STANDIN_NO_MODULES=1)
    assert "it reads /proc/modules, which cannot be read here" in text and "made" not in text


def test_a_forked_child(run) -> None:
    program = """
agent = make("GDS")
child = os.fork()
if child == 0:
    try:
        make("GDS_MT")  # another plugin, its own driver: works or says why
        make("GDS")
        os._exit(1)
    except Exception as error:
        os.write(1, str(error).encode())
        os._exit(0)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    text = run(program)
    assert "child 0" in text and "was forked from one that had opened cuFile's driver" in text


@BOTH
@pytest.mark.parametrize("op", ["READ", "WRITE"])
def test_one_of_a_hundred_fails(run, backend, op, tmp_path) -> None:
    """It is named, and the others' bytes are in place."""
    fault = f"bad={37 * 4096 + 5}"
    text = run(HUNDRED, backend, tmp_path / "f", op, NIXL_STANDIN_CUFILE=fault)
    assert "state nixlBackendError" in text and "failed [37]" in text and "wrong [37]" in text
    assert f"{op.lower()} fd " in text and "offset 151552 + 4096 bytes: cuFile" in text
    assert "Input/output error (errno 5" in text


@pytest.mark.parametrize(
    "fault", ["fail=37", "short=37", "refuse=1", "lose=37", "fail=37,delay=30", "short=99,delay=30"]
)
@pytest.mark.parametrize("op", ["READ", "WRITE"])
def test_what_a_batch_does_not_tell_is_done_again(run, fault, op, tmp_path) -> None:
    words = ["batch_timeout=0.3"] if "lose" in fault else []
    text = run(HUNDRED, "GDS", tmp_path / "f", op, *words, NIXL_STANDIN_CUFILE=fault)
    assert "state DONE" in text and "wrong []" in text


def test_small_batches_and_pieces(run, tmp_path) -> None:
    """Splitting at batch_limit and max_request_size, more batches than the pool has."""
    words = ["batch_limit=3", "batch_pool_size=2", "max_request_size=4096"]
    log = tmp_path / "calls"
    text = run(
        HUNDRED, "GDS", tmp_path / "f", "WRITE", *words,
        NIXL_STANDIN_CUFILE="delay=2", NIXL_STANDIN_LOG=log,
    )  # fmt: skip
    assert "state DONE" in text and "wrong []" in text
    sizes = [int(line.split()[2]) for line in log.read_text().splitlines()]
    assert sum(sizes) == 100 and max(sizes) == 3


def test_a_batch_limit_beyond_the_librarys(run, tmp_path) -> None:
    text = run(HUNDRED, "GDS", tmp_path / "f", "WRITE", "batch_limit=512", NIXL_LOG_LEVEL="INFO")
    assert "state DONE" in text and "wrong []" in text
    assert "batch_limit 512: cuFile takes 128 requests a batch" in text


def test_explain_tells_direct_from_compat(run, tmp_path) -> None:
    program = """
agent = make(sys.argv[1])
memory = Memory(4096)
local = agent.register_memory([(memory.address, 4096, 0, "")], "DRAM")
file = agent.register_memory([(0, 4096, 7, "rw,create:" + sys.argv[2])], "FILE")
print(agent.explain(agent.initialize_xfer("WRITE", local, file, agent.name)))
"""
    text = run(program, "GDS", tmp_path / "f")
    assert "batches of up to 128 requests" in text and "compat mode: no nvidia-fs driver" in text
    text = run(program, "GDS_MT", tmp_path / "f", NIXL_STANDIN_CUFILE="nvfs=2")
    assert "4 threads of cuFile calls" in text and "direct: nvidia-fs 2.7" in text


@BOTH
@pytest.mark.parametrize(
    ("key", "value"),
    [("max_request_size", "4G"), ("max_request_size", "1"), ("driver_timeout", "soon")],
)
def test_bad_parameters(run, backend, key, value) -> None:
    program = """
try:
    make(sys.argv[1], **{sys.argv[2]: sys.argv[3]})
except Exception as error:
    print(type(error).__name__, error)
"""
    text = run(program, backend, key, value)
    assert "nixlInvalidParamError" in text and key in text and value in text


@BOTH
def test_files_that_cannot_be_used(run, backend, tmp_path) -> None:
    (tmp_path / "pipe").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x" * 4096)
    program = """
agent = make(sys.argv[1])
folder = sys.argv[2]
memory = Memory(4096)
local = agent.register_memory([(memory.address, 4096, 0, "")], "DRAM")
def show(what, call):
    try:
        call()
        print(what, "worked")
    except Exception as error:
        print(what, type(error).__name__, error)
def register(spec):
    return agent.register_memory([(0, 4096, 3000, spec)], "FILE")
show("missing", lambda: register(f"rw:{folder}/missing"))
show("pipe", lambda: register(f"rw:{folder}/pipe"))
show("folder", lambda: register(f"ro:{folder}"))
show("flag", lambda: register(f"rw,fast:{folder}/file"))
show("number", lambda: register("a label"))
read_only = register(f"ro:{folder}/file")
show("read only", lambda: agent.initialize_xfer("WRITE", local, read_only, agent.name))
agent.deregister_memory(read_only)
file = register(f"rw:{folder}/file")
handle = agent.initialize_xfer("WRITE", local, file, agent.name)
os.rename(f"{folder}/file", f"{folder}/other")
open(f"{folder}/file", "wb").write(b"y" * 4096)
show("replaced", lambda: agent.transfer(handle) and handle.wait(20))
print("kept", open(f"{folder}/file", "rb").read() == b"y" * 4096)
"""
    text = run(program, backend, tmp_path)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "nixlNotFoundError" in lines["missing"] and "missing" in lines["missing"]
    assert "it is a pipe" in lines["pipe"] and "it is a directory" in lines["folder"]
    assert 'unknown flag "fast"' in lines["flag"] and "fd 3000" in lines["number"]
    assert "opened for reading only" in lines["read"]
    assert "Stale file handle" in lines["replaced"] and "kept True" in text
