"""Why a record is no event: the reasons, and how they are said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

__all__ = [
    "BAD_TIME",
    "BAD_VALUE",
    "MALFORMED",
    "MISSING_FIELD",
    "OVERSIZE",
    "SHOWN",
    "UNKNOWN_VERSION",
    "NoEventError",
    "Unreadable",
    "shown",
]

MALFORMED = "malformed"  # it cannot be read as what it should be
MISSING_FIELD = "missing field"  # or null, or empty
BAD_VALUE = "bad value"  # a type or key that is neither text nor a whole number
BAD_TIME = "bad time"  # unreadable or impossible
OVERSIZE = "oversize"
UNKNOWN_VERSION = "unknown version"

SHOWN = 40  # characters of a name or a value in a detail


class NoEventError(Exception):
    """Why a record is no event."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Unreadable:
    """Stands among a source's values for a record that the source itself could not read; decoders refuse it.

    start: its first bytes, if any could be read. size: how many bytes of the source it takes up.
    """

    reason: str
    detail: str
    start: bytes = b""
    size: int = 0

    def __len__(self) -> int:
        return self.size


def shown(value: Any) -> str:
    """Return a few words for a value in a message of one line."""
    if isinstance(value, str | bytes):
        return repr(value[:SHOWN]) + ("..." if len(value) > SHOWN else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**SHOWN:
        return "a number of more than 40 digits"
    if isinstance(value, int | float | Decimal | date):
        return str(value)[:SHOWN]
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else "no plain value"
