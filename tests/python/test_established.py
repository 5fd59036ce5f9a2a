"""What existing clients rely on. Holds for the published package 1.5.1 as well as for ours.

To see that the meaning is right, run this file with an interpreter that has the other package.
"""

from __future__ import annotations

import pickle
import time

import nixl._bindings as nixlBind
import nixl._utils as nixl_utils
import pytest
from nixl._api import nixl_agent, nixl_agent_config, nixl_prepped_dlist_handle, nixl_xfer_handle
from nixl_support import Pair, finish

np = pytest.importorskip("numpy")


def entries(descs):
    return [descs[i] for i in range(descs.descCount())]


def wait_notifs(agent, name, count, seconds=10):
    got = []
    end = time.monotonic() + seconds
    while len(got) < count and time.monotonic() < end:
        got += agent.get_new_notifs().get(name, [])
    return got


def test_config_attributes_and_positional_arguments():
    config = nixl_agent_config()
    assert config.backends == ["UCX"]
    assert config.enable_pthread is True
    assert config.enable_listen is False
    assert config.port == 8888
    assert config.capture_telemetry is False
    assert config.num_threads == 0
    assert config.sync_mode is None
    config = nixl_agent_config(False, True, 5555, True, 4, ["POSIX"])
    assert (config.enable_pthread, config.enable_listen, config.port) == (False, True, 5555)
    assert (config.capture_telemetry, config.num_threads) == (True, 4)
    assert config.backends == ["POSIX"]
    with pytest.raises(TypeError):
        nixl_agent_config(sync_mode=5)


def test_agent_attributes(agent):
    assert isinstance(agent.agent, nixlBind.nixlAgent)
    assert list(agent.backends) == ["UCX"]
    assert {"UCX", "POSIX"} <= set(agent.plugin_list)
    assert agent.notifs == {}
    assert agent.nixl_ops == {"READ": nixlBind.NIXL_READ, "WRITE": nixlBind.NIXL_WRITE}
    assert agent.nixl_mems == {
        "DRAM": nixlBind.DRAM_SEG,
        "VRAM": nixlBind.VRAM_SEG,
        "FILE": nixlBind.FILE_SEG,
        "BLOCK": nixlBind.BLK_SEG,
        "OBJ": nixlBind.OBJ_SEG,
        "cpu": nixlBind.DRAM_SEG,
        "cuda": nixlBind.VRAM_SEG,
    }


def test_enums_are_numbers_with_names():
    assert [int(m) for m in (nixlBind.DRAM_SEG, nixlBind.VRAM_SEG, nixlBind.BLK_SEG)] == [0, 1, 2]
    assert [int(m) for m in (nixlBind.OBJ_SEG, nixlBind.FILE_SEG)] == [3, 4]
    assert nixlBind.nixl_mem_t(4) == nixlBind.FILE_SEG
    assert nixlBind.DRAM_SEG == 0
    assert nixlBind.DRAM_SEG.name == "DRAM_SEG"
    assert str(nixlBind.DRAM_SEG) == "nixl_mem_t.DRAM_SEG"
    assert {nixlBind.DRAM_SEG: 1}[nixlBind.nixl_mem_t(0)] == 1
    assert int(nixlBind.NIXL_IN_PROG) == 1
    assert int(nixlBind.NIXL_ERR_NOT_SUPPORTED) == -9
    assert nixlBind.NIXL_INIT_AGENT == ""
    assert nixlBind.DEFAULT_COMM_PORT == 8888


def test_plugins_and_backends(make_agent):
    agent = make_agent(backends=())
    assert agent.backends == {}
    assert set(agent.get_plugin_mem_types("POSIX")) >= {"DRAM_SEG", "FILE_SEG"}
    params = agent.get_plugin_params("POSIX")
    assert {"use_uring", "use_aio", "use_posix_aio"} <= set(params)
    assert all(isinstance(value, str) for value in params.values())
    agent.create_backend("POSIX", {"use_aio": "true"})
    assert list(agent.backends) == ["POSIX"]
    assert agent.get_plugin_params("NOPE") == {}
    assert agent.get_plugin_mem_types("NOPE") == []
    with pytest.raises(nixlBind.nixlNotFoundError, match="^NIXL_ERR_NOT_FOUND"):
        agent.create_backend("NOPE")


