"""Pipes as sources: every line once, as it comes."""

from __future__ import annotations

import io
import os

import pytest
from files_support import NOBODY, events_of, read, some_events, text_of

from streamwise.streams.errors import UsageError
from streamwise.streams.event import Event
from streamwise.streams.fields import Fields
from streamwise.streams.pipes import StdinSource
from streamwise.streams.refusals import OVERSIZE


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "wb", buffering=0) as writer:
        yield reader, writer


def test_a_pipe_is_read_as_it_comes_and_ends_with_it(pipe):
    reader, writer = pipe
    source = StdinSource(Fields(), "csv", stream=reader)
    assert source.poll(10, 0.05, NOBODY) == []
    writer.write(b"time,type,key\n1,a,b\n\n2,a")
    (records,) = source.poll(10, 60.0, NOBODY)
    assert (list(records.positions), records.next_position) == ([2], {"line": 3})
    assert source.decode(records).times == [1.0]
    assert source.at_end("stdin")
    assert not source.finished
    writer.write(b",b\n3,a,b")
    assert events_of(source) == [Event(2.0, "a", "b")]
    writer.close()
    assert events_of(source) == [Event(3.0, "a", "b")]
    assert source.poll(10, 60.0, NOBODY) == []
    assert source.finished


def test_lines_of_a_pipe_are_counted_on_from_a_position():
    source = StdinSource(Fields(), stream=io.BytesIO(text_of(some_events(5), "jsonl")))
    source.seek({"stdin": {"line": 7}})
    (records,) = source.poll(2, 0.0, NOBODY)
    assert list(records.positions) == [8, 9]
    assert records.next_position == {"line": 9}
    assert source.poll(9, 0.0, {"stdin"}) == []
    assert events_of(source) == some_events(3, 2)
    assert source.finished


def test_a_pipe_of_wrong_columns_or_of_parquet_is_an_error():
    with pytest.raises(UsageError, match="stdin: there is no column 'key'"):
        StdinSource(Fields(), "csv", stream=io.BytesIO(b"time,type\n1,a\n")).poll(1, 0.0, NOBODY)
    with pytest.raises(UsageError, match="Parquet cannot be read from a pipe"):
        StdinSource(Fields(), "parquet", stream=io.BytesIO())


def test_a_long_line_in_a_pipe_is_refused_and_the_next_one_read():
    data = b"x" * 1_000_000 + b"\n" + text_of(some_events(2), "jsonl")
    events, refused, _ = read(StdinSource(Fields(), stream=io.BytesIO(data)))
    assert events == some_events(2)
    assert [r[:2] for r in refused] == [(1, OVERSIZE)]
