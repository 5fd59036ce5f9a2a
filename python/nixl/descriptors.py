"""Turns what users have (tuples, arrays, tensors, buffers) into descriptor lists.

Tuples and Nx3 arrays are read by the binding in one pass. Tensors and arrays are recognised by
what they offer (data_ptr, __array_interface__, the buffer protocol), so neither NumPy nor torch
is imported.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from . import _bindings as nixlBind
from .errors import (
    DescriptorsDoNotFit,
    nixlInvalidParamError,
    nixlMismatchError,
    nixlUnknownNameError,
)

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
        raise DescriptorsDoNotFit(
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


_TABLE = "an N x {} table of 32- or 64-bit integers (address, length, device id...)"
_OWN_MEMORY = "put it into a list to use its own memory"


def _kind_of(source: Any) -> str:
    """What an array, tensor or buffer is, for messages: "ndarray of float64, 4 x 3"."""
    shape = " x ".join(map(str, source.shape)) or "a scalar"
    dtype = getattr(source, "dtype", None) or f"format {source.format!r}"
    return f"{type(source).__name__} of {dtype}, {shape}"


def _could_be_a_table(tensor: Any) -> bool:
    """Whether a tensor may be meant as descriptors: rows of as many, of items that can hold one."""
    shape = tuple(getattr(tensor, "shape", ()))
    if len(shape) != 2 or shape[1] not in (3, 5):
        return False
    dtype = getattr(tensor, "dtype", None)
    return not getattr(dtype, "is_floating_point", True) or tensor.element_size() > 4


def is_rows(source: Any, mem_type: Any, *columns: int) -> bool:
    """Whether an array holds descriptors, one a row, and not the data itself.

    Without a mem_type it does when it holds 32- or 64-bit integers and has as many columns. With
    one it must: else a table of another type would become the memory itself, unnoticed. Tensors
    are always their own memory, as clients expect; one that could be a table is refused.
    """
    wanted = _TABLE.format(" or N x ".join(map(str, columns)))
    if hasattr(source, "data_ptr"):
        if mem_type is not None and _could_be_a_table(source):
            raise nixlInvalidParamError(
                f"{_kind_of(source)}, with mem_type: use its .numpy() as {wanted}, or"
                f" {_OWN_MEMORY}"
            )
        return False
    dtype = getattr(source, "dtype", None)
    if dtype is not None and hasattr(source, "shape"):
        integers = getattr(dtype, "str", "")[1:] in ("i8", "u8", "i4", "u4")
        native = getattr(dtype, "isnative", True)
        if integers and native and len(source.shape) == 2 and source.shape[1] in columns:
            return True
        if mem_type is None:
            return False
        kind = _kind_of(source) if native else f"{_kind_of(source)}, of another byte order"
        raise nixlInvalidParamError(
            f"with mem_type an array is {wanted}, not {kind}; {_OWN_MEMORY}"
        )
    if mem_type is not None and not isinstance(source, (list, tuple, str, bytes)):
        _refuse_buffer(source, wanted)
    return False


def _refuse_buffer(source: Any, wanted: str) -> None:
    """Raises for an object whose own memory would be taken: bytearray, memoryview, mmap..."""
    try:
        view = memoryview(source)
    except (TypeError, ValueError):
        return  # no buffer: what it is says whoever reads it
    shape = " x ".join(map(str, view.shape or ()))
    raise nixlInvalidParamError(
        f"with mem_type descriptors come as tuples or as {wanted}, not as"
        f" {type(source).__name__} of format {view.format!r}, {shape}; {_OWN_MEMORY}"
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
        device = nixlBind._deviceOf(interface["data"][0])
        if device < 0:
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
    name = type(tensor).__name__
    if not hasattr(tensor, "is_contiguous"):
        raise TypeError(
            f"{where}{name} is no tensor; make one of it:"
            " torch.tensor([], dtype=torch.uint8).set_(it)"
        )
    shape = tuple(tensor.shape)
    layout = str(getattr(tensor, "layout", "torch.strided"))
    if not layout.endswith("strided"):
        raise DescriptorsDoNotFit(
            f"{where}{name} of shape {shape} has the layout {layout}, which is not one piece of"
            " memory; register its parts, as .indices() and .values(), or use .to_dense()"
        )
    if not tensor.is_contiguous():
        raise DescriptorsDoNotFit(
            f"{where}{name} of shape {shape} and strides {tuple(tensor.stride())} is not"
            " contiguous; use .contiguous()"
        )
    if getattr(tensor, "is_meta", False):
        raise nixlInvalidParamError(
            f"{where}{name} of shape {shape} is on the device meta: it has no memory"
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
        raise DescriptorsDoNotFit(
            f"{where}{type(array).__name__} of shape {tuple(array.shape)} is not contiguous;"
            " copy it first"
        )
    size = getattr(array, "nbytes", None)
    if size is None:
        size = int(interface["typestr"][2:])
        for extent in interface["shape"]:
            size *= extent
    return Range(interface["data"][0], size, mem, device)


def _ranges_of(
    sources: list[Any] | tuple[Any, ...], mem_type: Any
) -> tuple[nixlBind.nixl_mem_t, list[Range]]:
    if mem_type is not None:
        for index, source in enumerate(sources):
            _refuse_row(source, index)
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


def _refuse_row(source: Any, index: int) -> None:
    """A list of the rows of a table is one descriptor too deep: each would be its own memory."""
    shape = tuple(getattr(source, "shape", ()))
    if len(shape) == 1 and shape[0] in (3, 5) and not hasattr(source, "is_contiguous"):
        raise nixlInvalidParamError(
            f"item {index}: {_kind_of(source)}, with mem_type, may be meant as a descriptor: give"
            " the whole table as one array, or tuples; without mem_type it is memory",
            descriptor_index=index,
        )


_List = TypeVar("_List", nixlBind.nixlRegDList, nixlBind.nixlXferDList)


def _read_tuples(source: Any, mem_type: Any, make: type[_List], meta: bool) -> _List:
    if mem_type is None and not source:
        raise nixlInvalidParamError("an empty list needs mem_type: nothing in it tells")
    if source:
        first = source[0]
        widths = (3, 4) if meta else (3,)
        what = "(address, length, device id" + ("[, metadata])" if meta else ")")
        if not isinstance(first, tuple):
            raise nixlInvalidParamError(
                f"descriptor 0: expected a tuple {what}, not the list {first!r:.80}",
                descriptor_index=0,
            )
        if len(first) not in widths:
            raise DescriptorsDoNotFit(
                f"descriptor 0: expected a tuple {what}, not {first!r:.80}", descriptor_index=0
            )
    return make(mem_of(mem_type), source)


def _read(source: Any, mem_type: Any, make: type[_List], meta: bool) -> _List:
    """Makes a list of class `make`; `meta`: its tuples have a fourth item."""
    if isinstance(source, (list, tuple)):
        if not source or isinstance(source[0], (tuple, list)):
            return _read_tuples(source, mem_type, make, meta)
        if isinstance(source[0], int):
            raise TypeError(f"expected a list of tuples, not the single tuple {source!r:.80}")
        mem, ranges = _ranges_of(source, mem_type)
    elif is_rows(source, mem_type, 3):
        return make(mem_of(mem_type), source)
    elif source is None:
        raise TypeError(
            "expected descriptors, not None; get_reg_descs and get_xfer_descs give None for what"
            " does not fit, and the agent's last_error says why"
        )
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


def _refuse_empty(source: nixlBind.nixlRegDList | nixlBind.nixlXferDList) -> None:
    """Lists of the other kind are taken over, which existing code does not know; it knows that an
    empty one is none."""
    if len(source) == 0:
        raise DescriptorsDoNotFit(f"an empty {type(source).__name__} describes no memory")


def to_reg_list(source: Any, mem_type: Any = None) -> nixlBind.nixlRegDList:
    """What nixl_agent.get_reg_descs does."""
    if isinstance(source, nixlBind.nixlRegDList):
        return source
    if isinstance(source, nixlBind.nixlXferDList):
        _refuse_empty(source)
        return nixlBind.nixlRegDList(source.getType(), list(source))
    return _read(source, mem_type, nixlBind.nixlRegDList, True)


def to_xfer_list(source: Any, mem_type: Any = None) -> nixlBind.nixlXferDList:
    """What nixl_agent.get_xfer_descs does."""
    if isinstance(source, nixlBind.nixlXferDList):
        return source
    if isinstance(source, nixlBind.nixlRegDList):
        _refuse_empty(source)
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
