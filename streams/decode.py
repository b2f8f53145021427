"""From raw records to columns of events: JSON objects, lines of CSV, and rows of Python values."""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any, Literal, TypeVar, get_args

import msgspec

from streamwise.streams.errors import UsageError, meant
from streamwise.streams.event import LAST_TIME, Decoded, Refused, time_fault

__all__ = [
    "BAD_TIME",
    "BAD_VALUE",
    "MALFORMED",
    "MISSING_FIELD",
    "OVERSIZE",
    "UNKNOWN_VERSION",
    "CsvDecoder",
    "Fields",
    "JsonDecoder",
    "RowDecoder",
    "TimeUnit",
    "Unreadable",
]

MALFORMED = "malformed"  # it cannot be read as what it should be
MISSING_FIELD = "missing field"  # or null, or empty
BAD_VALUE = "bad value"  # a type or key that is neither text nor a whole number
BAD_TIME = "bad time"  # unreadable or impossible
OVERSIZE = "oversize"
UNKNOWN_VERSION = "unknown version"

_Value = TypeVar("_Value")
TimeUnit = Literal["auto", "s", "ms", "us", "ns", "iso"]
_Getter = Callable[[Any], Any]  # from a record to the value of one of its fields

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_USUAL = {
    "time": ("timestamp", "ts", "datetime", "date", "event_time"),
    "type": ("event", "event_type", "action"),
    "key": ("sequence", "user", "user_id", "id"),
}
_LONGEST_LABEL = 1_024  # characters of a type or key
_DEEPEST = 128  # levels of a JSON value; where a parser runs out of stack depends on who calls it
_SHOWN = 40  # characters of a value in a detail
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


class _NoEventError(Exception):
    """Why a record is no event."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


class _Decoder(ABC):
    """What all decoders share: the columns, and what a time, a type and a key may be."""

    def __init__(self, fields: Fields, get: Callable[[str], _Getter]) -> None:
        """get: from a field's name to what finds it in a record, or raises LookupError or TypeError."""
        self.fields = fields
        self._get_time, self._get_type, self._get_key = map(get, (fields.time, fields.type, fields.key))
        self._get_features = [(name, get(name)) for name in fields.features]
        self._get_version = get(fields.version) if fields.version is not None else None

    @abstractmethod
    def _quick(self, value: Any) -> Any:
        """Return the record in a value, or raise anything at all if it is not quite plain."""

    @abstractmethod
    def _careful(self, value: Any) -> Any:
        """Return the record in a value, or raise _NoEventError."""

    def decode(self, values: Sequence[Any]) -> Decoded:
        """Return the events among the values, and why the others are none. Nothing in a value raises."""
        index: list[int] = []
        times: list[float] = []
        types: list[str] = []
        keys: list[str] = []
        features: list[dict[str, Any] | None] | None = [] if self._get_features else None
        refused: list[Refused] = []

        quick, get_time, get_type, get_key = self._quick, self._get_time, self._get_type, self._get_key
        checks_version = self._get_version is not None
        unit = self.fields.unit
        divisor = _PER_SECOND.get(unit, 1)
        below = {"auto": 1e11, "iso": -1.0}.get(unit, LAST_TIME * divisor)  # what it divides
        for i, value in enumerate(values):
            kept = None
            try:
                record = quick(value)
                time, type_, key = get_time(record), get_type(record), get_key(record)
                kind = time.__class__
                if (kind is float or kind is int) and 0 <= time < below:
                    time /= divisor
                else:
                    time = _seconds(time, unit)
                if type_.__class__ is not str:
                    type_ = _label(type_)
                if key.__class__ is not str:
                    key = _label(key)
                plain = 0 < len(type_) <= _LONGEST_LABEL and 0 < len(key) <= _LONGEST_LABEL
                if not plain or checks_version or not (type_.isascii() and key.isascii()):
                    time, type_, key = self._checked(record)
                if features is not None:
                    kept = self._kept(record)
            except Exception:
                try:
                    record = self._careful(value)
                    time, type_, key = self._checked(record)
                    kept = self._kept(record)
                    _named("features", _encodable, kept)
                except _NoEventError as fault:
                    refused.append(Refused(i, fault.reason, fault.detail))
                    continue
            index.append(i)
            times.append(time)
            types.append(type_)
            keys.append(key)
            if features is not None:
                features.append(kept)
        if features is not None and not any(features):
            features = None
        return Decoded(index if refused else range(len(values)), times, types, keys, features, refused)

    def _checked(self, record: Any) -> tuple[float, str, str]:
        """Return the time, type and key of a record, or raise _NoEventError."""
        fields = self.fields
        if self._get_version is not None:
            name = fields.version or ""
            version = _present(record, name, self._get_version)
            try:
                known = _label(version) in fields.versions
            except _NoEventError:
                known = False
            if not known:
                raise _NoEventError(UNKNOWN_VERSION, f"{name[:_SHOWN]} is {_shown(version)}")
        time = _present(record, fields.time, self._get_time)
        type_ = _present(record, fields.type, self._get_type)
        key = _present(record, fields.key, self._get_key)
        seconds = _named(fields.time, lambda value: _seconds(value, fields.unit), time)
        return seconds, _text(fields.type, type_), _text(fields.key, key)

    def _kept(self, record: Any) -> dict[str, Any] | None:
        """Return the features of a record, None if it has none, or raise _NoEventError."""
        kept: dict[str, Any] = {}
        size = 0
        for name, get in self._get_features:
            value = _found(record, get)
            if isinstance(value, bytes):
                value = _named(name, _decoded, value)
            if value is None or value == "":
                continue
            if isinstance(value, str):
                size += len(value)
            elif not isinstance(value, int | float):
                value = _as_json(value)
            kept[name] = value
        if size > self.fields.max_bytes:
            raise _NoEventError(OVERSIZE, f"the features have more than {self.fields.max_bytes:,} characters")
        return kept or None


