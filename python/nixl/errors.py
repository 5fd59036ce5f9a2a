"""The exceptions of NIXL. Every one derives from nixlError, which is a RuntimeError.

The text of each starts with the established constant ("NIXL_ERR_NOT_FOUND: ..."); what follows
names the object, the value and the cause.
"""

from __future__ import annotations

__all__ = [
    "nixlBackendError",
    "nixlCancelledError",
    "nixlError",
    "nixlInvalidParamError",
    "nixlMismatchError",
    "nixlNoTelemetryError",
    "nixlNotAllowedError",
    "nixlNotFoundError",
    "nixlNotPostedError",
    "nixlNotSupportedError",
    "nixlRemoteDisconnectError",
    "nixlRepostActiveError",
    "nixlTimeoutError",
    "nixlUnknownError",
]


class nixlError(RuntimeError):
    """Base of all errors of NIXL.

    Attributes: ``status`` (the constant's name), ``agent``, ``peer`` and ``backend`` (empty where
    none is meant), ``descriptor_index`` (-1 where no single descriptor is to blame), ``errno``
    (0 where the system did not refuse anything).
    """

    status = "NIXL_ERR_UNKNOWN"

    def __init__(
        self,
        message: str = "",
        *,
        agent: str = "",
        peer: str = "",
        backend: str = "",
        descriptor_index: int = -1,
        errno: int = 0,
    ) -> None:
        text = message if message.startswith("NIXL_") else f"{self.status}: {message}"
        super().__init__(text)
        self.agent = agent
        self.peer = peer
        self.backend = backend
        self.descriptor_index = descriptor_index
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class nixlNotPostedError(nixlError):
    """The transfer has never been posted."""

    status = "NIXL_ERR_NOT_POSTED"


class nixlInvalidParamError(nixlError, ValueError):
    """An argument is wrong; nothing was done. A ValueError too, as existing code expects."""

    status = "NIXL_ERR_INVALID_PARAM"


class _OwnKind(nixlInvalidParamError):
    """Base of kinds of it that only this package tells apart; they pickle as what they are."""

    def __reduce__(self) -> tuple[type[nixlError], tuple[str], dict[str, object]]:
        return nixlInvalidParamError, (str(self),), vars(self)


class nixlUnknownNameError(_OwnKind, KeyError):
    """A name is none of a fixed set (operations, memory types): a KeyError too."""


class DescriptorsDoNotFit(_OwnKind):
    """For these get_reg_descs and get_xfer_descs give None, as existing code expects."""


# Existing code also matches errors by the name of their class.
for _kind in (nixlUnknownNameError, DescriptorsDoNotFit):
    _kind.__name__ = _kind.__qualname__ = "nixlInvalidParamError"


class nixlBackendError(nixlError):
    """A device, file or library reported a failure."""

    status = "NIXL_ERR_BACKEND"


class nixlNotFoundError(nixlError):
    """No such agent, backend, registration, file or object."""

    status = "NIXL_ERR_NOT_FOUND"


class nixlMismatchError(nixlError):
    """Two things do not fit each other: counts, lengths, versions."""

    status = "NIXL_ERR_MISMATCH"


class nixlNotAllowedError(nixlError):
    """Legal only in another state or process, or a permission is missing."""

    status = "NIXL_ERR_NOT_ALLOWED"


class nixlRepostActiveError(nixlError):
    """The transfer is still in progress."""

    status = "NIXL_ERR_REPOST_ACTIVE"


class nixlUnknownError(nixlError):
    """A defect in the library."""

    status = "NIXL_ERR_UNKNOWN"


class nixlNotSupportedError(nixlError):
    """No backend, or this system, can do it."""

    status = "NIXL_ERR_NOT_SUPPORTED"


class nixlRemoteDisconnectError(nixlError):
    """The peer is gone."""

    status = "NIXL_ERR_REMOTE_DISCONNECT"


class nixlCancelledError(nixlError):
    """Ended by cancel, by release or by the end of its agent."""

    status = "NIXL_ERR_CANCELED"


class nixlNoTelemetryError(nixlError):
    """The transfer has no figures: it has not finished, or NIXL_TELEMETRY_ENABLE says no."""

    status = "NIXL_ERR_NO_TELEMETRY"


class nixlTimeoutError(nixlError, TimeoutError):  # type: ignore[misc]
    """A deadline passed."""

    status = "NIXL_ERR_TIMEOUT"


# In the order of the error codes: -1, -2, ... (the binding relies on it).
BY_CODE: list[type[nixlError]] = [
    nixlNotPostedError,
    nixlInvalidParamError,
    nixlBackendError,
    nixlNotFoundError,
    nixlMismatchError,
    nixlNotAllowedError,
    nixlRepostActiveError,
    nixlUnknownError,
    nixlNotSupportedError,
    nixlRemoteDisconnectError,
    nixlCancelledError,
    nixlNoTelemetryError,
    nixlTimeoutError,
]
