"""Runs inside the bare root: memory to memory, to a file and back, with nothing but libc around."""

import sys

from nixl._api import nixl_agent, nixl_agent_config
from nixl._utils import ba_buf, free_passthru, malloc_passthru, verify_transfer

SIZE = 1 << 20


def move(agent, operation, local, remote, peer):
    handle = agent.initialize_xfer(operation, local, remote, peer)
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    agent.release_xfer_handle(handle)
    assert state == "DONE", f"{operation}: {state}"


agent = nixl_agent("bare", nixl_agent_config(backends=["UCX"]))
agent.create_backend("POSIX")
print("plugins:", agent.get_plugin_list())

source, middle, back = (malloc_passthru(SIZE) for _ in range(3))
ba_buf(source, SIZE)
memory = agent.register_memory([(a, SIZE, 0, "") for a in (source, middle, back)], "DRAM")
sides = {a: agent.get_xfer_descs([(a, SIZE, 0)], "DRAM") for a in (source, middle, back)}

move(agent, "WRITE", sides[source], sides[middle], "bare")
verify_transfer(source, middle, SIZE)

file = agent.register_memory([(0, SIZE, 1, f"rw,create:{sys.argv[1]}")], "FILE")
move(agent, "WRITE", sides[middle], file.trim(), "bare")
move(agent, "READ", sides[back], file.trim(), "bare")
verify_transfer(source, back, SIZE)
with open(sys.argv[1], "rb") as written:
    assert written.read() == b"\xba" * SIZE, "the file's bytes differ"

agent.deregister_memory(file)
agent.deregister_memory(memory)
for address in (source, middle, back):
    free_passthru(address)
for name in ("torch", "numpy"):
    assert name not in sys.modules, f"{name} was imported"
print("bare root: all bytes arrived")
