"""nixl.alloc: memory that other processes of this host can map, so that transfers copy once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from . import _bindings as nixlBind
from .errors import nixlInvalidParamError

__all__ = ["Buffer", "DeviceBuffer", "alloc", "alloc_tensor"]

# fcntl names these from Python 3.9 or 3.10 on, depending on the C library it was built with.
_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_F_SEAL_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 2)
_F_SEAL_GROW = getattr(fcntl, "F_SEAL_GROW", 4)
_SHM = "/dev/shm"


class Buffer(mmap.mmap):
    """Shareable memory: a writable buffer that NumPy, torch and memoryview take as it is.

    Its pages are allocated up front and its file can no longer shrink, so peers may map it. One
    that is ``named`` is a file below /dev/shm, which has a ``path`` until the buffer goes.
    """

    #: Of a named one; else empty.
    path: str = ""
    _unlink: weakref.finalize | None = None

    @property
    def address(self) -> int:
        """Where it starts."""
        return nixlBind._bufferRange(self, True)[0]

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return len(self)

    def close(self) -> None:
        """Unmaps it; as of ``mmap``, an error while somebody still has a view of it."""
        super().close()
        if self._unlink is not None:
            self._unlink()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<nixl.Buffer, closed>"
        return f"<nixl.Buffer of {len(self)} bytes{self.path and f', {self.path}'}>"


class DeviceBuffer:
    """GPU memory that other processes of this host can map; CuPy, Numba and torch take it as it is
    (``torch.as_tensor(buffer, device="cuda")``). Freed with the last reference to it, or by
    ``close()`` and at the end of a ``with``: deregister it first."""

    def __init__(self, memory: nixlBind._deviceMemory, nbytes: int) -> None:
        self._memory = memory
        self._nbytes = nbytes

    @property
    def address(self) -> int:
        """Where it starts, an address of the GPU."""
        return self._memory.address

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return self._nbytes

    def __len__(self) -> int:
        return self._nbytes

    @property
    def device(self) -> str:
        """The GPU that holds it: "cuda:0"."""
        return f"cuda:{self._memory.device}"

    @property
    def closed(self) -> bool:
        """Whether the memory has been freed."""
        return self._memory.freed

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self._nbytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def close(self) -> None:
        """Frees the memory. Nothing may use it any more."""
        self._memory.free()

    def __enter__(self) -> DeviceBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<nixl.DeviceBuffer, closed>"
        return f"<nixl.DeviceBuffer of {self._nbytes} bytes on {self.device}>"


def _device_number(device: Any) -> int | None:
    """The number of a GPU from "cuda:1", "cuda", 1 or a torch.device; None: host memory."""
    text = str(device).lower()
    if text == "cpu":
        return None
    name, _, number = text.rpartition(":") if ":" in text else (text, "", "")
    if text.isdecimal() and not isinstance(device, bool):
        name, number = "cuda", text
    if name != "cuda" or not (number or "0").isdecimal():
        raise nixlInvalidParamError(
            f'device={device!r}: must be "cpu", "cuda" or "cuda:N" (N counts from 0)'
        )
    return int(number or "0")


def _available() -> int:
    """Bytes of memory the system, and a control group around us, still have. Allocating more
    would not fail but wake the out-of-memory killer."""
    left = 1 << 62
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo") as lines:
            found = next(line for line in lines if line.startswith("MemAvailable:"))
        left = int(found.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        left = min(left, most - int((group / "memory.current").read_text()))
    return left


def _remove(path: str, owner: int) -> None:
    """Takes the name away; in a forked child it is the parent's."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _named(size: int) -> Buffer:
    """A file below /dev/shm, for who has to find it by its path: it cannot be sealed."""
    path = f"{_SHM}/nixl-{os.getpid()}-{os.urandom(8).hex()}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        buffer = Buffer(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    buffer.path = path
    buffer._unlink = weakref.finalize(buffer, _remove, path, os.getpid())
    return buffer


