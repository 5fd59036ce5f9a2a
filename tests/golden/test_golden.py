"""The stored bytes are still what docs/protocol.md says, and the package still reads them."""

from __future__ import annotations

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import make  # noqa: E402

nixl = pytest.importorskip("nixl", reason="the Python module is not built")


def golden(name: str) -> bytes:
    return (HERE / name).read_bytes()


@pytest.mark.parametrize("name", sorted(make.everything()))
def test_a_stored_file_has_not_changed(name):
    assert golden(name) == make.everything()[name]


def test_no_file_is_without_a_maker():
    stored = {str(path.relative_to(HERE)) for path in HERE.glob("*/*/*")}
    assert stored == set(make.everything())


@pytest.mark.parametrize("name", ["full", "partial", "unknown_section"])
def test_an_agent_takes_the_blob(name):
    agent = nixl.nixl_agent("golden", nixl.nixl_agent_config(backends=["UCX"]))
    assert agent.add_remote_agent(golden(f"blob/1/{name}.bin")) == b"alice"
    remote = agent.get_xfer_descs([(0x7F00_0000_1000, 0x1000, 0)], "DRAM")
    assert agent.prep_xfer_dlist("alice", remote)
    missing = agent.get_xfer_descs([(0x7F00_0000_1000, 0x1001, 0)], "DRAM")
    with pytest.raises(nixl.nixlNotFoundError):
        agent.prep_xfer_dlist("alice", missing)
    agent.close()


def test_the_package_reads_and_writes_the_lists():
    agent = nixl.nixl_agent("golden", nixl.nixl_agent_config(backends=["UCX"]))
    transfer, registration = (
        golden(f"descriptors/1/{n}.bin") for n in ("transfer", "registration")
    )
    xfer = agent.deserialize_descs(transfer)
    assert xfer.descCount() == 101 and xfer[99] == (0x1000 + 99 * 8192, 4096, 0)
    assert xfer[100] == (1 << 63, 5, 3)
    assert agent.get_serialized_descs(xfer) == transfer
    reg = agent.deserialize_descs(registration)
    assert reg[0] == (0, 4096, 1, b"rw:/data/a\0b") and reg[1] == (8192, 1, 2, b"")
    assert agent.get_serialized_descs(reg) == registration
    agent.close()
