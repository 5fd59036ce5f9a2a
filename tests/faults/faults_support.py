"""What the fault tests share: agents in this and in other processes, waiting, counting.

A Far is an agent in a process of its own that the test can stop, kill and give orders; a Near is
one in this process. Times are generous: no verdict depends on the speed of the machine.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import nixl
import numpy as np
import wire

HERE = pathlib.Path(__file__).parent
PATIENCE = 60.0  # how long something that must happen may take
MIB = 1 << 20
UCX_OVER_TCP = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}  # its transport that wires up anywhere
SOAK = int(os.environ.get("NIXL_FAULTS_SOAK", "1"))  # repeats the rounds of the longer tests
_number = itertools.count()


def fresh_name(kind: str) -> str:
    return f"{kind}-{os.getpid()}-{next(_number)}"


def pattern(size: int, seed: int = 1) -> np.ndarray:
    """Bytes that differ from place to place and seed to seed, none of them 0."""
    numbers = np.arange(size, dtype=np.uint32) * np.uint32(2654435761 + 2 * seed)
    return (numbers >> np.uint32(24)).astype(np.uint8) | np.uint8(1)


def eventually(what: Callable[[], object], timeout: float = PATIENCE):
    """The first true value of `what`; fails the test where none comes."""
    end = time.monotonic() + timeout
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)  # sleeps: between two looks
    return value


def open_descriptors(pid: int | str = "self") -> int:
    """How many a process has, but for the pipes by which tests talk to other processes."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            count += not os.readlink(f"/proc/{pid}/fd/{name}").startswith("pipe:")
    return count


@contextlib.contextmanager
def no_descriptor_left(slack: int = 0) -> Iterator[None]:
    """What is opened inside is closed again soon after."""
    before = open_descriptors()
    yield
    eventually(lambda: open_descriptors() <= before + slack)


class FarError(Exception):
    """What the other process raised; `kind` is the name of the class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


def with_transport(options: dict, transport: str) -> dict:
    """The options of an agent whose bytes are to use this transport."""
    lanes = {"mapped": "host", "ucx_mo": "ucx"}.get(transport, transport)
    backend = "UCX_MO" if transport == "ucx_mo" else "UCX"
    options = {"backends": [backend], "lanes": lanes, **options}
    if lanes == "ucx":
        more = {"num_ucx_engines": "2"} if backend == "UCX_MO" else {}
        options.setdefault("backend_params", {backend: {**UCX_OVER_TCP, **more}})
    return options


class Far:
    """An agent in another process. `prefix` is a command that starts it, `options` its config.
    Transport "mapped" is the lane host over memory that both processes map."""

    def __init__(
        self,
        size: int = MIB,
        transport: str = "",
        name: str = "",
        prefix=(),
        environment=None,
        **options,
    ) -> None:
        self.name = name or fresh_name("far")
        self.size = size
        options = with_transport(options, transport)
        what = (self.name, size, transport == "mapped", options)
        self.start([*prefix, sys.executable, str(HERE / "far.py"), repr(what)], environment)

    def start(self, command: list[str], environment=None) -> None:
        """Runs a program that obeys (obey.py); returns once it has its agent."""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.pid, self.base, self.metadata = self._answer(PATIENCE)

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _answer(self, timeout: float):
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"{self.name} does not answer") from None
        if not line:
            raise EOFError(f"{self.name} has ended: {self.process.poll()}")
        return ast.literal_eval(line)

    def order(self, code: str) -> None:
        """Sends code; answer() takes its value."""
        self.process.stdin.write(repr(code) + "\n")
        self.process.stdin.flush()

    def answer(self, timeout: float = PATIENCE):
        good, *rest = self._answer(timeout)
        if not good:
            raise FarError(*rest)
        return rest[0]

    def __call__(self, code: str, timeout: float = PATIENCE):
        self.order(code)
        return self.answer(timeout)

    def fill(self, seed: int) -> None:
        code = f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent / 'interop')!r}]\n"
        self(code + f"from faults_support import pattern; array[:] = pattern(len(array), {seed})")

    def holds(self, seed: int, at: int = 0, size: int | None = None) -> bool:
        """Whether a range of its memory is that of pattern(len, seed)."""
        stop = self.size if size is None else at + size
        code = f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent / 'interop')!r}]\n"
        code += "from faults_support import pattern\n"
        code += f"result = bool((array[{at}:{stop}] == pattern(len(array), {seed})[{at}:{stop}])"
        return self(code + ".all())")

    def notifications(self, sender: str, count: int, timeout: float = PATIENCE) -> list[bytes]:
        """Takes exactly so many of one sender; fails where one more is there."""
        code = f"""
