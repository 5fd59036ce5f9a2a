"""The logger "nixl" and its level, from NIXL_LOG_LEVEL (default WARN).

Records go to standard error, unless the application has set up logging itself: then they go where
it sends them.
"""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["LOGGING_CONFIG", "get_logger", "set_log_level_by_env", "setup_logging"]

TRACE = 5
LEVELS = {
    "TRACE": TRACE,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}

# What setup_logging amounts to, for applications that want to build on it with dictConfig.
LOGGING_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "nixl": {
            "format": "%(asctime)s NIXL %(levelname)s %(filename)s:%(lineno)d %(message)s",
            "datefmt": "%Y-%m-%d %H:%M:%S",
        }
    },
    "handlers": {
        "nixl": {
            "class": "logging.StreamHandler",
            "formatter": "nixl",
            "stream": "ext://sys.stderr",
        }
    },
    "loggers": {"nixl": {"level": "WARNING", "handlers": ["nixl"], "propagate": False}},
}


class _OwnHandler(logging.Handler):
    """Writes to the current standard error while the application has no handler of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers or sys.stderr is None:
            return
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def get_logger(name: str) -> logging.Logger:
    """The logger for a part of NIXL: "nixl" itself, or "nixl.<name>"."""
    if name == "nixl" or name.startswith("nixl."):
        return logging.getLogger(name)
    return logging.getLogger(f"nixl.{name}")


def set_log_level_by_env(nixl_logger: logging.Logger) -> None:
    """Sets the level NIXL_LOG_LEVEL names; WARN where it is unset or unknown."""
    text = os.environ.get("NIXL_LOG_LEVEL", "").strip()
    level = LEVELS.get(text.upper())
    nixl_logger.setLevel(logging.WARNING if level is None else level)
    if text and level is None:
        nixl_logger.warning(
            'NIXL_LOG_LEVEL="%s" is none of TRACE DEBUG INFO WARN ERROR FATAL; using WARN', text
        )


def setup_logging() -> None:
    """Gives the logger "nixl" its handler (once) and its level."""
    nixl_logger = logging.getLogger("nixl")
    # By name: a class of an earlier import of this module is another one.
    if not any(type(handler).__name__ == _OwnHandler.__name__ for handler in nixl_logger.handlers):
        handler = _OwnHandler()
        form = LOGGING_CONFIG["formatters"]["nixl"]  # type: ignore[index]
        handler.setFormatter(logging.Formatter(form["format"], form["datefmt"]))
        nixl_logger.addHandler(handler)
    logging.addLevelName(TRACE, "TRACE")
    set_log_level_by_env(nixl_logger)
