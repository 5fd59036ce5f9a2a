"""A process may end while daemon threads are anywhere inside the library."""

from __future__ import annotations

import pytest
from test_lifecycle import START

THREADS = """
import threading
def guarded(body):
    def run():
        try:
            while True:
                body()
        except nixl.nixlError:
            pass
    return run

mine = threading.local()
def post():
    if not hasattr(mine, "h"):
        mine.h = a.initialize_xfer("WRITE", ra, rb, "b")
    a.transfer(mine.h)

def wait():
    b.wait_notifs(b"never")
def run():
    post()
    mine.h.wait()
def poll():
    post()
    while a.check_xfer_state(mine.h) != "DONE":
        pass
def register():
    a.deregister_memory(a.register_memory(bytearray(4096)))
    a.get_agent_metadata()

for body in BODIES * 2:
    threading.Thread(target=guarded(body), daemon=True).start()
time.sleep(0.05)  # sleeps: so that the end meets them anywhere
"""


@pytest.mark.parametrize("bodies", ["wait", "run", "poll", "register", "wait, run, poll, register"])
def test_daemon_threads_do_not_disturb_the_end(run_python, bodies):
    program = START.replace("64 << 20", "1 << 20") + THREADS.replace("BODIES", f"[{bodies}]")
    for _ in range(3):
        assert run_python(program).stderr == ""
