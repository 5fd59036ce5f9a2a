# What nanobind's stubgen cannot see: types of arguments that C++ takes as any object, and what it
# returns as one. tools/make_stub.py applies this; tests/python/test_stub.py compares the result.
nixl\._bindings\.__prefix__$:
    \from collections.abc import Iterator, Mapping, Sequence
    \from types import TracebackType
    \from typing import Any, TypeVar
    __version__: str
    _Handle = TypeVar("_Handle", bound="nixlXferHandle")
    _Side = TypeVar("_Side", bound="nixlDlistHandle")

nixl\._bindings\.nixlRegDList\.__enter__$:
    def __enter__(self) -> nixlRegDList: ...

nixl\._bindings\.nixlRegDList\.__exit__$:
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...

nixl\._bindings\.nixl\w+DList\.__hash__$:
    __hash__: None = None  # type: ignore[assignment]

nixl\._bindings\._listFromBytes$:
    def _listFromBytes(data: str | bytes) -> nixlXferDList | nixlRegDList:
        ...

nixl\._bindings\.nixl\w+DList\.__init__$:
    @overload
    def __init__(self, type: nixl_mem_t, descs: Sequence[tuple[Any, ...]] | Any, sorted: bool=False) -> None:
        ...
    @overload
    def __init__(self, type: nixl_mem_t, init_size: int=0) -> None:
        ...

nixl\._bindings\.nixl\w+DList\.addDesc$:
    def addDesc(self, desc: tuple[Any, ...]) -> None:
        ...

nixl\._bindings\.nixl\w+DList\.append$:
    def append(self, desc: tuple[Any, ...]) -> None:
        ...

nixl\._bindings\.nixl\w+DList\.index$:
    def index(self, desc: tuple[Any, ...]) -> int:
        ...

nixl\._bindings\.nixl\w+DList\.remDesc$:
    def remDesc(self, index: int) -> None:
        ...

nixl\._bindings\.nixl\w+DList\.__iter__$:
    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        ...

nixl\._bindings\.nixl\w+DList\.__getitem__$:
    def __getitem__(self, index: int) -> tuple[Any, ...]:
        ...

nixl\._bindings\.nixl\w+DList\.__setitem__$:
    def __setitem__(self, index: int, desc: tuple[Any, ...]) -> None:
        ...

nixl\._bindings\.nixl\w+DList\.__eq__$:
    def __eq__(self, arg: object, /) -> bool:
        ...

nixl\._bindings\.nixl\w+DList\.__ne__$:
    def __ne__(self, arg: object, /) -> bool:
        ...

nixl\._bindings\.nixlRegDList\._takeRegistration$:
    def _takeRegistration(self) -> tuple[Any, list[str]] | None:
        ...

nixl\._bindings\.nixlRegDList\._bindRegistration$:
    def _bindRegistration(self, arg: tuple[Any, list[str]], /) -> None:
        ...

nixl\._bindings\.nixlRemoteDList\.__reduce__$:
    def __reduce__(self) -> tuple[Any, ...]:
        ...

nixl\._bindings\.nixlAgentConfig\.__init__$:
    def __init__(self, useProgThread: bool=False, useListenThread: bool=False, listenPort: int=8888, syncMode: nixl_thread_sync_t=nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE, numWorkers: int=0, pthrDelay: int=0, lthrDelay: int=100000, captureTelemetry: bool=False, etcdWatchTimeout: datetime.timedelta=...) -> None:
        ...

nixl\._bindings\.nixlAgentConfig\.syncMode$:
    syncMode: nixl_thread_sync_t

nixl\._bindings\.nixlAgentConfig\.authKey$:
    authKey: str | bytes

nixl\._bindings\.nixlAgent\.getPluginParams$:
    def getPluginParams(self, plugin: str | bytes) -> tuple[dict[str, str], list[str]]:
        ...

nixl\._bindings\.nixlAgent\.getBackendParams$:
    def getBackendParams(self, backend: str | int) -> tuple[dict[str, str], list[str]]:
        ...

nixl\._bindings\.nixlAgent\._backends$:
    def _backends(self) -> dict[str, int]:
        ...

nixl\._bindings\.nixlAgent\._capabilities$:
    def _capabilities(self, arg: str | int, /) -> dict[str, Any]:
        ...

nixl\._bindings\.nixlAgent\.queryMem$:
    def queryMem(self, descs: nixlRegDList, backend: str | int) -> list[dict[str, str] | None]:
        ...

nixl\._bindings\.nixlAgent\._listStorage$:
    def _listStorage(self, arg0: str | int, arg1: str | bytes, arg2: int, /) -> dict[str, dict[str, str]]:
        ...

nixl\._bindings\.nixlAgent\._removeMany$:
    def _removeMany(self, arg0: str | int, arg1: list[str | bytes], /) -> dict[str, nixlError]:
        ...

nixl\._bindings\.nixlAgent\._removeStorage$:
    def _removeStorage(self, arg0: str | int, arg1: str | bytes, /) -> None:
        ...

nixl\._bindings\.nixlAgent\.registerMem$:
    def registerMem(self, descs: nixlRegDList, backends: Sequence[str | int]=()) -> nixl_status_t:
        ...

nixl\._bindings\.nixlAgent\.deregisterMem$:
    def deregisterMem(self, descs: nixlRegDList, backends: Sequence[str | int]=()) -> nixl_status_t:
        ...

nixl\._bindings\.nixlAgent\.prepMemView$:
    def prepMemView(self, dlist: nixlXferDList | nixlRemoteDList, backends: Sequence[str | int]=()) -> int:
        ...

