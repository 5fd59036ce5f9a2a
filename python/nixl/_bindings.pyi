"""The raw interface of NIXL: classes and functions of the C++ library.

Made from the module and then refined by hand; tests/python/test_surface.py compares both.
"""

# ruff: noqa: I001
from collections.abc import Iterator, Mapping, Sequence
import datetime
import enum
from types import TracebackType
from typing import Any, TypeVar, overload

from nixl.errors import (
    nixlBackendError as nixlBackendError,
    nixlCancelledError as nixlCancelledError,
    nixlError as nixlError,
    nixlInvalidParamError as nixlInvalidParamError,
    nixlMismatchError as nixlMismatchError,
    nixlNoTelemetryError as nixlNoTelemetryError,
    nixlNotAllowedError as nixlNotAllowedError,
    nixlNotFoundError as nixlNotFoundError,
    nixlNotPostedError as nixlNotPostedError,
    nixlNotSupportedError as nixlNotSupportedError,
    nixlRemoteDisconnectError as nixlRemoteDisconnectError,
    nixlRepostActiveError as nixlRepostActiveError,
    nixlTimeoutError as nixlTimeoutError,
    nixlUnknownError as nixlUnknownError,
)

__version__: str

_Handle = TypeVar("_Handle", bound="nixlXferHandle")
_Side = TypeVar("_Side", bound="nixlDlistHandle")

class nixl_status_t(enum.IntEnum):
    """What a raw call returned."""

    NIXL_IN_PROG = 1

    NIXL_SUCCESS = 0

    NIXL_ERR_NOT_POSTED = -1

    NIXL_ERR_INVALID_PARAM = -2

    NIXL_ERR_BACKEND = -3

    NIXL_ERR_NOT_FOUND = -4

    NIXL_ERR_MISMATCH = -5

    NIXL_ERR_NOT_ALLOWED = -6

    NIXL_ERR_REPOST_ACTIVE = -7

    NIXL_ERR_UNKNOWN = -8

    NIXL_ERR_NOT_SUPPORTED = -9

    NIXL_ERR_REMOTE_DISCONNECT = -10

    NIXL_ERR_CANCELED = -11

    NIXL_ERR_NO_TELEMETRY = -12

    NIXL_ERR_TIMEOUT = -13

NIXL_IN_PROG: nixl_status_t = nixl_status_t.NIXL_IN_PROG

NIXL_SUCCESS: nixl_status_t = nixl_status_t.NIXL_SUCCESS

NIXL_ERR_NOT_POSTED: nixl_status_t = nixl_status_t.NIXL_ERR_NOT_POSTED

NIXL_ERR_INVALID_PARAM: nixl_status_t = nixl_status_t.NIXL_ERR_INVALID_PARAM

NIXL_ERR_BACKEND: nixl_status_t = nixl_status_t.NIXL_ERR_BACKEND

NIXL_ERR_NOT_FOUND: nixl_status_t = nixl_status_t.NIXL_ERR_NOT_FOUND

NIXL_ERR_MISMATCH: nixl_status_t = nixl_status_t.NIXL_ERR_MISMATCH

NIXL_ERR_NOT_ALLOWED: nixl_status_t = nixl_status_t.NIXL_ERR_NOT_ALLOWED

NIXL_ERR_REPOST_ACTIVE: nixl_status_t = nixl_status_t.NIXL_ERR_REPOST_ACTIVE

NIXL_ERR_UNKNOWN: nixl_status_t = nixl_status_t.NIXL_ERR_UNKNOWN

NIXL_ERR_NOT_SUPPORTED: nixl_status_t = nixl_status_t.NIXL_ERR_NOT_SUPPORTED

NIXL_ERR_REMOTE_DISCONNECT: nixl_status_t = nixl_status_t.NIXL_ERR_REMOTE_DISCONNECT

NIXL_ERR_CANCELED: nixl_status_t = nixl_status_t.NIXL_ERR_CANCELED

NIXL_ERR_NO_TELEMETRY: nixl_status_t = nixl_status_t.NIXL_ERR_NO_TELEMETRY

