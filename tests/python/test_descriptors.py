"""Descriptor lists from everything users have, and what bad input is told."""

from __future__ import annotations

import array
import pickle

import nixl
import pytest
from nixl.errors import nixlInvalidParamError, nixlMismatchError, nixlNotAllowedError

np = pytest.importorskip("numpy")


@pytest.fixture
def strict_agent(make_agent):
    return make_agent(strict_descriptors=True)


class FakeTensor:
    """What torch tensors offer, without torch."""

    def __init__(self, address: int, count: int, device: int = -1, contiguous: bool = True):
        self.address, self.count, self.device_index = address, count, device
        self.contiguous = contiguous
        self.shape = (count,)

    def data_ptr(self):
        return self.address

    def is_contiguous(self):
        return self.contiguous

    def get_device(self):
        return self.device_index

    def numel(self):
        return self.count

    def element_size(self):
        return 4

    def stride(self):
        return (2,)


def test_a_range_of_every_kind_of_memory(agent):
    numbers = np.zeros(100)
    assert list(agent.get_xfer_descs(numbers)) == [(numbers.ctypes.data, 800, 0)]
    assert list(agent.get_reg_descs([numbers, numbers[10:20]])) == [
        (numbers.ctypes.data, 800, 0, b""),
        (numbers.ctypes.data + 80, 80, 0, b""),
    ]
    fortran = np.zeros((4, 5), order="F")
    assert list(agent.get_xfer_descs([fortran])) == [(fortran.ctypes.data, 160, 0)]
    raw = bytearray(10)
    assert agent.get_xfer_descs(raw)[0][1] == 10
    assert agent.get_xfer_descs(array.array("d", [1, 2]))[0][1] == 16
    assert agent.get_xfer_descs(memoryview(raw)[2:5])[0][1] == 3
    shared = nixl.alloc(5000)
    assert list(agent.get_xfer_descs([shared])) == [(shared.address, 5000, 0)]


def test_tensors_by_what_they_offer(agent):
    host = agent.get_xfer_descs([FakeTensor(4096, 4), FakeTensor(8192, 2)])
    assert host.getType() == nixl.DRAM_SEG
    assert list(host) == [(4096, 16, 0), (8192, 8, 0)]
    device = agent.get_reg_descs(FakeTensor(4096, 4, device=3))
    assert device.getType() == nixl.VRAM_SEG
    assert list(device) == [(4096, 16, 3, b"")]
    with pytest.raises(nixlMismatchError, match="item 1 is VRAM_SEG but item 0 is DRAM_SEG"):
        agent.get_reg_descs([FakeTensor(4096, 4), FakeTensor(4096, 4, device=0)])
    with pytest.raises(nixlMismatchError, match="mem_type is VRAM_SEG"):
        agent.get_reg_descs([FakeTensor(4096, 4)], "VRAM")


def test_what_is_not_contiguous_is_refused_by_index(strict_agent):
    with pytest.raises(nixlInvalidParamError, match=r"item 1: FakeTensor of shape .* strides"):
        strict_agent.get_reg_descs([FakeTensor(1, 4), FakeTensor(1, 4, contiguous=False)])
    with pytest.raises(nixlInvalidParamError, match=r"item 0: ndarray .* not contiguous"):
        strict_agent.get_xfer_descs([np.zeros(10)[::2]])


def test_torch_tensors(strict_agent):
    torch = pytest.importorskip("torch")
    tensors = [torch.zeros(4, 4), torch.zeros(3, dtype=torch.int16)]
    assert list(strict_agent.get_xfer_descs(tensors)) == [
        (tensors[0].data_ptr(), 64, 0),
        (tensors[1].data_ptr(), 6, 0),
    ]
    with pytest.raises(nixlInvalidParamError, match="item 1: Tensor of shape"):
        strict_agent.get_reg_descs([torch.zeros(2), torch.zeros(2, 3).t()])


