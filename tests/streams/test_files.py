"""Files of events: what is in them is read, what is wrong with them is said, and positions go on."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from bisect import bisect_right

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files_support import (
    FORMATS,
    NOBODY,
    events_of,
    going_on,
    read,
    some_events,
    text_of,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamwise.streams.errors import UsageError
from streamwise.streams.event import Event
from streamwise.streams.fields import Fields
from streamwise.streams.files import FileSource
from streamwise.streams.refusals import BAD_TIME, MALFORMED, OVERSIZE

labels = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1, max_size=6)


event_lists = st.lists(st.builds(Event, st.floats(0, 1e10), labels, labels, st.none()), max_size=25)


# What is in a file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(events=event_lists, limit=st.integers(1, 30))
@pytest.mark.parametrize("name", FORMATS)
def test_events_written_by_others_are_read_back_and_from_any_position_on(tmp_path, name, events, limit):
    path = write(tmp_path / f"events.{name}", events)
    source = FileSource(path, Fields())
    got, refused, ends = read(source, limit)
    # TSV by Python's writer is quoted where needed; nothing here has a line break.
    assert (got, refused) == (events, [])
    assert source.finished
    assert source.at_end(str(path))
    for count, position in ends:
        again = going_on(path, position)
        assert events_of(again) == events[count:]
        assert again.finished


def test_chunks_and_row_groups_leave_no_seam(tmp_path):
    """Files of several chunks, read by limits that match nothing, go on at every position."""
    events = some_events(20_000)
    for name in ("csv", "jsonl.gz", "csv.zst", "parquet"):
        path = write(tmp_path / f"events.{name}", events)
        got, refused, ends = read(FileSource(path, Fields()), 1_777)
        assert (got, refused) == (events, [])
        for count, position in ends[::4]:
            assert events_of(going_on(path, position), 5_000) == events[count:]


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_are_no_records(tmp_path):
    path = tmp_path / "events.csv"
    path.write_bytes(b'\xef\xbb\xbftime, type,key\r\n\r\n1,a,b\r\n\n\nx,a,b\n3,a,"b"')
    for limit in (1, 2, 10):
        source = FileSource(path, Fields())
        lines, times = [], []
        while polled := source.poll(limit, 0.0, NOBODY):
            decoded = source.decode(polled[0])
            lines += polled[0].positions
            times += decoded.times
            assert [polled[0].positions[r.which] for r in decoded.refused if r.reason == BAD_TIME] in (
                [],
                [6],
            )
            position = polled[0].next_position
        assert (lines, times) == ([3, 6, 7], [1.0, 3.0])
        assert position["line"] == 7
        assert position["offset"] == path.stat().st_size


def test_an_empty_file_or_one_of_names_only_holds_nothing(tmp_path):
    for name, data in (("a.jsonl", b""), ("b.csv", b""), ("c.csv", b"time,type,key"), ("d.csv.gz", b"")):
        (tmp_path / name).write_bytes(data)
        source = FileSource(tmp_path / name, Fields())
        assert not source.at_end(str(tmp_path / name))
        assert source.poll(10, 0.0, NOBODY) == []
        assert source.finished


def test_files_of_a_glob_follow_in_order_each_with_its_own_columns(tmp_path):
    events = some_events(30)
    write(tmp_path / "b.csv", events[10:20])
    write(tmp_path / "a.jsonl.gz", events[:10])
    (tmp_path / "c.csv").write_text(
        "key,more,type,time\n" + "".join(f'"{e.key}",1,{e.type},{e.time}\n' for e in events[20:])
    )
    write(tmp_path / "c.parquet", some_events(5, 30))
    pattern = tmp_path / "*"
    got, refused, ends = read(FileSource(pattern, Fields()), 7)
    assert (got, refused) == (some_events(35), [])
    for count, position in ends:
        assert events_of(going_on(pattern, position)) == got[count:]
    (records,) = FileSource(pattern, Fields()).poll(2, 0.0, NOBODY)
    assert records.partition == str(pattern)
    assert records.positions == [f"{tmp_path}/a.jsonl.gz:1", f"{tmp_path}/a.jsonl.gz:2"]


def test_parquet_columns_are_found_inside_others_and_may_be_timestamps(tmp_path):
    path = tmp_path / "events.pq"
    at = pa.array([1_500_000_000_123_456_789, None, -5_000, 2**62], pa.timestamp("ns", "UTC"))
    far = pa.array([0, 1000, 2000, 2**60], pa.timestamp("ms"))
    users = [{"id": i, "name": "x"} for i in range(4)]
    pq.write_table(pa.table({"at": at, "far": far, "user": users, "what": [1.0, 2.0, 3.0, 4.5]}), path)
    source = FileSource(path, Fields(time="at", key="user.id", type="what"))
    events, refused, _ = read(source)
    assert events == [Event(1_500_000_000.123456, "1", "0")]
    assert [r[:2] for r in refused] == [(2, "missing field"), (3, BAD_TIME), (4, "bad value")]
    events, refused, _ = read(FileSource(path, Fields(time="far", key="user.id", type="user.name")))
    assert [e.time for e in events] == [0.0, 1.0, 2.0]
    assert [r[:2] for r in refused] == [(4, BAD_TIME)]
    with pytest.raises(UsageError, match=r"no column 'user\.ids'\. Did you mean 'user\.id'\?"):
        FileSource(path, Fields(time="at", key="user.ids", type="what")).poll(1, 0.0, NOBODY)


# What is wrong with a file


@pytest.mark.parametrize("name", ["csv.gz", "jsonl.gz", "jsonl.zst", "csv.zst"])
@pytest.mark.parametrize("share", [0.001, 0.7])
def test_a_damaged_file_is_read_up_to_the_damage_and_the_next_one_goes_on(tmp_path, name, share):
    events = [Event(float(i), os.urandom(8).hex(), os.urandom(8).hex()) for i in range(30_000)]
    path = write(tmp_path / f"1.{name}", events)
    os.truncate(path, int(share * path.stat().st_size))
    write(tmp_path / "2.jsonl", some_events(5))
    got, refused, ends = read(FileSource(tmp_path / "*", Fields()), 3_000)
    before = len(got) - 5
    assert got == events[:before] + some_events(5)
    assert before > (share - 0.2) * len(events)  # a block of zstd is 128 KiB, and is read whole or not at all
    ((_, reason, detail),) = refused
    assert reason == MALFORMED
    assert detail.startswith("the file is damaged from here on: ")
    for count, position in ends:
        after, refused_after, _ = read(going_on(tmp_path / "*", position))
        assert after == got[count:]
        assert len(refused_after) == (count <= before and not position.get("damaged"))


def test_garbage_in_the_middle_of_gzip_ends_the_file_and_nothing_else(tmp_path):
    events = [Event(float(i), os.urandom(8).hex(), "a") for i in range(30_000)]
    path = write(tmp_path / "1.jsonl.gz", events)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = b"\xff" * 50
    path.write_bytes(data)
    write(tmp_path / "2.jsonl", some_events(5))
    got, refused, ends = read(FileSource(tmp_path / "*", Fields()), 3_000)
    assert got[:10_000] == events[:10_000]
    assert got[-5:] == some_events(5)
    assert len(got) < len(events)
    assert sum(detail.startswith("the file is damaged") for _, _, detail in refused) == 1
    for count, position in ends:
        assert read(going_on(tmp_path / "*", position))[0] == got[count:]


def test_everything_before_a_cut_in_gzip_is_read_to_the_byte(tmp_path):
    data = text_of(some_events(3_000), "jsonl")
    whole = gzip.compress(data)
    for cut in range(len(whole) // 2, len(whole) // 2 + 40):
        path = tmp_path / "events.jsonl.gz"
        path.write_bytes(whole[:cut])
        readable = gzip.zlib.decompressobj(31).decompress(whole[:cut])
        got, refused, _ = read(FileSource(path, Fields()))
        assert len(got) == readable.count(b"\n")
        assert len(refused) == 1


def test_damaged_parquet_is_one_refused_record(tmp_path):
    path = write(tmp_path / "1.parquet", some_events(100))
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 4)
    path.write_bytes(data)
    (tmp_path / "2.parquet").write_bytes(b"PAR1 is how it begins")
    write(tmp_path / "3.parquet", some_events(9))
    got, refused, ends = read(FileSource(tmp_path / "*.parquet", Fields()), 4)
    assert got == some_events(len(got) - 9) + some_events(9)
    assert [r[1] for r in refused] == [MALFORMED] * 2
    for count, position in ends:
        assert read(going_on(tmp_path / "*.parquet", position), 4)[0] == got[count:]


def test_a_line_of_ten_megabytes_is_refused_without_being_held(tmp_path):
    path = tmp_path / "events.jsonl"
    with open(path, "wb") as file:
        file.write(text_of(some_events(3), "jsonl"))
        for _ in range(100):
            file.write(b"x" * 100_000)
        file.write(b"\n" + text_of(some_events(3, 3), "jsonl") + b'{"time": 1' + b" " * 70_000)
    tracemalloc.start()
    got, refused, ends = read(FileSource(path, Fields()), 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == some_events(6)
    assert [(line, reason) for line, reason, _ in refused] == [(4, OVERSIZE), (8, OVERSIZE)]
    assert {detail for _, _, detail in refused} == {"it has more than 65,536 bytes"}
    assert peak < 3_000_000  # a few chunks of 256 KiB
    for count, position in ends:
        assert read(going_on(path, position))[0] == got[count:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([b"\n", b"\r", b"\xff", b"{", b'"', b"\x00", b"x" * 50, b"1,a,b"]), max_size=40
    )
)
def test_any_bytes_are_lines_and_every_line_is_accounted_for_once(tmp_path, pieces):
    data = b"".join(pieces)
    fields = Fields(max_bytes=60)
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    numbers = [n for n, line in enumerate(lines, 1) if line]
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.csv").write_bytes(b"time,type,key\n" + data)
    for name, shift in (("a.jsonl", 0), ("a.csv", 1)):
        seen = []
        source = FileSource(tmp_path / name, fields)
        for records in iter(lambda source=source: source.poll(3, 0.0, NOBODY), []):
            decoded = source.decode(records[0])
            accounted = sorted([*decoded.which, *(r.which for r in decoded.refused)])
            assert accounted == list(range(len(records[0].values)))
            seen += records[0].positions
        assert seen == [n + shift for n in numbers]


def test_a_wrong_column_names_the_nearest_and_the_records_before_it_come_first(tmp_path):
    write(tmp_path / "1.csv", some_events(3))
    (tmp_path / "2.csv").write_text("time,type,keys\n1,a,b\n")
    source = FileSource(tmp_path / "*.csv", Fields())
    assert len(source.poll(100, 0.0, NOBODY)[0].values) == 3
    with pytest.raises(UsageError, match=r"2\.csv: there is no column 'key'\. Did you mean 'keys'\?"):
        source.poll(100, 0.0, NOBODY)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("events.jsno", {}, "there is no file .*Did you mean 'events.jsonl'"),
        ("nowhere/events.jsonl", {}, "there is no folder"),
        ("*.log", {}, "no file matches"),
        (".", {}, "is a folder; name a file"),
        ("notes.txt", {}, "says no format; give format=csv, jsonl or parquet"),
        ("events.jsonl", {"format": "json"}, "'json' is no format. Did you mean 'jsonl'"),
        ("events.jsonl", {"speed": 0.0}, "speed is 0.0"),
        ("events.jsonl", {"delimiter": ";;", "format": "csv"}, "delimiter is ';;'"),
        ("new.parquet", {"follow": True}, "is Parquet, which cannot be followed"),
        ("new.parquet.gz", {"follow": True}, "is Parquet, which cannot be compressed"),
        ("new.csv.gz", {"follow": True}, "is compressed, so it cannot be followed"),
    ],
)
def test_a_wrong_path_or_parameter_is_an_error_that_says_what_to_do(tmp_path, path, options, message):
    write(tmp_path / "events.jsonl", some_events(1))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=message):
        FileSource(tmp_path / path, Fields(), **options)


def test_a_position_of_another_file_is_refused(tmp_path):
    path = write(tmp_path / "events.jsonl", some_events(10))
    _, _, ends = read(FileSource(path, Fields()), 4)
    write(path, some_events(10, 5))
    for follow in (False, True):
        with pytest.raises(UsageError, match="is not the file that was read before"):
            going_on(path, ends[0][1], follow=follow)
    with pytest.raises(UsageError, match="the position is of stdin, but file:"):
        FileSource(path, Fields()).seek({"stdin": {"line": 3}})


def test_format_and_delimiter_may_be_given(tmp_path):
    path = tmp_path / "events.log"
    path.write_text("time;type;key\n1;a,b;c\n")
    assert events_of(FileSource(path, Fields(), format="csv", delimiter=";")) == [Event(1.0, "a,b", "c")]


def test_nothing_is_read_while_paused_and_lag_counts_what_is_left(tmp_path):
    path = write(tmp_path / "a.jsonl", some_events(1_000))
    source = FileSource(path, Fields())
    assert source.lag() is None
    assert source.poll(100, 0.0, {str(path)}) == []
    source.poll(100, 0.0, NOBODY)
    assert source.lag() == pytest.approx(900, abs=10)
    events_of(source)
    assert source.lag() == 0
    packed = FileSource(write(tmp_path / "a.jsonl.gz", some_events(100)), Fields())
    packed.poll(10, 0.0, NOBODY)
    assert packed.lag() is None


# Replay


@given(
    times=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    steps=st.lists(st.floats(0, 5e4), max_size=10),
    limit=st.integers(1, 9),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_replay_gives_each_record_when_its_time_has_come(tmp_path, times, steps, limit):
    """By a clock of our own, once (t - t0) / speed has passed for it and for all before it."""
    path = write(tmp_path / "events.jsonl", [Event(t, "a", "b") for t in times])
    now = [50.0]
    source = FileSource(path, Fields(), speed=60.0, clock=lambda: now[0])
    due, latest = [], -float("inf")
    for t in times:
        latest = max(latest, 50.0 + (t - times[0]) / 60.0)
        due.append(latest)
    got = events_of(source, limit)
    for step in [*steps, 1e9]:
        assert len(got) == bisect_right(due, now[0])
        assert source.at_end(str(path)) == source.finished == (len(got) == len(times))
        now[0] += step
        got += events_of(source, limit)
    assert [e.time for e in got] == times
    assert source.finished


@pytest.mark.parametrize("name", ["A.TSV", "b.tsv.gz"])
def test_a_tab_parts_the_fields_of_tsv_however_its_suffix_is_written(tmp_path, name):
    text = b"time\ttype\tkey\n7\tview\tann, the first\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    source = FileSource(tmp_path / name, Fields())
    [records] = source.poll(10, 0.0, frozenset())
    assert source.decode(records).keys == ["ann, the first"]