NIXL_ERR_TIMEOUT: nixl_status_t = nixl_status_t.NIXL_ERR_TIMEOUT

class nixl_mem_t(enum.IntEnum):
    """Kinds of memory and storage."""

    DRAM_SEG = 0

    VRAM_SEG = 1

    BLK_SEG = 2

    OBJ_SEG = 3

    FILE_SEG = 4

DRAM_SEG: nixl_mem_t = nixl_mem_t.DRAM_SEG

VRAM_SEG: nixl_mem_t = nixl_mem_t.VRAM_SEG

BLK_SEG: nixl_mem_t = nixl_mem_t.BLK_SEG

OBJ_SEG: nixl_mem_t = nixl_mem_t.OBJ_SEG

FILE_SEG: nixl_mem_t = nixl_mem_t.FILE_SEG

def _listFromBytes(data: str | bytes) -> nixlXferDList | nixlRegDList: ...

class nixlXferDList:
    """Descriptors of one side of a transfer: (address, length, device)."""

    @overload
    def __init__(
        self, type: nixl_mem_t, descs: Sequence[tuple[Any, ...]] | Any, sorted: bool = False
    ) -> None: ...
    @overload
    def __init__(self, type: nixl_mem_t, init_size: int = 0) -> None: ...
    def addDesc(self, desc: tuple[Any, ...]) -> None: ...
    def append(self, desc: tuple[Any, ...]) -> None: ...
    def clear(self) -> None: ...
    def descCount(self) -> int: ...
    def getType(self) -> nixl_mem_t: ...
    def isEmpty(self) -> bool: ...
    def index(self, desc: tuple[Any, ...]) -> int: ...
    def print(self) -> None: ...
    def remDesc(self, index: int) -> None: ...
    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    def __setitem__(self, index: int, desc: tuple[Any, ...]) -> None: ...
    def __repr__(self) -> str: ...
    def __eq__(self, arg: object, /) -> bool: ...
    def __ne__(self, arg: object, /) -> bool: ...

    __hash__: None = None  # type: ignore[assignment]

    def serialize(self) -> bytes: ...
    def __getstate__(self) -> bytes: ...
    def __setstate__(self, arg: str | bytes, /) -> None: ...

class nixlRegDList:
    """Memory to register: (address, length, device, metadata)."""

    @overload
    def __init__(
        self, type: nixl_mem_t, descs: Sequence[tuple[Any, ...]] | Any, sorted: bool = False
    ) -> None: ...
    @overload
    def __init__(self, type: nixl_mem_t, init_size: int = 0) -> None: ...
    def addDesc(self, desc: tuple[Any, ...]) -> None: ...
    def append(self, desc: tuple[Any, ...]) -> None: ...
    def clear(self) -> None: ...
    def descCount(self) -> int: ...
    def getType(self) -> nixl_mem_t: ...
    def isEmpty(self) -> bool: ...
    def index(self, desc: tuple[Any, ...]) -> int: ...
    def print(self) -> None: ...
    def remDesc(self, index: int) -> None: ...
    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    def __setitem__(self, index: int, desc: tuple[Any, ...]) -> None: ...
    def __repr__(self) -> str: ...
    def __eq__(self, arg: object, /) -> bool: ...
    def __ne__(self, arg: object, /) -> bool: ...

    __hash__: None = None  # type: ignore[assignment]

    def trim(self) -> nixlXferDList: ...
    def serialize(self) -> bytes: ...
    def __getstate__(self) -> bytes: ...
    def __setstate__(self, arg: str | bytes, /) -> None: ...
    @property
    def _registered(self) -> bool: ...
    def _takeRegistration(self) -> tuple[Any, list[str]] | None: ...
    def _bindRegistration(self, arg: tuple[Any, list[str]], /) -> None: ...
    def __enter__(self) -> nixlRegDList: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