class JsonDecoder(_Decoder):
    """Reads JSON objects in UTF-8, one a value, such as a line of JSON Lines or a message's value.

    What Python's own writer adds to JSON is understood: NaN, Infinity, and halves of surrogate pairs.

    >>> decoder = JsonDecoder(Fields(time="at", type="action", key="user.id"))
    >>> decoded = decoder.decode([b'{"at": 7, "action": "view", "user": {"id": 3}}', b'{"at": 8}'])
    >>> decoded.times, decoded.types, decoded.keys, decoded.refused
    ([7.0], ['view'], ['3'], [Refused(which=1, reason='missing field', detail='there is no action')])
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields, _field)
        self._parse = msgspec.json.Decoder(type=dict[str, Any]).decode
        self._suspicious = min(2 * _DEEPEST, fields.max_bytes)  # bytes; fewer are not too deep

    def decode(self, values: Sequence[bytes | Unreadable | None]) -> Decoded:
        """Return the events among the values, and why the others are none. Nothing in a value raises."""
        return super().decode(values)

    def _quick(self, value: bytes) -> Any:
        if len(value) > self._suspicious and (
            len(value) > self.fields.max_bytes or value.count(b"{") + value.count(b"[") > _DEEPEST
        ):
            raise ValueError
        return self._parse(value)

    def _careful(self, value: bytes | Unreadable | None) -> Any:
        text = _line(value, self.fields.max_bytes).removeprefix("\ufeff")
        if not text or text.isspace():
            raise _NoEventError(MALFORMED, "the record is empty")
        try:
            record = json.loads(text)
        except RecursionError:
            raise _NoEventError(MALFORMED, f"it is nested more than {_DEEPEST} levels deep") from None
        except ValueError as error:  # an integer of thousands of digits, too
            raise _NoEventError(MALFORMED, f"it is not JSON: {_one_line(str(error))}") from None
        if not isinstance(record, dict):
            raise _NoEventError(MALFORMED, f"it is {_shown(record)}, not an object")
        if _is_deep(record):
            raise _NoEventError(MALFORMED, f"it is nested more than {_DEEPEST} levels deep")
        return record


class CsvDecoder(_Decoder):
    """Reads lines of CSV in UTF-8, one a value and without its line end.

    columns: the names of a line's fields, dots and all. A field may be quoted as RFC 4180 has it, but each
    line is one record: a quoted line break is not understood. where: the file, for errors. Raises UsageError
    if a field is not among the columns.

    >>> decoder = CsvDecoder(Fields(key="user"), ["time", "user", "type"])
    >>> decoder.decode([b'1970-01-02,"Ann, the first",view'])[:4]
    (range(0, 1), [86400.0], ['view'], ['Ann, the first'])
    """

    def __init__(self, fields: Fields, columns: list[str], delimiter: str = ",", where: str = "CSV") -> None:
        self.columns, self.delimiter = columns, delimiter
        fields = fields.among(columns)
        self._max_bytes = fields.max_bytes

        def get(name: str) -> _Getter:
            if name not in columns:
                raise no_column(name, columns, where)
            if columns.count(name) > 1:
                raise UsageError(f"{where}: there is more than one column named {name!r}; rename them.")
            return itemgetter(columns.index(name))

        super().__init__(fields, get)

    def decode(self, values: Sequence[bytes | Unreadable]) -> Decoded:
        """Return the events among the values, and why the others are none. Nothing in a value raises."""
        return super().decode(values)

    def _quick(self, value: bytes) -> list[str]:
        if b'"' in value or len(value) > self._max_bytes:
            raise ValueError
        row = value.decode().split(self.delimiter)
        if len(row) != len(self.columns):
            raise ValueError
        return row

    def _careful(self, value: bytes | Unreadable) -> list[str]:
        text = _line(value, self.fields.max_bytes)
        if '"' not in text:
            row = text.split(self.delimiter)
        else:
            try:
                rows = list(csv.reader([text], delimiter=self.delimiter, strict=True))
            except csv.Error as error:
                raise _NoEventError(MALFORMED, f"it is not CSV: {_one_line(str(error))}") from None
            if len(rows) != 1:
                raise _NoEventError(MALFORMED, "it has a line break in it")
            row = rows[0]
        if len(row) != len(self.columns):
            raise _NoEventError(MALFORMED, f"it has {len(row)} fields for {len(self.columns)} columns")
        return row


class RowDecoder(_Decoder):
    """Reads mappings from names to Python values, such as the rows of a Parquet file or the fields of Redis.

    Bytes are read as text in UTF-8; a time may be a datetime, in UTC where it has no zone, or a date.

    >>> RowDecoder(Fields()).decode([{"time": date(1970, 1, 2), "type": 3.0, "key": b"ann"}])[:4]
    (range(0, 1), [86400.0], ['3'], ['ann'])
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields, _field)

    def decode(self, values: Sequence[Mapping[str, Any] | Unreadable]) -> Decoded:
        """Return the events among the values, and why the others are none. Nothing in a value raises."""
        return super().decode(values)

    def _quick(self, value: Any) -> Any:
        return value

    def _careful(self, value: Any) -> Any:
        if isinstance(value, Unreadable):
            raise _NoEventError(value.reason, value.detail)
        if not isinstance(value, Mapping):
            raise _NoEventError(MALFORMED, f"it is {_shown(value)}, not a row")
        return value


