"""Transfers inside a process: states, waiting, errors, handles."""

from __future__ import annotations

import gc
import time

import nixl
import pytest
from nixl.errors import (
    nixlError,
    nixlInvalidParamError,
    nixlNotFoundError,
    nixlNotPostedError,
    nixlTimeoutError,
)
from nixl_support import Pair, finish

np = pytest.importorskip("numpy")


def test_wait_and_states(pair):
    handle = pair.write((0, 4096))
    with pytest.raises(nixlNotPostedError, match="^NIXL_ERR_NOT_POSTED"):
        pair.near.check_xfer_state(handle)
    with pytest.raises(nixlNotPostedError):
        handle.wait(1)
    pair.near.transfer(handle)
    assert handle.wait(10) == "DONE"
    assert handle.wait() == "DONE"
    assert handle.wait(timeout=0) == "DONE"
    assert pair.near.check_xfer_state(handle) == "DONE"
    assert handle.error is None
    assert handle.failed == {}
    assert pair.far_memory.get(0, 4096) == b"\x11" * 4096


def test_many_sizes_and_offsets(pair):
    rng = np.random.default_rng(3)
    content = rng.bytes(pair.size)
    pair.near_memory.set(content)
    for size in (1, 7, 64, 255, 4096, 4097, 65536):
        at = 0 if size == pair.size else int(rng.integers(pair.size - size))
        pair.far_memory.set(b"\0" * pair.size)
        handle = pair.write((at, size))
        pair.near.transfer(handle)
        assert handle.wait(10) == "DONE"
        expected = b"\0" * at + content[at : at + size] + b"\0" * (pair.size - at - size)
        assert pair.far_memory.get() == expected


def test_a_large_transfer_goes_on_behind(make_agent, memory):
    pair = Pair(make_agent, memory, size=64 << 20)
    handle = pair.write((0, 64 << 20), notif=b"big")
    pair.near.transfer(handle)
    assert handle.wait(30) == "DONE"
    nixl.verify_transfer(pair.near_memory.address, pair.far_memory.address, 64 << 20)
    assert pair.far.wait_notifs(b"big", timeout=10) == [(pair.near.name, b"big")]


def test_wait_any_and_all(pair):
    handles = [pair.write((i * 64, 64)) for i in range(10)]
    with pytest.raises(nixlNotPostedError):
        pair.near.wait_all(handles, 1)
    for handle in handles:
        pair.near.transfer(handle)
    assert pair.near.wait_any(handles, timeout=10) in handles
    assert pair.near.wait_all(handles, timeout=10) == ["DONE"] * 10
    with pytest.raises(nixlInvalidParamError, match="no handles"):
        pair.near.wait_any([])


def test_telemetry_is_always_there(pair):
    handle = pair.write((0, 1000), (2000, 500))
    with pytest.raises(nixl.nixlNotPostedError, match="^NIXL_ERR_NOT_POSTED"):
        pair.near.get_xfer_telemetry(handle)
    before = time.time()
    pair.near.transfer(handle)
    handle.wait(10)
    figures = pair.near.get_xfer_telemetry(handle)
    assert figures.totalBytes == 1500
    assert figures.descCount == 2
    assert before - 1 < figures.startTime / 1e6 < time.time() + 1
    assert 0 <= figures.postDuration <= 1e6 and 0 <= figures.xferDuration <= 1e7


@pytest.mark.parametrize("word", ["no", "n", "0", "off", "false", "disable", "NO", "False"])
def test_telemetry_can_be_turned_off(pair, make_agent, memory, monkeypatch, word):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", word)
    silent = Pair(make_agent, memory, capture_telemetry=True)
    handle = silent.write((0, 64))
    for _ in range(2):
        with pytest.raises(nixl.nixlNoTelemetryError, match="NIXL_TELEMETRY_ENABLE turned the"):
            silent.near.get_xfer_telemetry(handle)
        silent.near.transfer(handle)
        handle.wait(10)
    with silent.near.trace() as trace:
        silent.near.transfer(handle)
        handle.wait(10)
    assert trace.events[0]["state"] == "DONE"
    # It is read when an agent is created: this one was before.
    told = pair.write((0, 64))
    pair.near.transfer(told)
    told.wait(10)
    assert pair.near.get_xfer_telemetry(told).totalBytes == 64