def test_reg_descs_from_tuples(agent):
    descs = agent.get_reg_descs([(4096, 256, 0, "label"), (8192, 256, 1, b"\0raw")], "DRAM")
    assert isinstance(descs, nixlBind.nixlRegDList)
    assert entries(descs) == [(4096, 256, 0, b"label"), (8192, 256, 1, b"\0raw")]
    assert descs.getType() == nixlBind.DRAM_SEG
    assert agent.get_reg_descs(descs) is descs
    trimmed = descs.trim()
    assert isinstance(trimmed, nixlBind.nixlXferDList)
    assert entries(trimmed) == [(4096, 256, 0), (8192, 256, 1)]


def test_what_does_not_fit_is_none(agent):
    three, four = [(1, 2, 3)], [(1, 2, 3, "label")]
    assert agent.get_xfer_descs(four) is None
    assert agent.get_xfer_descs(four, "DRAM") is None
    assert agent.get_xfer_descs(three) is None
    assert agent.get_reg_descs(three) is None
    assert agent.get_reg_descs(four, mem_type=None) is None
    assert agent.get_xfer_descs(np.zeros((1, 3), np.uint64)) is None
    for call in (agent.get_xfer_descs, agent.get_reg_descs):
        assert call([(1, 2)], "DRAM") is None
    with pytest.raises(KeyError):
        agent.get_xfer_descs(three, "V-RAM")
    assert agent.get_xfer_descs(nixlBind.nixlRegDList(nixlBind.DRAM_SEG)) is None
    assert agent.get_reg_descs(nixlBind.nixlXferDList(nixlBind.DRAM_SEG)) is None


def test_a_tensor_with_gaps_is_none(agent):
    torch = pytest.importorskip("torch")
    turned = torch.arange(8).reshape(2, 4).t()
    for descs in (turned, [torch.zeros(4), turned], torch.zeros(4, 4).to_sparse()):
        assert agent.get_reg_descs(descs) is None
        assert agent.get_xfer_descs(descs) is None


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "object", "bool", "int16"])
def test_a_table_of_another_type_is_an_error(agent, dtype):
    table = np.array([[4096, 256, 0]]).astype(dtype)
    for call in (agent.get_xfer_descs, agent.get_reg_descs, agent.register_memory):
        with pytest.raises(ValueError):
            call(table, "DRAM")
    with pytest.raises(ValueError):
        agent.prep_xfer_dlist("", table, "DRAM")


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_descs_from_arrays(agent, dtype):
    rows = np.array([[4096, 256, 0], [12288, 512, 3]], dtype=dtype)
    assert entries(agent.get_xfer_descs(rows, "VRAM")) == [(4096, 256, 0), (12288, 512, 3)]
    assert entries(agent.get_reg_descs(rows, "cuda")) == [
        (4096, 256, 0, b""),
        (12288, 512, 3, b""),
    ]


def test_addresses_may_have_bit_63_set(agent):
    high = (1 << 63) + 4096
    assert entries(agent.get_xfer_descs([(high, 1, 0)], "VRAM")) == [(high, 1, 0)]
    rows = np.array([[high, 1, 0]], dtype=np.uint64)
    assert entries(agent.get_xfer_descs(rows, "VRAM")) == [(high, 1, 0)]


def test_lists(agent):
    descs = agent.get_xfer_descs([(1, 2, 3), (4, 5, 6)], "DRAM")
    assert descs
    assert descs.index((4, 5, 6)) == 1
    with pytest.raises(nixlBind.nixlNotFoundError):
        descs.index((7, 8, 9))
    descs.addDesc((7, 8, 9))
    descs.append((10, 11, 12))
    descs[0] = (0, 1, 2)
    descs.remDesc(1)
    assert entries(descs) == [(0, 1, 2), (7, 8, 9), (10, 11, 12)]
    assert descs == agent.get_xfer_descs([(0, 1, 2), (7, 8, 9), (10, 11, 12)], "DRAM")
    assert descs != agent.get_xfer_descs([(0, 1, 2), (7, 8, 9), (10, 11, 12)], "VRAM")
    assert descs != 5
    descs.print()
    descs.clear()
    assert descs.isEmpty() and descs.descCount() == 0 and bool(descs)
    with pytest.raises(TypeError):
        hash(descs)


