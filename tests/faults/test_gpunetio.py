"""Backend GPUNETIO between processes, against the stand-ins of DOCA and of the CUDA driver: bytes,
peers that die or stand still, memory that is gone, libraries that are missing, exit and fork."""

from __future__ import annotations

import os
import pathlib
import sys
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
support = pytest.importorskip("faults_support")

from faults_support import MIB, eventually, fresh_name  # noqa: E402
from programs import DONE, created, ends_quietly, forks  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", ROOT / "build/release"))
STANDINS = BUILD / "lib/standins"
DOCA = STANDINS / "libdoca_standin.so"
SIZE = 4 * MIB
SOON = 20  # seconds, with room for a loaded machine
ENVIRONMENT = {
    "NIXL_CUDA_LIBRARY": str(STANDINS / "libcuda.so"),
    "NIXL_DOCA_LIBRARY": str(DOCA),
    "CUDA_STANDIN_KERNELS": str(DOCA),
    "NIXL_GPUNETIO_KERNELS": "/proc/self/comm",  # the stand-in does not look at it
}

pytestmark = pytest.mark.skipif(
    not DOCA.exists(), reason=f"{DOCA} is not built (the target doca_standin)"
)


class Peer(support.Far):
    """A process with GPU memory; near and far are both of this kind."""

    def __init__(self, gpu: int = 0, name: str = "", backend: str = "GPUNETIO", **options) -> None:
        self.name, self.size, self.gpu = name or fresh_name("gpu"), SIZE, gpu
        options = {"backends": [backend], "peer_timeout": 60, **options}
        what = repr((self.name, SIZE, gpu, options))
        program = pathlib.Path(__file__).parent / "gpunetio_far.py"
        self.start([sys.executable, str(program), what], ENVIRONMENT)

    def knows(self, other: Peer) -> None:
        assert self(f"agent.add_remote_agent({other.metadata!r})") == other.name.encode()

    def prepare(self, operation: str, other: Peer, pieces=((0, 0, SIZE),), notif: bytes = b""):
        self(
            f"handle = prepare({operation!r}, {other.name!r}, {other.base}, {other.gpu}, "
            f"{list(pieces)!r}, {notif!r})"
        )

    def moves(self, operation: str, other: Peer, *more) -> str:
        self.prepare(operation, other, *more)
        return self("agent.transfer(handle); result = outcome(handle)")

    def works_with(self, other: Peer) -> None:
        self.fill(5)
        other("array[:] = 0")
        assert self.moves("WRITE", other) == "DONE"
        assert other.holds(5)
        self("array[:] = 0")
        assert self.moves("READ", other) == "DONE"
        assert self.holds(5)


@pytest.fixture
def make():
    yield from support.made_by(Peer)


@pytest.fixture
def pair(make):
    def two(**options) -> tuple[Peer, Peer]:
        near, far = make(0, **options), make(1, **options)
        near.knows(far)
        return near, far

    return two


def test_moves_bytes_and_notifies(pair):
    near, far = pair()
    near.works_with(far)
    assert near("agent.explain(handle)['lane']") == "gpunetio"
    near.fill(9)
    pieces = [(i * 1000, (4000 - i) * 1000, 700) for i in range(4000)]
    assert near.moves("WRITE", far, pieces, b"pieces") == "DONE"
    assert far.notifications(near.name, 1) == [b"pieces"]
    for own, other, length in pieces[::500]:
        piece = near(f"array[{own}:{own + length}].tobytes()")
        assert far(f"array[{other}:{other + length}].tobytes()") == piece
    far.knows(near)
    far.works_with(near)


def in_progress(near: Peer, far: Peer, operation: str) -> None:
    """Posts one whose requests the adapter holds back."""
    near.works_with(far)
    near("standin().docaStandinHold(1)")
    near.prepare(operation, far)
    near("agent.transfer(handle)")
    assert near("agent.check_xfer_state(handle)") == "PROC"


def test_killed_in_the_middle(make, pair, operation):
    near, far = pair()
    in_progress(near, far, operation)
    begin = time.monotonic()
    far.kill()
    text = near("outcome(handle)")
    assert text.startswith("nixlRemoteDisconnectError") and far.name in text
    assert time.monotonic() - begin < SOON
    far.gone()
    near("standin().docaStandinHold(0)")
    again = make(1, name=far.name)
    near.knows(again)
    near.works_with(again)
    eventually(lambda: near("standin().docaStandinFigure(1)") == 1)  # the queues of the dead one


def test_stopped_for_good(pair, operation):
    """A real adapter goes on serving a stopped process; held back here, so that it does not."""
    near, far = pair(peer_timeout=2)
    in_progress(near, far, operation)
    far.stop()
    text = near("outcome(handle)")
    assert text.startswith("nixlRemoteDisconnectError") and far.name in text
    near("standin().docaStandinHold(0)")
    far.resume()
    eventually(lambda: near.moves(operation, far) == "DONE")
    near.works_with(far)


def test_stopped_peers_memory_can_be_reached(pair, operation):
    """The peer takes no part: that is what one-sided means."""
    near, far = pair()
    near.works_with(far)
    far.stop()
    assert near.moves(operation, far) == "DONE"
    far.resume()


