"""Arguments of wrong types and values: the error names the argument and what it takes."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math

import nixl
import pytest
from nixl import aio
from nixl._api import nixl_agent, nixl_agent_config
from nixl.errors import nixlError, nixlInvalidParamError

np = pytest.importorskip("numpy")

# What Python or the binding say when nobody has looked at an argument before it was used.
RAW = (
    "incompatible function arguments",
    "unsupported operand",
    "not supported between",
    "has no attribute",
    "bad_cast",
    "not subscriptable",
    "is not iterable",
    "must be real number",
    "Unable to cast",
)


class Odd:
    """Nothing takes this."""


WRONG = (
    Odd(),
    5,
    -1,
    2**70,
    1.5,
    "text",
    "\ud800",
    b"bytes",
    None,
    [],
    [Odd()],
    {},
    True,
    math.nan,
)


def good_arguments(pair) -> dict:
    near = pair.near
    handle = pair.write((0, 64))
    near.transfer(handle)
    handle.wait(10)
    local, remote = pair.descs((0, 64))
    left = near.prep_xfer_dlist("", local)
    right = near.prep_xfer_dlist(pair.far.name, remote)
    regs = near.get_reg_descs([(pair.near_memory.address, 64, 0, "")], "DRAM")
    return {
        **{"backend": "UCX", "plugin": "UCX", "initParams": {}, "backends": []},
        **{"descs": [(4096, 64, 0)], "mem_type": "DRAM", "reg_list": regs, "dereg_list": regs},
        **{"prefix": "", "limit": 5, "name": "x", "dlist": local, "mvh": 5},
        **{"agent_name": "", "xfer_list": local, "operation": "WRITE"},
        **{"local_xfer_side": left, "remote_xfer_side": right},
        **{"local_indices": [0], "remote_indices": [0], "notif_msg": b"", "skip_desc_merge": False},
        **{"local_descs": local, "remote_descs": remote, "remote_agent": pair.far.name},
        **{"handle": handle, "req_handle": handle, "handles": [handle], "timeout": 0.01},
        **{"remote_agent_name": pair.far.name, "lookup_tag": b"x", "tag_is_prefix": True},
        **{"exact": False, "tag": b"x", "count": 1, "metadata": b"x", "agent": "nobody"},
        **{"inc_conn_info": False, "ip_addr": "", "port": 0, "label": "", "n": 1},
        "serialized_descs": near.get_serialized_descs(local),
        "callback": None,
    }


# close() and the like have no arguments; these two would deregister or forget what others need.
METHODS = [
    name
    for name, method in inspect.getmembers(nixl_agent, inspect.isfunction)
    if not name.startswith("_") and len(inspect.signature(method).parameters) > 1
]


@pytest.mark.parametrize("method", METHODS)
def test_no_raw_message_reaches_a_user(pair, method):
    good = good_arguments(pair)
    call = getattr(pair.near, method)
    names = list(inspect.signature(call).parameters)
    assert set(names) <= set(good), "an argument this test does not know"
    for wrong in names:
        for value in WRONG:
            if wrong == "timeout" and (value is None or isinstance(value, (int, float))):
                continue  # right, or in test_timeouts
            given = {name: good[name] for name in names} | {wrong: value}
            try:
                call(**given)
            except (nixlError, TypeError, ValueError) as error:
                text = str(error)
                assert not any(raw in text for raw in RAW), f"{wrong}={value!r}: {text}"
                known = type(error) is TypeError or isinstance(error, nixlError)
                assert known, f"{wrong}={value!r}: {type(error)}"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda a, h: a.transfer(5), "handle must be a transfer's handle, not 5"),
        (lambda a, h: a.transfer(h, 5), "notif_msg must be str .* or bytes, not 5"),
        (lambda a, h: a.check_xfer_state(None), "handle must be a transfer's handle, not NoneType"),
        (lambda a, h: a.explain("x"), "handle must be a transfer's handle, not 'x'"),
        (lambda a, h: a.release_dlist_handle(h), "handle must be a prepared list's handle, not"),
        (lambda a, h: a.add_remote_agent(5), "metadata must be bytes, not 5"),
        (lambda a, h: a.send_notif(5, b"x"), "remote_agent_name must be str .*, not 5"),
        (lambda a, h: a.create_backend(5), "backend must be a backend's name, not 5"),
        (lambda a, h: a.create_backend("POSIX", "x"), "the options must be a dict, not str"),
        (lambda a, h: a.register_memory(bytearray(8), None, 5), "backends is a list of names"),
        (lambda a, h: a.wait_any([5]), r"handles\[0\] must be a transfer's handle, not int"),
        (lambda a, h: a.wait_all(5), "handles must be a list of transfers, not int"),
        (lambda a, h: a.check_remote_xfer_done(5, b"x"), "remote_agent_name must be str or bytes"),
        (lambda a, h: a.wait_notifs(b"x", count="1"), "count must be an integer, not str"),
        (lambda a, h: a.send_local_metadata(5), "ip_addr must be str"),
        (lambda a, h: a.send_local_metadata("", 70000), "port must be a port within 0 ... 65535"),
        (lambda a, h: nixl_agent(5), "agent_name must be str or bytes, not int"),
        (lambda a, h: nixl_agent_config(auth_key=5), "auth_key must be a str, not int"),
        (lambda a, h: nixl_agent_config(use_etcd="no"), "use_etcd must be True, False or None"),
        (lambda a, h: nixl_agent_config(backend_params=[]), "backend_params must be a dict"),
        (lambda a, h: nixl_agent_config(backends=5), "backends must be a list of names, not int"),
        (lambda a, h: nixl.malloc_passthru("x"), "size must be an integer within .*, not 'x'"),
        (lambda a, h: nixl.ba_buf(-1, 5), "address must be an integer within .*, not -1"),
        (lambda a, h: nixl.alloc_tensor("x"), "shape must be an int or a sequence"),
        (lambda a, h: nixl.alloc_tensor((1, "x")), r"shape \(1, 'x'\): 'x' is not an integer"),
        (lambda a, h: nixl.alloc_tensor(1, "bfloat"), "dtype 'bfloat' is none of NumPy's"),
    ],
)
def test_the_argument_is_named(pair, call, text):
    handle = pair.write((0, 64))
    with pytest.raises(TypeError, match=text):
        call(pair.near, handle)


WAITS = {
    "wait": lambda pair, h, t: h.wait(t),
    "wait_any": lambda pair, h, t: pair.near.wait_any([h], t),
    "wait_all": lambda pair, h, t: pair.near.wait_all([h], t),
    "wait_notifs": lambda pair, h, t: pair.near.wait_notifs(b"never", timeout=t),
    "wait_for_peers": lambda pair, h, t: pair.near.wait_for_peers(9, t),
    "await": lambda pair, h, t: asyncio.run(aio.wait_handle(h, t)),
    "await_notifs": lambda pair, h, t: asyncio.run(aio.wait_notifs(pair.near, b"x", timeout=t)),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_timeouts(pair, wait):
    handle = pair.write((0, 64))
    pair.near.transfer(handle)
    for wrong in (math.nan, -1, -0.001, np.float64("nan"), -math.inf):
        with pytest.raises(nixlInvalidParamError, match="timeout .* must be 0 or more"):
            wait(pair, handle, wrong)
    for wrong in ("1", b"1", [1], Odd()):
        with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not"):
            wait(pair, handle, wrong)


def test_bfloat16_and_other_names_of_torch():
    torch = pytest.importorskip("torch")
    table = nixl.alloc_tensor((4, 3), "bfloat16")
    assert table.dtype == torch.bfloat16 and table.shape == (4, 3)
    assert table.sum() == 0
    assert nixl.alloc_tensor(2, "torch.float32").dtype == torch.float32
    assert nixl.alloc_tensor(2, "float32").dtype == np.float32  # NumPy's where both have it
    agent = nixl_agent("tensors", nixl_agent_config(backends=["UCX"]))
    with agent, agent.register_memory(table) as descs:
        assert descs[0][:2] == (table.data_ptr(), 24)


def test_closing_an_agent_ends_an_await_without_a_traceback(make_agent, memory, caplog):
    options = {"UCX": {"nixl_fault": "seed=1,delay=1,delay_time=60s"}}
    agent = make_agent(backend_params=options)
    piece = memory(128)
    descs = agent.register_memory([(piece.address, 128, 0, "")], "DRAM")
    handle = agent.initialize_xfer("WRITE", descs, descs, agent.name)
    assert agent.transfer(handle) == "PROC"

    async def run():
        waiting = [
            asyncio.create_task(aio.wait_handle(handle)),
            asyncio.create_task(aio.wait_notifs(agent, b"never")),
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # both have looked and wait now
        await asyncio.get_running_loop().run_in_executor(None, agent.close)
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)

    with caplog.at_level(logging.DEBUG, "asyncio"):
        for error in asyncio.run(run()):
            assert isinstance(error, (nixl.nixlNotAllowedError, nixl.nixlCancelledError)), error
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