class nixlRemoteDList:
    """Descriptors with their agents: (address, length, device, agent)."""

    @overload
    def __init__(
        self, type: nixl_mem_t, descs: Sequence[tuple[Any, ...]] | Any, sorted: bool = False
    ) -> None: ...
    @overload
    def __init__(self, type: nixl_mem_t, init_size: int = 0) -> None: ...
    def addDesc(self, desc: tuple[Any, ...]) -> None: ...
    def append(self, desc: tuple[Any, ...]) -> None: ...
    def clear(self) -> None: ...
    def descCount(self) -> int: ...
    def getType(self) -> nixl_mem_t: ...
    def isEmpty(self) -> bool: ...
    def index(self, desc: tuple[Any, ...]) -> int: ...
    def print(self) -> None: ...
    def remDesc(self, index: int) -> None: ...
    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    def __setitem__(self, index: int, desc: tuple[Any, ...]) -> None: ...
    def __repr__(self) -> str: ...
    def __eq__(self, arg: object, /) -> bool: ...
    def __ne__(self, arg: object, /) -> bool: ...

    __hash__: None = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]: ...

class nixl_xfer_op_t(enum.IntEnum):
    """Direction of a transfer."""

    NIXL_READ = 0

    NIXL_WRITE = 1

NIXL_READ: nixl_xfer_op_t = nixl_xfer_op_t.NIXL_READ

NIXL_WRITE: nixl_xfer_op_t = nixl_xfer_op_t.NIXL_WRITE

class nixl_cost_t(enum.IntEnum):
    """How a cost was found."""

    NIXL_COST_ANALYTICAL_BACKEND = 0

    NIXL_COST_UNKNOWN = 1

NIXL_COST_ANALYTICAL_BACKEND: nixl_cost_t = nixl_cost_t.NIXL_COST_ANALYTICAL_BACKEND

NIXL_COST_UNKNOWN: nixl_cost_t = nixl_cost_t.NIXL_COST_UNKNOWN

class nixl_thread_sync_t(enum.IntEnum):
    """Accepted for compatibility: the agent is thread-safe in every mode."""

    NIXL_THREAD_SYNC_NONE = 0

    NIXL_THREAD_SYNC_STRICT = 1

    NIXL_THREAD_SYNC_RW = 2

    NIXL_THREAD_SYNC_DEFAULT = 0

NIXL_THREAD_SYNC_NONE: nixl_thread_sync_t = nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE

NIXL_THREAD_SYNC_STRICT: nixl_thread_sync_t = nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT

NIXL_THREAD_SYNC_RW: nixl_thread_sync_t = nixl_thread_sync_t.NIXL_THREAD_SYNC_RW

NIXL_THREAD_SYNC_DEFAULT: nixl_thread_sync_t = nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE

class nixlXferTelemetry:
    """Figures of one finished transfer."""

    def __init__(self) -> None: ...

    startTime: int

    postDuration: int

    xferDuration: int

    totalBytes: int

    descCount: int

    backendName: str

    def __repr__(self) -> str: ...

class nixlAgentConfig:
    """Options of a raw agent."""

    def __init__(
        self,
        useProgThread: bool = False,
        useListenThread: bool = False,
        listenPort: int = 8888,
        syncMode: nixl_thread_sync_t = nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE,
        numWorkers: int = 0,
        pthrDelay: int = 0,
        lthrDelay: int = 100000,
        captureTelemetry: bool = False,
        etcdWatchTimeout: datetime.timedelta = ...,
    ) -> None: ...

    syncMode: nixl_thread_sync_t

    pthrDelay: int

    lthrDelay: int

    etcdWatchTimeout: datetime.timedelta

    useProgThread: bool

    useListenThread: bool

    listenPort: int

    listenHost: str

    captureTelemetry: bool

    numWorkers: int

    backends: list[str]

    backendParams: dict[str, dict[str, str]]

    useEtcd: bool | None

    authKey: str | bytes

    authKeyFile: str

    peerTimeout: datetime.timedelta

    xferTimeout: datetime.timedelta

    lanes: str

    busyPollMicroseconds: int

    socketDir: str

    raiseOnError: bool

    metadataStore: str

    etcd: dict[str, str]

