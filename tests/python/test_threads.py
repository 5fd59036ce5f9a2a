"""One agent used by many threads at once."""

from __future__ import annotations

import threading
import time

import nixl
import pytest
from nixl._api import nixl_agent, nixl_agent_config


def run_together(*jobs, seconds: float = 60) -> None:
    """Runs the jobs side by side and raises the first error one of them had."""
    errors: list[BaseException] = []

    def guarded(job) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a job hangs"
    if errors:
        raise errors[0]


def test_eight_threads_prepare_post_poll_and_register(pair):
    def work(number: int):
        def job() -> None:
            at = number * 4096
            local, remote = pair.descs((at, 4096))
            for _ in range(100):
                extra = pair.near.register_memory([bytearray(256)])
                handle = pair.near.initialize_xfer("WRITE", local, remote, pair.far.name)
                pair.near.transfer(handle)
                while pair.near.check_xfer_state(handle) != "DONE":
                    pass
                pair.near.deregister_memory(extra)

        return job

    run_together(*(work(i) for i in range(8)))
    assert pair.far_memory.get(0, 8 * 4096) == b"\x11" * 8 * 4096


def test_adding_agents_while_another_thread_transfers(pair):
    stop = threading.Event()

    def transfer() -> None:
        handle = pair.write((0, 4096))
        while not stop.is_set():
            pair.near.transfer(handle)
            handle.wait(10)

    def add() -> None:
        try:
            for i in range(20):
                with nixl_agent(f"passing-{i}", nixl_agent_config()) as other:
                    other.register_memory([bytearray(64)])
                    pair.near.add_remote_agent(other.get_agent_metadata())
                    pair.near.prep_xfer_dlist(
                        "", [(pair.near_memory.address, 64, 0)], "DRAM"
                    ).release()
                    pair.near.remove_remote_agent(other.name)
        finally:
            stop.set()

    run_together(transfer, add)


def test_waiting_lets_other_threads_run(pair):
    before = pair.far.stats()["wait_sleeps"]

    def send() -> None:
        while pair.far.stats()["wait_sleeps"] == before:
            pass
        pair.near.send_notif(pair.far.name, b"now")

    def wait() -> None:
        assert pair.far.wait_notifs(b"now", timeout=20) == [(pair.near.name, b"now")]

    run_together(send, wait)


def test_closing_while_others_wait(pair):
    before = pair.far.stats()["wait_sleeps"]

    def wait() -> None:
        with pytest.raises(nixl.nixlError):
            pair.far.wait_notifs(b"never", timeout=20)

    def close() -> None:
        while pair.far.stats()["wait_sleeps"] == before:
            pass
        pair.far.close()

    start = time.monotonic()
    run_together(wait, close)
    assert time.monotonic() - start < 10


def test_a_list_changed_by_another_thread(agent, memory):
    """What is moved may be the list before or after; the process must live."""
    count = 100_000
    piece = memory(count * 64)
    agent.register_memory([(piece.address, count * 64, 0)], "DRAM")
    rows = [(piece.address + 64 * (i * 7919 % count), 64, 0) for i in range(count)]
    lists = [agent.get_xfer_descs(rows, "DRAM") for _ in range(2)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for descs in lists:
                descs[1] = rows[1]  # gives the old memory of the list back

    def use() -> None:
        try:
            for _ in range(10):
                handle = agent.initialize_xfer("WRITE", *lists, agent.name)
                assert agent.explain(handle)["bytes"] == count * 64
        finally:
            stop.set()

    run_together(change, use)
