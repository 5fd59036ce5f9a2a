"""nixl_agent: a named endpoint that registers memory and moves bytes.

Thin by design: what takes time, and every rule, is in the C++ library. Methods work through
``self.agent``, the raw agent, which clients may replace by one of their own.
"""

from __future__ import annotations

import atexit
import json
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from . import _bindings as nixlBind
from ._metadata import MetadataCalls
from ._notifs import NotificationCalls
from .arguments import handles_of, plain_errors, retold, seconds_of, shown, text_of
from .config import backend_options, nixl_agent_config
from .descriptors import (
    MEMS,
    OPS,
    is_rows,
    mem_of,
    op_of,
    to_reg_list,
    to_remote_list,
    to_xfer_list,
)
from .errors import (
    DescriptorsDoNotFit,
    nixlError,
    nixlInvalidParamError,
    nixlNotAllowedError,
    nixlTimeoutError,
)
from .handles import nixl_prepped_dlist_handle, nixl_xfer_handle
from .logging import get_logger
from .trace import Trace

logger = get_logger("nixl")

_XferDList = nixlBind.nixlXferDList


class nixl_agent(NotificationCalls, MetadataCalls):
    """An agent. Usable as a context manager, which closes it.

    Attributes: ``agent`` (the raw one), ``name``, ``backends`` (name -> handle), ``plugin_list``,
    ``nixl_mems``, ``nixl_ops``, ``notifs``, ``last_error`` (why get_reg_descs or get_xfer_descs
    last gave None).
    """

    def __init__(
        self,
        agent_name: str | bytes,
        nixl_conf: nixl_agent_config | None = None,
        instantiate_all: bool = False,
    ) -> None:
        if nixl_conf is None:
            nixl_conf = nixl_agent_config()
        elif not isinstance(nixl_conf, nixl_agent_config):
            raise TypeError(
                f"nixl_conf must be a nixl_agent_config, not {type(nixl_conf).__name__}"
            )
        self.name = text_of(agent_name, "agent_name")
        self.nixl_mems = dict(MEMS)
        self.nixl_ops = dict(OPS)
        self._backend_params = nixl_conf.backend_params
        self._strict_descriptors = nixl_conf.strict_descriptors
        self._warned: set[str] = set()
        self.last_error: nixlError | None = None
        self._init_notifs()
        self.agent = nixlBind.nixlAgent(self.name, nixl_conf.raw())
        self.backends: dict[str, int] = self.agent._backends()
        self.plugin_list: list[str] = self.agent.getAvailPlugins()
        _open_agents.add(self)
        for backend in self.backends:
            logger.info("Backend %s was instantiated", backend)
        if instantiate_all:
            self._create_all()
        logger.info("Initialized NIXL agent: %s", self.name)

    def _create_all(self) -> None:
        for plugin in self.plugin_list:
            if plugin not in self.backends:
                try:
                    self.create_backend(plugin)
                except nixlError as error:
                    logger.info("Backend %s cannot be created: %s", plugin, error)

    def __repr__(self) -> str:
        backends = getattr(self, "backends", None)  # a traceback may show one half made
        return f"<nixl_agent {self.name!r} with {', '.join(backends or ()) or 'no backend'}>"

    def __enter__(self) -> nixl_agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the agent, cancelling what is in progress; later calls raise. Twice is harmless."""
        _open_agents.discard(self)
        self.agent._close()
        with self._notifs_changed:
            self._notifs_changed.notify_all()  # who waits for notifications finds out

    # Plugins and backends.

    def get_plugin_list(self) -> list[str]:
        """Names of the plugins that were found (not all of them need be able to load)."""
        return self.plugin_list

    def _told(
        self, kind: str, name: str, ask: Callable[[str], tuple[dict[str, str], list[str]]]
    ) -> tuple[dict[str, str], list[str]]:
        try:
            return ask(name)
        except nixlError as error:
            if name not in self._warned:
                self._warned.add(name)
                logger.warning("%s %s: %s", kind, name, error)
            return {}, []

    @plain_errors
    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """Memory types of a plugin: ["DRAM_SEG", ...]; [] and one warning where it is missing."""
        return self._told("plugin", backend, self.agent.getPluginParams)[1]

    @plain_errors
    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """Options of a plugin and their defaults; {} and one warning where it is missing."""
        return self._told("plugin", backend, self.agent.getPluginParams)[0]

    @plain_errors
    def get_backend_mem_types(self, backend: str) -> list[str]:
        """Memory types of a backend of this agent."""
        return self._told("backend", backend, self.agent.getBackendParams)[1]

    @plain_errors
    def get_backend_params(self, backend: str) -> dict[str, str]:
        """Options a backend of this agent runs with."""
        return self._told("backend", backend, self.agent.getBackendParams)[0]

    @property
    def backend_mems(self) -> dict[str, list[str]]:
        """Memory types of each backend."""
        return {name: self.agent.getBackendParams(name)[1] for name in self.backends}

    @property
    def backend_options(self) -> dict[str, dict[str, str]]:
        """Options each backend runs with."""
        return {name: self.agent.getBackendParams(name)[0] for name in self.backends}

    @plain_errors
    def backend_capabilities(self, backend: str) -> dict[str, Any]:
        """What a backend can do: local, remote, notifications (bool), memory_types."""
        return self.agent._capabilities(backend)

    @plain_errors
    def create_backend(self, backend: str, initParams: Mapping[str, Any] | None = None) -> None:
        """Creates a backend; raises with the reason where it cannot be.

        An unknown option is one warning (clients pass keys of others); an ill-typed value is an
        error.
        """
        params = dict(self._backend_params.get(backend, {}))
        params.update(backend_options(backend, initParams or {}))
        self.backends[backend] = self.agent.createBackend(backend, params)
        logger.info("Backend %s was instantiated", backend)

    # Memory.

    def get_reg_descs(self, descs: Any, mem_type: Any = None) -> nixlBind.nixlRegDList | None:
        """Memory to register, from: a registration list (as it is), tuples (address, length,
        device id[, metadata]) or an Nx3 integer array with ``mem_type``, a tensor or array, a list
        of them.

        None for what does not fit (tuples of another width or without mem_type, memory that is not
        contiguous): the reason is in the log and in ``last_error``. Raises it instead with
        strict_descriptors=True, and always for an array of the wrong type.
        """
        try:
            return to_reg_list(descs, mem_type)
        except DescriptorsDoNotFit as error:
            self._do_not_fit("get_reg_descs", error)
            return None

    def get_xfer_descs(self, descs: Any, mem_type: Any = None) -> nixlBind.nixlXferDList | None:
        """Memory of a transfer, from: a transfer list (as it is), a registration list, tuples
        (address, length, device id) or an Nx3 integer array with ``mem_type``, a tensor or array,
        a list of them. None for what does not fit, as get_reg_descs."""
        try:
            return to_xfer_list(descs, mem_type)
        except DescriptorsDoNotFit as error:
            self._do_not_fit("get_xfer_descs", error)
            return None

    def _do_not_fit(self, call: str, error: DescriptorsDoNotFit) -> None:
        if self._strict_descriptors:
            raise error
        self.last_error = error.with_traceback(None)  # which would keep the descriptors alive
        logger.error("%s: %s", call, error)

    @plain_errors
    def get_remote_descs(self, descs: Any, mem_type: Any = None) -> nixlBind.nixlRemoteDList:
        """Memory of several agents, from tuples (address, length, device id, agent name)."""
        return to_remote_list(descs, mem_type)

    @plain_errors
    def register_memory(
        self, reg_list: Any, mem_type: Any = None, backends: Sequence[str] = ()
    ) -> nixlBind.nixlRegDList:
        """Registers what get_reg_descs accepts and returns the list; `with` on it deregisters.

        Registering again and overlapping are legal and counted. The memory must stay allocated
        until it is deregistered.
        """
        descs = to_reg_list(reg_list, mem_type)
        self.agent.registerMem(descs, backends)
        descs._bindRegistration((weakref.ref(self), list(backends or ())))
        return descs

    @plain_errors
    def deregister_memory(self, dereg_list: Any, backends: Sequence[str] = ()) -> None:
        """Deregisters; waits for transfers that use the memory, at most ``peer_timeout``."""
        self.agent.deregisterMem(to_reg_list(dereg_list), backends)

    @plain_errors
    def query_memory(
        self, reg_list: Any, backend: str, mem_type: Any = None
    ) -> list[dict[str, str] | None]:
        """What is known of files or objects: per descriptor a dict (size, mtime, ...), or None
        where it does not exist."""
        return self.agent.queryMem(to_reg_list(reg_list, mem_type), backend)

    @plain_errors
    def list_storage(
        self, backend: str, prefix: str | bytes = "", limit: int = 2**63 - 1
    ) -> dict[str, dict[str, str]]:
        """Names a storage backend holds, with what is known of each (size, mtime, ...). One that is
        not UTF-8 is as os.fsdecode makes it; os.fsencode gives its bytes."""
        return self.agent._listStorage(backend, prefix, limit)

    @plain_errors
    def remove_storage(
        self, backend: str, name: str | bytes | Sequence[str | bytes]
    ) -> None | dict[str, nixlError]:
        """Removes a file or object by name, or many at a time: of a list of names, the answer
        has the error of each that was not removed."""
        if isinstance(name, (str, bytes)):
            self.agent._removeStorage(backend, name)
            return None
        if not isinstance(name, Iterable):
            raise TypeError(f"name: {name!r} is neither a str nor a list of str")
        return self.agent._removeMany(backend, list(name))

    @plain_errors
    def prep_mem_view(self, dlist: Any, *, backends: Sequence[str] | None = None) -> int:
        """A view of memory for transfers that a GPU starts itself."""
        return self.agent.prepMemView(dlist, backends or ())

    @plain_errors
    def release_mem_view(self, mvh: int) -> None:
        """Releases what prep_mem_view returned."""
        self.agent.releaseMemView(mvh)

    # Transfers.

    @plain_errors
    def prep_xfer_dlist(
        self,
        agent_name: str | bytes,
        xfer_list: Any,
        mem_type: Any = None,
        backends: Sequence[str] = (),
    ) -> nixl_prepped_dlist_handle:
        """Resolves one side of many transfers once.

        ``agent_name``: "" for the local side, the own name for this agent as the remote side, else
        the peer. ``xfer_list``: what get_xfer_descs accepts, or an Nx5 integer array (address,
        length, device id, stride, count) whose rows stand for ``count`` descriptors each.
        """
        rows = is_rows(xfer_list, mem_type, 3, 5)
        return self.agent._prepList(
            nixl_prepped_dlist_handle,
            agent_name,
            mem_of(mem_type) if rows else None,
            xfer_list if rows else to_xfer_list(xfer_list, mem_type),
            backends,
        )

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: Any,
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: Any,
        notif_msg: bytes | str = b"",
        backends: Sequence[str] = (),
        skip_desc_merge: bool = False,
    ) -> nixl_xfer_handle:
        """A transfer between descriptors of two prepared sides, pairwise by index.

        Indices are lists or integer arrays; int32 and int64 arrays are used where they lie.
        """
        try:
            op = OPS[operation]
        except (KeyError, TypeError):
            op = op_of(operation)
        try:
            return self.agent._makeXfer(
                nixl_xfer_handle,
                op,
                local_xfer_side,
                local_indices,
                remote_xfer_side,
                remote_indices,
                notif_msg,
                backends,
                skip_desc_merge,
            )
        except TypeError as error:
            raise retold(
                error,
                local_xfer_side=local_xfer_side,
                remote_xfer_side=remote_xfer_side,
                notif_msg=notif_msg,
                skip_desc_merge=skip_desc_merge,
            ) from None

    def initialize_xfer(
        self,
        operation: str,
        local_descs: Any,
        remote_descs: Any,
        remote_agent: str | bytes,
        notif_msg: bytes | str = b"",
        backends: Sequence[str] = (),
    ) -> nixl_xfer_handle:
        """A transfer between two lists of equal lengths, entry by entry.

        Where one side is a single descriptor as long as all of the other side, it is split to
        match. ``notif_msg`` reaches the remote agent after the data; for the agent itself and for
        storage, this agent.
        """
        op = op_of(operation)
        local = local_descs if type(local_descs) is _XferDList else to_xfer_list(local_descs)
        remote = remote_descs if type(remote_descs) is _XferDList else to_xfer_list(remote_descs)
        try:
            return self.agent._createXfer(
                nixl_xfer_handle, op, local, remote, remote_agent, notif_msg, backends
            )
        except TypeError as error:
            raise retold(error, remote_agent=remote_agent, notif_msg=notif_msg) from None

    def transfer(self, handle: nixl_xfer_handle, notif_msg: bytes | str = b"") -> str:
        """Starts (or starts again) a transfer: "DONE", "PROC" while it goes on, or "ERR".

        ``notif_msg`` takes the place of the transfer's notification, for later starts too.
        """
        try:
            return self.agent._transfer(handle, notif_msg)
        except TypeError as error:
            raise retold(error, handle=handle, notif_msg=notif_msg) from None

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """ "DONE" or "PROC"; raises why a transfer failed (with raise_on_error=False: "ERR")."""
        try:
            return self.agent._check(handle)
        except TypeError as error:
            raise retold(error, handle=handle) from None

    def wait_any(
        self, handles: Iterable[nixl_xfer_handle], timeout: float | None = None
    ) -> nixl_xfer_handle:
        """Waits until one of the transfers ended, well or not, and returns its handle."""
        waiting = handles_of(handles)
        index = self.agent._waitAny(waiting, timeout)
        if index < 0:
            raise nixlTimeoutError(
                f"agent {self.name!r}: none of {len(waiting)} transfers ended within {timeout} s",
                agent=self.name,
            )
        return waiting[index]

    def wait_all(
        self, handles: Iterable[nixl_xfer_handle], timeout: float | None = None
    ) -> list[str]:
        """Waits until all transfers ended; then raises the first error there was, if any.

        Returns their states; with raise_on_error=False "ERR" for those that failed.
        """
        limit = seconds_of(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        states: list[str] = []
        first_error: nixlError | None = None
        for handle in handles_of(handles):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                states.append(handle.wait(left))
            except nixlError as error:
                if self.agent._pending(handle):
                    raise  # the time is up
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return states

    @plain_errors
    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """The name of the backend that does this transfer."""
        return str(self.agent._explain(handle)["backend"])

    @plain_errors
    def estimate_xfer_cost(self, req_handle: nixl_xfer_handle) -> tuple[int, int, str]:
        """How long a transfer may take: (microseconds, margin, how that was found)."""
        return self.agent.estimateXferCost(self.agent._idOf(req_handle))

    @plain_errors
    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> nixlBind.nixlXferTelemetry:
        """Figures of the last finished post: startTime, postDuration, xferDuration (all in
        microseconds), totalBytes, descCount."""
        return self.agent.getXferTelemetry(self.agent._idOf(handle))

    @plain_errors
    def explain(self, handle: nixl_xfer_handle) -> dict[str, Any]:
        """How a transfer goes and why so: backend, lane, device, reason, descriptors, segments
        (after merging), bytes, inline (whether the last post ended inside transfer())."""
        return self.agent._explain(handle)

    @plain_errors
    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """Releases a transfer, cancelling it if it is in progress. Twice is harmless."""
        self._check_owner(handle, nixlBind.nixlXferHandle, "a transfer's")
        handle.release()

    @plain_errors
    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """Releases a prepared side; transfers made from it stay valid. Twice is harmless."""
        self._check_owner(handle, nixlBind.nixlDlistHandle, "a prepared list's")
        handle.release()

    def _check_owner(self, handle: Any, kind: type[Any], whose: str) -> None:
        if not isinstance(handle, kind):
            raise TypeError(f"handle must be {whose} handle, not {shown(handle)}")
        if not self.agent._owns(handle):
            raise nixlInvalidParamError(
                f"{handle!r} belongs to agent {handle._agent._name!r}, made from another raw agent"
                f" than this agent {self.name!r}"
            )

    # Waiting together with other things, and looking inside.

    def fileno(self) -> int:
        """A descriptor that is readable while something completed or arrived that nobody has
        looked at; cleared by get_new_notifs, the waiting calls and drain()."""
        return self.agent._fileno()

    def drain(self) -> None:
        """Clears fileno() without taking anything."""
        self.agent._drain()

    def stats(self) -> dict[str, Any]:
        """What the agent has counted: its counters and those of its backends by name, and
        "transfers" (a dict for each backend, lane, peer and operation), "registered" (regions and
        bytes by memory type), "pending" (the oldest transfers in progress), "endpoint" (where the
        Prometheus exporter is read). docs/telemetry.md has all."""
        told = json.loads(self.agent._telemetry())
        return {**told.pop("counters"), **told}

    def dump_state(self) -> str:
        """Everything the agent holds, as text for people."""
        return self.agent._dumpState()

    def trace(self) -> Trace:
        """Records the transfers posted inside a ``with`` block: ``with agent.trace() as trace``,
        then ``trace.events`` or ``trace.save(path)`` for a trace viewer."""
        return Trace(self)


# Registered lists are context managers. The methods are Python's own: the binding must not call
# back into Python.


def _enter_registration(self: nixlBind.nixlRegDList) -> nixlBind.nixlRegDList:
    if not self._registered:
        raise nixlNotAllowedError(
            "`with` on a descriptor list that is not registered; write"
            " `with agent.register_memory(...) as descs:`"
        )
    return self


def _exit_registration(self: nixlBind.nixlRegDList, kind: Any, value: Any, trace: Any) -> None:
    registration = self._takeRegistration()
    agent = registration and registration[0]()
    if registration and agent is not None:
        agent.deregister_memory(self, registration[1])


nixlBind.nixlRegDList.__enter__ = _enter_registration  # type: ignore[method-assign]
nixlBind.nixlRegDList.__exit__ = _exit_registration  # type: ignore[method-assign]

_open_agents: weakref.WeakSet[nixl_agent] = weakref.WeakSet()
_EXIT_SECONDS = 1.0


def _close_at_exit() -> None:
    """Closes every agent of the process, together, within one second."""
    nixlBind._closeAll(_EXIT_SECONDS)


def _after_fork_in_child() -> None:
    # Another thread may have held a lock of these at the fork; the agents themselves are dead here.
    for agent in list(_open_agents):
        agent._init_notifs()


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