import time
end, result = time.monotonic() + {timeout}, []
while time.monotonic() < end and len(result) < {count}:
    result += agent.get_new_notifs().get({sender!r}, [])
    time.sleep(0.001)  # sleeps: between two looks
time.sleep(0.05)  # sleeps: for one too many
result += agent.get_new_notifs().get({sender!r}, [])
"""
        got = self(code, timeout + PATIENCE)
        assert len(got) == count, got
        return got

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Stops it; returns when all its threads have."""
        self.kill(signal.SIGSTOP)
        eventually(self.stopped)

    def stopped(self) -> bool:
        """Whether none of its threads runs any more: one that does may still answer."""
        states = []
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        return all(state in "tTZX" for state in states)

    def resume(self) -> None:
        self.kill(signal.SIGCONT)

    def gone(self) -> None:
        """Waits for its end."""
        self.process.wait(PATIENCE)

    def close(self) -> None:
        with contextlib.suppress(OSError, ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end") from None


def made_by(kind: Callable) -> Iterator[Callable]:
    """The whole of a fixture that makes objects of a kind and closes them when the test ends."""
    made: list = []

    def make(*args, **options):
        made.append(kind(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Near:
    """An agent in this process, with memory that holds pattern(size, 1)."""

    def __init__(self, size: int = MIB, transport: str = "", **options) -> None:
        self.transport = transport
        options = with_transport(options, transport)
        self.agent = nixl.nixl_agent(fresh_name("near"), nixl.nixl_agent_config(**options))
        self.name = self.agent.name
        self.array = pattern(size)
        self.base = self.array.ctypes.data
        self.registered = self.agent.register_memory(self.array)

    def close(self) -> None:
        self.agent.close()

    def add_metadata_of(self, far: Far, metadata: bytes | None = None) -> None:
        assert self.agent.add_remote_agent(metadata or far.metadata) == far.name.encode()

    def prepare(self, operation: str, far: Far, pieces, notif: bytes = b""):
        """A transfer of (offset here, offset there, size) each, not yet posted."""
        here = [(self.base + own, size, 0) for own, _, size in pieces]
        there = [(far.base + other, size, 0) for _, other, size in pieces]
        descs = self.agent.get_xfer_descs
        return self.agent.initialize_xfer(
            operation, descs(here, "DRAM"), descs(there, "DRAM"), far.name, notif
        )

    def post(self, operation: str, far: Far, pieces, notif: bytes = b""):
        handle = self.prepare(operation, far, pieces, notif)
        self.agent.transfer(handle)
        return handle

    def works_with(self, far: Far) -> None:
        """Both ways, to the last byte, with a notification that comes once."""
        size = min(len(self.array), far.size, 3 * MIB)
        self.array[:] = pattern(len(self.array), 5)
        tag = fresh_name("works").encode()
        assert self.post("WRITE", far, [(0, 0, size)], tag).wait(PATIENCE) == "DONE"
        assert far.notifications(self.name, 1) == [tag]
        assert far.holds(5, 0, size) or size < far.size
        self.array[:size] = 0
        assert self.post("READ", far, [(0, 0, size)]).wait(PATIENCE) == "DONE"
        assert (self.array[:size] == pattern(len(self.array), 5)[:size]).all()


def outcome(handle, timeout: float = PATIENCE) -> str:
    """ "DONE", or the name of the class of what the transfer raised; it must end in time."""
    try:
        return handle.wait(timeout)
    except nixl.nixlTimeoutError as error:
        state = handle.error
        assert state is not None, f"in progress for ever: {error}"
        return type(error).__name__
    except nixl.nixlError as error:
        return type(error).__name__


def posted(near: Near, handle) -> str:
    """Posts a transfer and waits for its outcome, also where posting raises."""
    try:
        near.agent.transfer(handle)
    except nixl.nixlError as error:
        return type(error).__name__
    return outcome(handle)


def state_of(near: Near, handle) -> str:
    try:
        return near.agent.check_xfer_state(handle)
    except nixl.nixlError:
        return "ERR"


def in_the_middle(near: Near, far: Far, operation: str, number: int, rounds: int = 12):
    """Posts larger and larger transfers and sends the other process a signal as soon as the first
    bytes have moved, until one has not ended by then. The handle."""
    for exponent in range(rounds):
        handle = near.prepare(operation, far, [(0, 0, far.size)] * (8 << exponent), b"never")
        if operation == "WRITE":
            far(f"when_touched(array, lambda: os.kill(os.getpid(), {int(number)}))")
            with contextlib.suppress(nixl.nixlError):  # it ended before this returned
                near.agent.transfer(handle)
        else:
            before = near.array[::4096].copy()
            near.agent.transfer(handle)
            eventually(lambda old=before: (near.array[::4096] != old).any())
            far.kill(number)
        eventually(lambda: far.process.poll() is not None or far.stopped())
        if number == signal.SIGSTOP:
            time.sleep(0.2)  # sleeps: for an answer that it had sent before
        if state_of(near, handle) != "DONE":
            return handle
        assert number == signal.SIGSTOP, "it ended before its peer, which is gone now"
        far.resume()
        far.fill(3 + exponent)
        near.array[:] = pattern(far.size, 40 + exponent)
        far("agent.get_new_notifs()")
    raise AssertionError("no transfer was large enough")


def by_way_of(metadata: bytes, address: str, port: int) -> bytes:
    """The same agent, to be reached over TCP at another place and nowhere else."""
    import socket

    blob = wire.Blob.decode(metadata)
    blob.abstract = blob.path = b""
    blob.addresses, blob.port = [socket.inet_aton(address)], port
    return blob.encode()


class Companion:
    """Transfers with another peer that go on all the while; none may fail or lose a byte."""

    SIZE = 65536

    def __init__(self, near: Near, far: Far) -> None:
        self.near, self.far = near, far
        near.add_metadata_of(far)
        self.array = pattern(self.SIZE, 7)
        near.agent.register_memory(self.array)
        self.rounds = 0
        self.error: BaseException | None = None
        self.going = True
        self.free = threading.Lock()  # held while a transfer goes on
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.more()

    def _run(self) -> None:
        agent = self.near.agent
        there = agent.get_xfer_descs([(self.far.base, self.SIZE, 0)], "DRAM")
        write = agent.initialize_xfer("WRITE", self.array, there, self.far.name)
        try:
            while self.going:
                with self.free:
                    agent.transfer(write, f"{self.rounds}".encode())
                    assert write.wait(PATIENCE) == "DONE"
                    self.rounds += 1
                time.sleep(0.001)  # sleeps: it is to go on beside, not to be fast
        except BaseException as error:
            self.error = error

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing of it is under way inside."""
        with self.free:
            eventually(lambda: not self.near.agent.stats()["notifications_waiting"])
            yield

    def more(self, rounds: int = 3) -> None:
        """Waits until it has done some more."""
        wanted = self.rounds + rounds
        eventually(lambda: self.rounds >= wanted or self.error)
        assert self.error is None, self.error

    def end(self) -> None:
        self.going = False
        self.thread.join(2 * PATIENCE)
        assert self.error is None, self.error
        wanted = [f"{i}".encode() for i in range(self.rounds)]
        assert self.far.notifications(self.near.name, self.rounds) == wanted
        assert self.far.holds(7, 0, self.SIZE)


def in_progress(near, far, operation: str, handle) -> None:
    """Posts it; returns when the first bytes have moved."""
    far.fill(3)
    near.array[:] = pattern(near.array.size, 4)
    before = near.array[::4096].copy()
    first = far("array[::4096].tobytes()")
    near.agent.transfer(handle)
    if operation == "READ":
        eventually(lambda: (near.array[::4096] != before).any())
    else:
        eventually(lambda: far("array[::4096].tobytes()") != first)
    assert near.agent.check_xfer_state(handle) == "PROC"