def _field(name: str) -> _Getter:
    """Return the function that finds a field in nested mappings."""
    if "." not in name:
        return itemgetter(name)
    path = name.split(".")

    def get(record: Any) -> Any:
        if name in record:
            return record[name]
        for part in path:
            record = record[part]
        return record

    return get


def _found(record: Any, get: _Getter) -> Any:
    try:
        return get(record)
    except (LookupError, TypeError):
        return None


def _present(record: Any, name: str, get: _Getter) -> Any:
    value = _found(record, get)
    if value is None:
        raise _NoEventError(MISSING_FIELD, f"there is no {name[:_SHOWN]}")
    if isinstance(value, str | bytes) and not value:
        raise _NoEventError(MISSING_FIELD, f"{name[:_SHOWN]} is empty")
    return value


def _named(name: str, read: Callable[[Any], _Value], value: Any) -> _Value:
    """Return what `read` makes of a value, or let its fault name the field."""
    try:
        return read(value)
    except _NoEventError as fault:
        raise _NoEventError(fault.reason, f"{name[:_SHOWN]} {fault.detail}") from None


def _text(name: str, value: Any) -> str:
    """Return a type or key, or raise _NoEventError."""
    text = _named(name, _label, value)
    if len(text) > _LONGEST_LABEL:
        raise _NoEventError(
            OVERSIZE, f"{name[:_SHOWN]} has {len(text):,} characters, more than {_LONGEST_LABEL:,}"
        )
    return text


