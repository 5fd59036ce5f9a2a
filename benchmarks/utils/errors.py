"""How a benchmark says that it cannot go on."""

from __future__ import annotations

MISSING = 77  # exit status: what the benchmark needs is not here


class Missing(Exception):
    """Something that this machine or this build lacks."""


class Refused(Exception):
    """A request that cannot be carried out, in words for whoever made it."""
