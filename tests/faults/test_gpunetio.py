"""Backend GPUNETIO between processes, against the stand-ins of DOCA and of the CUDA driver: bytes,
peers that die or stand still, memory that is gone, libraries that are missing, exit and fork."""

from __future__ import annotations

import os
import pathlib
import queue
import subprocess
import sys
import threading
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
support = pytest.importorskip("faults_support")

from faults_support import MIB, PATIENCE, eventually, fresh_name  # noqa: E402

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
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).parent / "gpunetio_far.py"), what],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.pid, self.base, self.metadata = self._answer(PATIENCE)

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
    made: list[Peer] = []

    def one(*args, **options) -> Peer:
        made.append(Peer(*args, **options))
        return made[-1]

    yield one
    for peer in made:
        peer.close()


@pytest.fixture
def pair(make):
    def two(**options) -> tuple[Peer, Peer]:
        near, far = make(0, **options), make(1, **options)
        near.knows(far)
        return near, far

    return two


@pytest.fixture(params=["WRITE", "READ"])
def operation(request) -> str:
    return request.param


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


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **ENVIRONMENT, **environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


ASK = """
import nixl
agent = nixl.nixl_agent("a", nixl.nixl_agent_config(backends=[]))
try:
    agent.create_backend("GPUNETIO")
    print("made")
except nixl.nixlError as error:
    print(type(error).__name__, error)
"""


def test_libraries_that_are_missing_or_others(tmp_path):
    said = run(ASK, NIXL_DOCA_LIBRARY=str(tmp_path / "none.so")).stdout
    assert "NIXL_DOCA_LIBRARY" in said and str(tmp_path / "none.so") in said
    said = run(ASK, NIXL_DOCA_LIBRARY=str(tmp_path)).stdout  # an empty folder
    assert ("libdoca_common.so" in said or "libibverbs.so.1" in said) and "install DOCA" in said
    said = run(ASK, NIXL_DOCA_LIBRARY="").stdout
    assert "made" in said or "install DOCA" in said
    said = run(ASK, NIXL_DOCA_LIBRARY=ENVIRONMENT["NIXL_CUDA_LIBRARY"]).stdout
    assert "too old, or another one" in said and "doca_verbs_qp_create" in said
    said = run(ASK, NIXL_CUDA_LIBRARY=str(tmp_path / "libcuda.so")).stdout
    assert "no CUDA driver" in said
    assert "no CUDA-capable device" in run(ASK, CUDA_STANDIN_DEVICES="0").stdout
    assert "no RDMA adapter" in run(ASK, DOCA_STANDIN_ADAPTERS="").stdout
    said = run(ASK, NIXL_GPUNETIO_KERNELS=str(tmp_path / "none.fatbin")).stdout
    assert "NIXL_GPUNETIO_KERNELS" in said and "none.fatbin" in said
    assert "made" in run(ASK).stdout


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
DONE = "a.transfer(handle); assert handle.wait(60) == 'DONE'"


@pytest.mark.parametrize("steps", ["", "a.transfer(handle)", DONE, f"{DONE}; a.transfer(handle)"])
def test_exit_in_every_state(steps):
    done = run(PAIR + steps)
    assert (done.returncode, done.stderr) == (0, "")


def test_fork_in_the_middle():
    done = run(
        PAIR
        + """
a.transfer(handle)
child = os.fork()
if child == 0:
    try:
        a.get_new_notifs()
    except nixl.nixlNotAllowedError:
        own = nixl.nixl_agent("of the child", config)
        own.close()
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert handle.wait(60) == "DONE"
a.transfer(handle)
assert handle.wait(60) == "DONE"
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