def test_lists_by_constructor():
    assert nixlBind.nixlXferDList(nixlBind.DRAM_SEG, 3).descCount() == 3
    made = nixlBind.nixlXferDList(type=nixlBind.DRAM_SEG, descs=[(1, 2, 3)])
    assert made[0] == (1, 2, 3)
    assert nixlBind.nixlRegDList(nixlBind.FILE_SEG, [(0, 1, 2, "x")])[0] == (0, 1, 2, b"x")
    remote = nixlBind.nixlRemoteDList(nixlBind.DRAM_SEG, [(1, 2, 3, "peer")])
    assert remote[0] == (1, 2, 3, "peer")


def test_lists_survive_serialising_and_pickle(agent):
    for descs in (
        agent.get_xfer_descs([(1, 2, 3), (4, 5, 6)], "VRAM"),
        agent.get_reg_descs([(1, 2, 3, "a"), (4, 5, 6, b"\0")], "FILE"),
    ):
        data = agent.get_serialized_descs(descs)
        assert isinstance(data, bytes)
        again = agent.deserialize_descs(data)
        assert type(again) is type(descs) and again == descs
        assert pickle.loads(pickle.dumps(descs)) == descs


def test_register_returns_the_list(agent, memory):
    piece = memory(4096)
    descs = agent.get_reg_descs([(piece.address, 4096, 0, "")], "DRAM")
    assert agent.register_memory(descs) is descs
    agent.deregister_memory(descs)
    with pytest.raises(nixlBind.nixlNotFoundError):
        agent.deregister_memory(descs)


def test_registering_nothing(agent, memory):
    piece = memory(64)
    for entry in ((piece.address, 0, 0, ""), (0, 0, 0, "")):
        descs = agent.register_memory([entry], "DRAM")
        assert entries(descs) == [(*entry[:3], b"")]
        agent.deregister_memory(descs)


def test_unknown_backends_are_passed_over(make_agent):
    agent = make_agent(backends=("NOPE",))
    assert agent.backends == {}
    agent.create_backend("UCX")
    assert list(agent.backends) == ["UCX"]


def test_figures_are_refused_where_the_environment_says_no(monkeypatch, make_agent, memory):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", "no")
    pair = Pair(make_agent, memory, capture_telemetry=True)
    handle = pair.write((0, 64))
    pair.near.transfer(handle)
    assert finish(pair.near, handle) == "DONE"
    with pytest.raises(nixlBind.nixlNoTelemetryError):
        pair.near.get_xfer_telemetry(handle)


def test_write_read_and_notification(pair):
    pair.near_memory.set(b"hello", 100)
    handle = pair.write((96, 256), notif=b"\0id\0")
    assert isinstance(handle, nixl_xfer_handle) and handle
    with pytest.raises(nixlBind.nixlNotPostedError):
        pair.near.check_xfer_state(handle)
    assert pair.near.transfer(handle) in ("DONE", "PROC")
    assert finish(pair.near, handle) == "DONE"
    assert wait_notifs(pair.far, pair.near.name, 1) == [b"\0id\0"]
    assert pair.far_memory.get(100, 5) == b"hello"
    assert pair.near.query_xfer_backend(handle) == "UCX"

    pair.far_memory.set(b"world", 100)
    back = pair.write((96, 256), operation="READ")
    pair.near.transfer(back)
    assert finish(pair.near, back) == "DONE"
    assert pair.near_memory.get(100, 5) == b"world"
    pair.near.release_xfer_handle(back)
    pair.near.release_xfer_handle(handle)


def test_reposting_with_another_notification(pair):
    handle = pair.write((0, 64), notif=b"first")
    for message in (b"", b"second", b"third"):
        pair.near.transfer(handle, message)
        assert finish(pair.near, handle) == "DONE"
    # The last one given stays the transfer's.
    pair.near.transfer(handle)
    assert finish(pair.near, handle) == "DONE"
    got = wait_notifs(pair.far, pair.near.name, 4)
    assert got == [b"first", b"second", b"third", b"third"]


