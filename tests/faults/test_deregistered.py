"""Memory goes away under a transfer: deregistered at the target, or truncated by its owner."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, eventually, open_descriptors, outcome, pattern, posted  # noqa: E402

SIZE = 8 * MIB
OTHER = 0xEE  # even: no pattern has it
SEED = 2
DEREGISTER = f"(agent.deregister_memory(registered), array.fill({OTHER}))"


@pytest.fixture
def met(make_near, make_far, transport):
    near, far = make_near(SIZE, transport), make_far(SIZE, transport)
    near.add_metadata_of(far)
    near.works_with(far)
    return near, far


def again(near, far) -> None:
    """The target registers anew, and all is well."""
    far("registered = agent.register_memory(array)")
    near.add_metadata_of(far, far("agent.get_agent_metadata()"))
    near.works_with(far)


def test_in_the_middle_of_a_write(met, companion):
    """An error here; there, the first byte that the owner writes after deregistering stays."""
    near, far = met
    others = companion(near)
    for exponent in range(12):
        near.array[:] = pattern(SIZE, SEED)
        far("array[:] = 0; finished = threading.Event()")
        far(f"when_touched(array, lambda: ({DEREGISTER}, finished.set()))")
        handle = near.prepare("WRITE", far, [(0, 0, SIZE)] * (8 << exponent), b"never")
        result = posted(near, handle)
        far("finished.wait(60)")
        if result == "DONE":  # faster than the one who watches
            far("agent.get_new_notifs()")
            assert far(f"bool((array == {OTHER}).all())")
            again(near, far)
            continue
        assert result == "nixlNotFoundError", (result, handle.error)
        assert far.name in str(handle.error) and handle.failed
        assert posted(near, handle) == "nixlNotFoundError"  # and from now on
        assert far(f"bool((array == {OTHER}).all())")
        assert far("agent.get_new_notifs()") == {}
        others.more()
        again(near, far)
        return
    pytest.fail("no transfer was large enough")


def test_in_the_middle_of_a_read(met, companion):
    """An error, and no byte of what the owner has put there since."""
    near, far = met
    others = companion(near)
    for exponent in range(12):
        near.array[:] = 0
        far.fill(SEED)
        count = 8 << exponent
        handle = near.prepare("READ", far, [(0, 0, SIZE)] * count)
        near.agent.transfer(handle)
        eventually(lambda: near.array[::4096].any())
        far(DEREGISTER)
        result = outcome(handle)
        if result == "DONE":
            assert (near.array == pattern(SIZE, SEED)).all()
            again(near, far)
            continue
        assert result == "nixlNotFoundError", (result, handle.error)
        assert far.name in str(handle.error) and handle.failed
        assert not (near.array == OTHER).any()
        assert ((near.array == pattern(SIZE, SEED)) | (near.array == 0)).all()
        others.more()
        again(near, far)
        return
    pytest.fail("no transfer was large enough")


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_what_is_named_as_moved_has_been_moved(met, operation):
    """Regions that are deregistered one by one while a transfer goes over all of them."""
    near, far = met
    pieces, piece = 64, SIZE // 64
    for _ in range(5):
        near.array[:] = pattern(SIZE, SEED) if operation == "WRITE" else 0
        far("array[:] = 0") if operation == "WRITE" else far.fill(SEED)
        far("agent.deregister_memory(registered)")
        far(f"""