def test_other_lists_are_taken_over(agent):
    regs = agent.get_reg_descs([(1, 2, 3, "x")], "FILE")
    assert list(agent.get_xfer_descs(regs)) == [(1, 2, 3)]
    xfer = agent.get_xfer_descs([(1, 2, 3)], "FILE")
    assert agent.get_xfer_descs(xfer) is xfer
    assert list(agent.get_reg_descs(xfer)) == [(1, 2, 3, b"")]
    remote = agent.get_remote_descs([(1, 2, 3, "a"), (1, 2, 3, b"b")], "DRAM")
    assert list(remote) == [(1, 2, 3, "a"), (1, 2, 3, "b")]
    assert agent.get_remote_descs(remote) is remote
    assert pickle.loads(pickle.dumps(remote)) == remote


def test_rows_of_any_layout(agent):
    rows = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint64)
    want = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    for made in (
        rows,
        np.asfortranarray(rows),
        np.repeat(rows, 2, axis=0)[::2],
        rows.astype(np.int32),
        rows.astype(np.uint32),
        rows.astype(np.int64),
        [tuple(row) for row in rows],
    ):
        assert list(agent.get_xfer_descs(made, "DRAM")) == want
    read_only = rows.copy()
    read_only.flags.writeable = False
    assert list(agent.get_xfer_descs(read_only, "DRAM")) == want


def test_long_lists_are_what_was_put_in(agent):
    count = 10_000
    regular = [(1 << 40 | i * 4096, 4096, 0) for i in range(count)]
    order = np.random.default_rng(5).permutation(count)
    for tuples in (regular, [regular[i] for i in order], regular + regular[:3] + [(5, 5, 5)]):
        descs = agent.get_xfer_descs(tuples, "DRAM")
        assert len(descs) == len(tuples)
        assert list(descs) == tuples
        rows = agent.get_xfer_descs(np.array(tuples, dtype=np.uint64), "DRAM")
        assert rows == descs
        assert agent.deserialize_descs(agent.get_serialized_descs(descs)) == descs


def test_a_regular_list_serialises_to_almost_nothing(agent):
    rows = np.zeros((200_000, 3), dtype=np.uint64)
    rows[:, 0] = np.arange(200_000) * 4096
    rows[:, 1] = 4096
    assert len(agent.get_serialized_descs(agent.get_xfer_descs(rows, "DRAM"))) < 64


@pytest.mark.parametrize(
    ("descs", "mem_type", "error", "text"),
    [
        ([(1, 2, 3)], None, nixlInvalidParamError, "need mem_type, one of DRAM"),
        ([(1, 2, 3)], "DRUM", nixlInvalidParamError, "memory type 'DRUM' is none of DRAM"),
        ([(1, 2, 3)], 7, TypeError, "mem_type must be a str, not int"),
        ([(1, 2, 3), (1, 2)], "DRAM", nixlInvalidParamError, r"descriptor 1: expected a tuple"),
        ([(1, 2, 3), 5], "DRAM", TypeError, r"descriptor 1: expected a tuple .* not int"),
        ([(1, -2, 3)], "DRAM", nixlInvalidParamError, "descriptor 0: the length -2 is not within"),
        ([(1 << 64, 2, 3)], "DRAM", nixlInvalidParamError, "descriptor 0: the address 184467"),
        (
            [(1, 2.5, 3)],
            "DRAM",
            TypeError,
            "descriptor 0: the length must be an integer, not float",
        ),
        ([("a", 2, 3)], "DRAM", TypeError, "the address must be an integer, not str"),
        ((1, 2, 3), "DRAM", TypeError, "not the single tuple"),
        (None, "DRAM", TypeError, "not None; .* last_error says why"),
        ([], None, nixlInvalidParamError, "an empty list needs mem_type"),
        ([[(1, 2, 3)]], "DRAM", nixlInvalidParamError, r"a tuple .*, not the list \[\(1, 2, 3\)\]"),
        ([[1, 2, 3]], "DRAM", nixlInvalidParamError, r"a tuple .*, not the list \[1, 2, 3\]"),
        ("text", "DRAM", TypeError, "str cannot be registered: it is immutable"),
        (b"text", None, TypeError, "bytes cannot be registered: it is immutable"),
        ([object()], None, TypeError, "item 0: expected a tensor"),
        (
            np.zeros((4, 2), np.uint64),
            "DRAM",
            nixlInvalidParamError,
            "N x 3 .*, not ndarray of uint64, 4 x 2",
        ),
        (np.zeros((4, 3), np.uint64), None, nixlInvalidParamError, "need mem_type"),
        (np.array([[1, -2, 3]]), "DRAM", nixlInvalidParamError, "column 1 is negative: -2"),
    ],
)
def test_bad_descriptors_are_named(strict_agent, descs, mem_type, error, text):
    with pytest.raises(error, match=text):
        strict_agent.get_xfer_descs(descs, mem_type)