@overload
def alloc(nbytes: int, device: None = None, *, named: bool = False) -> Buffer: ...
@overload
def alloc(nbytes: int, device: Any, *, named: bool = False) -> Any: ...
def alloc(nbytes: int, device: Any = None, *, named: bool = False) -> Any:
    """Allocates ``nbytes`` of shareable memory. Freed with the last reference to it.

    Host memory, zeroed; with ``device="cuda:0"`` memory of that GPU (a DeviceBuffer), whose content
    is not set. With ``named`` host memory is a file below /dev/shm, which 3FS reads and writes
    without a copy (backend HF3FS, mem_config dram_zc or auto); such a file cannot be sealed, so
    peers of this host reach it as they reach other memory. Raises OSError (ENOSPC) when there is
    not that much host memory, nixlError when the GPU has not, and nixlNotSupportedError where there
    is no such GPU.
    """
    if isinstance(nbytes, bool) or not hasattr(nbytes, "__index__"):
        raise TypeError(f"nbytes must be an integer, not {type(nbytes).__name__}")
    size = nbytes.__index__()
    if size <= 0:
        raise nixlInvalidParamError(f"nbytes={size}: must be at least 1")
    number = None if device is None else _device_number(device)
    if number is not None and named:
        raise nixlInvalidParamError(f"device={device!r}: memory of a GPU has no name below {_SHM}")
    if number is not None:
        return DeviceBuffer(nixlBind._deviceAlloc(size, number), size)
    if size > _available():
        raise OSError(errno.ENOSPC, f"nixl.alloc: {size} bytes, of {_available()} available")
    if named:
        return _named(size)
    descriptor = os.memfd_create("nixl", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, size)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
        return Buffer(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)  # the mapping keeps a descriptor of its own


def _torch_dtype(name: str) -> Any:
    """The dtype of torch that only torch knows by this name: "torch.float32", "bfloat16"."""
    short = name.removeprefix("torch.")
    if short == name:
        import numpy

        try:
            numpy.dtype(name)
            return None
        except TypeError:
            pass
    try:
        import torch
    except ImportError:
        return None
    found = getattr(torch, short, None)
    return found if isinstance(found, torch.dtype) else None


def alloc_tensor(shape: int | Sequence[int], dtype: Any = "float32") -> Any:
    """A zeroed tensor in shareable memory: torch for a torch dtype, else a NumPy array.

    ``shape`` is an int or a sequence of them; ``dtype`` a torch dtype, a NumPy dtype or the name of
    either ("bfloat16" is torch's).
    """
    if isinstance(dtype, str):
        dtype = _torch_dtype(dtype) or dtype
    extents: Any = (shape,) if hasattr(shape, "__index__") else shape
    if isinstance(extents, (str, bytes)) or not isinstance(extents, Iterable):
        raise TypeError(f"shape must be an int or a sequence of them, not {type(shape).__name__}")
    extents = tuple(extents)
    count = 1
    for extent in extents:
        if not hasattr(extent, "__index__"):
            raise TypeError(f"shape {extents}: {extent!r} is not an integer")
        if extent.__index__() < 0:
            raise nixlInvalidParamError(f"shape {extents}: {extent} is negative")
        count *= extent.__index__()
    if type(dtype).__module__.partition(".")[0] == "torch":
        import torch  # type: ignore[import-not-found, unused-ignore]

        size = torch.empty(0, dtype=dtype).element_size()
        flat = torch.frombuffer(alloc(max(1, count * size)), dtype=dtype, count=count)
        return flat.reshape(extents)
    import numpy

    try:
        kind = numpy.dtype(dtype)
    except TypeError as error:
        raise TypeError(
            f"dtype {dtype!r} is none of NumPy's, nor of torch's where that is installed"
        ) from error
    memory = alloc(max(1, count * kind.itemsize))
    return numpy.frombuffer(memory, dtype=kind, count=count).reshape(extents)
