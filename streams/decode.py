"""From raw records to columns of events: JSON objects, lines of CSV, and rows of Python values."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import msgspec

from streamwise.streams.errors import UsageError
from streamwise.streams.event import LAST_TIME, Decoded, Refused
from streamwise.streams.fields import Fields, no_column
from streamwise.streams.refusals import (
    MALFORMED,
    MISSING_FIELD,
    OVERSIZE,
    SHOWN,
    UNKNOWN_VERSION,
    NoEventError,
    Unreadable,
    shown,
)
from streamwise.streams.values import PER_SECOND, as_json, as_label, as_seconds, as_text, check_encodable

__all__ = ["CsvDecoder", "JsonDecoder", "RowDecoder"]

_Value = TypeVar("_Value")
_Getter = Callable[[Any], Any]  # from a record to the value of one of its fields

_LONGEST_LABEL = 1_024  # characters of a type or key
_DEEPEST = 128  # levels of a JSON value; where a parser runs out of stack depends on who calls it


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
        """Return the record in a value, or raise NoEventError."""

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
        divisor = PER_SECOND.get(unit, 1)
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
                    time = as_seconds(time, unit)
                if type_.__class__ is not str:
                    type_ = as_label(type_)
                if key.__class__ is not str:
                    key = as_label(key)
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
                    _named("features", check_encodable, kept)
                except NoEventError as fault:
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
        """Return the time, type and key of a record, or raise NoEventError."""
        fields = self.fields
        if self._get_version is not None:
            name = fields.version or ""
            version = _present(record, name, self._get_version)
            try:
                known = as_label(version) in fields.versions
            except NoEventError:
                known = False
            if not known:
                raise NoEventError(UNKNOWN_VERSION, f"{name[:SHOWN]} is {shown(version)}")
        time = _present(record, fields.time, self._get_time)
        type_ = _present(record, fields.type, self._get_type)
        key = _present(record, fields.key, self._get_key)
        seconds = _named(fields.time, lambda value: as_seconds(value, fields.unit), time)
        return seconds, _text(fields.type, type_), _text(fields.key, key)

    def _kept(self, record: Any) -> dict[str, Any] | None:
        """Return the features of a record, None if it has none, or raise NoEventError."""
        kept: dict[str, Any] = {}
        size = 0
        for name, get in self._get_features:
            value = _found(record, get)
            if isinstance(value, bytes):
                value = _named(name, as_text, value)
            if value is None or value == "":
                continue
            if isinstance(value, str):
                size += len(value)
            elif not isinstance(value, int | float):
                value = as_json(value)
            kept[name] = value
        if size > self.fields.max_bytes:
            raise NoEventError(OVERSIZE, f"the features have more than {self.fields.max_bytes:,} characters")
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

    def _quick(self, value: bytes) -> Any:
        if len(value) > self._suspicious and (
            len(value) > self.fields.max_bytes or value.count(b"{") + value.count(b"[") > _DEEPEST
        ):
            raise ValueError
        return self._parse(value)

    def _careful(self, value: bytes | Unreadable | None) -> Any:
        text = _line(value, self.fields.max_bytes).removeprefix("\ufeff")
        if not text or text.isspace():
            raise NoEventError(MALFORMED, "the record is empty")
        try:
            record = json.loads(text)
        except RecursionError:
            raise NoEventError(MALFORMED, f"it is nested more than {_DEEPEST} levels deep") from None
        except ValueError as error:  # an integer of thousands of digits, too
            raise NoEventError(MALFORMED, f"it is not JSON: {_one_line(str(error))}") from None
        if not isinstance(record, dict):
            raise NoEventError(MALFORMED, f"it is {shown(record)}, not an object")
        if _is_deep(record):
            raise NoEventError(MALFORMED, f"it is nested more than {_DEEPEST} levels deep")
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
                raise NoEventError(MALFORMED, f"it is not CSV: {_one_line(str(error))}") from None
            if len(rows) != 1:
                raise NoEventError(MALFORMED, "it has a line break in it")
            row = rows[0]
        if len(row) != len(self.columns):
            raise NoEventError(MALFORMED, f"it has {len(row)} fields for {len(self.columns)} columns")
        return row


class RowDecoder(_Decoder):
    """Reads mappings from names to Python values, such as the rows of a Parquet file or the fields of Redis.

    Bytes are read as text in UTF-8; a time may be a datetime, in UTC where it has no zone, or a date.

    >>> from datetime import date
    >>> RowDecoder(Fields()).decode([{"time": date(1970, 1, 2), "type": 3.0, "key": b"ann"}])[:4]
    (range(0, 1), [86400.0], ['3'], ['ann'])
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields, _field)

    def _quick(self, value: Any) -> Any:
        return value

    def _careful(self, value: Any) -> Any:
        if isinstance(value, Unreadable):
            raise NoEventError(value.reason, value.detail)
        if not isinstance(value, Mapping):
            raise NoEventError(MALFORMED, f"it is {shown(value)}, not a row")
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
        raise NoEventError(MISSING_FIELD, f"there is no {name[:SHOWN]}")
    if isinstance(value, str | bytes) and not value:
        raise NoEventError(MISSING_FIELD, f"{name[:SHOWN]} is empty")
    return value


def _named(name: str, read: Callable[[Any], _Value], value: Any) -> _Value:
    """Return what `read` makes of a value, or let its fault name the field."""
    try:
        return read(value)
    except NoEventError as fault:
        raise NoEventError(fault.reason, f"{name[:SHOWN]} {fault.detail}") from None


def _text(name: str, value: Any) -> str:
    """Return a type or key, or raise NoEventError."""
    text = _named(name, as_label, value)
    if len(text) > _LONGEST_LABEL:
        raise NoEventError(
            OVERSIZE, f"{name[:SHOWN]} has {len(text):,} characters, more than {_LONGEST_LABEL:,}"
        )
    return text


def _line(value: Any, max_bytes: int) -> str:
    """Return the text of a line or message, or raise NoEventError."""
    if value is None:
        raise NoEventError(MALFORMED, "the record is empty")
    if isinstance(value, Unreadable):
        raise NoEventError(value.reason, value.detail)
    if len(value) > max_bytes:
        raise NoEventError(OVERSIZE, f"it has more than {max_bytes:,} bytes")
    return _named("it", as_text, value)


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


def _one_line(text: str) -> str:
    return " ".join(text.split())[:100]
