"""Redis Streams are read exactly once, from a real server."""

from __future__ import annotations

import itertools
import json
import logging
import random
import threading

import pytest
from brokers import redis_server, wait_until

from streamwise.streams import UsageError
from streamwise.streams.fields import Fields

redis = pytest.importorskip("redis")

from streamwise.streams.redis_streams import RedisSource  # noqa: E402

SECRET = "hunter2-Zm9vYmFy"
names = (f"stream{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def server():
    with redis_server() as server:
        yield server


@pytest.fixture
def client(server):
    with redis.Redis(port=server.port, protocol=2) as client:
        yield client


@pytest.fixture
def stream():
    return next(names)


@pytest.fixture
def open_source(server):
    """Return a function that opens sources, which are closed after the test."""
    sources = []

    def open_source(stream, port=server.port, fields=None, **options):
        sources.append(RedisSource("127.0.0.1", port, stream, fields or Fields(), **options))
        return sources[-1]

    yield open_source
    for source in sources:
        source.close()


class Reader:
    """Collects what a source gives, and where it would go on."""

    def __init__(self):
        self.values, self.ids, self.positions = [], [], {}

    def poll(self, source, limit=1000, timeout=0.05):
        polled = source.poll(limit, timeout, frozenset())
        assert sum(len(records.values) for records in polled) <= limit
        for records in polled:
            assert [records.partition] == list(source.partitions)
            self.values += records.values
            self.ids += records.positions
            self.positions[records.partition] = json.loads(json.dumps(records.next_position))
        return polled

    def read(self, source, count, **options):
        wait_until(lambda: self.poll(source, **options) is None or len(self.values) >= count)


def add(client, stream, numbers, **options):
    """Append entries that hold these numbers; return the ids."""
    pipeline = client.pipeline(transaction=False)
    for number in numbers:
        pipeline.xadd(stream, {"number": number}, **options)
    return [entry_id.decode() for entry_id in pipeline.execute()]


def numbers_of(reader):
    return [int(value["number"]) for value in reader.values]


def test_every_entry_comes_once_and_in_order_under_any_limits_and_pauses(client, stream, open_source):
    ids = add(client, stream, range(3000))
    source, reader, rng = open_source(stream), Reader(), random.Random(0)
    while len(reader.values) < 3000:
        if rng.random() < 0.2:
            assert source.poll(10, 0.0, {stream}) == []
        reader.poll(source, rng.choice([1, 7, 200]), rng.choice([0.0, 0.01]))
    assert reader.poll(source) == []
    assert numbers_of(reader) == list(range(3000))
    assert reader.ids == ids
    assert source.at_end(stream)
    assert source.lag() == 0
    assert not source.finished


@pytest.mark.parametrize("seed", range(3))
def test_a_source_opened_again_at_any_point_loses_and_repeats_nothing(client, stream, open_source, seed):
    add(client, stream, range(300))
    reader, rng = Reader(), random.Random(seed)
    for stop in [*sorted(rng.sample(range(1, 300), 8)), 300]:
        source = open_source(stream)
        source.seek(reader.positions)
        while len(reader.values) < stop:
            reader.poll(source, rng.choice([1, 13, 64]))
        source.commit({stream: "0-0"})  # which must not matter
        source.close()
    assert numbers_of(reader) == list(range(300))


def test_a_wait_ends_with_the_first_entry(client, stream, open_source):
    add(client, stream, [0])
    source, reader = open_source(stream), Reader()
    reader.read(source, 1)
    adding = threading.Timer(0.1, lambda: add(client, stream, [1]))
    adding.start()
    wait_until(lambda: reader.poll(source, timeout=10.0))
    adding.join()
    assert numbers_of(reader) == [0, 1]


def test_a_server_that_stops_or_is_killed_costs_nothing_but_time(open_source, monkeypatch):
    monkeypatch.setattr("streamwise.streams.redis_streams._ANSWER_SECONDS", 1.5)
    with redis_server(persistent=True) as own, redis.Redis(port=own.port, protocol=2) as client:
        add(client, "s", range(500))
        source, reader = open_source("s", port=own.port), Reader()
        reader.read(source, 100, limit=20)
        own.pause()
        try:
            assert reader.poll(source) == []
        finally:
            own.unpause()
        reader.read(source, 200, limit=20)
        own.kill()
        for _ in range(3):
            assert reader.poll(source) == []
        assert source.lag() is None
        source.commit(reader.positions)
        own.start()
        add(redis.Redis(port=own.port, protocol=2), "s", range(500, 600))
        reader.read(source, 600, limit=50)
        assert reader.poll(source) == []
        assert numbers_of(reader) == list(range(600))


def test_until_end_finishes_where_the_stream_ended_at_the_first_poll(client, stream, open_source):
    add(client, stream, range(100))
    source, reader = open_source(stream, until_end=True), Reader()
    reader.poll(source)
    add(client, stream, range(100, 130))
    wait_until(lambda: reader.poll(source, limit=10) is None or source.finished)
    assert numbers_of(reader) == list(range(100))
    assert reader.poll(source) == []

    again, rest = open_source(stream, until_end=True), Reader()
    again.seek(reader.positions)
    wait_until(lambda: rest.poll(again) is None or again.finished)
    assert numbers_of(rest) == list(range(100, 130))


def test_until_end_finishes_when_nothing_is_left_or_the_last_was_deleted(client, stream, open_source):
    ids = add(client, stream, range(10))
    client.xdel(stream, ids[-1])
    source, reader = open_source(stream, until_end=True), Reader()
    wait_until(lambda: reader.poll(source) is None or source.finished)
    assert numbers_of(reader) == list(range(9))
    client.xtrim(stream, maxlen=0, approximate=False)
    source = open_source(stream, until_end=True)
    wait_until(lambda: reader.poll(source) is None or source.finished)
    assert len(reader.values) == 9


def test_the_latest_start_is_remembered_where_nothing_has_happened(client, stream, open_source):
    add(client, stream, range(5))
    source, reader = open_source(stream, start="latest"), Reader()
    reader.poll(source)
    source.close()
    assert reader.values == []
    add(client, stream, [5, 6])
    again = open_source(stream, start="latest")
    again.seek(reader.positions)
    reader.read(again, 2)
    assert numbers_of(reader) == [5, 6]


@pytest.mark.parametrize(("start", "first"), [("earliest", 0), ("20-1", 3), ("20", 1), ("21", 3), ("0", 0)])
def test_a_start_is_an_entry_to_begin_after_or_a_time_to_begin_with(
    client, stream, open_source, start, first
):
    for number, entry_id in enumerate(["10-1", "20-0", "20-1", "30-0"]):
        add(client, stream, [number], id=entry_id)
    source, reader = open_source(stream, start=start), Reader()
    reader.read(source, 4 - first)
    assert numbers_of(reader) == list(range(first, 4))


def test_trimmed_entries_are_counted_where_the_position_was_published(client, stream, open_source):
    add(client, stream, range(100))
    source, reader = open_source(stream), Reader()
    reader.read(source, 30, limit=10)
    source.commit(reader.positions)
    client.xtrim(stream, maxlen=50, approximate=False)
    again = open_source(stream)
    again.seek(reader.positions)
    with pytest.warns(UserWarning, match=f"20 entries were trimmed after {reader.positions[stream]} "):
        reader.read(again, 80)
    assert numbers_of(reader) == [*range(30), *range(50, 100)]
    assert again.lag() == 0


def test_trimmed_entries_are_told_of_where_nobody_can_count_them(client, stream, open_source):
    ids = add(client, stream, range(100))
    client.xtrim(stream, maxlen=50, approximate=False)
    source, reader = open_source(stream), Reader()
    source.seek({stream: ids[10]})
    with pytest.warns(UserWarning, match="entries may have been trimmed"):
        reader.read(source, 50)
    assert numbers_of(reader) == list(range(50, 100))


@pytest.mark.filterwarnings("error")
def test_trimming_what_has_been_read_is_no_matter(client, stream, open_source):
    ids = add(client, stream, range(100))
    source, reader = open_source(stream), Reader()
    reader.read(source, 60, limit=10)
    source.commit(reader.positions)
    for left in (50, 40):  # then position is among those that remain, then just gone
        client.xtrim(stream, maxlen=left, approximate=False)
        again, rest = open_source(stream), Reader()
        again.seek(reader.positions)
        assert reader.positions == {stream: ids[59]}
        rest.read(again, 40)
        assert numbers_of(rest) == list(range(60, 100))
    source, reader = open_source(stream, group="none"), Reader()
    source.seek({stream: ids[70]})  # whose count nobody knows, but it is still there
    reader.read(source, 29)
    assert numbers_of(reader) == list(range(71, 100))


def test_a_stream_that_ends_before_the_position_is_told_of(client, stream, open_source):
    add(client, stream, [0], id="5-0")
    source, reader = open_source(stream), Reader()
    source.seek({stream: "7-0"})
    with pytest.warns(UserWarning, match="ends at 5-0, before 7-0"):
        reader.poll(source)
    add(client, stream, [1], id="8-0")
    reader.read(source, 1)
    assert numbers_of(reader) == [1]


def test_what_is_committed_shows_in_the_group(client, stream, open_source):
    add(client, stream, range(100))
    source, reader = open_source(stream, group="readers"), Reader()
    reader.read(source, 40, limit=10)
    committed = dict(reader.positions)
    reader.read(source, 70, limit=10)
    for _ in range(2):  # the group is made, and then moved
        source.commit(committed)
        [group] = client.xinfo_groups(stream)
        assert group["name"] == b"readers"
        assert group["last-delivered-id"].decode() == committed[stream]
        assert (group["entries-read"], group["lag"]) == (40, 60)
    assert source.lag() == 100 - len(reader.values)


def test_committing_makes_no_stream(client, stream, open_source):
    with pytest.warns(UserWarning, match="waiting"):
        source = open_source(stream)
    source.commit({stream: "5-0"})
    assert not client.exists(stream)


def test_a_stream_that_does_not_exist_is_waited_for(client, stream, open_source):
    with pytest.warns(UserWarning, match=f"/{stream}: there is no such stream yet"):
        source = open_source(stream, start="latest")
    reader = Reader()
    reader.poll(source)
    add(client, stream, [1, 2])
    reader.read(source, 2)
    assert source.lag() == 0


def test_fields_are_the_record_or_one_of_them_is_json(client, stream, open_source):
    event = {"time": "1.5", "type": "view", "key": "Zoë"}
    client.xadd(stream, event)
    client.xadd(stream, {"data": json.dumps(event), "sender": "x"})
    client.xadd(stream, {b"\xff": b"\xff", "key": b"\xff", "time": "1", "type": "view"})
    for json_field, good, reasons in (
        (None, 0, {1: "missing field", 2: "malformed"}),
        ("data", 1, {0: "", 2: ""}),
    ):
        source = open_source(stream, json_field=json_field)
        polled = []
        wait_until(lambda s=source, p=polled: p.extend(r for r in s.poll(10, 0.1, set()) if r.values) or p)
        decoded = source.decode(polled[0])
        assert list(decoded.which) == [good]
        assert (decoded.times, decoded.types, decoded.keys) == ([1.5], ["view"], ["Zoë"])
        assert [index for index, _, _ in decoded.refused] == list(reasons)
        if json_field is None:
            assert {index: reason for index, reason, _ in decoded.refused} == reasons
        else:
            assert {reason for _, reason, _ in decoded.refused} == {"missing field"}


def test_a_key_that_holds_no_stream_is_refused(client, stream, open_source):
    client.set(stream, "text")
    with pytest.raises(UsageError, match=f"/{stream}: that key holds no stream"):
        open_source(stream)


def test_nothing_to_read_to_its_end_is_refused_with_the_nearest_name(client, open_source):
    client.xadd("payments-of-today", {"a": 1})
    with pytest.raises(UsageError, match="Did you mean 'payments-of-today'"):
        open_source("payment-of-today", until_end=True)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"redis://127\.0\.0\.1:9/s: no server has answered within 0\.3 s"):
        RedisSource("127.0.0.1", 9, "s", Fields(), connect_seconds=0.3)