def test_bad_metadata_is_named(agent):
    with pytest.raises(TypeError, match="descriptor 0: the metadata must be str or bytes, not int"):
        agent.get_reg_descs([(1, 2, 3, 4)], "DRAM")
    with pytest.raises(TypeError, match="the agent name must be str or bytes"):
        agent.get_remote_descs([(1, 2, 3, 4)], "DRAM")


def test_memory_type_names(agent):
    for name in ("DRAM", "dram", "cpu", "CPU", "DRAM_SEG", nixl.DRAM_SEG):
        assert agent.get_xfer_descs([(1, 2, 3)], name).getType() == nixl.DRAM_SEG
    for name, mem in (("BLOCK", nixl.BLK_SEG), ("BLK", nixl.BLK_SEG), ("OBJ", nixl.OBJ_SEG)):
        assert agent.get_xfer_descs([(1, 2, 3)], name).getType() == mem


def test_positions(agent):
    descs = agent.get_xfer_descs([(1, 2, 3), (4, 5, 6)], "DRAM")
    assert descs[-1] == (4, 5, 6)
    for call in (
        lambda: descs[2],
        lambda: descs[-3],
        lambda: descs.remDesc(2),
        lambda: descs.__setitem__(2, (1, 1, 1)),
    ):
        with pytest.raises(IndexError, match="of a list of 2 descriptors"):
            call()
    assert "2 descriptors: (1, 2, 3), (4, 5, 6)" in repr(descs)


def test_changed_lists_stay_right(agent):
    descs = agent.get_xfer_descs([(i * 64, 64, 0) for i in range(100)], "DRAM")
    want = list(descs)
    descs[50] = (9, 9, 9)
    want[50] = (9, 9, 9)
    descs.remDesc(10)
    del want[10]
    descs.append((7, 7, 7))
    want.append((7, 7, 7))
    assert list(descs) == want


@pytest.mark.parametrize("kind", ["xfer", "reg"])
def test_damaged_bytes_are_refused(agent, kind):
    if kind == "xfer":
        descs = agent.get_xfer_descs([(i * 64, 64, 0) for i in range(9)], "DRAM")
    else:
        descs = agent.get_reg_descs([(i * 64, 64, 0, "meta") for i in range(9)], "DRAM")
    data = agent.get_serialized_descs(descs)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        with pytest.raises(nixl.nixlError, match="^NIXL_ERR"):
            agent.deserialize_descs(bytes(damaged))
        with pytest.raises(nixl.nixlError):
            agent.deserialize_descs(data[:at])
    with pytest.raises(nixl.nixlError):
        agent.deserialize_descs(data + b"x")


def test_pickle_is_never_unpickled(agent):
    with pytest.raises(nixlInvalidParamError):
        agent.deserialize_descs(pickle.dumps(agent.get_xfer_descs([(1, 2, 3)], "DRAM")))
    with pytest.raises(TypeError, match="expected a nixlXferDList or nixlRegDList, not list"):
        agent.get_serialized_descs([(1, 2, 3)])


def test_with_needs_a_registered_list(agent):
    with (
        pytest.raises(nixlNotAllowedError, match="not registered"),
        agent.get_reg_descs([(1, 2, 3)], "DRAM"),
    ):
        pass
