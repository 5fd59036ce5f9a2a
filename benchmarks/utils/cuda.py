"""GPU memory through the CUDA driver; how busy a GPU is through NVML. Both opened when asked for.

The driver is libcuda.so.1, or what NIXL_CUDA_LIBRARY names. No toolkit and no torch is needed. One
thread uses a Cuda object.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from .errors import Missing

_PINNED, _ON_DEVICE = 1, 1  # CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE
_READ_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE


class _Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _AllocationFlags(ctypes.Structure):
    _fields_ = [
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    ]


class _Allocation(ctypes.Structure):  # CUmemAllocationProp
    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("windows", c_void_p),
        ("flags", _AllocationFlags),
    ]


class _Access(ctypes.Structure):  # CUmemAccessDesc
    _fields_ = [("location", _Location), ("flags", c_int)]


class Cuda:
    """One GPU; its primary context is made current for the thread that made this."""

    def __init__(self, gpu: int) -> None:
        name = os.environ.get("NIXL_CUDA_LIBRARY", "libcuda.so.1")
        try:
            self._library: Any = ctypes.CDLL(name)
        except OSError as error:
            raise Missing(f"memory type VRAM needs a CUDA driver: {error}") from error
        self.gpu = gpu
        self._call("cuInit", c_uint(0))
        device = c_int()
        self._call("cuDeviceGet", byref(device), c_int(gpu))
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._device = device.value

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise Missing(f"memory type VRAM: the CUDA driver lacks {name}") from None
        code = function(*arguments)
        if code == 0:
            return
        text = c_char_p()
        self._library.cuGetErrorString(c_int(code), byref(text))
        cause = text.value.decode() if text.value else f"error {code}"
        told = f"memory type VRAM, GPU {self.gpu}: {name}: {cause}"
        if name in ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"):
            raise Missing(told)
        raise RuntimeError(told)

    def allocate(self, size: int) -> int:
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", c_uint64(address))

    def allocate_virtual(self, size: int) -> tuple[int, int]:
        """Address and length of memory made by CUDA's virtual memory calls."""
        try:
            return self._map(size, 1)  # may be registered with a network adapter
        except RuntimeError:
            return self._map(size, 0)  # not every GPU can have it so

    def _map(self, size: int, rdma: int) -> tuple[int, int]:
        kind = _Allocation(type=_PINNED, location=_Location(_ON_DEVICE, self._device))
        kind.flags.rdma = rdma
        grain = c_size_t()
        self._call("cuMemGetAllocationGranularity", byref(grain), byref(kind), c_int(0))
        length = -(-size // grain.value) * grain.value
        address, handle = c_uint64(), c_uint64()
        self._call("cuMemAddressReserve", byref(address), c_size_t(length), c_size_t(0),
                   c_uint64(0), c_uint64(0))  # fmt: skip
        try:
            self._call("cuMemCreate", byref(handle), c_size_t(length), byref(kind), c_uint64(0))
            try:
                self._call("cuMemMap", address, c_size_t(length), c_size_t(0), handle, c_uint64(0))
            finally:
                self._call("cuMemRelease", handle)  # the mapping keeps the memory
        except BaseException:
            self._call("cuMemAddressFree", address, c_size_t(length))
            raise
        access = _Access(_Location(_ON_DEVICE, self._device), _READ_WRITE)
        self._call("cuMemSetAccess", address, c_size_t(length), byref(access), c_size_t(1))
        return address.value, length

    def free_virtual(self, address: int, length: int) -> None:
        self._call("cuMemUnmap", c_uint64(address), c_size_t(length))
        self._call("cuMemAddressFree", c_uint64(address), c_size_t(length))

    def write(self, address: int, data: np.ndarray) -> None:
        here = c_void_p(data.ctypes.data)
        self._call("cuMemcpyHtoD_v2", c_uint64(address), here, c_size_t(data.nbytes))
        self._call("cuCtxSynchronize")  # that call may return before the bytes are all there

    def read(self, address: int, size: int) -> np.ndarray:
        data = np.empty(size, dtype=np.uint8)
        here = c_void_p(data.ctypes.data)
        self._call("cuMemcpyDtoH_v2", here, c_uint64(address), c_size_t(size))
        return data


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", c_uint), ("memory", c_uint)]


def _nvml() -> Any:
    """The library, ready to be used; None where it is missing."""
    try:
        library: Any = ctypes.CDLL(os.environ.get("NIXL_NVML_LIBRARY", "libnvidia-ml.so.1"))
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def gpu_facts() -> dict[str, Any]:
    """Names of the GPUs and the driver's version; nothing where NVML is missing."""
    library, count = _nvml(), c_uint()
    if library is None or library.nvmlDeviceGetCount_v2(byref(count)) != 0:
        return {}
    names = []
    for index in range(count.value):
        device, name = c_void_p(), ctypes.create_string_buffer(96)
        library.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(device))
        if library.nvmlDeviceGetName(device, name, c_uint(len(name))) == 0:
            names.append(name.value.decode(errors="replace"))
    driver = ctypes.create_string_buffer(80)
    library.nvmlSystemGetDriverVersion(driver, c_uint(len(driver)))
    return {"gpus": names, "gpu_driver": driver.value.decode(errors="replace")}


class Nvml:
    """How busy one GPU is, as NVML says; the driver looks a few times a second."""

    def __init__(self, library: Any, device: c_void_p) -> None:
        self._library, self._device = library, device

    @classmethod
    def open(cls, gpu: int) -> Nvml | None:
        """None where NVML or the GPU is missing: the figure is then left out."""
        library, device = _nvml(), c_void_p()
        if library is None:
            return None
        if library.nvmlDeviceGetHandleByIndex_v2(c_uint(gpu), byref(device)) != 0:
            return None
        return cls(library, device)

    def utilization(self) -> float:
        shares = _Utilization()
        if self._library.nvmlDeviceGetUtilizationRates(self._device, byref(shares)) != 0:
            return 0.0
        return float(shares.gpu)