class nixlAgent:
    """The raw agent: ids and statuses."""

    def __init__(self, name: str | bytes, config: nixlAgentConfig) -> None: ...
    @property
    def _name(self) -> str: ...
    @property
    def _closed(self) -> bool: ...
    def _close(self) -> None: ...
    def getAvailPlugins(self) -> list[str]: ...
    def getPluginParams(self, plugin: str | bytes) -> tuple[dict[str, str], list[str]]: ...
    def getBackendParams(self, backend: str | int) -> tuple[dict[str, str], list[str]]: ...
    def createBackend(self, plugin: str | bytes, params: Mapping[str, str] = {}) -> int: ...
    def _backends(self) -> dict[str, int]: ...
    def _capabilities(self, arg: str | int, /) -> dict[str, Any]: ...
    def queryMem(self, descs: nixlRegDList, backend: str | int) -> list[dict[str, str] | None]: ...
    def _listStorage(
        self, arg0: str | int, arg1: str | bytes, arg2: int, /
    ) -> dict[str, dict[str, str]]: ...
    def _removeStorage(self, arg0: str | int, arg1: str | bytes, /) -> None: ...
    def registerMem(
        self, descs: nixlRegDList, backends: Sequence[str | int] = ()
    ) -> nixl_status_t: ...
    def deregisterMem(
        self, descs: nixlRegDList, backends: Sequence[str | int] = ()
    ) -> nixl_status_t: ...
    def prepMemView(
        self, dlist: nixlXferDList | nixlRemoteDList, backends: Sequence[str | int] = ()
    ) -> int: ...
    def releaseMemView(self, mvh: int) -> None: ...
    @overload
    def prepXferDlist(
        self, agent_name: str | bytes, descs: nixlXferDList, backend: Sequence[str | int] = ()
    ) -> int: ...
    @overload
    def prepXferDlist(self, descs: nixlXferDList, backend: Sequence[str | int] = ()) -> int: ...
    @overload
    def prepXferDlist(
        self,
        agent_name: str | bytes,
        mem_type: nixl_mem_t,
        descs: Any,
        backend: Sequence[str | int] = (),
    ) -> int: ...
    def releasedDlistH(self, arg: int, /) -> nixl_status_t: ...
    def _prepList(
        self,
        type: type[_Side],
        agent_name: str | bytes,
        mem_type: nixl_mem_t | None,
        descs: nixlXferDList | Any,
        backends: Sequence[str | int],
    ) -> _Side: ...
    def _transfer(self, handle: nixlXferHandle, notif_msg: str | bytes = "") -> str: ...
    def _check(self, handle: nixlXferHandle) -> str: ...
    def _createXfer(
        self,
        type: type[_Handle],
        operation: nixl_xfer_op_t,
        local_descs: nixlXferDList,
        remote_descs: nixlXferDList,
        remote_agent: str | bytes,
        notif_msg: str | bytes,
        backends: Sequence[str | int],
    ) -> _Handle: ...
    def _makeXfer(
        self,
        type: type[_Handle],
        operation: nixl_xfer_op_t,
        local_side: nixlDlistHandle,
        local_indices: Sequence[int] | Any,
        remote_side: nixlDlistHandle,
        remote_indices: Sequence[int] | Any,
        notif_msg: str | bytes,
        backends: Sequence[str | int],
        skip_desc_merge: bool,
    ) -> _Handle: ...
    def _idOf(self, arg: nixlXferHandle, /) -> int: ...
    def _pending(self, arg: nixlXferHandle, /) -> bool: ...
    @overload
    def _owns(self, arg: nixlXferHandle, /) -> bool: ...
    @overload
    def _owns(self, arg: nixlDlistHandle, /) -> bool: ...
    def _waitAny(self, handles: Sequence[nixlXferHandle], timeout: float | None) -> int: ...
    def _explain(self, arg: nixlXferHandle, /) -> dict[str, Any]: ...
    def makeXferReq(
        self,
        operation: nixl_xfer_op_t,
        local_side: int,
        local_indices: Sequence[int] | Any,
        remote_side: int,
        remote_indices: Sequence[int] | Any,
        notif_msg: str | bytes = "",
        backend: Sequence[str | int] = (),
        skip_desc_merg: bool = False,
    ) -> int: ...
    def createXferReq(
        self,
        operation: nixl_xfer_op_t,
        local_descs: nixlXferDList,
        remote_descs: nixlXferDList,
        remote_agent: str | bytes,
        notif_msg: str | bytes = "",
        backend: Sequence[str | int] = (),
    ) -> int: ...
    def postXferReq(self, reqh: int, notif_msg: str | bytes = "") -> nixl_status_t: ...
    def getXferStatus(self, arg: int, /) -> nixl_status_t: ...
    def releaseXferReq(self, arg: int, /) -> nixl_status_t: ...
    def queryXferBackend(self, arg: int, /) -> int: ...
    def getXferTelemetry(self, reqh: int) -> nixlXferTelemetry: ...
    def estimateXferCost(self, req_handle: int) -> tuple[int, int, str]: ...
    def getLocalMD(self) -> bytes: ...
    def getLocalPartialMD(
        self, descs: nixlRegDList, inc_conn_info: bool = False, backends: Sequence[str | int] = ()
    ) -> bytes: ...
    def loadRemoteMD(self, metadata: str | bytes) -> bytes: ...
    def invalidateRemoteMD(self, remote_agent: str | bytes) -> nixl_status_t: ...
    def checkRemoteMD(self, remote_agent: str | bytes, descs: nixlXferDList) -> nixl_status_t: ...
    def makeConnection(
        self, remote_agent: str | bytes, backends: Sequence[str | int] = ()
    ) -> nixl_status_t: ...
    def _peers(self) -> list[str]: ...
    def getNotifs(
        self, notif_map: dict[str, list[bytes]], backends: Sequence[str | int] = ()
    ) -> dict[str, list[bytes]]: ...
    def genNotif(
        self, remote_agent: str | bytes, msg: str | bytes, backends: Sequence[str | int] = ()
    ) -> nixl_status_t: ...
    def _waitNotifications(self, timeout: float | None = None) -> bool: ...
    def _fileno(self) -> int: ...
    def _drain(self) -> None: ...
    def sendLocalMD(self, ip_addr: str | bytes = "", port: int = 0) -> None: ...
    def sendLocalPartialMD(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[str | int] = (),
        ip_addr: str | bytes = "",
        port: int = 0,
        label: str | bytes = "",
    ) -> None: ...
    def fetchRemoteMD(
        self,
        remote_agent: str | bytes,
        ip_addr: str | bytes = "",
        port: int = 0,
        label: str | bytes = "",
        timeout: float | None = None,
    ) -> None: ...
    def invalidateLocalMD(self, ip_addr: str | bytes = "", port: int = 0) -> None: ...
    def _stats(self) -> dict[str, int]: ...
    def _dumpState(self) -> str: ...