nixl\._bindings\.nixlAgent\.prepXferDlist$:
    @overload
    def prepXferDlist(self, agent_name: str | bytes, descs: nixlXferDList, backend: Sequence[str | int]=()) -> int:
        ...
    @overload
    def prepXferDlist(self, descs: nixlXferDList, backend: Sequence[str | int]=()) -> int:
        ...
    @overload
    def prepXferDlist(self, agent_name: str | bytes, mem_type: nixl_mem_t, descs: Any, backend: Sequence[str | int]=()) -> int:
        ...

nixl\._bindings\.nixlAgent\._prepList$:
    def _prepList(self, type: type[_Side], agent_name: str | bytes, mem_type: nixl_mem_t | None, descs: nixlXferDList | Any, backends: Sequence[str | int]) -> _Side:
        ...

nixl\._bindings\.nixlAgent\._transfer$:
    def _transfer(self, handle: nixlXferHandle, notif_msg: str | bytes='') -> str:
        ...

nixl\._bindings\.nixlAgent\._check$:
    def _check(self, handle: nixlXferHandle) -> str:
        ...

nixl\._bindings\.nixlAgent\._createXfer$:
    def _createXfer(self, type: type[_Handle], operation: nixl_xfer_op_t, local_descs: nixlXferDList, remote_descs: nixlXferDList, remote_agent: str | bytes, notif_msg: str | bytes, backends: Sequence[str | int]) -> _Handle:
        ...

nixl\._bindings\.nixlAgent\._makeXfer$:
    def _makeXfer(self, type: type[_Handle], operation: nixl_xfer_op_t, local_side: nixlDlistHandle, local_indices: Sequence[int] | Any, remote_side: nixlDlistHandle, remote_indices: Sequence[int] | Any, notif_msg: str | bytes, backends: Sequence[str | int], skip_desc_merge: bool) -> _Handle:
        ...

nixl\._bindings\.nixlAgent\._waitAny$:
    def _waitAny(self, handles: Sequence[nixlXferHandle], timeout: float | None) -> int:
        ...

nixl\._bindings\.nixlAgent\._explain$:
    def _explain(self, arg: nixlXferHandle, /) -> dict[str, Any]:
        ...

nixl\._bindings\.nixlAgent\.makeXferReq$:
    def makeXferReq(self, operation: nixl_xfer_op_t, local_side: int, local_indices: Sequence[int] | Any, remote_side: int, remote_indices: Sequence[int] | Any, notif_msg: str | bytes='', backend: Sequence[str | int]=(), skip_desc_merg: bool=False) -> int:
        ...

nixl\._bindings\.nixlAgent\.createXferReq$:
    def createXferReq(self, operation: nixl_xfer_op_t, local_descs: nixlXferDList, remote_descs: nixlXferDList, remote_agent: str | bytes, notif_msg: str | bytes='', backend: Sequence[str | int]=()) -> int:
        ...

nixl\._bindings\.nixlAgent\.getXferTelemetry$:
    def getXferTelemetry(self, reqh: int) -> nixlXferTelemetry:
        ...

nixl\._bindings\.nixlAgent\.estimateXferCost$:
    def estimateXferCost(self, req_handle: int) -> tuple[int, int, str]:
        ...

nixl\._bindings\.nixlAgent\.getLocalPartialMD$:
    def getLocalPartialMD(self, descs: nixlRegDList, inc_conn_info: bool=False, backends: Sequence[str | int]=()) -> bytes:
        ...

nixl\._bindings\.nixlAgent\.makeConnection$:
    def makeConnection(self, remote_agent: str | bytes, backends: Sequence[str | int]=()) -> nixl_status_t:
        ...

nixl\._bindings\.nixlAgent\.getNotifs$:
    def getNotifs(self, notif_map: dict[str, list[bytes]], backends: Sequence[str | int]=()) -> dict[str, list[bytes]]:
        ...

nixl\._bindings\.nixlAgent\.genNotif$:
    def genNotif(self, remote_agent: str | bytes, msg: str | bytes, backends: Sequence[str | int]=()) -> nixl_status_t:
        ...

nixl\._bindings\.nixlAgent\._waitNotifications$:
    def _waitNotifications(self, timeout: float | None=None) -> bool:
        ...

nixl\._bindings\.nixlAgent\.sendLocalPartialMD$:
    def sendLocalPartialMD(self, descs: nixlRegDList, inc_conn_info: bool=False, backends: Sequence[str | int]=(), ip_addr: str | bytes='', port: int=0, label: str | bytes='', timeout: float | None=None) -> None:
        ...

nixl\._bindings\.nixlAgent\.fetchRemoteMD$:
    def fetchRemoteMD(self, remote_agent: str | bytes, ip_addr: str | bytes='', port: int=0, label: str | bytes='', timeout: float | None=None) -> None:
        ...

nixl\._bindings\.(nixlXferHandle|nixlDlistHandle)\.__init__$:
    def __init__(self, agent: nixlAgent, value: int) -> None:
        ...

nixl\._bindings\.(nixlXferHandle|nixlDlistHandle)\._agent$:
    @property
    def _agent(self) -> nixlAgent:
        ...

nixl\._bindings\.nixlXferHandle\.error$:
    @property
    def error(self) -> nixlError | None:
        ...

nixl\._bindings\.nixlXferHandle\.failed$:
    @property
    def failed(self) -> dict[int, tuple[int, int]]:
        ...

nixl\._bindings\.nixlXferHandle\.wait$:
    def wait(self, timeout: float | None=None) -> str:
        ...

nixl\._bindings\._bufferRange$:
    def _bufferRange(object: Any, writable: bool) -> tuple[int, int]:
        ...


nixl\._bindings\.(_Kv\w+)$:
    \1: Any
