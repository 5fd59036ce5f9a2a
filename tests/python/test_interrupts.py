"""Ctrl-C in every call that waits: KeyboardInterrupt at once, and the agent goes on."""

from __future__ import annotations

import pytest

# `slow` never ends within the test: its backend answers after a minute. The signal comes when the
# main thread is asleep in the wait, which the agent counts.
PROGRAM = """
import asyncio, os, signal, sys, threading, time
import nixl
from nixl import aio
from nixl._api import nixl_agent, nixl_agent_config

options = {{"UCX": {{"nixl_fault": "seed=1,delay=1,delay_time=60s"}}}}
near = nixl_agent("near", nixl_agent_config(backend_params=options, raise_on_error={raises}))
far = nixl_agent("far")
source, target = bytearray(64), bytearray(64)
local, remote = near.register_memory([source]), far.register_memory([target])
near.add_remote_agent(far.get_agent_metadata())
slow = near.initialize_xfer("WRITE", local, remote, "far")
assert near.transfer(slow) == "PROC"
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
main = threading.main_thread().native_id

def asleep():
    with open(f"/proc/self/task/{{main}}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"

def interrupt():
    seen = 0
    while seen < 20:  # asleep for a while, so not just between two steps
        seen = seen + 1 if asleep() else 0
        time.sleep(0.001)  # sleeps: between two looks
    os.kill(os.getpid(), signal.SIGINT)

for _ in range(3):
    thread = threading.Thread(target=interrupt)
    start = time.monotonic()
    try:
        thread.start()
        {call}
        print("came back")
    except KeyboardInterrupt:
        assert time.monotonic() - start < 20
        print("interrupted")
    thread.join()

# Nothing is left behind: other transfers go on.
far.send_notif("far", b"still there")
assert far.wait_notifs(b"still there", timeout=20) == [("far", b"still there")]
assert near._somebody_waits_in_core is False
os._exit(0)
"""

CALLS = {
    "wait": "slow.wait()",
    "wait_with_timeout": "slow.wait(50)",
    "wait_any": "near.wait_any([slow])",
    "wait_all": "near.wait_all([slow], timeout=50)",
    "wait_notifs": 'near.wait_notifs(b"never")',
    "wait_for_peers": "near.wait_for_peers(5)",
    "await": "asyncio.run(aio.wait_handle(slow))",
    "await_notifs": 'asyncio.run(aio.wait_notifs(near, b"never"))',
}


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_interrupt_ends_the_wait(run_python, call, raises):
    result = run_python(PROGRAM.format(call=call, raises=raises))
    assert result.stdout.splitlines() == ["interrupted"] * 3
