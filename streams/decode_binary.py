"""Records in Avro and Protobuf, as columns of events."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from streamwise.streams.decode import RowDecoder
from streamwise.streams.errors import UsageError, meant
from streamwise.streams.event import Decoded
from streamwise.streams.fields import Fields
from streamwise.streams.refusals import MALFORMED, OVERSIZE, Unreadable

__all__ = ["AvroDecoder", "ProtobufDecoder"]

_HEADER_BYTES = 5  # of Confluent's wire format: a zero, and the schema's number in its registry


class _BinaryDecoder(ABC):
    """Turns each value into a mapping of names to Python values, and those into events."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self._rows = RowDecoder(fields)

    @abstractmethod
    def _read(self, value: bytes) -> Any:
        """Return the record in a value, or raise anything."""

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """Return the events among the values, and why the others are none. Nothing in a value raises."""
        return self._rows.decode([self._row(value) for value in values])

    def _row(self, value: bytes | None) -> Any:
        if not value:
            return Unreadable(MALFORMED, "the record is empty")
        if len(value) > self.fields.max_bytes:
            return Unreadable(OVERSIZE, f"it has more than {self.fields.max_bytes:,} bytes")
        try:
            return self._read(value)
        except Exception as error:
            return Unreadable(MALFORMED, f"it does not fit the schema: {type(error).__name__}")


class AvroDecoder(_BinaryDecoder):
    """Reads single Avro records, written with just this schema and without a file around them.

    schema: a file of Avro's JSON. Confluent's header of 5 bytes is skipped where a record has it; the number
    in it is not looked up. Raises UsageError for a file that holds no schema, and if fastavro is missing.
    """

    def __init__(self, fields: Fields, schema: Path) -> None:
        super().__init__(fields)
        try:
            import fastavro
        except ImportError:
            raise UsageError("Avro records need fastavro; pip install fastavro.") from None
        try:
            self._schema = fastavro.parse_schema(json.loads(_contents(schema)))
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise UsageError(f"{schema} holds no Avro schema: {type(error).__name__}: {text}.") from None
        self._reader = fastavro.schemaless_reader

    def _read(self, value: bytes) -> Any:
        if value[0] == 0 and len(value) > _HEADER_BYTES:
            with suppress(Exception):  # then the zero is the record's own
                return self._whole(value[_HEADER_BYTES:])
        return self._whole(value)

    def _whole(self, value: bytes) -> Any:
        data = BytesIO(value)
        record = self._reader(data, self._schema, None)
        if data.tell() != len(value):
            raise ValueError("something follows the record")
        return record


class ProtobufDecoder(_BinaryDecoder):
    """Reads single Protobuf messages; no generated code is needed or run.

    schema: a file with a FileDescriptorSet, as `protoc --include_imports --descriptor_set_out` writes it.
    message: the full name of the message, such as "shop.Event". Fields have the names of the .proto file, and
    unset ones their default; enums are read by name, and well-known timestamps as times. Confluent's header
    is skipped where a record has it. Raises UsageError for a file that holds no descriptors, a message that
    is not among them, and if protobuf is missing.
    """

    def __init__(self, fields: Fields, schema: Path, message: str) -> None:
        super().__init__(fields)
        try:
            from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
        except ImportError:
            raise UsageError("Protobuf records need protobuf; pip install 'protobuf>=5.26'.") from None
        pool = descriptor_pool.DescriptorPool()
        names: list[str] = []
        try:
            for file in descriptor_pb2.FileDescriptorSet.FromString(_contents(schema)).file:
                pool.Add(file)
                prefix = f"{file.package}." if file.package else ""
                names += [prefix + message_type.name for message_type in file.message_type]
            found = pool.FindMessageTypeByName(message) if message in names or "." in message else None
        except KeyError:
            found = None
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"{schema} holds no FileDescriptorSet: {type(error).__name__}.") from None
        if found is None:
            hint = meant(message, names)
            raise UsageError(
                f"{schema} has no message {message!r}.{hint} It has: {', '.join(names[:30]) or 'none'}."
            )
        self._message: Any = message_factory.GetMessageClass(found)
        self._to_dict: Any = json_format.MessageToDict

    def _read(self, value: bytes) -> Any:
        message = self._message.FromString(value if value[0] else value[_header_length(value) :])
        return self._to_dict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )


def _header_length(value: bytes) -> int:
    """Return the bytes of Confluent's header, which for Protobuf ends with the path to the message."""
    count, position = _varint(value, _HEADER_BYTES)
    for _ in range(count):
        _, position = _varint(value, position)
    return position


def _varint(value: bytes, position: int) -> tuple[int, int]:
    """Return a zigzag number, and where the next begins. Raises IndexError where there is none."""
    number = shift = 0
    while True:
        byte = value[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), position
        shift += 7


def _contents(path: Path) -> bytes:
    path = path.expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}, the schema, cannot be read: {error.strerror}.") from None
