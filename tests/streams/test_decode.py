"""Records to events: what is read, how times are understood, and that nothing in a record raises."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamwise.streams.decode import CsvDecoder, JsonDecoder, RowDecoder
from streamwise.streams.errors import UsageError
from streamwise.streams.fields import Fields
from streamwise.streams.refusals import (
    BAD_TIME,
    BAD_VALUE,
    MALFORMED,
    MISSING_FIELD,
    OVERSIZE,
    UNKNOWN_VERSION,
    Unreadable,
)

REASONS = {MALFORMED, MISSING_FIELD, BAD_VALUE, BAD_TIME, OVERSIZE, UNKNOWN_VERSION}
COLUMNS = ["time", "type", "key"]
GOOD = {"time": 5, "type": "view", "key": "ann"}

texts = st.text(min_size=1, max_size=20).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
times = st.floats(0.0, 99_999_999_999.0)
events = st.lists(st.tuples(times, texts, texts), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)
almost_records = st.fixed_dictionaries(
    {}, optional={name: json_values | st.sampled_from([5, "5", "a", 7.0]) for name in [*COLUMNS, "v", "x"]}
)


def assert_accounted(decoded, count):
    """Every record is an event or refused, once, in order, and the columns are of one length."""
    refused = [r.which for r in decoded.refused]
    assert sorted([*decoded.which, *refused]) == list(range(count))
    assert list(decoded.which) == sorted(decoded.which)
    assert refused == sorted(refused)
    assert len(decoded.which) == len(decoded.times) == len(decoded.types) == len(decoded.keys)
    assert decoded.features is None or len(decoded.features) == len(decoded.which)
    for one in decoded.refused:
        assert one.reason in REASONS
        assert one.detail
        assert "\n" not in one.detail
        assert len(one.detail) < 250
        one.detail.encode()
    for time, type_, key in zip(decoded.times, decoded.types, decoded.keys, strict=True):
        assert type(time) is float
        assert 0.0 <= time <= 253_402_300_799.0
        for label in (type_, key):
            assert type(label) is str
            assert 0 < len(label.encode()) <= 4 * 1_024


def refusal(decoder, value):
    decoded = decoder.decode([value])
    assert_accounted(decoded, 1)
    assert len(decoded.refused) == 1
    return decoded.refused[0].reason, decoded.refused[0].detail


def refused_json(**changes):
    record = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return refusal(JsonDecoder(Fields()), json.dumps(record).encode())


def time_of(value, unit="auto"):
    """The time that JSON, CSV and rows agree on, or why there is none."""
    fields = Fields(unit=unit)
    results = [JsonDecoder(fields).decode([json.dumps({**GOOD, "time": value}).encode()])]
    results.append(RowDecoder(fields).decode([{**GOOD, "time": value}]))
    line = csv_line([value if isinstance(value, str) else json.dumps(value), "view", "ann"])
    results.append(CsvDecoder(fields, COLUMNS).decode([line]))
    seen = {r.times[0] if r.times else r.refused[0].reason for r in results}
    assert len(seen) == 1
    return seen.pop()


def csv_line(row):
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(row)
    return out.getvalue().encode()


@given(events)
def test_what_is_written_as_json_csv_or_rows_is_read_back(written):
    columns = [list(column) for column in zip(*written, strict=True)] or [[], [], []]
    records = [dict(zip(COLUMNS, event, strict=True)) for event in written]
    lines = [csv_line(event) for event in written]
    broken = [b"\n" in line or b"\r" in line for line in lines]  # a quoted line break, which no line can hold
    for decoded in (
        JsonDecoder(Fields()).decode([json.dumps(r).encode() for r in records]),
        JsonDecoder(Fields()).decode([json.dumps(r, ensure_ascii=False, indent=1).encode() for r in records]),
        RowDecoder(Fields()).decode(records),
        CsvDecoder(Fields(), COLUMNS).decode(lines)
        if not any(broken)
        else RowDecoder(Fields()).decode(records),
    ):
        assert_accounted(decoded, len(written))
        assert [list(column) for column in decoded[1:4]] == columns
        assert not decoded.refused


@pytest.mark.parametrize(
    ("value", "unit", "seconds"),
    [
        (1700000000, "s", 1700000000.0),
        (1700000000.25, "s", 1700000000.25),
        ("1700000000.25", "s", 1700000000.25),
        (" 17 ", "s", 17.0),
        (1700000000250, "ms", 1700000000.25),
        (1700000000250000, "us", 1700000000.25),
        (1700000000250000000, "ns", 1700000000.25),
        ("1700000000250000000", "ns", 1700000000.25),
        (5, "ns", 5e-9),
        (253402300799, "s", 253402300799.0),
        (0, "auto", 0.0),
        (99_999_999_999, "auto", 99_999_999_999.0),
        (100_000_000_000, "auto", 100_000_000.0),
        (99_999_999_999_999, "auto", 99_999_999_999.999),
        (100_000_000_000_000, "auto", 100_000_000.0),
        (100_000_000_000_000_000, "auto", 100_000_000.0),
        (1700000000250, "auto", 1700000000.25),
        ("1700000000250", "auto", 1700000000.25),
        (1700000000250000, "auto", 1700000000.25),
        (1700000000250000000, "auto", 1700000000.25),
        ("2023-11-14T22:13:20.25Z", "auto", 1700000000.25),
        ("2023-11-14T22:13:20.25", "iso", 1700000000.25),
        ("2023-11-15 00:13:20.25+02:00", "iso", 1700000000.25),
        ("20231114T221320Z", "iso", 1700000000.0),
        ("20231114", "iso", 1699920000.0),
        ("20231114", "auto", 20231114.0),
        ("1970-01-02", "auto", 86400.0),
    ],
)
def test_a_time_means_the_same_in_every_format(value, unit, seconds):
    assert time_of(value, unit) == seconds


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        *[
            (v, "auto")
            for v in (-1, -0.5, "-1", "nan", "inf", "-inf", "1e400", "1_000", "soon", "12:00", " ")
        ],
        *[(v, "s") for v in ("2023-11-14", 1700000000250, True, False, 10**30, "9" * 400, 253402300800)],
        *[(v, "ms") for v in ("soon", 10**18)],
        *[(v, "iso") for v in (1700000000, "1700000000.5", "1969-12-31", "2023-13-01", "2023-02-30")],
    ],
)
def test_an_impossible_time_is_refused_in_every_format(value, unit):
    assert time_of(value, unit) == BAD_TIME


@given(st.integers(0, 253_402_300_799 * 10**6), st.sampled_from(["s", "ms", "us", "ns"]))
def test_units_are_converted_with_a_single_rounding(microseconds, unit):
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    number = microseconds * per_second // 10**6
    assert time_of(number, unit) == time_of(str(number), unit) == number / per_second


@given(st.datetimes(datetime(1970, 1, 2), datetime(9998, 1, 1)), st.integers(-23 * 60, 23 * 60))
def test_a_datetime_and_its_text_are_one_time_and_no_zone_means_utc(moment, minutes):
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    for value in (moment, zoned):
        expected = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        decoded = RowDecoder(Fields()).decode([{**GOOD, "time": value}])
        if expected < 0.0:
            assert decoded.refused[0].reason == BAD_TIME
        else:
            assert decoded.times == [expected]
            assert time_of(value.isoformat()) == expected


def test_rows_may_hold_dates_decimals_and_bytes():
    decoded = RowDecoder(Fields()).decode(
        [
            {"time": date(1970, 1, 2), "type": Decimal("3"), "key": b"J\xc3\xb8rn"},
            {"time": Decimal("7.5"), "type": 3.0, "key": 10**20},
            {"time": b"8", "type": -2, "key": "x"},
        ]
    )
    assert decoded[:4] == (range(3), [86400.0, 7.5, 8.0], ["3", "3", "-2"], ["Jørn", str(10**20), "x"])


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"key": ...}, MISSING_FIELD, "there is no key"),
        ({"type": None}, MISSING_FIELD, "there is no type"),
        ({"time": None}, MISSING_FIELD, "there is no time"),
        ({"key": ""}, MISSING_FIELD, "key is empty"),
        ({"time": ""}, MISSING_FIELD, "time is empty"),
        ({"type": True}, BAD_VALUE, "type is true, neither text nor a whole number"),
        ({"type": 1.5}, BAD_VALUE, "type is 1.5, neither text nor a whole number"),
        ({"key": {"a": 1}}, BAD_VALUE, "key is an object, neither text nor a whole number"),
        ({"key": []}, BAD_VALUE, "key is a list, neither text nor a whole number"),
        ({"key": math.inf}, BAD_VALUE, "key is inf, neither text nor a whole number"),
        ({"key": "\ud800"}, BAD_VALUE, r"key is '\ud800', which holds half a surrogate pair"),
        ({"time": math.nan}, BAD_TIME, "time is nan: the time is not finite"),
        ({"time": -3}, BAD_TIME, "time is -3: the time is negative"),
        ({"time": [3]}, BAD_TIME, "time is a list, neither a number nor ISO 8601"),
        ({"time": True}, BAD_TIME, "time is true, neither a number nor ISO 8601"),
        ({"time": "x" * 99}, BAD_TIME, f"time is '{'x' * 40}'..., neither a number nor ISO 8601"),
        ({"key": "k" * 1025}, OVERSIZE, "key has 1,025 characters, more than 1,024"),
        ({"type": "t" * 9999}, OVERSIZE, "type has 9,999 characters, more than 1,024"),
    ],
)
def test_a_refusal_says_which_field_and_why(changes, reason, detail):
    assert refused_json(**changes) == (reason, detail)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (None, "the record is empty"),
        (b"", "the record is empty"),
        (b" \r", "the record is empty"),
        (b"[1]", "it is a list, not an object"),
        (b'"x"', "it is 'x', not an object"),
        (b"7", "it is 7, not an object"),
        (b"{", "it is not JSON: "),
        (b'{"time": 5} {}', "it is not JSON: Extra data"),
        (b'{"a": "\xff"}', "it is not UTF-8 from byte 7 on"),
        (b"\x00\x00", "it is not JSON: "),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "it is nested more than 128 levels deep"),
        (b"[" * 60_000, "it is nested more than 128 levels deep"),
        (b'{"a":' + b"9" * 5_000 + b"}", "it is not JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_json_object_is_malformed(value, detail):
    reason, said = refusal(JsonDecoder(Fields()), value)
    assert reason == MALFORMED
    assert said.startswith(detail)


def test_nesting_is_allowed_to_a_depth_that_does_not_depend_on_who_calls():
    def nested(depth):
        return json.dumps(GOOD)[:-1].encode() + b', "x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    def decode_deeper(levels, value):
        if levels:
            return decode_deeper(levels - 1, value)
        return len(JsonDecoder(Fields()).decode([value]).which)

    for levels in (0, 300):
        assert decode_deeper(levels, nested(128)) == 1
        assert decode_deeper(levels, nested(129)) == 0
    side_by_side = json.dumps({**GOOD, "x": [[]] * 500}).encode()
    assert len(JsonDecoder(Fields()).decode([side_by_side]).which) == 1


def test_only_what_is_longer_than_allowed_is_oversize():
    fields = Fields(max_bytes=100)
    for decoder, start in (
        (JsonDecoder(fields), json.dumps(GOOD)),
        (CsvDecoder(fields, COLUMNS), "5,view,ann"),
    ):
        whole = start.ljust(100).encode()
        assert not decoder.decode([whole]).refused
        assert refusal(decoder, whole + b" ") == (OVERSIZE, "it has more than 100 bytes")
    rows = RowDecoder(Fields(features=("x",), max_bytes=100))
    assert refusal(rows, {**GOOD, "x": "x" * 101})[0] == OVERSIZE


def test_what_the_source_could_not_read_is_refused_as_it_says():
    for decoder in (JsonDecoder(Fields()), CsvDecoder(Fields(), COLUMNS), RowDecoder(Fields())):
        assert refusal(decoder, Unreadable(MALFORMED, "the disk is wet", b"x", 5)) == (
            MALFORMED,
            "the disk is wet",
        )


def test_dots_reach_into_objects_unless_a_field_has_just_that_name():
    fields = Fields(time="meta.at", type="a.b.c", key="user.id", features=("meta.where",))
    nested = {"meta": {"at": 5, "where": {"x": [1]}}, "a": {"b": {"c": 7}}, "user": {"id": "ann"}}
    flat = {"meta.at": 6, "a.b.c": "x", "user.id": "bob", "user": {"id": "nobody"}}
    broken = {"meta": {"at": 5}, "a": {"b": "c"}, "user": {"id": "ann"}}
    for decoder, write in (
        (JsonDecoder(fields), lambda r: json.dumps(r).encode()),
        (RowDecoder(fields), dict),
    ):
        decoded = decoder.decode([write(nested), write(flat), write(broken)])
        assert decoded[:4] == ([0, 1], [5.0, 6.0], ["7", "x"], ["ann", "bob"])
        assert decoded.features == [{"meta.where": {"x": [1]}}, None]
        assert decoded.refused[0][1:] == (MISSING_FIELD, "there is no a.b.c")


def test_features_are_kept_where_there_are_any():
    fields = Fields(features=("price", "tags"))
    records = [{**GOOD, "price": 0, "tags": ["x"]}, {**GOOD, "price": None}, {**GOOD, "tags": "", "other": 1}]
    decoded = JsonDecoder(fields).decode([json.dumps(r).encode() for r in records])
    assert decoded.features == [{"price": 0, "tags": ["x"]}, None, None]
    assert JsonDecoder(fields).decode([json.dumps(GOOD).encode()]).features is None
    lines = CsvDecoder(fields, ["price", *COLUMNS, "tags"]).decode([b"3,5,view,ann,", b",5,view,ann,x"])
    assert lines.features == [{"price": "3"}, {"tags": "x"}]


def test_a_feature_that_cannot_be_written_down_is_refused():
    decoder = JsonDecoder(Fields(features=("x",)))
    assert refusal(decoder, json.dumps({**GOOD, "x": ["\ud800"]}).encode())[0] == BAD_VALUE
    assert not decoder.decode([json.dumps({**GOOD, "y": ["\ud800"]}).encode()]).refused


def test_only_the_versions_that_are_understood_are_read():
    decoder = JsonDecoder(Fields(version="v", versions=("1", "2b")))
    records = [{**GOOD, "v": v} for v in (1, "1", "2b", 1.0, 2, True, [1], None, "")] + [GOOD]
    decoded = decoder.decode([json.dumps(r).encode() for r in records])
    assert list(decoded.which) == [0, 1, 2, 3]
    assert [r.reason for r in decoded.refused] == [UNKNOWN_VERSION] * 3 + [MISSING_FIELD] * 3
    assert decoded.refused[0].detail == "v is 2"


def test_csv_quotes_hold_delimiters_and_quotes():
    decoder = CsvDecoder(Fields(), [*COLUMNS, "other"], ";")
    decoded = decoder.decode([b'5;"a;b";"say ""x""";', b'5;a"b;c;"d"', "6;ß;\x00;x".encode()])
    assert decoded[1:4] == ([5.0, 5.0, 6.0], ["a;b", 'a"b', "ß"], ['say "x"', "c", "\x00"])


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"5,view", "it has 2 fields for 3 columns"),
        (b"5,view,ann,", "it has 4 fields for 3 columns"),
        (b"", "it has 1 fields for 3 columns"),
        (b'5,view,"ann', "it is not CSV: "),
        (b'5,"view"x,ann', "it is not CSV: "),
        (b"5,view,a\xffn", "it is not UTF-8 from byte 8 on"),
    ],
)
def test_a_line_that_does_not_fit_its_columns_is_malformed(line, detail):
    reason, said = refusal(CsvDecoder(Fields(), COLUMNS), line)
    assert reason == MALFORMED
    assert said.startswith(detail)


