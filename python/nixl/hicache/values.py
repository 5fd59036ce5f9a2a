"""Values and targets of the single-key interface: tensors, arrays and addresses as rows of host or
GPU memory, with a bounce where memory is not contiguous or the backend cannot reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Extent:
    """Contiguous memory of a value or target; `finish` copies a bounce to where it belongs."""

    address: int
    length: int
    device: int
    mem: str  # DRAM or VRAM
    result: Any  # what get() returns for it
    keep: Any = None  # keeps the memory alive
    target: Any = None  # the strided or GPU tensor behind a bounce

    def finish(self) -> Any:
        if self.target is not None:
            self.target.copy_(self.keep.view(self.target.dtype).reshape(self.target.shape))
        return self.result


def is_tensor(value: Any) -> bool:
    return hasattr(value, "data_ptr") and hasattr(value, "element_size")


def _array_extent(array: Any, writable: bool) -> Extent:
    import numpy as np

    view = np.asarray(array)
    if view.dtype.hasobject:
        raise TypeError(f"an array of Python objects ({view.dtype}) has no bytes to move")
    if writable and not view.flags.writeable:
        raise ValueError("the target is read-only memory")
    if not view.flags.c_contiguous:
        if writable:
            raise ValueError("a target array must be contiguous")
        view = np.ascontiguousarray(view)
    return Extent(view.ctypes.data, view.nbytes, 0, "DRAM", array, view)


def _buffer_extent(value: Any) -> Extent:
    """A target that lends its memory (bytearray, memoryview, array.array, mmap, …)."""
    import numpy as np

    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(
            f"target_location of type {type(value).__name__} cannot be written in place; expected "
            "a tensor, an array, a writable buffer, or an address with target_sizes"
        ) from None
    if view.readonly:
        raise TypeError(
            f"target_location of type {type(value).__name__} is read-only: it cannot be written in "
            "place; expected a tensor, an array, a writable buffer, or an address with target_sizes"
        )
    if not view.c_contiguous:
        raise ValueError("a target buffer must be contiguous")
    extent = _array_extent(np.frombuffer(view.cast("B"), dtype=np.uint8), True)
    extent.result = value
    return extent


def is_address(value: Any) -> bool:
    import numpy as np

    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _tensor_extent(tensor: Any, writable: bool, gpu_ok: bool) -> Extent:
    import torch

    tensor = tensor.detach()
    gpu = bool(tensor.is_cuda)
    if tensor.is_contiguous() and (gpu_ok or not gpu):
        mem, device = ("VRAM", tensor.get_device()) if gpu else ("DRAM", 0)
        size = tensor.numel() * tensor.element_size()
        return Extent(tensor.data_ptr(), size, device, mem, tensor, tensor)
    if writable:
        bounce = torch.empty(tensor.shape, dtype=tensor.dtype)
        target = tensor
    else:
        bounce = tensor.contiguous().cpu()
        target = None
    size = bounce.numel() * bounce.element_size()
    return Extent(bounce.data_ptr(), size, 0, "DRAM", tensor, bounce, target)


def source(value: Any, location: Any, size: Any, gpu_ok: bool) -> Extent:
    """Where the bytes to store are: a tensor, an array, bytes, or an address with a size."""
    if value is None:
        value = location
    if value is None:
        raise ValueError("set needs a value, or a target_location with target_sizes")
    if is_address(value):
        return _address(int(value), size)
    if is_tensor(value):
        return _tensor_extent(value, False, gpu_ok)
    if isinstance(value, (bytes, bytearray, memoryview)):
        import numpy as np

        return _array_extent(np.frombuffer(value, dtype=np.uint8), False)
    return _array_extent(value, False)


def target(location: Any, size: Any, gpu_ok: bool) -> Extent:
    """Where the bytes of a key go; None with a size allocates."""
    if location is None:
        if size is None:
            raise ValueError("get needs a target_location, or target_sizes to allocate one")
        location = _allocate(int(size))
    if is_address(location):
        return _address(int(location), size)
    if is_tensor(location):
        extent = _tensor_extent(location, True, gpu_ok)
        extent.result = location
        return extent
    import numpy as np

    return (
        _array_extent(location, True)
        if isinstance(location, np.ndarray)
        else _buffer_extent(location)
    )


def _address(address: int, size: Any) -> Extent:
    if size is None:
        raise ValueError(f"address {address:#x}: target_sizes is needed with an address")
    if int(size) < 0 or address < 0:
        raise ValueError(f"address {address:#x} with size {size}: must not be negative")
    return Extent(address, int(size), 0, "DRAM", address)


def _allocate(size: int) -> Any:
    try:
        import torch

        return torch.empty(size, dtype=torch.uint8)
    except ImportError:
        import numpy as np

        return np.empty(size, dtype=np.uint8)
