"""Input that is no list of descriptors: never taken for the memory itself, and told why."""

from __future__ import annotations

import array
import gc
import logging
import pickle
import weakref

import nixl
import pytest
from nixl.errors import nixlInvalidParamError

np = pytest.importorskip("numpy")

CALLS = {
    "get_reg_descs": lambda agent, table: agent.get_reg_descs(table, "DRAM"),
    "get_xfer_descs": lambda agent, table: agent.get_xfer_descs(table, "DRAM"),
    "register_memory": lambda agent, table: agent.register_memory(table, "DRAM"),
    "prep_xfer_dlist": lambda agent, table: agent.prep_xfer_dlist("", table, "DRAM"),
    "query_memory": lambda agent, table: agent.query_memory(table, "UCX", "DRAM"),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "complex128", "object", "bool", "int8", "int16", ">i8", "S3"],
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_table_of_another_type_is_refused_naming_dtype_and_shape(make_agent, call, dtype, strict):
    agent = make_agent(strict_descriptors=strict)
    # Whole numbers all of them: what arithmetic between int64 and uint64 gives is one of these.
    table = np.array([[4096, 256, 0], [8192, 256, 0]]).astype(dtype)
    # The name NumPy gives it: ">i8" stays, "S3" is "|S3".
    name = str(table.dtype).replace("|", r"\|")
    with pytest.raises(nixlInvalidParamError, match=f"table of .*, not ndarray of {name}, 2 x 3"):
        call(agent, table)
    assert agent.last_error is None


def test_mixed_arithmetic_is_such_a_table(agent):
    base = np.uint64(1 << 40)
    table = np.array([[0, 64, 0], [64, 64, 0]], dtype=np.int64)
    table = table + np.array([[base, 0, 0]], dtype=np.uint64)
    assert table.dtype == np.float64
    with pytest.raises(nixlInvalidParamError, match="not ndarray of float64, 2 x 3"):
        agent.get_xfer_descs(table, "DRAM")


@every_call
@pytest.mark.parametrize("shape", [(2, 4), (2, 2), (6,), (2, 3, 1), ()])
def test_a_table_of_another_shape_is_refused(agent, call, shape):
    shown = " x ".join(map(str, shape)) or "a scalar"
    with pytest.raises(nixlInvalidParamError, match=f"not ndarray of uint64, {shown}"):
        call(agent, np.zeros(shape, np.uint64))


def test_five_columns_are_for_prepared_sides_only(agent, memory):
    rows = np.array([[memory(4096).address, 64, 0, 128, 4]], dtype=np.uint64)
    agent.register_memory([(int(rows[0, 0]), 4096, 0, "")], "DRAM")
    assert agent.prep_xfer_dlist("", rows, "DRAM")
    with pytest.raises(nixlInvalidParamError, match="an N x 3 table .*, not .* 1 x 5"):
        agent.get_xfer_descs(rows, "DRAM")


@every_call
@pytest.mark.parametrize(
    ("buffer", "told"),
    [
        (bytearray(24), r"bytearray of format 'B', 24"),
        (memoryview(bytearray(24)).cast("d"), r"memoryview of format 'd', 3"),
        (memoryview(bytearray(48)).cast("q", (2, 3)), r"memoryview of format 'q', 2 x 3"),
        (array.array("Q", [4096, 256, 0]), r"array of format 'Q', 3"),
    ],
)
def test_a_buffer_is_no_table(agent, call, buffer, told):
    with pytest.raises(nixlInvalidParamError, match=told):
        call(agent, buffer)


@every_call
def test_a_list_of_rows_is_no_table(agent, call):
    table = np.array([[4096, 256, 0], [8192, 256, 0]])
    with pytest.raises(nixlInvalidParamError, match="item 0: ndarray of int64, 3, .* descriptor"):
        call(agent, list(table))


@every_call
@pytest.mark.parametrize("dtype", ["int64", "int32", "float64"])
def test_a_tensor_that_may_be_a_table_is_refused(agent, call, dtype):
    torch = pytest.importorskip("torch")
    table = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    with pytest.raises(nixlInvalidParamError, match=rf"Tensor of torch\.{dtype}, 2 x 3"):
        call(agent, table)


def test_memory_itself_stays_memory(agent):
    torch = pytest.importorskip("torch")
    weights = torch.zeros(2, 3)
    assert list(agent.get_xfer_descs(weights, "DRAM")) == [(weights.data_ptr(), 24, 0)]
    table = np.zeros((2, 3))
    assert list(agent.get_xfer_descs([table], "DRAM")) == [(table.ctypes.data, 48, 0)]
    assert list(agent.get_xfer_descs(table)) == [(table.ctypes.data, 48, 0)]
    assert agent.get_xfer_descs(bytearray(5))[0][1] == 5


def test_the_reason_is_logged_once_and_kept(agent, caplog):
    assert agent.last_error is None
    with caplog.at_level(logging.ERROR, "nixl"):
        assert agent.get_xfer_descs([(1, 2, 3, "x")], "DRAM") is None
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "nixl")
    assert record.getMessage() == f"get_xfer_descs: {agent.last_error}"
    assert isinstance(agent.last_error, nixlInvalidParamError)
    assert "expected a tuple (address, length, device id), not (1, 2, 3, 'x')" in record.message
    assert type(pickle.loads(pickle.dumps(agent.last_error))) is nixlInvalidParamError


def test_the_reason_keeps_no_memory_alive(agent):
    gaps = np.zeros(8)[::2]
    gone = weakref.ref(gaps)
    assert agent.get_reg_descs(gaps) is None
    assert "ndarray of shape (4,) is not contiguous" in str(agent.last_error)
    del gaps
    gc.collect()
    assert gone() is None


def test_strict_agents_raise(make_agent):
    agent = make_agent(strict_descriptors=True)
    empty = nixl.nixlRegDList(nixl.DRAM_SEG)
    for descs, mem_type in (
        ([(1, 2, 3, "")], "DRAM"),
        ([(1, 2, 3)], None),
        (np.zeros(8)[::2], None),
        (empty, None),
    ):
        with pytest.raises(nixlInvalidParamError):
            agent.get_xfer_descs(descs, mem_type)
    assert agent.last_error is None


def test_odd_tensors_get_words_that_fit(make_agent):
    torch = pytest.importorskip("torch")
    agent = make_agent(strict_descriptors=True)
    flat = torch.zeros(4, 4)
    with pytest.raises(nixlInvalidParamError, match=r"layout torch\.sparse_coo, .*\.values\(\)"):
        agent.register_memory(flat.to_sparse())
    with pytest.raises(nixlInvalidParamError, match=r"item 1: .* device meta: it has no memory"):
        agent.register_memory([flat, torch.zeros(4, device="meta")])
    storage = flat.untyped_storage() if hasattr(flat, "untyped_storage") else flat.storage()
    with pytest.raises(TypeError, match="Storage is no tensor"):
        agent.register_memory(storage)