def test_a_missing_column_names_the_nearest():
    with pytest.raises(
        UsageError, match=r"a\.csv: there is no column 'key'\. Did you mean 'Keys'\? The columns"
    ):
        CsvDecoder(Fields(), ["time", "type", "Keys"], where="a.csv")
    with pytest.raises(UsageError, match="more than one column named 'key'"):
        CsvDecoder(Fields(), ["time", "type", "key", "key"])
    CsvDecoder(Fields(), [*COLUMNS, "other", "other"])


@settings(max_examples=300)
@given(st.lists(almost_records, max_size=8))
@example([{**GOOD, "x": 10**400}, {**GOOD, "time": 10**400}, {**GOOD, "key": 10**400}])
def test_the_quick_way_and_the_careful_one_agree(records):
    """A byte order mark in front makes the quick parser give up, and means nothing."""
    for fields in (
        Fields(),
        Fields(key="x.y", features=("x", "v")),
        Fields(version="v", versions=("1", "a")),
    ):
        decoder = JsonDecoder(fields)
        values = [json.dumps(record).encode() for record in records]
        quick, careful = decoder.decode(values), decoder.decode([b"\xef\xbb\xbf" + value for value in values])
        assert_accounted(quick, len(records))
        assert repr(quick) == repr(careful)
        assert_accounted(RowDecoder(fields).decode(records), len(records))


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_no_bytes_raise_and_each_record_is_accounted_for_once(values, data):
    good = json.dumps(GOOD).encode()
    for i, value in enumerate(values):
        if data.draw(st.booleans()):
            cut = data.draw(st.integers(0, len(good)))
            values[i] = good[:cut] + value + good[cut:]
    assert_accounted(JsonDecoder(Fields(features=("x",))).decode(values), len(values))
    lines = [b"5,view," + value for value in values]
    assert_accounted(CsvDecoder(Fields(), COLUMNS).decode(lines), len(values))
    rows = [{**GOOD, name: value} for value in values for name in COLUMNS]
    assert_accounted(RowDecoder(Fields()).decode(rows), len(rows))


