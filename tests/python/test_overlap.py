"""Source and destination of a descriptor that overlap: moved as memmove would, at every size."""

from __future__ import annotations

import numpy as np
import pytest

MIB = 1 << 20


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
@pytest.mark.parametrize("size", [100, 64 << 10, MIB, 4 * MIB + 5, 24 * MIB])
@pytest.mark.parametrize("shift", [1, 4097, MIB + 3])
def test_overlapping_source_and_destination(agent, operation, size, shift):
    memory = np.random.default_rng(0).integers(0, 255, size + shift, dtype=np.uint8)
    agent.register_memory(memory)
    for source, target in ((0, shift), (shift, 0)):
        expected = memory.copy()
        expected[target : target + size] = memory[source : source + size]
        local, remote = (source, target) if operation == "WRITE" else (target, source)
        base = memory.ctypes.data
        handle = agent.initialize_xfer(
            operation,
            agent.get_xfer_descs([(base + local, size, 0)], "DRAM"),
            agent.get_xfer_descs([(base + remote, size, 0)], "DRAM"),
            agent.name,
        )
        agent.transfer(handle)
        assert handle.wait(30) == "DONE"
        assert np.array_equal(memory, expected)


def test_each_of_many_descriptors_overlaps_itself(agent):
    """Their strides differ, so each is shifted by another distance."""
    size, count = 256 << 10, 32
    memory = np.random.default_rng(1).integers(0, 255, 40 * MIB, dtype=np.uint8)
    agent.register_memory(memory)
    base = memory.ctypes.data
    sources = [base + i * MIB for i in range(count)]
    targets = [base + i * (MIB + 512) + 256 for i in range(count)]
    expected = memory.copy()
    for i in range(count):
        at = i * (MIB + 512) + 256
        expected[at : at + size] = memory[i * MIB : i * MIB + size]
    handle = agent.initialize_xfer(
        "WRITE",
        agent.get_xfer_descs([(address, size, 0) for address in sources], "DRAM"),
        agent.get_xfer_descs([(address, size, 0) for address in targets], "DRAM"),
        agent.name,
    )
    agent.transfer(handle)
    assert handle.wait(30) == "DONE"
    assert np.array_equal(memory, expected)
