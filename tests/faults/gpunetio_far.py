"""A process of the tests of GPUNETIO: an agent with GPU memory of the stand-ins, which executes
what the test sends, as far.py does. `array` is the GPU's memory as the host sees it."""

from __future__ import annotations

import ast
import ctypes
import os
import sys

import nixl
import numpy as np

GPU_BIT = 1 << 62


def standin() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ["NIXL_DOCA_LIBRARY"])
    library.docaStandinFigure.restype = ctypes.c_uint64
    return library


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed by mistake goes elsewhere
    name, size, gpu, options = ast.literal_eval(sys.argv[1])
    memory = nixl.alloc(size, device=f"cuda:{gpu}")
    there = (ctypes.c_ubyte * size).from_address(memory.address & ~GPU_BIT)
    array = np.frombuffer(there, np.uint8)
    array[:] = 0
    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(**options))
    registered = agent.register_memory([(memory.address, size, gpu, "")], "VRAM")

    def prepare(operation, peer, base, peer_gpu, pieces, notif=b""):
        here = [(memory.address + own, length, gpu) for own, _, length in pieces]
        far = [(base + other, length, peer_gpu) for _, other, length in pieces]
        descs = agent.get_xfer_descs
        return agent.initialize_xfer(
            operation, descs(here, "VRAM"), descs(far, "VRAM"), peer, notif
        )

    def outcome(handle, timeout=60.0):
        try:
            return handle.wait(timeout)
        except nixl.nixlError as error:
            return f"{type(error).__name__} {error}"

    names = {**globals(), **locals()}
    answers.write(repr((os.getpid(), memory.address, agent.get_agent_metadata())) + "\n")
    answers.flush()
    for line in sys.stdin:
        code = ast.literal_eval(line)
        try:
            try:
                value = eval(compile(code, "<test>", "eval"), names)
            except SyntaxError:
                names["result"] = None
                exec(compile(code, "<test>", "exec"), names)
                value = names["result"]
            answer = (True, value)
        except Exception as error:
            answer = (False, type(error).__name__, str(error))
        answers.write(repr(answer) + "\n")
        answers.flush()
    agent.close()


if __name__ == "__main__":
    main()