@pytest.mark.parametrize("word", ["yes", "Y", "1", "on", "true", "enable", ""])
def test_telemetry_stays_on(pair, make_agent, memory, monkeypatch, word):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", word)
    loud = Pair(make_agent, memory)
    handle = loud.write((0, 64))
    loud.near.transfer(handle)
    handle.wait(10)
    assert loud.near.get_xfer_telemetry(handle).postDuration > 0


def test_telemetry_by_another_word_is_an_error(make_agent, monkeypatch):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", "perhaps")
    with pytest.raises(nixlInvalidParamError, match='NIXL_TELEMETRY_ENABLE="perhaps" must be one'):
        make_agent()


def test_explain_and_cost(pair):
    handle = pair.write((0, 64), (64, 64), (1024, 64))
    told = pair.near.explain(handle)
    assert told["backend"] == "UCX"
    assert told["lane"] == "local"
    assert told["reason"]
    assert (told["descriptors"], told["segments"], told["bytes"]) == (3, 2, 192)
    duration, margin, method = pair.near.estimate_xfer_cost(handle)
    assert duration >= 0 and margin >= 0 and isinstance(method, str)
    assert pair.near.query_xfer_backend(handle) == "UCX"


def test_skip_desc_merge(pair):
    descs = [(pair.near_memory.address + i * 64, 64, 0) for i in range(8)]
    far = [(pair.far_memory.address + i * 64, 64, 0) for i in range(8)]
    left = pair.near.prep_xfer_dlist("", descs, "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, far, "DRAM")
    order = list(range(8))
    merged = pair.near.make_prepped_xfer("WRITE", left, order, right, order)
    single = pair.near.make_prepped_xfer("WRITE", left, order, right, order, skip_desc_merge=True)
    assert pair.near.explain(merged)["segments"] == 1
    assert pair.near.explain(single)["segments"] == 8


@pytest.mark.parametrize("kind", ["list", "tuple", "int32", "int64", "uint16", "strided", "masked"])
def test_indices_of_every_kind(pair, kind):
    descs = [(pair.near_memory.address + i * 64, 64, 0) for i in range(64)]
    far = [(pair.far_memory.address + i * 64, 64, 0) for i in range(64)]
    left = pair.near.prep_xfer_dlist("", descs, "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, far, "DRAM")
    order = np.arange(64, dtype=np.int32)
    wanted = order[order % 3 == 0]
    indices = {
        "list": wanted.tolist(),
        "tuple": tuple(wanted.tolist()),
        "int32": wanted,
        "int64": wanted.astype(np.int64),
        "uint16": wanted.astype(np.uint16),
        "strided": np.arange(128)[::6][:22],
        "masked": order[order % 3 == 0],
    }[kind]
    if kind == "strided":
        indices = indices // 2
    handle = pair.near.make_prepped_xfer("WRITE", left, indices, right, wanted.tolist())
    pair.near.transfer(handle)
    assert handle.wait(10) == "DONE"
    for i in range(64):
        assert pair.far_memory.get(i * 64, 64) == (b"\x22", b"\x11")[i % 3 == 0] * 64


class Subclass(np.ndarray):
    """What reads an ndarray's own fields need not know this."""


WANTED = [5, 2, 60]
PADDED = np.array([-1, 60, -1, 2, -1, 5, -1])


@pytest.mark.parametrize("side", ["local", "remote"])
@pytest.mark.parametrize(
    "indices",
    [
        *(np.array(WANTED, dtype=kind) for kind in ("i4", "i8", "u1", "u8", ">i4", ">i8")),
        PADDED[-2::-2],
        PADDED.astype(np.int32)[-2::-2],
        np.array(WANTED).view(Subclass),
        np.frombuffer(b"\0" + np.array(WANTED, "i4").tobytes(), "i4", offset=1),  # odd address
        np.array([*WANTED, *range(10, 30)])[:3],
        np.array([*WANTED, *range(10, 30)]),
    ],
    ids=lambda indices: f"{type(indices).__name__}-{indices.dtype.str}-{indices.strides[0]}",
)
def test_few_indices_in_arrays_of_every_layout(pair, indices, side):
    descs = [(pair.near_memory.address + i * 64, 64, 0) for i in range(64)]
    far = [(pair.far_memory.address + i * 64, 64, 0) for i in range(64)]
    left = pair.near.prep_xfer_dlist("", descs, "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, far, "DRAM")
    moved = list(range(len(indices)))
    pairs = (indices, moved) if side == "local" else (moved, indices)
    handle = pair.near.make_prepped_xfer("READ", left, pairs[0], right, pairs[1])
    pair.far_memory.set(bytes(100 + i // 64 for i in range(64 * 64)))
    pair.near.transfer(handle)
    assert handle.wait(10) == "DONE"
    expected = {int(here): 100 + int(there) for here, there in zip(*pairs, strict=True)}
    for block, value in expected.items():
        assert pair.near_memory.get(block * 64, 64) == bytes([value]) * 64


def test_no_indices_at_all_in_an_array(pair):
    left = pair.near.prep_xfer_dlist("", [(pair.near_memory.address, 64, 0)], "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, [(pair.far_memory.address, 64, 0)], "DRAM")
    for kind in ("i4", "i8"):
        none = np.array([], dtype=kind)
        with pytest.raises(nixlInvalidParamError, match="no indices"):
            pair.near.make_prepped_xfer("READ", left, none, right, none)


@pytest.mark.parametrize(
    ("indices", "error", "text"),
    [
        ([0.5], TypeError, "local index 0: expected an integer, not float"),
        ([1 << 70], nixlInvalidParamError, "local index 0: does not fit"),
        (np.array([0.5]), nixlInvalidParamError, "local indices: the array must hold integers"),
        (np.array([True]), nixlInvalidParamError, "of a mask, give the indices"),
        (np.zeros((1, 1), int), nixlInvalidParamError, "must have one dimension"),
        (None, TypeError, "local indices: expected a list"),
        ("0", TypeError, "local indices: expected a list"),
        ([-1], nixlInvalidParamError, "-1"),
        (np.array([-1]), nixlInvalidParamError, "-1"),
        ([1], nixlInvalidParamError, "1"),
    ],
)
def test_bad_indices_are_named(pair, indices, error, text):
    left = pair.near.prep_xfer_dlist("", [(pair.near_memory.address, 64, 0)], "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, [(pair.far_memory.address, 64, 0)], "DRAM")
    with pytest.raises(error, match=text):
        pair.near.make_prepped_xfer("WRITE", left, indices, right, [0])


def test_the_own_name_is_a_loopback(agent, memory):
    source, target = memory(256, 1), memory(256, 2)
    agent.register_memory([(source.address, 256, 0), (target.address, 256, 0)], "DRAM")
    local = agent.get_xfer_descs([(source.address, 256, 0)], "DRAM")
    remote = agent.get_xfer_descs([(target.address, 256, 0)], "DRAM")
    for name in (agent.name, agent.name.encode()):
        target.set(bytes(256))
        handle = agent.initialize_xfer("WRITE", local, remote, name, b"to myself")
        agent.transfer(handle)
        assert handle.wait(10) == "DONE"
        assert target.get() == b"\1" * 256
        assert agent.wait_notifs(b"to myself", timeout=10) == [(agent.name, b"to myself")]


def test_one_descriptor_is_split_to_match_many(pair):
    many = pair.near.get_xfer_descs(
        [(pair.near_memory.address + i * 1024, 100 + i, 0) for i in range(5)], "DRAM"
    )
    one = pair.near.get_xfer_descs([(pair.far_memory.address, 510, 0)], "DRAM")
    for i in range(5):
        pair.near_memory.set(bytes([i]) * (100 + i), i * 1024)
    handle = pair.near.initialize_xfer("WRITE", many, one, pair.far.name)
    pair.near.transfer(handle)
    assert handle.wait(10) == "DONE"
    assert pair.far_memory.get(0, 510) == b"".join(bytes([i]) * (100 + i) for i in range(5))
    wrong = pair.near.get_xfer_descs([(pair.far_memory.address, 511, 0)], "DRAM")
    with pytest.raises(nixlError, match="51[01]"):
        pair.near.initialize_xfer("WRITE", many, wrong, pair.far.name)


def test_arrays_and_registrations_may_stand_for_descriptors(make_agent):
    near, far = make_agent(), make_agent()
    source, target = np.arange(100.0), np.zeros(100)
    near.register_memory([source])
    registered = far.register_memory(target)
    near.add_remote_agent(far.get_agent_metadata())
    handle = near.initialize_xfer("WRITE", [source], registered, far.name)
    near.transfer(handle)
    assert handle.wait(10) == "DONE"
    assert (source == target).all()


def test_released_and_foreign_handles(pair):
    handle = pair.write((0, 64))
    pair.near.transfer(handle)
    handle.wait(10)
    with pytest.raises(nixlInvalidParamError, match=f"belongs to agent .*{pair.near.name}"):
        pair.far.transfer(handle)
    with pytest.raises(nixlInvalidParamError, match="belongs to agent"):
        pair.far.release_xfer_handle(handle)
    pair.near.release_xfer_handle(handle)
    pair.near.release_xfer_handle(handle)
    handle.release()
    assert "released=True" in repr(handle)
    for call in (
        pair.near.transfer,
        pair.near.check_xfer_state,
        pair.near.get_xfer_telemetry,
        pair.near.explain,
        pair.near.query_xfer_backend,
        lambda h: h.wait(1),
        lambda h: h.cancel(),
        lambda h: h.error,
        lambda h: h.failed,
    ):
        with pytest.raises(nixlInvalidParamError, match="released"):
            call(handle)
    for wrong in (None, 5, "handle"):
        with pytest.raises(TypeError):
            pair.near.transfer(wrong)


def test_released_prepared_sides(pair):
    left = pair.near.prep_xfer_dlist("", [(pair.near_memory.address, 64, 0)], "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, [(pair.far_memory.address, 64, 0)], "DRAM")
    handle = pair.near.make_prepped_xfer("WRITE", left, [0], right, [0])
    pair.near.release_dlist_handle(left)
    pair.near.release_dlist_handle(right)
    pair.near.transfer(handle)
    assert handle.wait(10) == "DONE"
    with pytest.raises(nixlInvalidParamError, match="released"):
        pair.near.make_prepped_xfer("WRITE", left, [0], right, [0])
    other = pair.far.prep_xfer_dlist("", [(pair.far_memory.address, 64, 0)], "DRAM")
    with pytest.raises(nixlInvalidParamError, match="belongs to agent"):
        pair.near.make_prepped_xfer("WRITE", other, [0], other, [0])


def test_both_prepared_sides_in_the_wrong_places(pair):
    left = pair.near.prep_xfer_dlist("", [(pair.near_memory.address, 64, 0)], "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, [(pair.far_memory.address, 64, 0)], "DRAM")
    with pytest.raises(nixlError):
        pair.near.make_prepped_xfer("WRITE", right, [0], left, [0])


def test_unregistered_ranges_are_named(pair):
    local, remote = pair.descs((0, 64))
    past = pair.near.get_xfer_descs(
        [(pair.near_memory.address, 64, 0), (pair.near_memory.address + pair.size - 1, 64, 0)],
        "DRAM",
    )
    far = pair.near.get_xfer_descs(
        [(pair.far_memory.address, 64, 0), (pair.far_memory.address + 64, 64, 0)], "DRAM"
    )
    with pytest.raises(nixlNotFoundError, match=r"descriptor 1\b"):
        pair.near.initialize_xfer("WRITE", past, far, pair.far.name)
    overflow = pair.near.get_xfer_descs([((1 << 64) - 10, 64, 0)], "DRAM")
    with pytest.raises(nixlError, match=r"descriptor 0\b"):
        pair.near.initialize_xfer("WRITE", overflow, remote, pair.far.name)
    with pytest.raises(nixlError):
        pair.near.initialize_xfer(
            "WRITE", local, pair.near.get_xfer_descs(list(remote), "VRAM"), pair.far.name
        )


def test_operations(pair):
    local, remote = pair.descs((0, 64))
    assert pair.near.initialize_xfer("write", local, remote, pair.far.name)
    assert pair.near.initialize_xfer(nixl.NIXL_READ, local, remote, pair.far.name)
    with pytest.raises(nixlInvalidParamError, match="operation 'COPY' is neither READ nor WRITE"):
        pair.near.initialize_xfer("COPY", local, remote, pair.far.name)
    with pytest.raises(TypeError, match="operation must be a str"):
        pair.near.initialize_xfer(1.5, local, remote, pair.far.name)


def test_backend_hints(pair):
    local, remote = pair.descs((0, 64))
    assert pair.near.initialize_xfer("WRITE", local, remote, pair.far.name, backends=["UCX"])
    with pytest.raises(nixlNotFoundError, match="NOPE"):
        pair.near.initialize_xfer("WRITE", local, remote, pair.far.name, backends=["NOPE"])
    with pytest.raises(TypeError, match="not one name"):
        pair.near.initialize_xfer("WRITE", local, remote, pair.far.name, backends="UCX")


def test_all_arguments_by_keyword(pair):
    agent = pair.near
    regs = agent.get_reg_descs(descs=[(pair.near_memory.address, 64, 0, "")], mem_type="DRAM")
    agent.register_memory(reg_list=regs, mem_type="DRAM", backends=["UCX"])
    local = agent.get_xfer_descs(descs=[(pair.near_memory.address, 64, 0)], mem_type="DRAM")
    remote = agent.get_xfer_descs(descs=[(pair.far_memory.address, 64, 0)], mem_type="DRAM")
    handle = agent.initialize_xfer(
        operation="WRITE",
        local_descs=local,
        remote_descs=remote,
        remote_agent=pair.far.name,
        notif_msg=b"",
        backends=[],
    )
    agent.transfer(handle=handle, notif_msg=b"")
    assert finish(agent, handle) == "DONE"
    left = agent.prep_xfer_dlist(agent_name="", xfer_list=local, mem_type="DRAM", backends=[])
    right = agent.prep_xfer_dlist(agent_name=pair.far.name, xfer_list=remote)
    made = agent.make_prepped_xfer(
        operation="READ",
        local_xfer_side=left,
        local_indices=[0],
        remote_xfer_side=right,
        remote_indices=[0],
        notif_msg=b"",
        backends=[],
        skip_desc_merge=False,
    )
    agent.transfer(made)
    agent.check_xfer_state(handle=made)
    agent.release_xfer_handle(handle=made)
    agent.release_dlist_handle(handle=left)
    agent.deregister_memory(dereg_list=regs, backends=["UCX"])


def test_handles_release_themselves(pair):
    local, remote = pair.descs((0, 64))

    def held() -> int:
        return pair.near.stats()["prepared"]

    for _ in range(2000):
        handle = pair.near.initialize_xfer("WRITE", local, remote, pair.far.name)
        pair.near.transfer(handle)
    handle.wait(10)
    del handle
    gc.collect()
    assert held() <= 1


def test_timeout_names_the_transfer(pair):
    assert issubclass(nixlTimeoutError, TimeoutError)
    handle = pair.write((0, 64))
    pair.near.transfer(handle)
    handle.wait(10)
    for wrong in (-1, float("nan")):
        with pytest.raises(nixlInvalidParamError, match="timeout"):
            handle.wait(wrong)
    with pytest.raises(TypeError):
        handle.wait("soon")


def test_one_prepared_side_with_many_others(make_agent, memory):
    """The last pair of sides is remembered: never for another pair, nor past its end."""
    near, first, second = (make_agent(name) for name in ("near", "first", "second"))
    source, targets = memory(128, 1), [memory(128, 2), memory(128, 3)]
    near.register_memory([(source.address, 128, 0)], "DRAM")
    left = near.prep_xfer_dlist("", [(source.address + i * 64, 64, 0) for i in (0, 1)], "DRAM")

    def side(agent, target):
        return near.prep_xfer_dlist(
            agent.name, [(target.address + i * 64, 64, 0) for i in (0, 1)], "DRAM"
        )

    def write(right, index):
        source.set(bytes([index + 10]) * 64, index * 64)
        handle = near.make_prepped_xfer("WRITE", left, [index], right, [1 - index])
        near.transfer(handle)
        assert handle.wait(10) == "DONE"

    for agent, target in zip((first, second), targets, strict=True):
        agent.register_memory([(target.address, 128, 0)], "DRAM")
        near.add_remote_agent(agent.get_agent_metadata())
    sides = [side(first, targets[0]), side(second, targets[1])]
    for which, index in ((0, 0), (0, 1), (1, 0), (0, 0), (1, 1), (1, 1)):
        before = [target.get() for target in targets]
        write(sides[which], index)
        want = bytearray(before[which])
        want[(1 - index) * 64 : (2 - index) * 64] = bytes([index + 10]) * 64
        assert targets[which].get() == want
        assert targets[1 - which].get() == before[1 - which]
    # Out of range stays an error with the pair remembered, and a peer that went is gone.
    with pytest.raises(nixlInvalidParamError, match="2"):
        near.make_prepped_xfer("WRITE", left, [0], sides[1], [2])
    sides[1].release()
    with pytest.raises(nixlInvalidParamError, match="released"):
        write(sides[1], 0)
    sides[1] = side(second, targets[1])
    write(sides[1], 0)
    near.remove_remote_agent(second.name)
    with pytest.raises(nixlNotFoundError, match="removed"):
        write(sides[1], 0)
    write(sides[0], 0)
    with pytest.raises(nixlNotFoundError, match="POSIX"):
        near.make_prepped_xfer("WRITE", left, [0], sides[0], [0], backends=["POSIX"])
