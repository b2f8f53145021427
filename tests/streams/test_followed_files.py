"""Files that grow, are rotated, truncated and compressed while they are read: nothing is lost or repeated."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading

import pytest
from files_support import (
    NOBODY,
    append,
    compressed,
    events_of,
    going_on,
    some_events,
    text_of,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamwise.streams.event import Event
from streamwise.streams.fields import Fields
from streamwise.streams.files import FileSource

pytestmark = pytest.mark.filterwarnings("ignore:.*there is no such file yet")


def follow(path, **options):
    return FileSource(path, Fields(), follow=True, **options)


def test_a_file_is_waited_for_and_its_last_line_until_it_ends(tmp_path):
    path = tmp_path / "events.jsonl"
    source = follow(path)
    assert source.poll(10, 0.03, NOBODY) == []
    assert source.at_end(str(path))
    line = text_of(some_events(1), "jsonl")
    path.write_bytes(line[:10])
    assert source.poll(10, 0.0, NOBODY) == []
    with open(path, "ab") as file:
        file.write(line[10:] + line[:5])
    assert events_of(source) == some_events(1)
    assert not source.finished
    assert source.at_end(str(path))


def test_names_of_columns_are_waited_for_as_well(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("time,ty")
    source = follow(path)
    assert source.poll(10, 0.0, NOBODY) == []
    with open(path, "a") as file:
        file.write("pe,key\n1,a,b\n")
    assert events_of(source) == [Event(1.0, "a", "b")]


def test_a_poll_ends_its_wait_when_something_comes(tmp_path):
    path = write(tmp_path / "events.jsonl", [])
    source = follow(path)
    assert source.poll(10, 0.0, NOBODY) == []
    writer = threading.Timer(0.1, append, (path, some_events(1)))
    writer.start()
    assert len(source.poll(10, 60.0, NOBODY)[0].values) == 1
    writer.join()


def rotate(path, how):
    """Move a log aside as logging programs do: by new names, by a copy, and compressed."""
    older = sorted((p for p in path.parent.glob("events.jsonl.*")), reverse=True)
    for file in older:  # events.jsonl.2.gz becomes .3.gz
        number, *rest = file.name.removeprefix("events.jsonl.").split(".")
        file.rename(file.with_name(".".join(["events.jsonl", str(int(number) + 1), *rest])))
    first = path.with_name("events.jsonl.1")
    if how == "copy":
        shutil.copy2(path, first)
        os.truncate(path, 0)
    else:
        path.rename(first)
        path.touch()
    if how in ("gz", "zst"):
        packed = path.with_name(f"events.jsonl.1.{how}")
        packed.write_bytes(compressed(first.read_bytes(), packed.name))
        shutil.copystat(first, packed)
        first.unlink()


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "read", "restart", "rename", "copy", "gz", "zst"]),
        st.integers(1, 6),
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(steps=steps)
def test_rotation_loses_and_repeats_nothing_whether_somebody_reads_or_not(tmp_path_factory, steps):
    """Any order of writing, reading a few, restarting from the last position, and rotating, four ways."""
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    written, got, position, at = [], [], None, 0
    source = follow(path)

    def tick():
        nonlocal at  # rotated files are told apart by their times, which a test outruns
        at += 1
        os.utime(path, ns=(at * 10**9, at * 10**9))

    # Of a log that was rotated before its first record was read, nothing could be known.
    for step, count in [("write", 3), ("read", 1), *steps]:
        if step == "write":
            more = some_events(count, len(written))
            append(path, more)
            written += more
            tick()
        elif step == "read":
            for records in source.poll(count, 0.0, NOBODY):
                got += source.decode(records).times
                position = json.loads(json.dumps(records.next_position))
        elif step == "restart":
            source.close()
            source = going_on(path, position, follow=True)
        elif path.stat().st_size:
            rotate(path, step)
    while polled := source.poll(3, 0.0, NOBODY):
        got += source.decode(polled[0]).times
    assert got == [e.time for e in written]
    assert source.at_end(str(path))


def test_the_last_lines_of_a_rotated_file_are_read_before_the_first_of_the_new_one(tmp_path):
    """The program that logs goes on writing into the old file until it notices."""
    path = tmp_path / "events.jsonl"
    append(path, some_events(3))
    source = follow(path)
    got = events_of(source)
    with open(path, "ab") as old:
        rotate(path, "rename")
        got += events_of(source)
        old.write(text_of(some_events(2, 3), "jsonl"))
    append(path, some_events(2, 5))
    assert got + events_of(source) == some_events(7)


def test_a_file_that_is_being_compressed_is_read_once(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, some_events(3))
    source = follow(path)
    (records,) = source.poll(1, 0.0, NOBODY)
    rotate(path, "rename")
    rotated = path.with_name("events.jsonl.1")
    packed = path.with_name("events.jsonl.1.gz")
    packed.write_bytes(gzip.compress(rotated.read_bytes())[:-9])
    append(path, some_events(2, 3))
    rest = some_events(4, 1)
    assert events_of(going_on(path, records.next_position, follow=True)) == rest
    packed.write_bytes(gzip.compress(rotated.read_bytes()))  # with a later time than the original had
    rotated.unlink()
    assert events_of(source) == rest
    assert events_of(going_on(path, records.next_position, follow=True)) == rest


def test_a_truncated_file_starts_again_even_if_it_has_grown_beyond_the_old_place(tmp_path):
    path = tmp_path / "events.jsonl"
    for after in (1, 50):
        path.write_bytes(text_of(some_events(5), "jsonl"))
        source = follow(path)
        assert events_of(source) == some_events(5)
        path.write_bytes(text_of(some_events(after, 100), "jsonl"))
        assert events_of(source) == some_events(after, 100)


def test_what_merely_looks_like_a_sibling_is_left_alone(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, some_events(3))
    source = follow(path)
    got = events_of(source)
    for other in ("events.jsonl.bak", "events.jsonl.1.tmp", "events.jsonl2", "events.jsonl.lock"):
        append(tmp_path / other, some_events(9, 90))
    rotate_dated = path.rename(tmp_path / "events.jsonl-20250131")
    append(rotate_dated, some_events(1, 3))
    append(path, some_events(1, 4))
    assert got + events_of(source) == some_events(5)


def test_new_files_of_a_followed_glob_come_after_those_before_them(tmp_path):
    source = follow(tmp_path / "*.jsonl")
    assert source.poll(10, 0.0, NOBODY) == []
    append(tmp_path / "2025-01-01.jsonl", some_events(3))
    (records,) = source.poll(2, 0.0, NOBODY)
    append(tmp_path / "2025-01-02.jsonl", some_events(3, 3))
    append(tmp_path / "2025-01-03.jsonl", some_events(3, 6))
    assert events_of(source) == some_events(7, 2)
    append(tmp_path / "2025-01-03.jsonl", some_events(1, 9))
    assert events_of(source) == some_events(1, 9)
    assert events_of(going_on(tmp_path / "*.jsonl", records.next_position, follow=True)) == some_events(8, 2)


@pytest.mark.parametrize("name", ["log.jsonl", "*.jsonl"])
def test_a_file_that_is_not_there_yet_is_said_to_be_waited_for(tmp_path, name):
    with pytest.warns(UserWarning, match="there is no such file yet; waiting for it"):
        source = follow(tmp_path / name)
    write(tmp_path / "log.jsonl", some_events(3))
    assert events_of(source) == some_events(3)