def test_a_login_is_used_and_appears_nowhere(client, stream, open_source, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    client.acl_setuser("ann", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+@all"])
    client.acl_setuser("bob", enabled=True, passwords=[f"+{SECRET}"], keys=["other*"], commands=["+@all"])
    add(client, stream, [1])
    monkeypatch.setenv("PASSWORD_OF_ANN", SECRET)
    monkeypatch.setenv("WRONG", SECRET[:-1])
    source, reader = open_source(stream, username="ann", password_env="PASSWORD_OF_ANN"), Reader()
    reader.read(source, 1)
    said = [source.name, repr(source), repr(source._client)]
    for options, words in (
        ({"username": "ann", "password_env": "WRONG"}, "refuses the login"),
        ({"username": "bob", "password_env": "PASSWORD_OF_ANN"}, "may not read it"),
        ({"password_env": "UNSET_VARIABLE"}, "'UNSET_VARIABLE' of the environment holds no password"),
    ):
        with pytest.raises(UsageError, match=words) as refused:
            open_source(stream, **options)
        said.append(str(refused.value))
    assert SECRET[:-1] not in " ".join([*said, caplog.text])


@pytest.mark.parametrize("start", ["newest", "-1", "1-2-3", "1.5", ""])
def test_a_start_that_is_no_id_is_refused(start):
    with pytest.raises(UsageError, match=f"start is '{start}'"):
        RedisSource("127.0.0.1", 9, "s", Fields(), start=start)


def test_a_position_of_another_stream_is_refused(client, stream, open_source):
    add(client, stream, [1])
    with pytest.raises(UsageError, match="belongs to a stream 'clicks'"):
        open_source(stream).seek({"clicks": "1-0"})
