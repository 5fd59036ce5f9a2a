"""The guide's block for etcd, word for word, in a network namespace where the name `etcd-server`
is that of a real server."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys

import nixl
import pytest
from etcd_support import Etcd, eventually, free_ports

# As the guide has it, below the imports that its first block has.
BLOCK = """
# Set environment variables
import os
os.environ["NIXL_ETCD_ENDPOINTS"] = "http://etcd-server:2379"
os.environ["NIXL_ETCD_NAMESPACE"] = "/nixl/agents"

# Agents automatically discover each other via ETCD
config = nixl_agent_config(
    backends=["UCX"],
    use_etcd=True
)
agent = nixl_agent("agent_1", config)
"""
IMPORTS = "from nixl._api import nixl_agent, nixl_agent_config\n"
# What two such agents do then.
MEETING = """
import sys, time
import numpy as np

other = sys.argv[1]
array = np.full(4096, ord(agent.name[-1]), np.uint8)
agent.register_memory(array)
assert agent.wait_for_peers(1, timeout=60) == [other], agent.peers()
agent.send_notif(other, b"at" + array.ctypes.data.to_bytes(8, "little"))
notes = {}
while not notes.get(other):
    agent.update_notifs()
    notes = agent.notifs
there = int.from_bytes(notes[other][0][2:], "little")
target = agent.get_xfer_descs([(there, 4096, 0)], "DRAM")
while not agent.check_remote_metadata(other, target):
    pass
got = np.zeros(4096, np.uint8)
agent.register_memory(got)
handle = agent.initialize_xfer("READ", agent.get_xfer_descs(got), target, other, b"done")
agent.transfer(handle)
assert handle.wait(60) == "DONE"
assert (got == ord(other[-1])).all()
while b"done" not in agent.notifs.get(other, []):
    agent.update_notifs()
print("met", flush=True)
sys.stdin.read()
"""


class Space:
    """A network namespace in which names of the guide lead to its own loopback."""

    def __init__(self, names: dict[str, str]) -> None:
        self.name = f"nxguide{os.getpid()}"
        self.hosts = pathlib.Path("/etc/netns") / self.name / "hosts"
        self.run("ip", "netns", "add", self.name)
        self.run("ip", "-n", self.name, "link", "set", "lo", "up")
        for address in set(names.values()) - {"127.0.0.1"}:
            self.run("ip", "-n", self.name, "addr", "add", f"{address}/32", "dev", "lo")
        self.hosts.parent.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{where} {name}" for name, where in names.items())]
        self.hosts.write_text("\n".join(lines) + "\n")

    @staticmethod
    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)  # which puts /etc/netns/NAME/hosts in place

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("ip", "netns", "del", self.name)
        with contextlib.suppress(OSError):
            self.hosts.unlink()
            self.hosts.parent.rmdir()


@pytest.fixture
def guide_space():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        made = Space({"etcd-server": "192.168.1.50"})
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    yield made
    made.close()


@pytest.mark.usefixtures("make_etcd")  # skips where there is no etcd
def test_the_guides_block_finds_its_peer(guide_space):
    peer = f"http://127.0.0.1:{free_ports(1)[0]}"
    server = Etcd(2379, peer, {"one": peer}, host="192.168.1.50", prefix=guide_space.prefix)
    started = []
    try:
        server.wait_ready()
        for mine, other in (("agent_1", "agent_2"), ("agent_2", "agent_1")):
            code = IMPORTS + BLOCK.replace("agent_1", mine) + MEETING
            started.append(
                subprocess.Popen(
                    [*guide_space.prefix, sys.executable, "-c", code, other],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for one in started:
            assert one.stdout.readline() == "met\n"
        assert "/nixl/agents/agent_1/metadata" in server.key_names()
        checked = subprocess.run(
            [*guide_space.prefix, sys.executable, "-m", "nixl.doctor"],
            env={**os.environ, "NIXL_ETCD_ENDPOINTS": "http://etcd-server:2379"},
            capture_output=True,
            text=True,
        )
        assert "http://etcd-server:2379: version 3." in checked.stdout
    finally:
        for one in started:
            one.stdin.close()
            one.wait(60)
        server.close()


def test_the_block_without_its_server(monkeypatch):
    """A name that leads nowhere: the agent is made, and says what is wrong when it is asked."""
    monkeypatch.delenv("NIXL_ETCD_NAMESPACE", raising=False)
    space = {"nixl_agent": nixl.nixl_agent, "nixl_agent_config": nixl.nixl_agent_config}
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", "")
    monkeypatch.setenv("NIXL_ETCD_NAMESPACE", "")
    exec(BLOCK.replace("etcd-server", "etcd-server.invalid"), space)
    agent = space["agent"]

    def told() -> bool:
        with pytest.raises(nixl.nixlTimeoutError) as error:
            agent.wait_for_peers(1, timeout=0.05)
        return "resolve host" in str(error.value)

    eventually(told)
    agent.close()
