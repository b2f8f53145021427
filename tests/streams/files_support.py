"""What tests of files of events share: events, the files that hold them, and who reads them."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from streamwise.streams.event import Event
from streamwise.streams.fields import Fields
from streamwise.streams.files import FileSource

FORMATS = ["csv", "csv.gz", "csv.zst", "tsv", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"]


NOBODY: frozenset[str] = frozenset()


def some_events(count, start=0):
    return [Event(1.7e9 + i / 4, f"type-{i % 3}", f"käy, {i % 7}") for i in range(start, start + count)]


def text_of(events, name):
    if "jsonl" in name:
        return "".join(json.dumps(event._asdict()) + "\n" for event in events).encode()
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if "tsv" in name else ",", lineterminator="\n")
    writer.writerows([["time", "key", "type"], *([repr(e.time), e.key, e.type] for e in events)])
    return out.getvalue().encode()


def compressed(data, name):
    if name.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    if name.endswith(".zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return data


def write(path, events):
    if path.name.endswith(".parquet"):
        columns = {name: [getattr(e, name) for e in events] for name in ("time", "type", "key")}
        schema = pa.schema([("time", pa.float64()), ("type", pa.string()), ("key", pa.string())])
        pq.write_table(pa.table(columns, schema=schema), path, row_group_size=7)
    else:
        path.write_bytes(compressed(text_of(events, path.name), path.name))
    return path


def append(path, events):
    with open(path, "ab") as file:
        file.write(text_of(events, ".jsonl"))


def read(source, limit=1000):
    """Poll until nothing comes; return the events, the refusals and where each batch ended."""
    events, refused, ends = [], [], []
    while polled := source.poll(limit, 0.0, NOBODY):
        assert len(ends) < 100_000, "the source repeats itself"
        (records,) = polled
        assert records.partition == source.partitions[0]
        assert 0 < len(records.values) == len(records.positions) <= limit
        decoded = source.decode(records)
        assert len(decoded.which) + len(decoded.refused) == len(records.values)
        events += map(Event, decoded.times, decoded.types, decoded.keys)
        refused += [(records.positions[r.which], *r[1:]) for r in decoded.refused]
        ends.append((len(events), json.loads(json.dumps(records.next_position))))
    return events, refused, ends


def events_of(source, limit=1000):
    events, refused, _ = read(source, limit)
    assert not refused
    return events


def going_on(path, position, **options):
    source = FileSource(path, Fields(), **options)
    source.seek({source.partitions[0]: position})
    return source
