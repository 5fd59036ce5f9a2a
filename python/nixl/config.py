"""nixl_agent_config: how an agent is set up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from . import _bindings as nixlBind
from .errors import nixlInvalidParamError
from .store import FrameworkStore

DEFAULT_COMM_PORT: int = nixlBind.DEFAULT_COMM_PORT
nixl_thread_sync_t = nixlBind.nixl_thread_sync_t


def _seconds(value: float | timedelta, name: str) -> timedelta:
    """A time in seconds (or a timedelta) as timedelta: 0, or the library's milliseconds."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= seconds <= 1e9:
        raise nixlInvalidParamError(f"{name}={value!r}: must be within 0 ... 1e9 seconds")
    if 0 < seconds < 0.001:
        return timedelta(milliseconds=1)
    return timedelta(seconds=seconds)


def _peer_timeout(value: float | timedelta) -> timedelta:
    limit = _seconds(value, "peer_timeout")
    if not limit:  # every peer would have been silent for too long at once
        raise nixlInvalidParamError(f"peer_timeout={value!r}: must be more than 0")
    return limit


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    number = value.__index__()
    if not low <= number <= high:
        raise nixlInvalidParamError(f"{name}={number}: must be within {low} ... {high}")
    return int(number)


def _utf8(text: Any, name: str) -> Any:
    """The same; the library takes text that UTF-8 can encode. It may be a secret: not shown."""
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise nixlInvalidParamError(
                f"{name}: UTF-8 cannot encode its character {error.start}"
            ) from None
    return text


def _text(value: Any, name: str, *others: type) -> Any:
    if not isinstance(value, (str, *others)):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return _utf8(value, name)


def _path(value: Any, name: str) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, not {type(value).__name__}")
    return str(_utf8(os.fsdecode(value), name))


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, not {type(value).__name__}")
    return value


def _names(values: Any, name: str) -> list[str]:
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be a list of names, not one {type(values).__name__}")
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of names, not {type(values).__name__}")
    names = list(values)
    for value in names:
        if not isinstance(value, str):
            raise TypeError(f"{name}: {value!r} is not a str")
        _utf8(value, name)
    return names


