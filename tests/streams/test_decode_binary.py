"""Avro and Protobuf records become events, and whatever else comes is refused."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.streams import UsageError
from streamwise.streams.decode_binary import AvroDecoder, ProtobufDecoder
from streamwise.streams.fields import Fields

SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "type", "type": "string"},
        {
            "name": "user",
            "type": {"type": "record", "name": "User", "fields": [{"name": "id", "type": "long"}]},
        },
        {"name": "price", "type": ["null", "double"], "default": None},
    ],
}
FIELDS = Fields(key="user.id", features=("price",))
HEADER = b"\x00\x00\x00\x00\x07"  # Confluent's, for schema 7

events = st.tuples(
    st.integers(0, 2**41), st.text(st.characters(codec="utf-8"), min_size=1), st.integers(-(2**62), 2**62)
)


@pytest.fixture(scope="module")
def avro(tmp_path_factory):
    fastavro = pytest.importorskip("fastavro")
    path = tmp_path_factory.mktemp("avro") / "event.avsc"
    path.write_text(json.dumps(SCHEMA))
    parsed = fastavro.parse_schema(SCHEMA)

    def write(milliseconds, type_, user, price=None):
        data = io.BytesIO()
        record = {"time": milliseconds, "type": type_, "user": {"id": user}, "price": price}
        fastavro.schemaless_writer(data, parsed, record)
        return data.getvalue()

    return path, write


@pytest.fixture(scope="module")
def protobuf(tmp_path_factory):
    """Return a descriptor file, and a function that writes a message of it."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="shop", syntax="proto3")
    user = file.message_type.add(name="User")
    user.field.add(name="id", number=1, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    event = file.message_type.add(name="Event")
    for number, (name, kind) in enumerate(
        [("time", kinds.TYPE_INT64), ("type", kinds.TYPE_STRING), ("price", kinds.TYPE_DOUBLE)], start=1
    ):
        event.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    event.field.add(
        name="user", number=4, type=kinds.TYPE_MESSAGE, type_name=".shop.User", label=kinds.LABEL_OPTIONAL
    )
    path = tmp_path_factory.mktemp("protobuf") / "event.pb"
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Event"))

    def write(milliseconds, type_, user, price=None):
        return message(
            time=milliseconds, type=type_, user={"id": user}, price=price or 0.0
        ).SerializeToString()

    return path, write


@settings(deadline=None)  # the machine may be busy
@given(event=events, with_header=st.booleans())
def test_an_avro_record_comes_back_as_the_event_it_was(avro, event, with_header):
    path, write = avro
    milliseconds, type_, user = event
    value = HEADER * with_header + write(milliseconds, type_, user, 2.5)
    decoded = AvroDecoder(FIELDS, path).decode([value])
    assert decoded.refused == []
    assert decoded.times == [milliseconds / 1000.0]
    assert (decoded.types, decoded.keys, decoded.features) == ([type_], [str(user)], [{"price": 2.5}])


@settings(deadline=None)  # the machine may be busy
@given(
    event=events,
    header=st.sampled_from([b"", HEADER + b"\x00", HEADER + b"\x02\x02", HEADER + b"\x04\x02\x02"]),
)
def test_a_protobuf_message_comes_back_as_the_event_it_was(protobuf, event, header):
    path, write = protobuf
    milliseconds, type_, user = event
    fields = Fields(key="user.id", unit="ms", features=("price",))
    decoded = ProtobufDecoder(fields, path, "shop.Event").decode(
        [header + write(milliseconds, type_, user, 2.5)]
    )
    assert decoded.refused == []
    assert decoded.times == [milliseconds / 1000.0]
    assert (decoded.types, decoded.keys, decoded.features) == ([type_], [str(user)], [{"price": 2.5}])


def decoders(avro, protobuf):
    return [
        (AvroDecoder(Fields(key="user.id", max_bytes=200), avro[0]), avro[1]),
        (ProtobufDecoder(Fields(key="user.id", max_bytes=200), protobuf[0], "shop.Event"), protobuf[1]),
    ]


def test_what_is_no_record_is_refused_and_the_others_are_read(avro, protobuf):
    for decoder, write in decoders(avro, protobuf):
        good = write(1_000_000_000_000, "view", 3)
        decoded = decoder.decode([good, None, b"", good[:-1], b"\xff" * 20, write(1, "x" * 300, 3), good])
        assert list(decoded.which) == [0, 6]
        assert decoded.times == [1e9, 1e9]
        assert [(index, reason) for index, reason, _ in decoded.refused] == [
            *((i, "malformed") for i in (1, 2, 3, 4)),
            (5, "oversize"),
        ]


@settings(deadline=None)  # the machine may be busy
@given(values=st.lists(st.binary(max_size=60) | st.none(), max_size=10))
def test_every_value_is_an_event_or_refused_whatever_it_holds(avro, protobuf, values):
    for decoder, _ in decoders(avro, protobuf):
        decoded = decoder.decode(values)
        assert sorted([*decoded.which, *(refused.which for refused in decoded.refused)]) == list(
            range(len(values))
        )


def test_bytes_after_an_avro_record_make_it_malformed(avro):
    path, write = avro
    decoded = AvroDecoder(FIELDS, path).decode([write(1, "view", 3) + b"\x02"])
    assert [reason for _, reason, _ in decoded.refused] == ["malformed"]


def test_a_file_that_holds_no_schema_is_named(tmp_path, avro, protobuf):
    path = tmp_path / "schema"
    with pytest.raises(UsageError, match="schema, the schema, cannot be read"):
        AvroDecoder(FIELDS, path)
    path.write_text('{"type": "record"}')
    with pytest.raises(UsageError, match="holds no Avro schema"):
        AvroDecoder(FIELDS, path)
    path.write_bytes(b"\xff\xff\xff")
    with pytest.raises(UsageError, match="holds no FileDescriptorSet"):
        ProtobufDecoder(FIELDS, path, "shop.Event")


def test_an_unknown_message_is_named_with_the_nearest(protobuf):
    with pytest.raises(UsageError) as refused:
        ProtobufDecoder(FIELDS, protobuf[0], "shop.Evnt")
    assert "has no message 'shop.Evnt'. Did you mean 'shop.Event'? It has: shop.User, shop.Event." in str(
        refused.value
    )
