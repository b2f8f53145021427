"""How reports write numbers, times, and what came from a log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

__all__ = [
    "UNITS",
    "counted",
    "date_text",
    "listed",
    "nats",
    "number_text",
    "percent",
    "plain",
    "return_text",
    "seconds_text",
    "signed",
    "span_text",
    "time_text",
    "unit_text",
]

# Seconds, the short name of so many, and the name of one.
UNITS = {1.0: ("s", "second"), 60.0: ("min", "minute"), 3_600.0: ("h", "hour"), 86_400.0: ("days", "day")}
FIRST_DATE = 1e8  # seconds; earlier times count from a start of their own, not from 1970


def plain(text: str, length: int = 40) -> str:
    """Cut what came from a log, and spell out what could hide or reverse the words around it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:length])
    return f"{shown}…" if len(text) > length else shown or "(empty)"


def counted(number: int, thing: str, things: str = "") -> str:
    """Return 1 thing, or how many things."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def listed(names: Sequence[str]) -> str:
    """Return a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(share: float, digits: int = 2) -> str:
    """Return a share of 1; a dash if it is not known."""
    return "–" if math.isnan(share) else f"{100.0 * share:.{digits}f}%"


def nats(value: float) -> str:
    """Return a likelihood or a loss; a dash if it is not known."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def return_text(value: float) -> str:
    """Write a return; where they are small, a tenth would hide what differs."""
    return f"{value:,.1f}" if abs(value) >= 10.0 else f"{value:.3g}"


def number_text(value: float) -> str:
    """Return a number in four digits or so: 12,345; 123.4; 1.23; 0.00123; a dash if it is not known."""
    if math.isnan(value):
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def span_text(low: float, high: float) -> str:
    """Return from one number to another."""
    return f"{number_text(low)} to {number_text(high)}"


def signed(value: float, form: str = "+.4f", unit: str = "") -> str:
    """Return a difference; a dash if it is not known."""
    return f"{value:{form}}{unit}" if math.isfinite(value) else "–"


def date_text(seconds: float) -> str:
    """Return a time since 1970 as day and time."""
    return f"{datetime.fromtimestamp(seconds, UTC):%d %b %Y %H:%M:%S} UTC"


def time_text(seconds: float) -> str:
    """Return the time of an event, which may count from a start of its own."""
    return f"{seconds:,.3f} s" if seconds < FIRST_DATE else date_text(seconds)


def seconds_text(seconds: float) -> str:
    """Return a duration in the largest unit of which it has two.

    >>> seconds_text(0.25), seconds_text(5_400.0), seconds_text(2e9)
    ('0.25 s', '90 min', '23,148 days')
    """
    unit = max((unit for unit in UNITS if seconds >= 2 * unit), default=1.0)
    count = seconds / unit
    return f"{count:,.0f} {UNITS[unit][0]}" if count >= 1_000.0 else f"{count:.3g} {UNITS[unit][0]}"


def unit_text(seconds: float) -> str:
    """Return a unit of time by its name, if it has one."""
    return UNITS[seconds][0] if seconds in UNITS else f"{seconds:,.10g} s"
