"""Turns what users have (tuples, arrays, tensors, buffers) into descriptor lists.

Tuples and Nx3 arrays are read by the binding in one pass. Tensors and arrays are recognised by
what they offer (data_ptr, __array_interface__, the buffer protocol), so neither NumPy nor torch
is imported.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from . import _bindings as nixlBind
from .errors import nixlInvalidParamError, nixlMismatchError, nixlUnknownNameError

MEMS: dict[str, nixlBind.nixl_mem_t] = {
    "DRAM": nixlBind.DRAM_SEG,
    "VRAM": nixlBind.VRAM_SEG,
    "FILE": nixlBind.FILE_SEG,
    "BLOCK": nixlBind.BLK_SEG,
    "OBJ": nixlBind.OBJ_SEG,
    "cpu": nixlBind.DRAM_SEG,
    "cuda": nixlBind.VRAM_SEG,
}
OPS: dict[str, nixlBind.nixl_xfer_op_t] = {
    "WRITE": nixlBind.NIXL_WRITE,
    "READ": nixlBind.NIXL_READ,
}
_OTHER_MEMS = {
    **{name.upper(): mem for name, mem in MEMS.items()},
    "BLK": nixlBind.BLK_SEG,
    "OBJECT": nixlBind.OBJ_SEG,
}


class Range(NamedTuple):
    """A piece of memory of this process."""

    address: int
    size: int
    mem: nixlBind.nixl_mem_t
    device: int


def mem_of(mem_type: Any) -> nixlBind.nixl_mem_t:
    """The memory type a name (or the enum itself) stands for."""
    if isinstance(mem_type, nixlBind.nixl_mem_t):
        return mem_type
    if isinstance(mem_type, str):
        known = MEMS.get(mem_type)
        if known is None:
            known = _OTHER_MEMS.get(mem_type.upper().removesuffix("_SEG"))
        if known is not None:
            return known
        raise nixlUnknownNameError(f"memory type {mem_type!r} is none of {', '.join(MEMS)}")
    if mem_type is None:
        raise nixlInvalidParamError(
            f"tuples and Nx3 arrays need mem_type, one of {', '.join(MEMS)}"
            " (to use an array's own memory, put it into a list)"
        )
    raise TypeError(f"mem_type must be a str, not {type(mem_type).__name__}")


def op_of(operation: Any) -> nixlBind.nixl_xfer_op_t:
    """The operation a name (or the enum itself) stands for."""
    if isinstance(operation, nixlBind.nixl_xfer_op_t):
        return operation
    if not isinstance(operation, str):
        raise TypeError(f"operation must be a str, not {type(operation).__name__}")
    known = OPS.get(operation) or OPS.get(operation.upper())
    if known is None:
        raise nixlUnknownNameError(f"operation {operation!r} is neither READ nor WRITE")
    return known


def is_rows(source: Any, mem_type: Any, *columns: int) -> bool:
    """Whether an array holds descriptors, one a row, and not the data itself.

    It does when it holds 32- or 64-bit integers and has as many columns; with a mem_type it must.
    """
    code = getattr(getattr(source, "dtype", None), "str", "")
    if code[1:] not in ("i8", "u8", "i4", "u4") or hasattr(source, "data_ptr"):
        return False
    shape = source.shape
    if len(shape) == 2 and shape[1] in columns:
        return True
    if mem_type is None:
        return False
    wanted = " or ".join(f"N x {count}" for count in columns)
    raise nixlInvalidParamError(
        f"an integer array with mem_type is a list of descriptors, {wanted} (address, length,"
        f" device id...), not {' x '.join(map(str, shape))}; to use the array's own memory, put it"
        " into a list"
    )


def range_of(source: Any, where: str = "") -> Range:
    """The memory of a tensor, array or buffer; `where` ("item 3: ") names it in errors."""
    if hasattr(source, "data_ptr"):
        return _tensor_range(source, where)
    interface = getattr(source, "__array_interface__", None)
    if interface is not None:
        return _array_range(source, interface, where, nixlBind.DRAM_SEG, 0)
    interface = getattr(source, "__cuda_array_interface__", None)
    if interface is not None:
        device = getattr(getattr(source, "device", None), "id", 0)
        return _array_range(source, interface, where, nixlBind.VRAM_SEG, device)
    if isinstance(source, (str, bytes)):
        raise TypeError(f"{where}{type(source).__name__} cannot be registered: it is immutable")
    try:
        address, size = nixlBind._bufferRange(source, False)
    except (TypeError, BufferError) as error:
        raise TypeError(
            f"{where}expected a tensor, an array, a buffer, or tuples (address, length, device id),"
            f" not {type(source).__name__}"
        ) from error
    return Range(address, size, nixlBind.DRAM_SEG, 0)


def _tensor_range(tensor: Any, where: str) -> Range:
    if not tensor.is_contiguous():
        raise nixlInvalidParamError(
            f"{where}{type(tensor).__name__} of shape {tuple(tensor.shape)} and strides"
            f" {tuple(tensor.stride())} is not contiguous; use .contiguous()"
        )
    size = getattr(tensor, "nbytes", None)
    if size is None:
        size = tensor.numel() * tensor.element_size()
    device = tensor.get_device()
    if device < 0:
        return Range(tensor.data_ptr(), size, nixlBind.DRAM_SEG, 0)
    return Range(tensor.data_ptr(), size, nixlBind.VRAM_SEG, device)


def _array_range(
    array: Any, interface: dict[str, Any], where: str, mem: nixlBind.nixl_mem_t, device: int
) -> Range:
    flags = getattr(array, "flags", None)
    if flags is not None:
        dense = flags["C_CONTIGUOUS"] or flags["F_CONTIGUOUS"]
    else:
        dense = interface.get("strides") is None
    if not dense:
        raise nixlInvalidParamError(
            f"{where}{type(array).__name__} of shape {tuple(array.shape)} is not contiguous;"
            " copy it first"
        )
    size = getattr(array, "nbytes", None)
    if size is None:
        size = int(interface["typestr"][2:])
        for extent in interface["shape"]:
            size *= extent
    return Range(interface["data"][0], size, mem, device)


def _ranges_of(sources: list[Any] | tuple[Any, ...]) -> tuple[nixlBind.nixl_mem_t, list[Range]]:
    ranges = [range_of(source, f"item {index}: ") for index, source in enumerate(sources)]
    mem = ranges[0].mem
    for index, piece in enumerate(ranges):
        if piece.mem != mem:
            raise nixlMismatchError(
                f"item {index} is {piece.mem.name} but item 0 is {mem.name};"
                " one list holds one type of memory",
                descriptor_index=index,
            )
    return mem, ranges


_List = TypeVar("_List", nixlBind.nixlRegDList, nixlBind.nixlXferDList)


def _read(source: Any, mem_type: Any, make: type[_List], meta: bool) -> _List:
    """Makes a list of class `make`; `meta`: its tuples have a fourth item."""
    if isinstance(source, (list, tuple)):
        if not source or isinstance(source[0], (tuple, list)):
            return make(mem_of(mem_type), source)
        if isinstance(source[0], int):
            raise TypeError(f"expected a list of tuples, not the single tuple {source!r}")
        mem, ranges = _ranges_of(source)
    elif is_rows(source, mem_type, 3):
        return make(mem_of(mem_type), source)
    else:
        one = range_of(source)
        mem, ranges = one.mem, [one]
    if mem_type is not None and mem_of(mem_type) != mem:
        raise nixlMismatchError(
            f"mem_type is {mem_of(mem_type).name}, but this memory is {mem.name}"
        )
    if meta:
        return make(mem, [(r.address, r.size, r.device, "") for r in ranges])
    return make(mem, [(r.address, r.size, r.device) for r in ranges])


def to_reg_list(source: Any, mem_type: Any = None) -> nixlBind.nixlRegDList:
    """What nixl_agent.get_reg_descs does."""
    if isinstance(source, nixlBind.nixlRegDList):
        return source
    if isinstance(source, nixlBind.nixlXferDList):
        return nixlBind.nixlRegDList(source.getType(), list(source))
    return _read(source, mem_type, nixlBind.nixlRegDList, True)


def to_xfer_list(source: Any, mem_type: Any = None) -> nixlBind.nixlXferDList:
    """What nixl_agent.get_xfer_descs does."""
    if isinstance(source, nixlBind.nixlXferDList):
        return source
    if isinstance(source, nixlBind.nixlRegDList):
        return source.trim()
    return _read(source, mem_type, nixlBind.nixlXferDList, False)


def to_remote_list(source: Any, mem_type: Any = None) -> nixlBind.nixlRemoteDList:
    """What nixl_agent.get_remote_descs does."""
    if isinstance(source, nixlBind.nixlRemoteDList):
        return source
    if isinstance(source, (list, tuple)):
        return nixlBind.nixlRemoteDList(mem_of(mem_type), source)
    raise TypeError(
        "expected a list of tuples (address, length, device id, agent name), not"
        f" {type(source).__name__}"
    )