@given(
    st.lists(st.none() | st.dictionaries(st.sampled_from(COLUMNS), st.decimals() | json_values), max_size=6)
)
def test_no_row_raises(rows):
    assert_accounted(RowDecoder(Fields()).decode(rows), len(rows))


@given(st.lists(st.sampled_from([b"5,a,b", b'"5",a,b', b'5,"a,b', b"x", b"5,,b", b"1e99,a,b"]), max_size=12))
def test_a_line_is_read_the_same_whatever_stands_around_it(lines):
    decoder = CsvDecoder(Fields(), COLUMNS)
    together = decoder.decode(lines)
    alone = [decoder.decode([line]) for line in lines]
    assert together.times == [time for one in alone for time in one.times]
    assert [r[1:] for r in together.refused] == [r[1:] for one in alone for r in one.refused]


def test_fields_are_taken_out_of_a_query():
    query = {
        "time": "ts",
        "key": "user.id",
        "unit": "ms",
        "features": "a, b.c",
        "max_bytes": "1000",
        "speed": "60",
    }
    fields, rest = Fields.of({**query, "version": "v", "versions": "1,2"}, "file:x.csv")
    expected = Fields("ts", "type", "user.id", "ms", ("a", "b.c"), "v", ("1", "2"), 1000)
    assert (fields, rest) == (expected, {"speed": "60"})
    assert Fields.of({}, "stdin:") == (Fields(), {})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"unit": "msec"}, "file:x: 'msec' is no unit of time. Did you mean 'ms'"),
        ({"max_bytes": "many"}, "max_bytes is 'many'; give a whole number"),
        ({"max_bytes": "0"}, "max_bytes is 0"),
        ({"features": "a,,b"}, "name or a version is empty"),
        ({"key": ""}, "name or a version is empty"),
        ({"version": "v"}, "give both or neither"),
        ({"versions": "1"}, "give both or neither"),
    ],
)
def test_a_wrong_parameter_is_an_error_that_says_what_to_give(query, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        Fields.of(query, "file:x")


def test_a_table_without_the_default_names_is_looked_through_for_usual_ones():
    lines = [b"7,ann,view,5", b"8,bob,buy,6"]
    decoder = CsvDecoder(Fields(), ["ts", "user_id", "action", "price"])
    assert decoder.decode(lines)[1:4] == ([7.0, 8.0], ["view", "buy"], ["ann", "bob"])
    decoder = CsvDecoder(Fields(key="price"), ["ts", "user_id", "action", "price"])  # what is said goes
    assert decoder.decode(lines).keys == ["5", "6"]
    decoder = CsvDecoder(Fields(), ["ts", "key", "action", "user"])  # and so does a default that is there
    assert decoder.decode(lines).keys == ["ann", "bob"]
    with pytest.raises(UsageError, match="there is no column 'key'"):
        CsvDecoder(Fields(), ["ts", "type", "customer"])


def test_features_are_what_json_can_hold():
    row = {
        "time": 7, "type": "a", "key": "k", "at": datetime(2024, 1, 2, 3, tzinfo=UTC), "on": date(2024, 1, 2),
        "price": Decimal("1.5"), "blob": b"text", "list": [date(2024, 1, 2), {"x": Decimal("2")}],
    }  # fmt: skip
    decoded = RowDecoder(Fields(features=("at", "on", "price", "blob", "list"))).decode([row])
    assert decoded.features == json.loads(json.dumps(decoded.features))
    assert decoded.features[0]["at"] == "2024-01-02T03:00:00+00:00"
    assert decoded.features[0]["list"] == ["2024-01-02", {"x": 2.0}]
