"""`busy_poll_us`: who waits looks again for that long before sleeping; by default nobody does."""

from __future__ import annotations

import threading
import time

import pytest

np = pytest.importorskip("numpy")

import nixl  # noqa: E402
from nixl._api import nixl_agent, nixl_agent_config  # noqa: E402


def make_pair(busy_poll_us: int) -> tuple[nixl_agent, nixl_agent]:
    near, far = (
        nixl_agent(
            name,
            nixl_agent_config(
                busy_poll_us=busy_poll_us,
                peer_timeout=120,  # no heartbeat while the tests count
                backend_params={"UCX": {"lanes": "stream"}},
            ),
        )
        for name in ("near", "far")
    )
    near.add_remote_agent(far.get_agent_metadata())
    far.add_remote_agent(near.get_agent_metadata())
    return near, far


@pytest.fixture
def pair(request):
    agents = make_pair(request.param)
    yield agents
    for agent in agents:
        agent.close()


def notify_later(sender: nixl_agent, receiver: nixl_agent) -> threading.Thread:
    """Sends once the receiver waits, in whichever way."""

    def looks() -> int:
        stats = receiver.stats()
        return stats["wait_spins"] + stats["wait_sleeps"]

    before = looks()

    def send() -> None:
        while looks() == before:
            pass
        sender.send_notif(receiver.name, b"now")

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def wait_for_one(agent: nixl_agent) -> None:
    assert agent.wait_notifs("now", timeout=20) == [("near", b"now")]


@pytest.mark.parametrize("pair", [0], indirect=True)
def test_nobody_spins_by_default(pair):
    near, far = pair
    before = far.stats()
    sender = notify_later(near, far)
    wait_for_one(far)
    sender.join()
    stats = far.stats()
    for who in ("wait", "reactor", "stream"):
        assert stats[f"{who}_spins"] == 0
    assert stats["wait_sleeps"] > before["wait_sleeps"]
    assert stats["reactor_sleeps"] > 0


@pytest.mark.parametrize("pair", [1_000_000], indirect=True)
def test_a_waiting_call_spins_as_long_as_it_may(pair):
    near, far = pair
    before = far.stats()
    sender = notify_later(near, far)
    wait_for_one(far)  # comes while it spins
    stats = far.stats()
    sender.join()
    assert stats["wait_spins"] > before["wait_spins"]
    assert stats["wait_sleeps"] == before["wait_sleeps"]


@pytest.mark.parametrize("pair", [20_000], indirect=True)
def test_it_sleeps_in_the_end(pair):
    near, far = pair
    near.make_connection("far")
    before = far.stats()
    with pytest.raises(nixl.nixlTimeoutError):
        far.wait_notifs("never", timeout=0.2)
    after = far.stats()
    assert after["wait_sleeps"] == before["wait_sleeps"] + 1

    def idle() -> bool:
        first = far.stats()
        time.sleep(0.3)  # sleeps: idleness is what is looked at
        second = far.stats()
        return all(first[f"{who}_spins"] == second[f"{who}_spins"] for who in ("reactor", "stream"))

    assert any(idle() for _ in range(10))  # what was under way may take its time to end


@pytest.mark.parametrize("pair", [500_000], indirect=True)
def test_a_transfer_is_waited_for_spinning(pair):
    near, far = pair
    source = np.ones(32 << 20, np.uint8)
    target = np.zeros(32 << 20, np.uint8)
    near.register_memory(source)
    far.register_memory(target)
    near.add_remote_agent(far.get_agent_metadata())
    descs = near.get_xfer_descs
    handle = near.initialize_xfer("WRITE", descs(source), descs(target), "far")
    near.transfer(handle)
    assert handle.wait(timeout=20) == "DONE"
    assert target.all()
    for who in ("reactor", "stream"):
        assert far.stats()[f"{who}_spins"] > 0