class nixl_agent_config:
    """Options of an agent. The environment is read when the agent is created, not here.

    Args:
        enable_prog_thread: whether library backends that need one get a progress thread.
        enable_listen_thread: (also ``enable_listen``) whether others may fetch and send metadata
            at listen_port (0: the system chooses, see the agent's listen_port) of listen_host
            (a name or address; empty: all addresses).
        capture_telemetry: show what is counted to exporters and ``nixl top``, as
            NIXL_TELEMETRY_ENABLE does; the counters and the figures of a finished transfer are
            there without it.
        num_threads: worker threads of network backends; 0 is their own default.
        backends: created with the agent; an unknown one is a warning.
        sync_mode: accepted for compatibility; the agent is thread-safe in every mode.
        backend_params: options per backend: ``{"UCX": {"num_threads": "2"}}``.
        use_etcd: metadata and discovery through etcd; None: where NIXL_ETCD_ENDPOINTS (or ``etcd``)
            names one; True without endpoints is an error.
        etcd: how it is reached: endpoints, namespace, ca, cert, key, user, password, password_file,
            lease_time, timeout, watch_timeout; what is not here is looked for in NIXL_ETCD_*.
        auth_key, auth_key_file: the key all agents share (at least 16 bytes; file mode 0600).
        peer_timeout: seconds after which a silent peer's transfers fail.
        xfer_timeout: seconds a transfer may take, counted in milliseconds; 0 or None: no limit.
        lanes: which lanes to use, "host,stream"; empty: NIXL_LANES, else all.
        busy_poll_us: how long waiting calls and the agent's threads look again before they
            sleep, in microseconds.
        raise_on_error: whether check_xfer_state raises for a failed transfer or returns "ERR".
        metadata_store: a central store for metadata: a directory, or an object of the framework
            with set, get, check and delete (torch's TCPStore, a Redis client, a dict).
        socket_dir: directory for sockets that containers of one host share.
        dump_on_sigusr2: write dump_state() to standard error when the process gets SIGUSR2
            (also NIXL_DUMP_ON_SIGUSR2).
        strict_descriptors: whether get_reg_descs and get_xfer_descs raise for what does not fit;
            else they log the reason and return None, as existing code expects.
    """

    def __init__(
        self,
        enable_prog_thread: bool = True,
        enable_listen_thread: bool = False,
        listen_port: int = DEFAULT_COMM_PORT,
        capture_telemetry: bool = False,
        num_threads: int = 0,
        backends: Sequence[str] = ("UCX",),
        sync_mode: nixl_thread_sync_t | None = None,
        *,
        backend_params: Mapping[str, Mapping[str, Any]] | None = None,
        use_etcd: bool | None = None,
        enable_listen: bool | None = None,
        listen_host: str = "",
        auth_key: str | bytes = "",
        auth_key_file: str | os.PathLike[str] = "",
        peer_timeout: float | timedelta = 10.0,
        xfer_timeout: float | timedelta | None = None,
        lanes: str | Sequence[str] = "",
        busy_poll_us: int = 0,
        raise_on_error: bool = True,
        metadata_store: Any = "",
        etcd: Mapping[str, Any] | None = None,
        socket_dir: str | os.PathLike[str] = "",
        strict_descriptors: bool = False,
        dump_on_sigusr2: bool = False,
    ) -> None:
        if sync_mode is not None and not isinstance(sync_mode, nixl_thread_sync_t):
            raise TypeError(
                f"sync_mode must be a nixl_thread_sync_t, not {type(sync_mode).__name__}"
            )
        self.backends = _names(backends if backends is not None else ("UCX",), "backends")
        self.enable_pthread = bool(enable_prog_thread)
        self.enable_listen = bool(enable_listen_thread if enable_listen is None else enable_listen)
        self.port = _whole(listen_port, "listen_port", 0, 65535)
        self.capture_telemetry = bool(capture_telemetry)
        self.num_threads = _whole(num_threads, "num_threads", 0, 4096)
        self.sync_mode = sync_mode
        self.backend_params = {
            _text(name, "backend_params: a name"): backend_options(name, options)
            for name, options in _mapping(backend_params, "backend_params").items()
        }
        if use_etcd is not None and not isinstance(use_etcd, bool):
            raise TypeError(f"use_etcd must be True, False or None, not {type(use_etcd).__name__}")
        self.use_etcd = use_etcd
        self.listen_host = _text(listen_host, "listen_host")
        self.auth_key = _text(auth_key, "auth_key", bytes)
        self.auth_key_file = _path(auth_key_file, "auth_key_file")
        self.peer_timeout = _peer_timeout(peer_timeout)
        self.xfer_timeout = _seconds(0 if xfer_timeout is None else xfer_timeout, "xfer_timeout")
        self.lanes = lanes if isinstance(lanes, str) else ",".join(_names(lanes, "lanes"))
        _utf8(self.lanes, "lanes")
        self.busy_poll_us = _whole(busy_poll_us, "busy_poll_us", 0, 1_000_000)
        self.raise_on_error = bool(raise_on_error)
        self.metadata_store = metadata_store if metadata_store is not None else ""
        self._store: str | FrameworkStore  # the directory, or who calls the object
        if isinstance(self.metadata_store, (str, os.PathLike)):
            self._store = _path(self.metadata_store, "metadata_store")
        else:
            self._store = FrameworkStore(self.metadata_store)
        self.etcd = {
            _utf8(str(key), "etcd: a name"): _utf8(str(value), f"etcd: {key}")
            for key, value in _mapping(etcd, "etcd").items()
        }
        self.socket_dir = _path(socket_dir, "socket_dir")
        self.strict_descriptors = bool(strict_descriptors)
        self.dump_on_sigusr2 = bool(dump_on_sigusr2)

    def __repr__(self) -> str:
        hidden: dict[str, Any] = {"auth_key": "***" if self.auth_key else ""}
        if "password" in self.etcd:
            hidden["etcd"] = {**self.etcd, "password": "***"}
        fields = {k: v for k, v in {**vars(self), **hidden}.items() if k != "_store"}
        return f"nixl_agent_config({', '.join(f'{k}={v!r}' for k, v in fields.items())})"

    def raw(self) -> nixlBind.nixlAgentConfig:
        """The configuration of the raw agent."""
        raw = nixlBind.nixlAgentConfig()
        raw.useProgThread = self.enable_pthread
        raw.useListenThread = self.enable_listen
        raw.listenPort = self.port
        raw.captureTelemetry = self.capture_telemetry
        raw.numWorkers = self.num_threads
        # What existing code reads; the agent itself is thread-safe in every mode.
        mode = self.sync_mode
        if mode is None:  # not "or": the mode NONE is 0
            mode = (
                nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
                if self.enable_listen
                else nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
            )
        raw.syncMode = mode
        raw.backends = self.backends
        raw.backendParams = self.backend_params
        raw.useEtcd = self.use_etcd
        raw.listenHost = self.listen_host
        raw.authKey = self.auth_key
        raw.authKeyFile = self.auth_key_file
        raw.peerTimeout = self.peer_timeout
        raw.xferTimeout = self.xfer_timeout
        raw.lanes = self.lanes
        raw.busyPollMicroseconds = self.busy_poll_us
        raw.raiseOnError = self.raise_on_error
        raw.dumpOnSigusr2 = self.dump_on_sigusr2
        if isinstance(self._store, FrameworkStore):
            raw.store = self._store
        else:
            raw.metadataStore = self._store
        raw.etcd = self.etcd
        raw.socketDir = self.socket_dir
        return raw


def backend_options(backend: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Options of a backend as text: True is "true", numbers are decimal."""
    text: dict[str, str] = {}
    for key, value in _mapping(options, f"backend {backend}: the options").items():
        if not isinstance(key, str):
            raise TypeError(f"backend {backend}: option {key!r} must be a str")
        if isinstance(value, bool):
            text[key] = "true" if value else "false"
        elif isinstance(value, (str, int, float)):
            text[key] = str(value)
        elif isinstance(value, (bytes, os.PathLike)):
            text[key] = os.fsdecode(value)
        else:
            raise TypeError(
                f"backend {backend}: option {key}={value!r} must be a str, a number or a bool"
            )
        _utf8(key, f"backend {backend}: option")
        _utf8(text[key], f"backend {backend}: option {key}")
    return text