def test_deregistered_at_the_target(pair, operation):
    """The keys in the metadata are of memory that is gone: the adapter there refuses."""
    near, far = pair()
    near.works_with(far)
    near.prepare(operation, far)
    far("agent.deregister_memory(registered)")
    text = near("agent.transfer(handle); result = outcome(handle)")
    assert "still registered" in text and far.name in text
    far(f"registered = agent.register_memory([(memory.address, {SIZE}, 1, '')], 'VRAM')")
    near.metadata = far.metadata = far("agent.get_agent_metadata()")
    near.knows(far)
    near.works_with(far)


def test_a_peer_that_uses_one_gpu_only(make):
    near = make(0)
    far = make(1, backend_params={"GPUNETIO": {"gpu_devices": "1"}})
    near.knows(far)
    near.works_with(far)


def test_a_peer_without_the_backend(make):
    near, far = make(0), make(1, backend="UCX")
    near.knows(far)
    with pytest.raises(support.FarError, match=far.name) as error:
        near.prepare("WRITE", far)
    assert "GPUNETIO" in str(error.value)


def test_cancelled_read_changes_no_byte(pair):
    near, far = pair()
    in_progress(near, far, "READ")
    near("handle.cancel(); array[:] = 238; standin().docaStandinHold(0)")
    text = near("outcome(handle)")
    assert text == "DONE" or text.startswith("nixlCancelledError")
    near("before = array.tobytes()")
    time.sleep(0.2)  # sleeps: for what nobody stopped
    assert near("array.tobytes() == before")
    near.works_with(far)


def test_eight_threads(pair):
    near, far = pair(backend_params={"GPUNETIO": {"data_qp_count": "4", "cuda_streams": "4"}})
    near.works_with(far)
    near.fill(7)
    errors = near(f"""
import threading
errors, share = [], {SIZE // 8}
def move(number):
    for operation in ("WRITE", "READ") * 10:
        pieces = [(number * share + i, number * share + i, 4096) for i in range(0, share, 4096)]
        one = prepare(operation, {far.name!r}, {far.base}, 1, pieces)
        agent.transfer(one)
        if outcome(one) != "DONE":
            errors.append(outcome(one))
threads = [threading.Thread(target=move, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
result = errors
""")
    assert errors == []
    assert far.holds(7) and near.holds(7)


# Of the backend's thread; the stand-in's adapter looks at its doorbells.
TICKS = """
import pathlib, time
def ticks():
    for task in pathlib.Path("/proc/self/task").iterdir():
        words = (task / "stat").read_text().rpartition(")")
        if "nixl-gpunetio" in words[0]:
            return sum(map(int, words[2].split()[11:13]))
before = ticks()
time.sleep(1)  # sleeps: idleness is what is measured
result = ticks() - before
"""


def test_idle_takes_no_time(pair):
    near, far = pair()
    near.works_with(far)
    eventually(lambda: near(TICKS) <= 2)


def asked(**environment: str) -> str:
    return created("GPUNETIO", **(ENVIRONMENT | environment))


def test_libraries_that_are_missing_or_others(tmp_path):
    said = asked(NIXL_DOCA_LIBRARY=str(tmp_path / "none.so"))
    assert "NIXL_DOCA_LIBRARY" in said and str(tmp_path / "none.so") in said
    said = asked(NIXL_DOCA_LIBRARY=str(tmp_path))  # an empty folder
    assert ("libdoca_common.so" in said or "libibverbs.so.1" in said) and "install DOCA" in said
    said = asked(NIXL_DOCA_LIBRARY="")
    assert "made" in said or "install DOCA" in said
    said = asked(NIXL_DOCA_LIBRARY=ENVIRONMENT["NIXL_CUDA_LIBRARY"])
    assert "too old, or another one" in said and "doca_verbs_qp_create" in said
    said = asked(NIXL_CUDA_LIBRARY=str(tmp_path / "libcuda.so"))
    assert "no CUDA driver" in said
    assert "no CUDA-capable device" in asked(CUDA_STANDIN_DEVICES="0")
    assert "no RDMA adapter" in asked(DOCA_STANDIN_ADAPTERS="")
    said = asked(NIXL_GPUNETIO_KERNELS=str(tmp_path / "none.fatbin"))
    assert "NIXL_GPUNETIO_KERNELS" in said and "none.fatbin" in said
    assert "made" in asked()


PAIR = """
import os, sys, nixl
config = nixl.nixl_agent_config(backends=["GPUNETIO"])
a, b = nixl.nixl_agent("a", config), nixl.nixl_agent("b", config)
left, right = nixl.alloc(1 << 20, device="cuda:0"), nixl.alloc(1 << 20, device="cuda:1")
for agent, memory, gpu in ((a, left, 0), (b, right, 1)):
    agent.register_memory([(memory.address, 1 << 20, gpu, "")], "VRAM")
a.add_remote_agent(b.get_agent_metadata())
here = a.get_xfer_descs([(left.address, 1 << 20, 0)], "VRAM")
there = a.get_xfer_descs([(right.address, 1 << 20, 1)], "VRAM")
handle = a.initialize_xfer("WRITE", here, there, "b")
"""


@pytest.mark.parametrize("steps", ["", "a.transfer(handle)", DONE, f"{DONE}; a.transfer(handle)"])
def test_exit_in_every_state(steps):
    ends_quietly(PAIR + steps, **ENVIRONMENT)


def test_fork_in_the_middle():
    """The child can have an agent of its own."""
    told = "nixl.nixl_agent('of the child', config).close(); os._exit(7)"
    forks(PAIR, told, **ENVIRONMENT)
