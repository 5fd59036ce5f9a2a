"""Tensors, arrays, bytes and addresses by key, in every layout and POSIX mode."""

from __future__ import annotations

import array
import ctypes
import inspect
import pathlib

import numpy as np
import pytest
from hicache_support import LAYOUTS, MODES

torch = pytest.importorskip("torch")

DTYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.bool, torch.complex64,
]  # fmt: skip


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    raw = torch.randint(0, 100, shape)
    return (raw % 2).to(dtype) if dtype is torch.bool else raw.to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_every_dtype_and_shape(make, layout, mode):
    connector = make(layout=layout, mode=mode)
    for dtype in DTYPES:
        for shape in ((1,), (7, 3), (2, 3, 4, 5), (1000, 33)):
            value = sample(dtype, *shape)
            key = f"{dtype}-{shape}"
            assert connector.set(key, value), key
            target = torch.zeros_like(value)
            assert connector.get(key, target) is target
            assert torch.equal(value, target), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_values_and_targets_go_through_a_bounce(make, layout):
    connector = make(layout=layout)
    value = torch.arange(100.0).reshape(10, 10)
    assert connector.set("strided", value.t())
    target = torch.zeros(10, 20)[:, ::2]
    assert connector.get("strided", target) is target
    assert torch.equal(target, value.t())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_bytes_and_addresses(make, layout):
    connector = make(layout=layout)
    array = np.arange(1000, dtype=np.int32)
    assert connector.batch_set(["array", "bytes"], [array, b"some bytes"])
    assert np.array_equal(connector.get("array", np.zeros(1000, dtype=np.int32)), array)
    room = bytearray(10)
    assert connector.get("bytes", room) is room
    assert bytes(room) == b"some bytes"
    assert connector.set("address", None, array.ctypes.data, array.nbytes)
    other = np.zeros_like(array)
    assert connector.get("address", other.ctypes.data, other.nbytes) == other.ctypes.data
    assert np.array_equal(array, other)
    made = connector.get("address", None, array.nbytes)
    assert bytes(made.numpy().tobytes()) == array.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_target_that_cannot_be_written_in_place_is_an_error(make, layout):
    connector = make(layout=layout)
    assert connector.set("k", bytes(range(8)))
    for target in ([0] * 8, (0,) * 8, bytes(8), "12345678", 1.5, True, None, np.uint8, {}):
        with pytest.raises((TypeError, ValueError), match=r"written in place|target_sizes"):
            connector.get("k", target)
    frozen = np.zeros(8, dtype=np.uint8)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        connector.get("k", frozen)
    with pytest.raises(TypeError, match="Python objects"):
        connector.get("k", np.array([None], dtype=object))
    assert not connector.set("objects", np.array([None], dtype=object))
    for room in (bytearray(8), array.array("B", bytes(8)), memoryview(bytearray(8)),
                 (ctypes.c_uint8 * 8)()):  # fmt: skip
        assert connector.get("k", room) is room
        assert bytes(room) == bytes(range(8))
    other = np.zeros(8, dtype=np.uint8)
    address = np.uint64(other.ctypes.data)
    assert connector.get("k", address, np.int64(8)) == other.ctypes.data
    assert other.tolist() == list(range(8))
    flat = np.zeros((), dtype=np.uint64)
    assert connector.get("k", flat) is flat and flat.tobytes() == bytes(range(8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_keys_are_none_at_their_place_only(make, layout):
    connector = make(layout=layout)
    values = [torch.full((4,), float(i)) for i in range(3)]
    assert connector.batch_set(["a", "b", "c"], values)
    targets = [torch.zeros(4) for _ in range(5)]
    found = connector.batch_get(["a", "x", "b", "y", "c"], targets)
    assert [value is not None for value in found] == [True, False, True, False, True]
    assert [found[i][0].item() for i in (0, 2, 4)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_length_than_stored_is_a_miss(make, layout, caplog):
    connector = make(layout=layout)
    assert connector.set("k", torch.zeros(100, dtype=torch.uint8))
    for size in (99, 101, 4096):
        assert connector.get("k", torch.zeros(size, dtype=torch.uint8)) is None
    assert "100 bytes" in caplog.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_key_is_replaced_as_a_whole(make, layout):
    connector = make(layout=layout)
    for size in (10, 100000, 5, 5):
        value = torch.randint(0, 256, (size,), dtype=torch.uint8)
        assert connector.set("k", value)
        assert torch.equal(connector.get("k", torch.zeros_like(value)), value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_values(make, layout):
    connector = make(layout=layout)
    assert connector.set("empty", torch.zeros(0))
    assert connector.exists("empty")
    assert connector.get("empty", torch.zeros(0)) is not None
    assert connector.batch_set([], []) and connector.batch_get([], []) == []


def test_bad_arguments_are_named(make, caplog):
    connector = make()
    with pytest.raises(ValueError, match="target_sizes"):
        connector.get("k")
    with pytest.raises(ValueError, match="2 keys with 1"):
        connector.batch_get(["a", "b"], [torch.zeros(1)])
    with pytest.raises(ValueError, match="target_sizes is needed"):
        connector.get("k", 4096)
    with pytest.raises(TypeError, match="expected str"):
        connector.batch_get([5], [torch.zeros(1)])
    assert not connector.set("k")
    assert not connector.batch_set(["a", "b"], [torch.zeros(1)])
    assert "2 keys with 1 values" in caplog.text


KEYS = [
    "plain", "a/b", "../../etc/passwd", "..", ".", "", " ", "a b", "ключ", "\U0001f511", "a%2Fb",
    "A", "a", "x" * 300, "x" * 301, "y" * 4000, "tab\tnewline\n", "nul\0key", ".nixl-packed",
    ".hidden", "%~", "-", "é" * 200,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_key_is_safe(make, layout, tmp_path):
    connector = make(layout=layout)
    values = [torch.full((64,), i, dtype=torch.uint8) for i in range(len(KEYS))]
    assert connector.batch_set(KEYS, values)
    for key, value in zip(KEYS, values, strict=True):
        assert connector.exists(key), key
        assert torch.equal(connector.get(key, torch.zeros_like(value)), value), key
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_registered_memory_is_not_registered_again(make, monkeypatch):
    connector = make(layout="packed")
    value = torch.randn(64, 64)
    assert connector.register_buffers(value) is not None
    assert connector.set("warm", value)
    calls = []
    original = connector.agent.register_memory
    monkeypatch.setattr(
        connector.agent,
        "register_memory",
        lambda *a, **k: calls.append(1) or original(*a, **k),
    )
    for i in range(5):
        assert connector.set(f"k{i}", value)
        assert connector.get(f"k{i}", value) is value
    assert not calls


def test_close_twice_and_use_as_context(tmp_path):
    from nixl.hicache import HiCacheNixl

    with HiCacheNixl(file_path=str(tmp_path), plugin="POSIX") as connector:
        assert connector.set("k", torch.zeros(3))
    connector.close()


def test_registration_tuples_become_transfer_descriptors(make, tmp_path):
    """(offset, length, descriptor, path) for registration, (offset, length, descriptor) to move."""
    connector = make()
    paths = []
    for i in range(3):
        path = connector.file_manager.get_file_path(f"tuple{i}")
        assert connector.file_manager.create_file(path)
        with open(path, "wb") as file:
            file.write(bytes([i + 1]) * (4096 * (i + 1)))
        paths.append(path)
    tuples = connector.file_manager.files_to_nixl_tuples(paths)
    registered = connector.register_files(tuples)
    assert registered is not None and registered.descCount() == 3
    moved = registered.trim()
    for i, (offset, length, descriptor, path) in enumerate(tuples):
        assert path == paths[i]
        assert tuple(moved[i]) == (offset, length, descriptor)
    agent = connector.agent
    assert agent.get_xfer_descs([row[:3] for row in tuples], "FILE") == moved
    target = np.zeros(4096 * 6, dtype=np.uint8)
    assert connector.register_buffers([(target.ctypes.data, target.nbytes)]) is not None
    starts = [target.ctypes.data, target.ctypes.data + 4096, target.ctypes.data + 3 * 4096]
    host = agent.get_xfer_descs([(s, t[1], 0) for s, t in zip(starts, tuples, strict=True)], "DRAM")
    handle = agent.initialize_xfer("READ", host, moved, agent.name)
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    assert state == "DONE"
    agent.release_xfer_handle(handle)
    assert target.tolist() == [1] * 4096 + [2] * 8192 + [3] * 12288
    connector.registration.deregister(registered)
    for _, _, descriptor, _ in tuples:
        assert connector.file_manager.close_file(descriptor)


def test_query_tuples(make):
    connector = make()
    create = connector.registration.create_query_tuples
    path = connector.file_manager.get_file_path("k")
    assert create("k", "FILE", connector.file_manager) == [(0, 0, 0, path)]
    assert create("k", "OBJ") == [(0, 0, 0, "k")]
    assert create("k", "FILE") == []
    ask = connector.agent.query_memory
    assert ask(create("k", "FILE", connector.file_manager), "POSIX", "FILE") == [None]
    assert connector.set("k", b"12345")
    (answer,) = ask(create("k", "FILE", connector.file_manager), "POSIX", "FILE")
    assert int(answer["size"]) == 5


#: The arguments of every function of the connector's index, in their order.
INDEX = {
    "HiCacheNixl": {
        "register_buffers": ["buffers"],
        "register_files": ["file_paths", "open_file"],
        "register_objects": ["keys", "sizes"],
        "get": ["key", "target_location", "target_sizes"],
        "batch_get": ["keys", "target_locations", "target_sizes"],
        "set": ["key", "value", "target_location", "target_sizes"],
        "batch_set": ["keys", "values", "target_locations", "target_sizes"],
        "exists": ["key"],
    },
    "NixlBackendSelection": {
        "__init__": ["plugin"], "set_bucket": ["bucket_name"], "create_backend": ["agent"],
    },
    "NixlFileManager": {
        "__init__": ["base_dir"], "get_file_path": ["key"], "create_file": ["file_path"],
        "open_file": ["file_path"], "close_file": ["fd"], "files_to_nixl_tuples": ["file_paths"],
    },
    "NixlRegistration": {
        "__init__": ["agent"], "create_query_tuples": ["key", "mem_type", "file_manager"],
    },
}  # fmt: skip


def test_every_signature_of_the_function_index():
    import nixl.hicache

    for name, functions in INDEX.items():
        kind = getattr(nixl.hicache, name)
        for function, wanted in functions.items():
            parameters = list(inspect.signature(getattr(kind, function)).parameters.values())[1:]
            assert [p.name for p in parameters[: len(wanted)]] == wanted, (name, function)
            # What follows is ours, and can be left out.
            assert all(p.default is not p.empty for p in parameters[len(wanted) :]), function


def test_the_constructor_of_the_function_index(tmp_path):
    from nixl.hicache import HiCacheNixl

    first, second = tmp_path / "a", tmp_path / "b"
    value = np.arange(64, dtype=np.uint8)
    for connector in (
        HiCacheNixl(file_path=str(first), plugin="auto"),
        HiCacheNixl(str(first), "POSIX"),
        HiCacheNixl(file_path=str(second)),
        HiCacheNixl(second),
    ):
        with connector:
            path = connector.storage_dirs[0]
            assert connector.set(key="k", value=value, target_location=None, target_sizes=None)
            assert connector.batch_set(keys=["l"], values=[value])
            assert pathlib.Path(path, "k").read_bytes() == value.tobytes()
            target = np.zeros_like(value)
            assert connector.batch_get(keys=["l"], target_locations=[target])[0] is target
            assert np.array_equal(target, value)
    assert first.exists() and second.exists()
