"""Metadata and descriptor lists from outside, damaged in every way and with a right checksum where
that is what stands in the way: an error or a harmless peer, never more. Seeds are fixed;
NIXL_FAULTS_SOAK multiplies the rounds."""

from __future__ import annotations

import os
import pathlib
import random
import struct

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

import wire  # noqa: E402
from faults_support import MIB, SOAK, open_descriptors  # noqa: E402


def damaged(choose: random.Random, data: bytes) -> bytes:
    """The same with some bits flipped, bytes replaced, cut out, repeated or put in."""
    out = bytearray(data)
    for _ in range(choose.randrange(1, 5)):
        at = choose.randrange(len(out) + 1)
        size = choose.choice([1, 1, 2, 4, 8, 30])
        what = choose.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << choose.randrange(8)
        elif what == 1:
            out[at : at + size] = choose.randbytes(size)
        elif what == 2:
            del out[at : at + size]
        elif what == 3:
            out[at:at] = out[at : at + size]
        elif what == 4:  # numbers that promise much
            out[at:at] = choose.choice([b"\xff" * 8, b"\xff" * 9 + b"\x01", b"\x80" * 12, bytes(9)])
        else:
            del out[at:]
        if not out:
            out += b"\0"
    return bytes(out)


def with_checksum(data: bytes) -> bytes:
    return data + struct.pack("<I", wire.crc32c(data))


def resident() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.fixture
def blobs(make_near):
    """Full and partial metadata of agents with few and many, regular and irregular regions."""
    found = []
    for count, step in ((1, 4096), (200, 4096), (50, 0)):
        near = make_near(MIB)
        choose = random.Random(count)
        for index in range(count):
            at = index * step if step else choose.randrange(MIB - 4096)
            near.agent.register_memory([(near.base + at, 1024, 0, "")], "DRAM")
        found.append(near.agent.get_agent_metadata())
    descs = near.agent.get_reg_descs([(near.base, 1024, 0, "")], "DRAM")
    found.append(near.agent.get_partial_agent_metadata(descs, True, ["UCX"]))
    return found


@pytest.mark.parametrize("fixed", [False, True], ids=["as it is", "right checksum"])
def test_damaged_metadata(make_near, blobs, fixed):
    near = make_near(MIB)
    choose = random.Random(11)
    before = open_descriptors(), resident()
    accepted = 0
    for _ in range(2500 * SOAK):
        blob = choose.choice(blobs)
        data = with_checksum(damaged(choose, blob[:-4])) if fixed else damaged(choose, blob)
        try:
            name = near.agent.add_remote_agent(data)
        except nixl.nixlError as error:
            assert str(error)
            continue
        accepted += 1
        assert fixed or data in blobs, "damage that the checksum did not find"
        for known in near.agent.peers():
            near.agent.remove_remote_agent(known)
        assert isinstance(name, bytes)
    assert not fixed or accepted > 0  # the decoder itself was reached
    assert near.agent.peers() == []
    assert open_descriptors() <= before[0] + 2
    assert resident() < before[1] + (64 << 10)


def test_metadata_that_promises_much(make_near, blobs):
    """Lengths and counts past the end take no memory and no time."""
    near = make_near(MIB)
    head = b"NIXLMD" + struct.pack("<H", 1)
    huge = [2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    before = resident()
    for number in huge:
        for tag in range(8):
            for body in (
                wire.varint(number),
                wire.varint(number) + bytes(100),
                wire.text(wire.varint(number)),
                wire.text(wire.varint(number) + bytes(50)),
                wire.text(b"\0" + wire.varint(0) + wire.varint(1) + wire.varint(number)),
            ):
                with pytest.raises(nixl.nixlError):
                    near.agent.add_remote_agent(with_checksum(head + bytes([tag]) + body))
    assert resident() < before + (32 << 10)


def test_regions_that_promise_much(make_near):
    """One entry may stand for millions of regions: it is kept as it came, or refused."""
    near = make_near(MIB)
    blob = wire.Blob(b"large", os.urandom(16), os.urandom(16))
    before = resident()
    for count in (2**10, 2**20, 2**31, 2**40, 2**62):
        entry = b"\0" + wire.varint(0) + wire.varint(1) + wire.varint(1)
        entry += wire.zigzag(4096) + wire.varint(64) + wire.zigzag(0)
        entry += wire.varint(count << 1 & (2**64 - 1)) + wire.zigzag(64) + wire.zigzag(1)
        sections = [
            (1, wire.text(blob.name) + bytes([1]) + blob.incarnation),
            (2, blob.grant),
            (3, blob.endpoints()),
            (4, wire.text(b"UCX") + wire.text(b"")),
            (5, entry),
        ]
        data = b"NIXLMD" + struct.pack("<H", 1)
        data += b"".join(bytes([tag]) + wire.text(body) for tag, body in sections)
        try:
            near.agent.add_remote_agent(with_checksum(data))
            near.agent.remove_remote_agent("large")
        except nixl.nixlError as error:
            assert str(error)
    assert resident() < before + (512 << 10)


def test_damaged_metadata_of_a_live_peer(make_near, make_far, blobs):
    """Endpoints, grants and regions that are wrong but well-formed: transfers end with an error or
    do what the true ones do; no other byte of the peer changes."""
    near, far = make_near(MIB, peer_timeout=1), make_far(MIB)
    far("array[:] = 0x5A")
    choose = random.Random(12)
    near.array[:] = 0x5A
    for _ in range(40 * SOAK):
        data = with_checksum(damaged(choose, far.metadata[:-4]))
        try:
            if near.agent.add_remote_agent(data) != far.name.encode():
                continue
            handle = near.post("WRITE", far, [(0, 0, 4096)])
            support.outcome(handle)
        except nixl.nixlError as error:
            assert str(error)
        finally:
            for known in near.agent.peers():
                near.agent.remove_remote_agent(known)
    assert far("bool((array == 0x5A).all())")
    near.add_metadata_of(far)
    near.works_with(far)


@pytest.mark.parametrize("fixed", [False, True], ids=["as it is", "right checksum"])
def test_damaged_descriptor_lists(make_near, fixed):
    near = make_near(MIB)
    agent = near.agent
    lists = [
        agent.get_xfer_descs([(near.base, 64, 0)], "DRAM"),
        agent.get_xfer_descs([(near.base + 64 * i, 64, 0) for i in range(500)], "DRAM"),
        agent.get_xfer_descs([(near.base + i * i, 7 + i, 0) for i in range(100)], "DRAM"),
        agent.get_reg_descs([(near.base, 64, 0, "label")], "DRAM"),
        agent.get_reg_descs([(0, 64, 5, "rw:/some/file")], "FILE"),
    ]
    good = [agent.get_serialized_descs(one) for one in lists]
    choose = random.Random(13)
    before = resident()
    for _ in range(4000 * SOAK):
        data = choose.choice(good)
        data = with_checksum(damaged(choose, data[:-4])) if fixed else damaged(choose, data)
        try:
            found = agent.deserialize_descs(data)
        except nixl.nixlError as error:
            assert str(error)
            continue
        assert fixed or data in good
        assert found.descCount() < 2**40
        repr(found)
    assert resident() < before + (128 << 10)
    for data in (b"", b"\0", b"x" * 100, b"\x80\x04\x95" + bytes(50)):
        with pytest.raises(nixl.nixlError):
            agent.deserialize_descs(data)
