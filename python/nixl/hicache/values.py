"""Values and targets of the single-key interface: tensors, arrays and addresses as rows of host or
GPU memory, with a bounce where memory is not contiguous or the backend cannot reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Place:
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


def _array_place(array: Any, writable: bool) -> Place:
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
    return Place(view.ctypes.data, view.nbytes, 0, "DRAM", array, view)


def _buffer_place(value: Any) -> Place:
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
    place = _array_place(np.frombuffer(view.cast("B"), dtype=np.uint8), True)
    place.result = value
    return place


def is_address(value: Any) -> bool:
    import numpy as np

    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _tensor_place(tensor: Any, writable: bool, gpu_ok: bool) -> Place:
    import torch

    tensor = tensor.detach()
    gpu = bool(tensor.is_cuda)
    if tensor.is_contiguous() and (gpu_ok or not gpu):
        mem, device = ("VRAM", tensor.get_device()) if gpu else ("DRAM", 0)
        size = tensor.numel() * tensor.element_size()
        return Place(tensor.data_ptr(), size, device, mem, tensor, tensor)
    if writable:
        bounce = torch.empty(tensor.shape, dtype=tensor.dtype)
        target = tensor
    else:
        bounce = tensor.contiguous().cpu()
        target = None
    size = bounce.numel() * bounce.element_size()
    return Place(bounce.data_ptr(), size, 0, "DRAM", tensor, bounce, target)


def source(value: Any, location: Any, size: Any, gpu_ok: bool) -> Place:
    """Where the bytes to store are: a tensor, an array, bytes, or an address with a size."""
    if value is None:
        value = location
    if value is None:
        raise ValueError("set needs a value, or a target_location with target_sizes")
    if is_address(value):
        return _address(int(value), size)
    if is_tensor(value):
        return _tensor_place(value, False, gpu_ok)
    if isinstance(value, (bytes, bytearray, memoryview)):
        import numpy as np

        return _array_place(np.frombuffer(value, dtype=np.uint8), False)
    return _array_place(value, False)


def target(location: Any, size: Any, gpu_ok: bool) -> Place:
    """Where the bytes of a key go; None with a size allocates."""
    if location is None:
        if size is None:
            raise ValueError("get needs a target_location, or target_sizes to allocate one")
        location = _allocate(int(size))
    if is_address(location):
        return _address(int(location), size)
    if is_tensor(location):
        place = _tensor_place(location, True, gpu_ok)
        place.result = location
        return place
    import numpy as np

    return (
        _array_place(location, True)
        if isinstance(location, np.ndarray)
        else _buffer_place(location)
    )


def _address(address: int, size: Any) -> Place:
    if size is None:
        raise ValueError(f"address {address:#x}: target_sizes is needed with an address")
    if int(size) < 0 or address < 0:
        raise ValueError(f"address {address:#x} with size {size}: must not be negative")
    return Place(address, int(size), 0, "DRAM", address)


def _allocate(size: int) -> Any:
    try:
        import torch

        return torch.empty(size, dtype=torch.uint8)
    except ImportError:
        import numpy as np

        return np.empty(size, dtype=np.uint8)
