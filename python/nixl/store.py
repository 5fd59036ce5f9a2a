"""A framework's own key-value store as the central store for metadata.

An object with ``set``, ``get``, ``check`` and ``delete`` (torch's TCPStore, by the names it has, a
Redis client, a dict or other mapping) is asked through one of these, on a thread of the agent's.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

_NOTHING = "nixl: no value"
_SET, _REMOVE, _CHECK = ("set",), ("delete_key", "delete", "remove"), ("check", "exists")


def _method(store: Any, names: tuple[str, ...]) -> Callable[..., Any] | None:
    found = (getattr(store, name, None) for name in names)
    return next((method for method in found if callable(method)), None)


class FrameworkStore:
    """Calls the store by whichever names it has."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self._mapping = isinstance(store, MutableMapping)
        self._torch = any(kind.__module__.startswith("torch.") for kind in type(store).__mro__)
        # A mapping needs none of them, any other store has what `missing` does not name.
        self._set: Any = _method(store, _SET)
        self._get: Any = _method(store, ("get",))
        self._check: Any = _method(store, _CHECK)
        self._remove = _method(store, _REMOVE)
        missing = [
            names[0]
            for names, method in ((_SET, self._set), (("get",), self._get))
            if method is None and not self._mapping
        ]
        if missing:
            raise TypeError(
                f"metadata_store: {type(store).__name__} has no {' and no '.join(missing)}; an "
                "object with set, get, check and delete, a mapping, or the name of a directory "
                "is needed"
            )

    def describe(self) -> str:
        where = [getattr(self.store, name, None) for name in ("host", "port")]
        place = f"({where[0]}:{where[1]})" if all(where) else ""
        return f"metadata_store {type(self.store).__name__}{place}"

    def set(self, key: str, value: bytes) -> None:
        if self._mapping:
            self.store[key] = value
        else:
            self._set(key, value)

    def get(self, key: str) -> bytes | None:
        """None where there is none; never waits for one, as a TCPStore's get does."""
        if self._mapping:
            value = self.store.get(key)
        elif self._torch and self._check is None:
            value = self._get_without_check(key)
        elif self._check is not None and not self._has(key):
            return None
        else:
            value = self._get(key)
        if value is None or isinstance(value, (bytes, bytearray, memoryview)):
            return None if value is None else bytes(value)
        raise TypeError(
            f"{self.describe()} gave a {type(value).__name__} for {key!r}; metadata is bytes"
        )

    def _has(self, key: str) -> bool:
        # torch's stores take a list of keys, everybody else one.
        return bool(self._check([key] if self._torch else key))

    def _get_without_check(self, key: str) -> bytes | None:
        """Of a torch store before 2.0, whose get and wait cannot be given up: it compares with what
        no value is, and gives that back where there is none."""
        value = bytes(self.store.compare_set(key, _NOTHING, _NOTHING))
        return None if value == _NOTHING.encode() else value

    def remove(self, key: str) -> None:
        if self._mapping:
            self.store.pop(key, None)
        elif self._remove is not None:
            self._remove(key)
        else:
            raise TypeError(f"{self.describe()} has no delete")