def test_prepared_sides(pair):
    step = 256
    local = [(pair.near_memory.address + i * step, step, 0) for i in range(16)]
    remote = np.array(
        [[pair.far_memory.address + i * step, step, 0] for i in range(16)], dtype=np.uint64
    )
    near_side = pair.near.prep_xfer_dlist("NIXL_INIT_AGENT", local, "DRAM")
    far_side = pair.near.prep_xfer_dlist(pair.far.name, remote, "DRAM")
    assert isinstance(near_side, nixl_prepped_dlist_handle) and near_side
    for i in range(16):
        pair.near_memory.set(bytes([i]) * step, i * step)
    handle = pair.near.make_prepped_xfer(
        "WRITE", near_side, [0, 1, 5], far_side, np.array([5, 1, 0], dtype=np.int32), b"done"
    )
    pair.near.transfer(handle)
    assert finish(pair.near, handle) == "DONE"
    assert wait_notifs(pair.far, pair.near.name, 1) == [b"done"]
    assert pair.far_memory.get(5 * step, step) == bytes([0]) * step
    assert pair.far_memory.get(1 * step, step) == bytes([1]) * step
    assert pair.far_memory.get(0, step) == bytes([5]) * step
    assert pair.far_memory.get(2 * step, step) == b"\x22" * step
    pair.near.release_xfer_handle(handle)
    pair.near.release_dlist_handle(near_side)
    pair.near.release_dlist_handle(near_side)


def test_strided_rows_count_their_runs_in_order(pair):
    base = pair.far_memory.address
    rows = np.array([[base, 64, 0, 128, 4], [base + 4096, 64, 0, 64, 2]], dtype=np.uint64)
    far_side = pair.near.prep_xfer_dlist(pair.far.name, rows, "DRAM")
    local = [(pair.near_memory.address + i * 64, 64, 0) for i in range(6)]
    near_side = pair.near.prep_xfer_dlist("", local, "DRAM")
    for i in range(6):
        pair.near_memory.set(bytes([i + 1]) * 64, i * 64)
    indices = list(range(6))
    handle = pair.near.make_prepped_xfer("WRITE", near_side, indices, far_side, indices)
    pair.near.transfer(handle)
    assert finish(pair.near, handle) == "DONE"
    for i, at in enumerate((0, 128, 256, 384, 4096, 4160)):
        assert pair.far_memory.get(at, 64) == bytes([i + 1]) * 64
    assert pair.far_memory.get(64, 64) == b"\x22" * 64


def test_wrong_indices(pair):
    local = pair.near.prep_xfer_dlist("", [(pair.near_memory.address, 64, 0)], "DRAM")
    remote = pair.near.prep_xfer_dlist(pair.far.name, [(pair.far_memory.address, 64, 0)], "DRAM")
    for left, right in (([0, 0], [0]), ([1], [0]), ([0], [7]), ([], [])):
        with pytest.raises(nixlBind.nixlInvalidParamError, match="^NIXL_ERR_INVALID_PARAM"):
            pair.near.make_prepped_xfer("READ", local, left, remote, right)


def test_wrong_transfers(pair):
    local, remote = pair.descs((0, 64))
    with pytest.raises(nixlBind.nixlNotFoundError, match="^NIXL_ERR_NOT_FOUND"):
        pair.near.initialize_xfer("WRITE", local, remote, "nobody")
    shorter = pair.near.get_xfer_descs([(pair.far_memory.address, 32, 0)], "DRAM")
    with pytest.raises(nixlBind.nixlInvalidParamError):
        pair.near.initialize_xfer("WRITE", local, shorter, pair.far.name)
    elsewhere = pair.near.get_xfer_descs([(pair.far_memory.address + (1 << 40), 64, 0)], "DRAM")
    with pytest.raises(nixlBind.nixlNotFoundError):
        pair.near.initialize_xfer("WRITE", local, elsewhere, pair.far.name)


