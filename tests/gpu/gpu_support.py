"""What the GPU tests share: the CUDA driver, bound by ctypes, and memory of GPUs by it.

It works with the real driver and with the stand-in of testing/standins/, which NIXL_CUDA_LIBRARY
then names; the driver that NIXL has opened is the same library.
"""

from __future__ import annotations

import ctypes
import functools
import os

import nixl

LIBRARY = os.environ.get("NIXL_CUDA_LIBRARY") or "libcuda.so.1"
Pointer = ctypes.c_uint64


class CudaError(RuntimeError):
    """What a call of the driver gave."""


@functools.cache
def driver() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    check(library.cuInit(0), "cuInit")
    return library


def check(result: int, call: str) -> None:
    if result != 0:
        raise CudaError(f"{call}: error {result}")


@functools.cache
def why_no_gpu() -> str:
    """Why GPU tests cannot run; empty: they can."""
    found = nixl._bindings._deviceStatus()
    if found["error"]:
        return found["error"]
    return "" if found["devices"] else "the driver sees no GPU"


def gpus() -> list[dict]:
    return nixl._bindings._deviceStatus()["devices"]


def is_standin() -> bool:
    return any(gpu["name"].startswith("Stand-in") for gpu in gpus())


@functools.cache
def _context(device: int) -> ctypes.c_void_p:
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    check(driver().cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
    check(
        driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "cuDevicePrimaryCtxRetain"
    )
    return context


class Current:
    """The context of a GPU for the calling thread."""

    def __init__(self, device: int) -> None:
        self.device = device

    def __enter__(self) -> None:
        check(driver().cuCtxPushCurrent_v2(_context(self.device)), "cuCtxPushCurrent")

    def __exit__(self, *_: object) -> None:
        check(driver().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())), "cuCtxPopCurrent")


class GpuMemory:
    """cuMemAlloc, with its content as bytes; what __cuda_array_interface__ shows."""

    def __init__(self, size: int, device: int = 0, fill: int = 0) -> None:
        self.size, self.gpu = size, device
        address = Pointer()
        with Current(device):
            check(
                driver().cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)), "cuMemAlloc"
            )
        self.address = address.value
        self.set(bytes([fill]) * size)

    @property
    def __cuda_array_interface__(self) -> dict:
        return {
            "shape": (self.size,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }

    @property
    def region(self) -> tuple[int, int, int, str]:
        return (self.address, self.size, self.gpu, "")

    def get(self, start: int = 0, size: int | None = None) -> bytes:
        size = self.size - start if size is None else size
        out = ctypes.create_string_buffer(size)
        copy(ctypes.addressof(out), self.address + start, size, self.gpu)
        return out.raw

    def set(self, data: bytes, start: int = 0) -> None:
        source = ctypes.create_string_buffer(data, len(data))
        copy(self.address + start, ctypes.addressof(source), len(data), self.gpu)

    def free(self) -> None:
        if self.address:
            with Current(self.gpu):
                check(driver().cuMemFree_v2(Pointer(self.address)), "cuMemFree")
            self.address = 0


def copy(to: int, source: int, size: int, device: int = 0) -> None:
    """A copy of the driver, done when it returns: what ratios are compared with."""
    with Current(device):
        check(driver().cuMemcpy(Pointer(to), Pointer(source), ctypes.c_size_t(size)), "cuMemcpy")
        if not is_standin():
            check(driver().cuCtxSynchronize(), "cuCtxSynchronize")


def pattern(size: int, seed: int = 1) -> bytes:
    block = bytes((i * 7 + i // 251 + seed * 31) % 256 for i in range(4099))
    return (block * (size // len(block) + 1))[:size]
