"""Times and limits. Each is read from the environment variable beside it."""

from __future__ import annotations

import dataclasses
import os

_VARIABLES = {
    "bootstrap_timeout": "NIXL_DISAGG_BOOTSTRAP_TIMEOUT",
    "waiting_timeout": "NIXL_DISAGG_WAITING_TIMEOUT",
    "heartbeat": "NIXL_DISAGG_HEARTBEAT",
    "peer_timeout": "NIXL_DISAGG_PEER_TIMEOUT",
    "window": "NIXL_DISAGG_WINDOW",
    "queue_limit": "NIXL_DISAGG_QUEUE_LIMIT",
}


@dataclasses.dataclass
class Settings:
    """Seconds, and counts."""

    bootstrap_timeout: float = 120.0  # a room until both sides know each other
    waiting_timeout: float = 120.0  # a room without any progress after that
    heartbeat: float = 1.0
    peer_timeout: float = 10.0  # without an answer a peer is dead
    window: int = 64  # transfers of a rank on their way at a time; others wait in order
    queue_limit: int = 65536  # chunks that wait; more fail their room

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = isinstance(field.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise TypeError(f"{field.name}: {value!r} is not {kind}")
            if not 0 < value < 1e9:
                raise ValueError(f"{field.name}: {value!r} must be more than 0 and below 1e9")

    @classmethod
    def from_env(cls) -> Settings:
        found: dict[str, int | float] = {}
        for name, variable in _VARIABLES.items():
            text = os.environ.get(variable, "")
            if text:
                kind = type(getattr(cls, name))
                try:
                    found[name] = kind(text)
                except ValueError:
                    raise ValueError(f"{variable}={text!r} is not a number") from None
        return cls(**found)  # type: ignore[arg-type]
