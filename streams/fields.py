"""Which field of a record is what: the names, the unit of time and the bounds that decoders go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from streamwise.streams.errors import UsageError, meant

__all__ = ["Fields", "TimeUnit", "no_column"]

TimeUnit = Literal["auto", "s", "ms", "us", "ns", "iso"]

_USUAL = {
    "time": ("timestamp", "ts", "datetime", "date", "event_time"),
    "type": ("event", "event_type", "action"),
    "key": ("sequence", "user", "user_id", "id"),
}
_SHOWN = 40  # characters of a wrong number in an error
_NAMES = 30  # of columns in an error


@dataclass(frozen=True)
class Fields:
    """Which field of a record is what.

    A dotted name such as "user.id" reaches into nested objects, unless the record has a field of just that
    name. unit: how times are written. "s", "ms", "us" and "ns" are numbers, or text that holds one, since
    1970; "iso" is ISO 8601, in UTC where no zone is given. "auto" takes text that is no number for ISO 8601,
    and a number below 1e11 for seconds, below 1e14 for milliseconds, below 1e17 for microseconds, and any
    other for nanoseconds: right for every time from 1973 to 5138, whichever of these units it is in.
    features: further fields to keep in `Event.features`; one that a record lacks, or that is null or empty,
    is left out. A table without a column of one of the three default names is looked through for usual ones
    (see `among`). version: the field that names the schema's version, one of `versions`, if that is to be
    checked. max_bytes: a longer record is refused. Raises UsageError for what cannot be.
    """

    time: str = "time"
    type: str = "type"
    key: str = "key"
    unit: TimeUnit = "auto"
    features: tuple[str, ...] = ()
    version: str | None = None
    versions: tuple[str, ...] = ()
    max_bytes: int = 65_536

    def __post_init__(self) -> None:
        if self.unit not in get_args(TimeUnit):
            raise UsageError(
                f"{self.unit!r} is no unit of time.{meant(self.unit, get_args(TimeUnit))} "
                f"Choose one of: {', '.join(get_args(TimeUnit))}."
            )
        names = (self.time, self.type, self.key, *self.features, *self.versions)
        if not all(names) or self.version == "":
            raise UsageError("a field's name or a version is empty; give it, or leave the parameter out.")
        if (self.version is None) != (not self.versions):
            raise UsageError(
                "version names a field and versions lists its known values; give both or neither."
            )
        if self.max_bytes < 1:
            raise UsageError(f"max_bytes is {self.max_bytes}; a record has at least 1 byte.")

    def among(self, columns: Sequence[str]) -> Fields:
        """Return the fields that a table with these columns has.

        Where time, type or key has its default name and there is no such column, it is the first that is
        there of: timestamp, ts, datetime, date, event_time; event, event_type, action; sequence, user,
        user_id, id.
        """
        found: dict[str, Any] = {
            name: next((usual for usual in usuals if usual in columns), name)
            for name, usuals in _USUAL.items()
            if getattr(self, name) == name and name not in columns
        }
        return replace(self, **found)

    @classmethod
    def of(cls, query: dict[str, str], where: str) -> tuple[Fields, dict[str, str]]:
        """Take the fields' parameters out of a URL's query; return them and the rest of the query.

        Lists are separated by commas. where: the URL, for errors. Raises UsageError for what cannot be.
        """
        rest = dict(query)
        given: dict[str, Any] = {
            name: rest.pop(name) for name in ("time", "type", "key", "unit", "version") if name in rest
        }
        for name in ("features", "versions"):
            if name in rest:
                given[name] = tuple(part.strip() for part in rest.pop(name).split(","))
        try:
            if "max_bytes" in rest:
                text = rest.pop("max_bytes")
                if not (text.isascii() and text.isdigit() and len(text) < 16):
                    raise UsageError(f"max_bytes is {text[:_SHOWN]!r}; give a whole number, such as 65536.")
                given["max_bytes"] = int(text)
            return cls(**given), rest
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def no_column(name: str, columns: Sequence[str], where: str) -> UsageError:
    """Return the error for a field that a file has no column for."""
    more = f", and {len(columns) - _NAMES} more" if len(columns) > _NAMES else ""
    return UsageError(
        f"{where}: there is no column {name!r}.{meant(name, columns)} "
        f"The columns are: {', '.join(columns[:_NAMES])}{more}. "
        "Say which is which: 'file:PATH?time=COLUMN&type=COLUMN&key=COLUMN'."
    )
