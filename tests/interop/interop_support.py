"""What the interop tests share: an agent of the library, with memory and polling."""

from __future__ import annotations

import ctypes
import itertools
import os
import time

import nixl
from wire import Blob, Region

from peer import Peer

KEY = b"sixteen bytes at least"
number = itertools.count()


class Real:
    """An agent of the library with registered memory, and helpers to poll it."""

    def __init__(self, size: int = 4 << 20, **options) -> None:
        self.agent = nixl.nixl_agent(
            f"real-{os.getpid()}-{next(number)}", nixl.nixl_agent_config(**options)
        )
        self.size = size
        self.buffer = (ctypes.c_ubyte * size)()
        self.address = ctypes.addressof(self.buffer)
        self.registration = self.register()

    def register(self):
        return self.agent.register_memory([(self.address, self.size, 0, "")], "DRAM")

    def blob(self) -> Blob:
        return Blob.decode(self.agent.get_agent_metadata())

    def partial(self, registration) -> Blob:
        """The blob of one registration alone."""
        return Blob.decode(self.agent.get_partial_agent_metadata(registration, True))

    def region(self) -> Region:
        (found,) = [r for r in self.blob().regions if r.address == self.address]
        return found

    def notifications(self, sender: str, count: int, timeout: float = 20) -> list[bytes]:
        """Exactly `count` of this sender, in order."""
        end, got = time.monotonic() + timeout, []
        while len(got) < count and time.monotonic() < end:
            got += self.agent.get_new_notifs().get(sender, [])
            time.sleep(0.001)  # sleeps: between two looks
        time.sleep(0.05)  # sleeps: for one too many
        got += self.agent.get_new_notifs().get(sender, [])
        assert len(got) == count
        return got

    def transfer(self, operation: str, peer: Peer, pieces, notif: bytes = b""):
        """Moves (own offset, peer's offset, size) each; the handle, posted."""
        near = [(self.address + own, size, 0) for own, _, size in pieces]
        far = [(peer.base + there, size, 0) for _, there, size in pieces]
        handle = self.agent.initialize_xfer(
            operation,
            self.agent.get_xfer_descs(near, "DRAM"),
            self.agent.get_xfer_descs(far, "DRAM"),
            peer.me.name.decode(),
            notif,
        )
        self.agent.transfer(handle)
        return handle