parts = [array[i * {piece} : (i + 1) * {piece}] for i in range({pieces})]
several = [agent.register_memory(part) for part in parts]
""")
        near.add_metadata_of(far, far("agent.get_agent_metadata()"))
        handle = near.prepare(operation, far, [(i * piece, i * piece, piece) for i in range(64)])
        far.order("for one in several[::-1]: agent.deregister_memory(one)")
        result = posted(near, handle)
        far.answer()
        assert result in ("DONE", "nixlNotFoundError")
        assert (result == "DONE") == (not handle.failed)
        moved = [handle.failed[i][1] if i in handle.failed else piece for i in range(pieces)]
        where = [(i * piece, i * piece + size) for i, size in enumerate(moved)]
        if operation == "READ":
            source = pattern(SIZE, SEED)
            assert all((near.array[a:b] == source[a:b]).all() for a, b in where)
        else:
            far.holds(SEED)  # for pattern()
            far(f"source = pattern({SIZE}, {SEED})")
            assert far(f"all((array[a:b] == source[a:b]).all() for a, b in {where})")
        far("registered = agent.register_memory(array)")
    near.add_metadata_of(far, far("agent.get_agent_metadata()"))
    near.works_with(far)


MAKE_FILE = f"""
import mmap
file = os.memfd_create("shrinks")
os.ftruncate(file, {SIZE})
mapped = mmap.mmap(file, {SIZE})
array = np.frombuffer(mapped, np.uint8)
array[:] = 7
registered = agent.register_memory(array)
result = array.ctypes.data, agent.get_agent_metadata()
"""


@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "checksum"])
@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_truncated_at_the_target(make_near, make_far, companion, transport, operation, checksum):
    """EFAULT on the descriptors that are no longer mapped; the others are moved. Neither process
    dies of it (touching such memory is SIGBUS)."""
    if transport == "mapped":
        pytest.skip("memory that is mapped is sealed: it cannot be truncated")
    options = {"backend_params": {"UCX": {"checksum": checksum}}}
    near, far = make_near(SIZE, transport, **options), make_far(SIZE, transport, **options)
    others = companion(near)
    far.base, metadata = far(MAKE_FILE)
    near.add_metadata_of(far, metadata)
    pieces = [(i * MIB, i * MIB, MIB) for i in range(8)]
    handle = near.prepare(operation, far, pieces, b"whole")
    assert posted(near, handle) == "DONE"
    assert far.notifications(near.name, 1) == [b"whole"]
    far(f"os.ftruncate(file, {5 * MIB + 4096})")
    assert posted(near, handle) == "nixlBackendError"
    check_truncated(handle)
    assert far("agent.get_new_notifs()") == {}
    others.more()
    far(f"os.ftruncate(file, {SIZE})")
    assert posted(near, handle) == "DONE"
    assert far.notifications(near.name, 1) == [b"whole"]


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_truncated_in_the_middle(make_near, make_far, companion, transport, operation):
    """While bytes move: what is no longer mapped fails, the rest is moved, both live on."""
    if transport == "mapped":
        pytest.skip("memory that is mapped is sealed: it cannot be truncated")
    near, far = make_near(SIZE, transport), make_far(SIZE, transport)
    others = companion(near)
    far.base, metadata = far(MAKE_FILE)
    near.add_metadata_of(far, metadata)
    shrink = f"os.ftruncate(file, {4 * MIB})"
    for exponent in range(12):
        far(f"os.ftruncate(file, {SIZE}); array[:] = {0 if operation == 'WRITE' else 7}")
        near.array[:] = 0 if operation == "READ" else pattern(SIZE, SEED)
        pieces = [(i * MIB, i * MIB, MIB) for i in range(8)] * (1 << exponent)
        handle = near.prepare(operation, far, pieces, b"never")
        if operation == "WRITE":
            far("finished = threading.Event()")
            far(f"when_touched(array[:{MIB}], lambda: ({shrink}, finished.set()))")
            result = posted(near, handle)
            far("finished.wait(60)")
        else:
            near.agent.transfer(handle)
            eventually(lambda: near.array[::4096].any())
            far(shrink)
            result = outcome(handle)
        if result == "DONE":
            assert far.notifications(near.name, 1) == [b"never"]
            continue
        assert result == "nixlBackendError", (result, handle.error)
        assert any(errors[0] == errno.EFAULT for errors in handle.failed.values())
        assert far("agent.get_new_notifs()") == {}
        if operation == "READ":
            for index in set(range(8)) - {failed % 8 for failed in handle.failed}:
                assert (near.array[index * MIB : (index + 1) * MIB] == 7).all()
        others.more()
        far(f"os.ftruncate(file, {SIZE})")
        assert posted(near, handle) == "DONE"
        assert far.notifications(near.name, 1) == [b"never"]
        return
    pytest.fail("no transfer was large enough")


def check_truncated(handle) -> None:
    failed = handle.failed
    assert {5, 6, 7} <= set(failed), failed
    # At most what is there was moved.
    assert failed[5][1] <= 4096 and failed[6][1] == failed[7][1] == 0, failed
    assert failed[5][0] == errno.EFAULT, failed
    text = str(handle.error)
    assert "memory" in text or "Bad address" in text, text
    first = min(failed)
    assert f"descriptor {first}" in text, text


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_truncated_on_this_side(make_near, make_far, transport, operation):
    if transport == "mapped":
        pytest.skip("a copy inside this process: to take its memory away is this process' fault")
    near, far = make_near(MIB, transport), make_far(SIZE, transport)
    near.add_metadata_of(far)
    near.works_with(far)
    before = open_descriptors()
    file = os.memfd_create("shrinks")
    os.ftruncate(file, SIZE)
    array = np.frombuffer(mmap.mmap(file, SIZE), np.uint8)
    near.agent.register_memory(array)
    near.base, kept = array.ctypes.data, near.base
    handle = near.prepare(operation, far, [(i * MIB, i * MIB, MIB) for i in range(8)], b"whole")
    assert posted(near, handle) == "DONE"
    assert far.notifications(near.name, 1) == [b"whole"]
    os.ftruncate(file, 5 * MIB + 4096)
    assert posted(near, handle) == "nixlBackendError"
    check_truncated(handle)
    assert far("agent.get_new_notifs()") == {}
    os.ftruncate(file, SIZE)
    assert posted(near, handle) == "DONE"
    assert far.notifications(near.name, 1) == [b"whole"]
    handle.release()
    near.agent.deregister_memory([array])
    near.base = kept
    del array
    os.close(file)
    assert open_descriptors() <= before + 2
    near.works_with(far)
