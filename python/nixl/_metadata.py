"""The part of nixl_agent about peers and their metadata.

Metadata travels as bytes, by the address of a peer's listener, or through a central store.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _bindings as nixlBind
from .arguments import count_of, plain_errors, seconds_of
from .config import DEFAULT_COMM_PORT
from .descriptors import to_reg_list, to_xfer_list
from .errors import nixlTimeoutError

if TYPE_CHECKING:
    from ._bindings import nixlAgent, nixlXferDList


class MetadataCalls:
    """Methods of nixl_agent."""

    agent: nixlAgent
    name: str

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
        n = count_of(n, "n", 0)
        limit = seconds_of(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        pause = 0.0005
        while True:
            names = self.peers()
            if len(names) >= n:
                return names
            if deadline is not None and time.monotonic() >= deadline:
                raise nixlTimeoutError(
                    f"agent {self.name!r}: {len(names)} of {n} peers after {timeout} s: {names}",
                    agent=self.name,
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

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
