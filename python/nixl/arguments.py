"""What arguments may be, and the words for those that are not.

The binding refuses a wrong type with the list of its own signatures; `retold` turns that into one
sentence that names the argument and what it takes. It runs only where a call has failed.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from . import _bindings as nixlBind
from .errors import nixlInvalidParamError

_Call = TypeVar("_Call", bound=Callable[..., Any])


class _Kind(NamedTuple):
    text: str  # "bytes or str"
    fits: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    return isinstance(value, (bytes, bytearray, memoryview))


def _is_within(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: hasattr(value, "__index__") and low <= value.__index__() <= high


_TEXT = _Kind("str (that UTF-8 can encode) or bytes", _is_text)
_BYTES = _Kind("bytes", lambda v: isinstance(v, (bytes, bytearray, memoryview, str)))
_FLAG = _Kind("True or False", lambda v: isinstance(v, bool))
_PORT = _Kind("a port within 0 ... 65535", _is_within(0, 65535))
_NUMBER = _Kind("an integer within 0 ... 2**64 - 1", _is_within(0, 2**64 - 1))
_BACKEND = _Kind("a backend's name", _is_text)
_XFER = _Kind("a transfer's handle", lambda v: isinstance(v, nixlBind.nixlXferHandle))
_LIST = _Kind("a prepared list's handle", lambda v: isinstance(v, nixlBind.nixlDlistHandle))

_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(("agent_name", "remote_agent_name", "remote_agent", "agent", "name"), _TEXT),
    **dict.fromkeys(("notif_msg", "ip_addr", "label", "prefix"), _TEXT),
    **dict.fromkeys(("metadata", "serialized_descs"), _BYTES),
    **dict.fromkeys(("skip_desc_merge", "inc_conn_info"), _FLAG),
    **dict.fromkeys(("limit", "mvh", "size", "address", "src", "dst"), _NUMBER),
    **dict.fromkeys(("handle", "req_handle"), _XFER),
    **dict.fromkeys(("local_xfer_side", "remote_xfer_side"), _LIST),
    "port": _PORT,
    "backend": _BACKEND,
}


def shown(value: Any) -> str:
    """A value in a message: numbers and text as they are, anything else by its type."""
    return repr(value) if isinstance(value, (int, float, str)) else type(value).__name__


def retold(error: TypeError, **given: Any) -> TypeError:
    """The error to raise in place of one of the binding, by the arguments that were given."""
    if "incompatible function arguments" not in str(error):
        return error
    for name, value in given.items():
        kind = _KINDS.get(name)
        if kind is not None and not kind.fits(value):
            return TypeError(f"{name} must be {kind.text}, not {shown(value)}")
    kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in given.items())
    return TypeError(f"arguments of types that do not fit: {kinds}")


def plain_errors(call: _Call) -> _Call:
    """For calls that are not on a hot path: their type errors name the argument."""

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except TypeError as error:
            if "incompatible function arguments" not in str(error):
                raise
            given = inspect.signature(call).bind(*args, **kwargs).arguments
            given.pop("self", None)
            raise retold(error, **given) from None

    return checked  # type: ignore[return-value]


def text_of(name: Any, argument: str = "an agent's name") -> str:
    """An agent's name as str."""
    if isinstance(name, str):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise nixlInvalidParamError(f"{argument} {name!r}: UTF-8 cannot encode it") from None
        return name
    if isinstance(name, (bytes, bytearray, memoryview)):
        try:
            return bytes(name).decode()
        except UnicodeDecodeError as error:
            raise nixlInvalidParamError(f"{argument} {bytes(name)!r} is not UTF-8") from error
    raise TypeError(f"{argument} must be str or bytes, not {type(name).__name__}")


def bytes_of(tag: Any, argument: str = "a notification's tag") -> bytes:
    """A notification or tag as bytes."""
    if isinstance(tag, str):
        try:
            return tag.encode()
        except UnicodeEncodeError as error:
            raise nixlInvalidParamError(f"{argument} {tag!r}: UTF-8 cannot encode it") from error
    if isinstance(tag, (bytes, bytearray, memoryview)):
        return bytes(tag)
    raise TypeError(f"{argument} must be bytes or str, not {type(tag).__name__}")


def seconds_of(timeout: Any) -> float | None:
    """The argument `timeout`: seconds, or None for no limit."""
    if timeout is None:
        return None
    if isinstance(timeout, (str, bytes)) or not hasattr(timeout, "__float__"):
        raise TypeError(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        )
    seconds = float(timeout)
    if math.isnan(seconds) or seconds < 0:
        raise nixlInvalidParamError(f"timeout {seconds} s: must be 0 or more, or None for no limit")
    return seconds


def count_of(value: Any, argument: str, least: int) -> int:
    """An argument that counts something."""
    if not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be an integer, not {type(value).__name__}")
    count = int(value.__index__())
    if count < least:
        raise nixlInvalidParamError(f"{argument}={count}: must be at least {least}")
    return count


def handles_of(handles: Any) -> list[Any]:
    """The argument `handles`: transfers to wait for."""
    if isinstance(handles, (str, bytes)) or not isinstance(handles, Iterable):
        raise TypeError(f"handles must be a list of transfers, not {type(handles).__name__}")
    found = list(handles)
    for index, handle in enumerate(found):
        if not isinstance(handle, nixlBind.nixlXferHandle):
            raise TypeError(
                f"handles[{index}] must be a transfer's handle, not {type(handle).__name__}"
            )
    return found