def test_metadata(make_agent, memory):
    first, second = make_agent(), make_agent()
    piece = memory(4096)
    regs = first.register_memory([(piece.address, 4096, 0, "")], "DRAM")
    metadata = first.get_agent_metadata()
    assert isinstance(metadata, bytes)
    assert not second.check_remote_metadata(first.name)
    assert second.add_remote_agent(metadata) == first.name.encode()
    assert second.add_remote_agent(metadata) == first.name.encode()
    assert second.check_remote_metadata(first.name)
    assert second.check_remote_metadata(agent=first.name, descs=regs.trim())
    assert isinstance(first.get_partial_agent_metadata(regs, True, ["UCX"]), bytes)
    with pytest.raises(nixlBind.nixlNotFoundError):
        second.make_connection("nobody")
    second.make_connection(remote_agent=first.name)
    second.remove_remote_agent(agent=first.name)
    assert not second.check_remote_metadata(first.name)
    with pytest.raises(Exception, match="NIXL_ERR"):
        second.add_remote_agent(b"these bytes are no metadata")


def test_notification_lookup(pair):
    name = pair.near.name
    for message in (b"tag1", b"xtag1", b"tag1", b"\0z"):
        pair.near.send_notif(pair.far.name, message)
    end = time.monotonic() + 10
    while sum(map(len, pair.far.notifs.values())) < 4 and time.monotonic() < end:
        assert pair.far.update_notifs() is pair.far.notifs
    found = pair.far.check_remote_xfer_done
    assert found(name, b"tag1") and pair.far.notifs == {name: [b"xtag1", b"tag1", b"\0z"]}
    assert found(name, b"tag1") and pair.far.notifs == {name: [b"xtag1", b"\0z"]}
    assert not found(name, b"tag1")
    assert found(name, b"tag1", [], False) and pair.far.notifs == {name: [b"\0z"]}
    assert found(remote_agent_name=name, lookup_tag=b"\0") and pair.far.notifs == {name: []}
    assert not found("nobody", b"tag")
    assert pair.far.get_new_notifs() == {}


def test_memory_helpers(memory):
    left, right = memory(64), memory(64)
    nixl_utils.ba_buf(left.address, 64)
    assert left.get() == b"\xba" * 64
    nixl_utils.ba_buf(right.address, 64)
    nixl_utils.verify_transfer(left.address, right.address, 64)


def test_query_files(make_agent, tmp_path):
    agent = make_agent(backends=("POSIX",))
    path = tmp_path / "there"
    path.write_bytes(b"12345")
    found = agent.query_memory(
        [(0, 0, 0, str(tmp_path / "absent")), (0, 0, 0, str(path))], "POSIX", "FILE"
    )
    assert found[0] is None
    assert found[1]["size"] == "5"
    assert int(found[1]["mtime"]) > 1_000_000_000


def test_file_transfer(make_agent, memory, tmp_path):
    import os

    agent = make_agent(backends=("POSIX",))
    piece = memory(8192)
    piece.set(os.urandom(8192))
    agent.register_memory([(piece.address, 8192, 0, "")], "DRAM")
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    try:
        file = agent.register_memory([(0, 8192, fd, "label")], "FILE")
        local = agent.get_xfer_descs([(piece.address, 8192, 0)], "DRAM")
        handle = agent.initialize_xfer("WRITE", local, file.trim(), agent.name)
        agent.transfer(handle)
        assert finish(agent, handle) == "DONE"
        assert (tmp_path / "data").read_bytes() == piece.get()
        agent.release_xfer_handle(handle)
        agent.deregister_memory(file)
    finally:
        os.close(fd)


def test_raw_agent_takes_the_place_of_an_agents_own(make_agent, memory):
    """SGLang's HiCache does this."""
    agent = make_agent(backends=())
    raw = nixlBind.nixlAgent(agent.name, nixlBind.nixlAgentConfig())
    agent.agent = raw
    agent.plugin_list = raw.getAvailPlugins()
    agent.create_backend("POSIX", {})
    assert "POSIX" in agent.backends
    piece = memory(4096)
    descs = agent.register_memory([(piece.address, 4096, 0, "")], "DRAM", ["POSIX"])
    agent.deregister_memory(descs, backends=["POSIX"])


def test_agents_may_share_a_name():
    first = nixl_agent("twin", nixl_agent_config(backends=[]))
    second = nixl_agent("twin", nixl_agent_config(backends=[]))
    assert first.name == second.name == "twin"
