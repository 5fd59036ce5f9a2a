"""The package imported again in one process, as after unittest.mock.patch.dict(sys.modules), and in
a subinterpreter."""

from __future__ import annotations

import pytest

START = """
import logging, sys, unittest.mock
import nixl
a = nixl.nixl_agent("a")
memory = bytearray(b"x" * 4096)
a.register_memory(memory)

def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "nixl"]:
        del sys.modules[name]

def moves(agent, peer):
    target = bytearray(4096)
    with peer.register_memory(target) as descs:
        agent.add_remote_agent(peer.get_agent_metadata())
        h = agent.initialize_xfer("WRITE", agent.get_xfer_descs(memory), descs, peer.name)
        agent.transfer(h)
        assert h.wait(30) == "DONE" and target == memory
"""

AGAIN = """
kept = nixl.nixlNotFoundError
for number in range(3):
    forget()
    import nixl.errors
    assert nixl._bindings.nixlAgent is type(a.agent)
    assert nixl._bindings.__name__ == "nixl._bindings" and nixl._bindings.__doc__
    b = nixl.nixl_agent(f"b{number}")
    moves(a, b)
    assert nixl.errors.nixlNotFoundError is nixl.nixlNotFoundError is kept
    for agent in (a, b):
        try:
            agent.send_notif("nobody", b"x")
        except kept as error:
            assert error.peer == "nobody"
        else:
            raise AssertionError("no error")
    try:
        nixl.nixl_agent("c").get_xfer_descs([(1, 2, 3)], "nothing")
    except nixl.nixlInvalidParamError:
        pass
assert len(logging.getLogger("nixl").handlers) == 1  # each line once
"""

HICACHE = """
with unittest.mock.patch.dict(sys.modules):
    import nixl.hicache
    first = nixl.hicache.HiCacheNixl
forget()
import nixl.hicache
assert nixl.hicache.HiCacheNixl is not first
for number, kind in enumerate((first, nixl.hicache.HiCacheNixl)):
    with kind(f"FOLDER/{number}", "POSIX", config={"hicache": {"layout": "packed"}}) as cache:
        assert cache.set("k", b"value")
        read = bytearray(5)
        assert cache.get("k", read) is not None and read == b"value"
"""

SUBINTERPRETER = """
try:
    import _interpreters as interpreters
    inside = interpreters.create("legacy")
except ImportError:
    import _xxsubinterpreters as interpreters
    inside = interpreters.create(isolated=False)
interpreters.run_string(inside, '''
for name in ("nixl", "nixl._bindings"):
    try:
        __import__(name)
    except ImportError as error:
        text = str(error)
    else:
        text = "imported"
    print(text)
''')
interpreters.destroy(inside)
with nixl.nixl_agent("b") as b:
    moves(a, b)
"""


def test_imported_again_it_is_the_same(run_python):
    assert run_python(START + AGAIN).stderr == ""


def test_hicache_imported_again(run_python, tmp_path):
    pytest.importorskip("numpy")
    program = START + HICACHE.replace("FOLDER", str(tmp_path))
    assert "already registered" not in run_python(program).stderr


def test_a_subinterpreter_is_refused_and_the_main_one_goes_on(run_python):
    try:
        import _interpreters  # noqa: F401
    except ImportError:
        pytest.importorskip("_xxsubinterpreters", reason="this Python has no subinterpreters")
    lines = run_python(START + SUBINTERPRETER).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "nixl._bindings" in line and "interpreter" in line
