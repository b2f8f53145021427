"""From the value of one field to a time, to the text of a type or key, or to a feature that JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from streamwise.streams.event import time_fault
from streamwise.streams.fields import TimeUnit
from streamwise.streams.refusals import BAD_TIME, BAD_VALUE, MALFORMED, OVERSIZE, NoEventError, shown

__all__ = ["PER_SECOND", "as_json", "as_label", "as_seconds", "as_text", "check_encodable"]

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def as_label(value: Any) -> str:
    """Return a type or key as text, or raise NoEventError."""
    if isinstance(value, bytes):
        value = as_text(value)
    if isinstance(value, float | Decimal):  # 3.0 is how a table with gaps says 3
        value = _whole(value)
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(int(value))
        except ValueError:
            raise NoEventError(OVERSIZE, "is a number of thousands of digits") from None
    if not isinstance(value, str):
        raise NoEventError(BAD_VALUE, f"is {shown(value)}, neither text nor a whole number")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NoEventError(BAD_VALUE, f"is {shown(value)}, which holds half a surrogate pair") from None
    return value


def as_seconds(value: Any, unit: TimeUnit) -> float:
    """Return a time in seconds since 1970, or raise NoEventError."""
    if isinstance(value, bytes):
        value = as_text(value)
    try:
        number = None if unit == "iso" else _number(value)
        if number is not None:
            time = float(number / _divisor(number, unit))
        elif isinstance(value, str) and unit in ("auto", "iso"):
            time = _since_1970(datetime.fromisoformat(value.strip()))
        elif isinstance(value, date):
            time = _since_1970(value)
        else:
            raise ValueError
    except OverflowError:
        time = math.inf
    except ValueError:
        kind = {"auto": "neither a number nor ISO 8601", "iso": "not ISO 8601"}.get(unit, f"not in {unit}")
        raise NoEventError(BAD_TIME, f"is {shown(value)}, {kind}") from None
    fault = time_fault(time)
    if fault is not None:
        raise NoEventError(BAD_TIME, f"is {shown(value)}: {fault}")
    return time


def _number(value: Any) -> int | float | None:
    """Return the number that a value is or says, or None."""
    if isinstance(value, str):
        if "_" in value:  # Python reads 2016_07 as a number; nobody else does
            return None
        try:
            number = float(value)
        except ValueError:
            return None
        # Nanoseconds since 1970 have more digits than a float; as integers they are divided exactly.
        return int(value) if abs(number) > 2**53 and len(value) < 30 and value.strip().isdecimal() else number
    if isinstance(value, Decimal):
        whole = _whole(value)
        return float(value) if isinstance(whole, Decimal) else whole
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: float | Decimal) -> int | float | Decimal:
    """Return the integer that a number is, or the number."""
    try:
        return whole if (whole := int(value)) == value else value
    except (ValueError, ArithmeticError):  # NaN and infinities
        return value


def _divisor(number: int | float, unit: TimeUnit) -> int:
    if unit != "auto":
        return PER_SECOND.get(unit, 1)
    size = abs(number)
    return 1 if size < 1e11 else 1_000 if size < 1e14 else 1_000_000 if size < 1e17 else 1_000_000_000


def _since_1970(moment: date) -> float:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def as_text(value: bytes) -> str:
    """Return bytes as text, or raise NoEventError."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise NoEventError(MALFORMED, f"is not UTF-8 from byte {error.start} on") from None


def as_json(value: Any) -> Any:
    """Return a value of a table or a JSON object as what JSON can hold: positions hold features, too."""
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def check_encodable(kept: dict[str, Any] | None) -> None:
    """Raise NoEventError for features that no log or store could write down."""
    try:
        json.dumps(kept, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise NoEventError(
            BAD_VALUE, "hold half a surrogate pair, or what cannot be written as JSON"
        ) from None
