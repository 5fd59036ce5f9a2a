"""The part of nixl_agent about peers and their metadata.

Metadata travels as bytes, by the address of a peer's listener, or through a central store.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _bindings as nixlBind
from .arguments import count_of, plain_errors, seconds_of
from .config import DEFAULT_COMM_PORT
from .descriptors import to_reg_list, to_xfer_list
from .errors import nixlError
from .logging import get_logger

logger = get_logger("nixl")

if TYPE_CHECKING:
    from ._bindings import nixlAgent, nixlXferDList


class PeerFollower(threading.Thread):
    """Tells a callback which agents come and go, until it is stopped or the agent ends."""

    def __init__(self, agent: MetadataCalls, callback: Callable[[str, bool], Any]) -> None:
        super().__init__(name="nixl-peers", daemon=True)
        self._agent = weakref.ref(agent)  # a follower keeps no agent alive
        self._callback = callback
        self._stopped = threading.Event()
        self.start()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        known: set[str] = set()
        seen: int | None = None
        while not self._stopped.is_set():
            agent = self._agent()
            if agent is None:
                return
            try:
                if seen is not None:
                    seen = agent.agent._waitPeerChange(seen, 0.5)
                else:
                    seen = agent.agent._peerChanges()
                now = set(agent.agent._peers())
            except nixlError:
                return  # the agent was closed
            del agent
            for name, there in [(n, True) for n in sorted(now - known)] + [
                (n, False) for n in sorted(known - now)
            ]:
                if self._stopped.is_set():
                    return
                try:
                    self._callback(name, there)
                except Exception:
                    logger.exception("the callback of on_peers failed for agent %r", name)
            known = now


class MetadataCalls:
    """Methods of nixl_agent."""

    agent: nixlAgent
    name: str
    _peer_follower: PeerFollower | None

    @plain_errors
    def make_connection(self, remote_agent: str | bytes, backends: Sequence[str] = ()) -> None:
        """Connects to a peer ahead of the first transfer."""
        self.agent.makeConnection(remote_agent, backends)

    @plain_errors
    def get_agent_metadata(self) -> bytes:
        """What peers need to reach everything registered here; for their add_remote_agent."""
        return self.agent.getLocalMD()

    @plain_errors
    def get_partial_agent_metadata(
        self, descs: Any, inc_conn_info: bool = False, backends: Sequence[str] = ()
    ) -> bytes:
        """The same for some registrations only; ``inc_conn_info`` adds how to connect."""
        return self.agent.getLocalPartialMD(to_reg_list(descs), inc_conn_info, backends)

    @plain_errors
    def add_remote_agent(self, metadata: bytes) -> bytes:
        """Learns of a peer and returns its name, as bytes. Adding it again updates it."""
        return self.agent.loadRemoteMD(metadata)

    @plain_errors
    def remove_remote_agent(self, agent: str | bytes) -> None:
        """Forgets a peer; its transfers in progress fail."""
        self.agent.invalidateRemoteMD(agent)

    @property
    def listen_port(self) -> int:
        """The port this agent's listener has; 0 without one."""
        return self.agent.listenPort

    @plain_errors
    def send_local_metadata(
        self,
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        *,
        timeout: float | None = None,
    ) -> None:
        """Hands the metadata to whoever listens at an address (or to the central store), and from
        then on what changes in it.

        Returns at once, and a failure is a warning in the log; with ``timeout`` it waits, and
        raises why it failed.
        """
        self.agent.sendLocalMD(ip_addr, port, timeout)

    @plain_errors
    def send_partial_agent_metadata(
        self,
        descs: Any,
        inc_conn_info: bool = False,
        backends: Sequence[str] = (),
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        label: str = "",
        *,
        timeout: float | None = None,
    ) -> None:
        """As send_local_metadata, for some registrations; the central store keeps them under a
        label. Later changes are not told."""
        self.agent.sendLocalPartialMD(
            to_reg_list(descs), inc_conn_info, backends, ip_addr, port, label, timeout
        )

    @plain_errors
    def fetch_remote_metadata(
        self,
        remote_agent: str | bytes,
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        label: str = "",
        *,
        timeout: float | None = None,
    ) -> None:
        """Asks the listener at an address (or the central store) for the metadata of an agent, and
        from then on for what changes in it.

        Returns at once: check_remote_metadata tells when it is here, or raises why it cannot be
        had. With ``timeout`` it waits, and raises that itself.
        """
        self.agent.fetchRemoteMD(remote_agent, ip_addr, port, label, timeout)

    @plain_errors
    def invalidate_local_metadata(
        self,
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        *,
        timeout: float | None = None,
    ) -> None:
        """Takes back what send_local_metadata gave there: that agent forgets this one."""
        self.agent.invalidateLocalMD(ip_addr, port, timeout)

    @plain_errors
    def check_remote_metadata(
        self, agent: str | bytes, descs: nixlXferDList | Any | None = None
    ) -> bool:
        """Whether the peer's metadata is here and, with ``descs``, covers these descriptors.

        Where it is not, and the last fetch of it failed, raises why.
        """
        wanted = nixlBind.nixlXferDList(nixlBind.DRAM_SEG) if descs is None else to_xfer_list(descs)
        return self.agent.checkRemoteMD(agent, wanted) == nixlBind.NIXL_SUCCESS

    @plain_errors
    def peers(self) -> list[str]:
        """The names of the agents whose metadata is here."""
        return self.agent._peers()

    @plain_errors
    def wait_for_peers(self, n: int, timeout: float | None = None) -> list[str]:
        """Waits until the metadata of ``n`` agents is here and returns their names."""
        return self.agent._waitPeers(count_of(n, "n", 0), seconds_of(timeout))

    @plain_errors
    def on_peers(self, callback: Callable[[str, bool], Any] | None) -> None:
        """Calls ``callback(name, known)`` for each agent that is known now, and from then on when
        one becomes known (True) or is gone (False), on a thread of its own. None ends that."""
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable or None, not {type(callback).__name__}")
        follower = getattr(self, "_peer_follower", None)
        if follower is not None:
            follower.stop()
        self._peer_follower = PeerFollower(self, callback) if callback is not None else None

    @plain_errors
    def get_serialized_descs(self, descs: Any) -> bytes:
        """A descriptor list as bytes (versioned, with a checksum; never pickle)."""
        if isinstance(descs, (nixlBind.nixlXferDList, nixlBind.nixlRegDList)):
            return descs.serialize()
        raise TypeError(
            f"expected a nixlXferDList or nixlRegDList, not {type(descs).__name__}; make one with"
            " get_xfer_descs or get_reg_descs"
        )

    @plain_errors
    def deserialize_descs(
        self, serialized_descs: bytes
    ) -> nixlBind.nixlXferDList | nixlBind.nixlRegDList:
        """The list get_serialized_descs made bytes of. Damaged or foreign bytes are an error."""
        return nixlBind._listFromBytes(serialized_descs)