def _closeAll(seconds: float) -> None: ...

class nixlXferHandle:
    """One transfer; released when the object goes."""

    def __init__(self, agent: nixlAgent, value: int) -> None: ...
    @property
    def _agent(self) -> nixlAgent: ...
    @property
    def _handle(self) -> int: ...
    @property
    def _released(self) -> bool: ...
    def release(self) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def error(self) -> nixlError | None: ...
    @property
    def failed(self) -> dict[int, tuple[int, int]]: ...
    def cancel(self) -> None: ...
    def wait(self, timeout: float | None = None) -> str: ...

class nixlDlistHandle:
    """One prepared descriptor list; released when the object goes."""

    def __init__(self, agent: nixlAgent, value: int) -> None: ...
    @property
    def _agent(self) -> nixlAgent: ...
    @property
    def _handle(self) -> int: ...
    @property
    def _released(self) -> bool: ...
    def release(self) -> None: ...
    def __repr__(self) -> str: ...

def _mallocPassthru(size: int) -> int: ...
def _freePassthru(address: int) -> None: ...
def _baBuf(address: int, size: int) -> None: ...
def _verifyTransfer(src: int, dst: int, size: int) -> None: ...
def _bufferRange(object: Any, writable: bool) -> tuple[int, int]: ...

NIXL_INIT_AGENT: str = ""

DEFAULT_COMM_PORT: int = 8888

HAVE_UCX_GPU_DEVICE_API: bool = False
