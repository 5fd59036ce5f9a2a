"""The parameter `checksum` of backend UCX on the lanes stream and host.

Two destinations that overlap are the damage: the later one changes bytes of the earlier one before
these are checked.
"""

from __future__ import annotations

import dataclasses

import pytest

np = pytest.importorskip("numpy")

import nixl  # noqa: E402
from nixl._api import nixl_agent, nixl_agent_config  # noqa: E402

SIZE = 4 << 20


@dataclasses.dataclass
class Pair:
    lane: str
    near: nixl_agent
    far: nixl_agent
    near_memory: np.ndarray
    far_memory: np.ndarray

    def prepare(self, operation, near_offsets, far_offsets, size=1000):
        local = [(self.near_memory.ctypes.data + offset, size, 0) for offset in near_offsets]
        remote = [(self.far_memory.ctypes.data + offset, size, 0) for offset in far_offsets]
        descs = self.near.get_xfer_descs
        return self.near.initialize_xfer(
            operation, descs(local, "DRAM"), descs(remote, "DRAM"), "far"
        )


@pytest.fixture(params=["stream", "host"])
def pair(request):
    parameters = {"UCX": {"lanes": request.param, "checksum": "true"}}
    config = nixl_agent_config(backend_params=parameters)
    memories = [(np.arange(SIZE) * factor).astype(np.uint8) for factor in (3, 5)]
    with nixl_agent("near", config) as near, nixl_agent("far", config) as far:
        near.register_memory(memories[0])
        far.register_memory(memories[1])
        near.add_remote_agent(far.get_agent_metadata())
        yield Pair(request.param, near, far, *memories)


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_checked_transfers_work(pair, operation):
    places = [0, 2000, 5000, 40000]
    handle = pair.prepare(operation, places, places)
    pair.near.transfer(handle)
    assert handle.wait(timeout=20) == "DONE"
    assert pair.near.explain(handle)["lane"] == pair.lane
    for at in places:
        assert (pair.near_memory[at : at + 1000] == pair.far_memory[at : at + 1000]).all()


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_damage_fails_with_the_index_of_the_descriptor(pair, operation):
    # Large enough that the stream lane receives into place.
    plain = [index * 50_000 for index in range(40)]
    overlapping = [at - 20_000 if at % 100_000 and at > 100_000 else at for at in plain]
    ends = (plain, overlapping) if operation == "WRITE" else (overlapping, plain)
    handle = pair.prepare(operation, *ends, size=50_000)
    for _ in range(2):  # the handle is as good as before
        with pytest.raises(nixl.nixlBackendError, match="far") as caught:
            pair.near.transfer(handle)
            handle.wait(timeout=20)
        assert caught.value.descriptor_index == min(handle.failed) <= 2
        assert set(range(2, 39, 2)) <= set(handle.failed)  # nothing wrong passes as right
        if pair.lane == "host":  # compared byte by byte
            assert min(handle.failed) == 2
            assert handle.failed[2][1] == 30_000