def _label(value: Any) -> str:
    """Return a type or key as text, or raise _NoEventError."""
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, float | Decimal):  # 3.0 is how a table with gaps says 3
        value = _whole(value)
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(int(value))
        except ValueError:
            raise _NoEventError(OVERSIZE, "is a number of thousands of digits") from None
    if not isinstance(value, str):
        raise _NoEventError(BAD_VALUE, f"is {_shown(value)}, neither text nor a whole number")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _NoEventError(BAD_VALUE, f"is {_shown(value)}, which holds half a surrogate pair") from None
    return value


def _seconds(value: Any, unit: TimeUnit) -> float:
    """Return a time in seconds since 1970, or raise _NoEventError."""
    if isinstance(value, bytes):
        value = _decoded(value)
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
        raise _NoEventError(BAD_TIME, f"is {_shown(value)}, {kind}") from None
    fault = time_fault(time)
    if fault is not None:
        raise _NoEventError(BAD_TIME, f"is {_shown(value)}: {fault}")
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
        return _PER_SECOND.get(unit, 1)
    size = abs(number)
    return 1 if size < 1e11 else 1_000 if size < 1e14 else 1_000_000 if size < 1e17 else 1_000_000_000


def _since_1970(moment: date) -> float:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _line(value: Any, max_bytes: int) -> str:
    """Return the text of a line or message, or raise _NoEventError."""
    if value is None:
        raise _NoEventError(MALFORMED, "the record is empty")
    if isinstance(value, Unreadable):
        raise _NoEventError(value.reason, value.detail)
    if len(value) > max_bytes:
        raise _NoEventError(OVERSIZE, f"it has more than {max_bytes:,} bytes")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise _NoEventError(MALFORMED, f"it is not UTF-8 from byte {error.start} on") from None


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _NoEventError(MALFORMED, f"is not UTF-8 from byte {error.start} on") from None


def _as_json(value: Any) -> Any:
    """Return a value of a table or a JSON object as what JSON can hold: positions hold features, too."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _encodable(kept: dict[str, Any] | None) -> None:
    """Raise _NoEventError for features that no log or store could write down."""
    try:
        json.dumps(kept, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise _NoEventError(
            BAD_VALUE, "hold half a surrogate pair, or what cannot be written as JSON"
        ) from None


def _is_deep(value: dict[str, Any]) -> bool:
    """Whether lists and mappings are nested more than _DEEPEST levels."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _shown(value: Any) -> str:
    """Return a few words for a value in a message of one line."""
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return "a number of more than 40 digits"
    if isinstance(value, int | float | Decimal | date):
        return str(value)[:_SHOWN]
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else "no plain value"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:100]


def no_column(name: str, columns: Sequence[str], where: str) -> UsageError:
    """Return the error for a field that a file has no column for."""
    more = f", and {len(columns) - _NAMES} more" if len(columns) > _NAMES else ""
    return UsageError(
        f"{where}: there is no column {name!r}.{meant(name, columns)} "
        f"The columns are: {', '.join(columns[:_NAMES])}{more}."
    )
