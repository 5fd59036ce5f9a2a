"""Exceptions, and how a failed transfer is told."""

from __future__ import annotations

import os
import pickle

import nixl
import pytest
from nixl import errors
from nixl._api import nixl_agent, nixl_agent_config
from nixl_support import finish


def test_every_class_derives_from_the_base_and_carries_its_constant():
    names = {name for name in errors.__all__ if name != "nixlError"}
    assert len(names) == 13
    for name in names:
        kind = getattr(nixl, name)
        assert kind is getattr(errors, name) is getattr(nixl._bindings, name)
        assert issubclass(kind, nixl.nixlError) and issubclass(kind, RuntimeError)
        assert kind.__name__ == name
        error = kind("because")
        assert str(error) == f"{kind.status}: because"
        assert kind.status in {status.name for status in nixl.nixl_status_t}
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error)
    assert issubclass(nixl.nixlTimeoutError, TimeoutError)


def test_an_unknown_name_survives_pickle(agent):
    with pytest.raises(KeyError) as caught:
        agent.get_xfer_descs([(1, 2, 3)], "V-RAM")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is nixl.nixlInvalidParamError and str(again) == str(caught.value)
    assert vars(again) == vars(caught.value)


def test_the_order_of_codes_is_the_bindings():
    for code, kind in enumerate(errors.BY_CODE, 1):
        assert nixl.nixl_status_t(-code).name == kind.status


def test_an_error_names_its_parties(agent):
    with pytest.raises(nixl.nixlNotFoundError) as caught:
        agent.send_notif("nobody", b"x")
    assert "nobody" in str(caught.value)
    assert isinstance(caught.value.descriptor_index, int)
    assert isinstance(caught.value.errno, int)


@pytest.fixture
def bad_write(make_agent, memory, tmp_path):
    """Makes a transfer whose second of three descriptors cannot be written."""

    def make(**options):
        agent = make_agent(backends=("POSIX",), **options)
        piece = memory(3 * 4096)
        agent.register_memory([(piece.address, 3 * 4096, 0)], "DRAM")
        files = []
        for i, flags in enumerate((os.O_RDWR, os.O_RDONLY, os.O_RDWR)):
            path = tmp_path / str(i)
            path.write_bytes(bytes(4096))
            files.append(os.open(path, flags))
        agent.register_memory([(0, 4096, fd, "") for fd in files], "FILE")
        local = agent.get_xfer_descs(
            [(piece.address + i * 4096, 4096, 0) for i in range(3)], "DRAM"
        )
        remote = agent.get_xfer_descs([(0, 4096, fd) for fd in files], "FILE")
        return agent, agent.initialize_xfer("WRITE", local, remote, agent.name)

    return make


def test_a_failed_transfer_raises_its_class_with_the_reason(bad_write):
    agent, handle = bad_write()
    with pytest.raises(nixl.nixlBackendError, match="^NIXL_ERR_BACKEND: ") as caught:
        agent.transfer(handle)
        finish(agent, handle)
    assert "Bad file descriptor" in str(caught.value)
    with pytest.raises(nixl.nixlBackendError):
        handle.wait(10)
    assert type(handle.error) is nixl.nixlBackendError
    assert list(handle.failed) == [1]
    assert handle.failed[1][0] == 9


def test_without_raise_on_error_it_returns_err(bad_write):
    agent, handle = bad_write(raise_on_error=False)
    state = agent.transfer(handle)
    if state == "PROC":
        state = finish(agent, handle)
    assert state == "ERR"
    assert agent.check_xfer_state(handle) == "ERR"
    assert handle.wait(10) == "ERR"
    assert agent.wait_all([handle], 10) == ["ERR"]
    assert type(handle.error) is nixl.nixlBackendError
    assert list(handle.failed) == [1]
    agent.release_xfer_handle(handle)
    with pytest.raises(nixl.nixlInvalidParamError):
        agent.transfer(handle)


def test_a_failing_neighbour_does_not_show(bad_write, make_agent, memory, tmp_path):
    agent, bad = bad_write()
    piece = memory(4096, 7)
    agent.register_memory([(piece.address, 4096, 0)], "DRAM")
    fd = os.open(tmp_path / "good", os.O_RDWR | os.O_CREAT)
    try:
        file = agent.register_memory([(0, 4096, fd, "")], "FILE")
        good = agent.initialize_xfer(
            "WRITE", agent.get_xfer_descs([(piece.address, 4096, 0)], "DRAM"), file, agent.name
        )
        for _ in range(20):
            for handle in (bad, good):
                try:
                    agent.transfer(handle)
                except nixl.nixlBackendError:
                    assert handle is bad
            assert good.wait(10) == "DONE"
            with pytest.raises(nixl.nixlBackendError):
                bad.wait(10)
        with pytest.raises(nixl.nixlBackendError):
            agent.wait_all([good, bad], 10)
        assert good.error is None and good.failed == {}
    finally:
        os.close(fd)


def test_wrong_names_are_value_and_key_errors_as_existing_code_expects():
    with pytest.raises(ValueError, match="1 to 1024 bytes"):
        nixl_agent("")
    agent = nixl_agent("names", nixl_agent_config(backends=[]))
    empty = nixl.nixlXferDList(nixl.DRAM_SEG, [], False)
    with pytest.raises(KeyError, match="neither READ nor WRITE"):
        agent.initialize_xfer("WR", empty, empty, "names")
    with pytest.raises(KeyError, match="V-RAM") as caught:
        agent.get_xfer_descs([(1, 2, 3)], mem_type="V-RAM")
    assert type(caught.value).__name__ == "nixlInvalidParamError"
