"""The merge of sources: one order whatever the polls, late events by their own partition, exact positions."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.streams.dead_letters import DeadLetterLimitError, DeadLetterLog
from streamwise.streams.event import Decoded, Event, Records, Refused
from streamwise.streams.event_stream import DUPLICATE, FUTURE, LATE, EventStream

BAD = ("bad", "no event")


class ListSource:
    """Partitions of (time, type, key), or None for a record that is no event; polled as `script` says."""

    def __init__(self, partitions, script=(), open_end=False):
        self.name = "list"
        self.content = partitions
        self.partitions = list(partitions)
        self.at = dict.fromkeys(partitions, 0)
        self.script = itertools.cycle(script or [(0, 3)])
        self.open_end = open_end
        self.committed = {}
        self.paused_seen = set()

    @property
    def finished(self):
        return not self.open_end and all(self.at[p] == len(records) for p, records in self.content.items())

    def poll(self, limit, timeout, paused):
        self.paused_seen |= set(paused)
        for _ in range(50):
            which, count = next(self.script)
            name = self.partitions[which % len(self.partitions)]
            first = self.at[name]
            values = self.content[name][first : first + min(count, limit)]
            if values and name not in paused:
                self.at[name] += len(values)
                return [Records(name, values, range(first, self.at[name]), self.at[name], 0.0)]
        for name in self.partitions:  # whatever is left, when the script never gets there
            first, values = self.at[name], self.content[name][self.at[name] : self.at[name] + limit]
            if values and name not in paused:
                self.at[name] += len(values)
                return [Records(name, values, range(first, self.at[name]), self.at[name], 0.0)]
        return []

    def decode(self, records):
        good = [i for i, value in enumerate(records.values) if value is not None]
        columns = [[records.values[i][column] for i in good] for column in range(3)]
        refused = [Refused(i, *BAD) for i, value in enumerate(records.values) if value is None]
        return Decoded(good, *columns, None, refused)

    def at_end(self, partition):
        return self.at[partition] == len(self.content[partition])

    def seek(self, positions):
        self.at.update(positions)

    def commit(self, positions):
        self.committed = positions

    def lag(self):
        return sum(len(records) - self.at[name] for name, records in self.content.items())

    def close(self):
        pass


times = st.floats(0.0, 100.0).map(lambda t: round(t, 1))
records = st.lists(
    st.one_of(st.none(), st.tuples(times, st.sampled_from("ab"), st.sampled_from("xyz"))), max_size=30
)
logs = st.dictionaries(st.sampled_from(["p/0", "p/1", "p/2"]), records, min_size=1)
scripts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 7)), min_size=1, max_size=20)
lateness = st.sampled_from([0.0, 5.0, 50.0, 1000.0])


def expected(log, lateness):
    """What must come out, record by record: the events in order, and what is refused, by partition."""
    events, refused = [], []
    for name, partition in log.items():
        newest = -math.inf
        for number, record in enumerate(partition):
            if record is None:
                refused.append((name, number, BAD[0]))
            elif record[0] < newest - lateness:
                refused.append((name, number, LATE))
            else:
                newest = max(newest, record[0])
                events.append((record[0], name, number, record))
    return [event[3] for event in sorted(events, key=lambda e: e[:3])], sorted(refused)


def refusals(path):
    lines = path.read_text().splitlines() if path.is_file() else []
    return sorted((r["partition"], r["position"], r["reason"]) for r in map(json.loads, lines))


@settings(deadline=None)
@given(log=logs, script=scripts, lateness=lateness, limit=st.integers(1, 9))
def test_the_order_does_not_depend_on_how_polls_interleave(log, script, lateness, limit, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "dead.jsonl"
    stream = EventStream(
        [ListSource(log, script)], DeadLetterLog(path), lateness=lateness, poll_limit=limit, idle_seconds=1e9
    )
    events = [event[:3] for event in stream]
    stream.dead_letters.close()
    wanted, refused = expected(log, lateness)
    assert events == wanted
    assert refusals(path) == refused
    assert stream.released == len(wanted)
    assert stream.records == sum(map(len, log.values()))


@settings(deadline=None, max_examples=60)
@given(
    log=logs,
    script=scripts,
    lateness=lateness,
    cuts=st.lists(st.integers(0, 60), max_size=3),
    singly=st.booleans(),
)
def test_going_on_from_any_position_is_never_having_stopped(
    log, script, lateness, cuts, singly, tmp_path_factory
):
    path = tmp_path_factory.mktemp("log") / "dead.jsonl"
    position, events = None, []

    def open_stream():
        options = {"lateness": lateness, "poll_limit": 4, "idle_seconds": 1e9}
        stream = EventStream([ListSource(log, script)], DeadLetterLog(path), **options)
        if position is not None:
            stream.seek(json.loads(json.dumps(position)))
        return stream

    for cut in [*sorted(cuts), math.inf]:
        stream = open_stream()
        if singly:
            for event in stream:
                events.append(event[:3])
                if len(events) >= cut:
                    break
        else:
            for batch in stream.batches():
                events += zip(batch.times, batch.types, batch.keys, strict=True)
                if len(events) >= cut:
                    break
        position = stream.position
        # What comes after the position is learned and then lost by a kill.
        rest = iter(stream) if cut < math.inf else iter(())
        next(rest, None)
        stream.dead_letters.close()
    wanted, refused = expected(log, lateness)
    assert events == wanted
    assert refusals(path) == refused


@given(count=st.integers(100, 400), lead=st.integers(0, 1))
@settings(deadline=None, max_examples=20)
def test_a_partition_that_is_ahead_waits_in_bounded_memory(count, lead):
    log = {f"p/{i}": [(float(t), "a", f"k{i}") for t in range(count)] for i in range(2)}
    stream = EventStream([ListSource(log, [(lead, 5)] * 40 + [(1 - lead, 1)])], poll_limit=5, buffer=20)
    most = 0
    for _ in stream.batches():
        most = max(most, stream.waiting)
    assert stream.released == 2 * count
    assert most <= 2 * (20 + 5)


def test_too_many_events_within_the_lateness_raise_the_watermark():
    """With room for ten, an event that is older than the ten newest of its partition is late."""
    log = {"p": [(float(t), "a", "k") for t in range(100, 150)] + [(101.0, "a", "k"), (145.0, "a", "k")]}
    for limit in (1, 7, 100):
        stream = EventStream([ListSource(log)], lateness=1000.0, buffer=10, poll_limit=limit)
        times = [event.time for event in stream]
        assert times == [*map(float, range(100, 146)), 145.0, *map(float, range(146, 150))]
        assert stream.dead_letters.counts == {LATE: 1}


@pytest.mark.parametrize("most", [1, 3, 4, 5, 9, 10])
def test_no_more_than_so_many_events_come_out_and_the_rest_comes_later(most):
    class TwoAtOnce(ListSource):
        def poll(self, limit, timeout, paused):
            return super().poll(limit, timeout, paused) + super().poll(limit, timeout, paused)

    log = {"p": [(float(t), "a", "k") for t in range(10)]}
    stream = EventStream([TwoAtOnce(log, [(0, 4)])], most=most)
    first = [time for batch in stream.batches() for time in batch.times]
    assert len(first) == most
    rest = EventStream([TwoAtOnce(log, [(0, 4)])])
    rest.seek(json.loads(json.dumps(stream.position)))
    assert first + [event.time for event in rest] == [float(t) for t in range(10)]


def test_an_idle_partition_does_not_hold_up_the_others():
    now = 0.0
    log = {"p/0": [(float(t), "a", "k") for t in range(5)], "p/1": []}
    source = ListSource(log, open_end=True)
    stream = EventStream([source], idle_seconds=5.0, clock=lambda: now)
    batches = stream.batches()
    assert [next(batches).size for _ in range(3)] == [0, 0, 0]
    now = 6.0
    assert next(batches).times == (0.0, 1.0, 2.0, 3.0, 4.0)
    # When it has news after all, what lies before the events that were let out is late.
    log["p/1"] += [(2.0, "b", "k"), (4.5, "b", "k")]
    assert next(batches).times == (4.5,)  # p/0 is still without news
    log["p/0"].append((5.0, "a", "k"))
    assert next(batches).size == 0  # now it is p/1 that may come before it
    now = 20.0
    assert next(batches).times == (5.0,)
    assert stream.dead_letters.counts == {LATE: 1}


def test_events_of_several_sources_are_merged_by_time():
    one = ListSource({"one": [(float(t), "a", "x") for t in range(0, 20, 2)]})
    two = ListSource({"two": [(float(t), "b", "x") for t in range(1, 20, 2)]})
    stream = EventStream([one, two], idle_seconds=1e9)
    assert [event.time for event in stream] == [float(t) for t in range(20)]
    stream.commit(stream.position)
    assert (one.committed, two.committed) == ({"one": 10}, {"two": 10})


@given(count=st.integers(60, 200), lateness=st.sampled_from([30.0, 1e6]), script=scripts)
@settings(deadline=None, max_examples=30)
def test_dense_events_of_several_partitions_do_not_wait_for_ever(count, lateness, script):
    """More events than the buffer holds lie within the lateness of each other, in each of two partitions."""
    log = {f"p/{i}": [(t + i / 2.0, "a", "k") for t in range(count)] for i in range(2)}
    stream = EventStream([ListSource(log, script)], lateness=lateness, buffer=10, poll_limit=7)
    for turn, _ in enumerate(stream.batches()):
        assert turn < 20 * count
    assert stream.released == 2 * count


def test_partitions_of_one_name_in_two_sources_are_two():
    logs = [{"p/0": [(float(t), kind, "k") for t in range(20)]} for kind in "ab"]
    sources = [ListSource(log, [(0, 4)]) for log in logs]
    stream, found = EventStream(sources, poll_limit=4, idle_seconds=1e9), []
    for event in stream:
        found.append(event[:2])
        if len(found) == 13:
            position = json.loads(json.dumps(stream.position))
            break
    sources = [ListSource(log, [(0, 4)]) for log in logs]
    stream = EventStream(sources, poll_limit=4, idle_seconds=1e9)
    stream.seek(position)
    found += [event[:2] for event in stream]
    assert found == [(float(t), kind) for t in range(20) for kind in "ab"]
    stream.commit(stream.position)
    assert [source.committed for source in sources] == [{"p/0": 20}, {"p/0": 20}]


def test_an_event_ahead_of_the_clock_is_refused_and_makes_no_other_late():
    log = {"p": [(100.0, "a", "k"), (5e9, "a", "k"), (101.0, "a", "k")]}
    stream = EventStream([ListSource(log)], now=lambda: 1000.0)
    assert [event.time for event in stream] == [100.0, 101.0]
    assert stream.dead_letters.counts == {FUTURE: 1}


def test_a_position_that_comes_again_is_refused():
    source = ListSource({"p": [(1.0, "a", "k"), (2.0, "a", "k"), (3.0, "a", "k")]}, [(0, 2)])
    stream = EventStream([source])
    batches = stream.batches()
    assert next(batches).times == [1.0, 2.0]
    source.at["p"] = 1
    assert next(batches).times == [3.0]
    assert stream.dead_letters.counts == {DUPLICATE: 1}


def test_the_limit_of_refused_records_ends_the_stream_and_says_why(tmp_path):
    log = {"p": [(1.0, "a", "k"), None, None, None, (2.0, "a", "k")]}
    letters = DeadLetterLog(tmp_path / "dead.jsonl", limit=2)
    with pytest.raises(
        DeadLetterLimitError, match=r"3 records .* limit of 2.*'bad'.*p 3: no event.*dead.jsonl"
    ):
        list(EventStream([ListSource(log)], letters))


def test_a_dead_letter_shows_bytes_that_are_no_text(tmp_path):
    path, copies = tmp_path / "dead.jsonl", []
    letters = DeadLetterLog(path, also=copies.append)
    letters.add("malformed", "why", "p/1", 7, b"caf\xc3\xa9 \xff\x00" + b"x" * 5000)
    letters.close()
    line = json.loads(path.read_text())
    assert line["record"].startswith("café \\xff\x00xxx")
    assert len(line["record"]) < 2100
    assert (line["partition"], line["position"], line["reason"], line["detail"]) == (
        "p/1",
        7,
        "malformed",
        "why",
    )
    assert copies == [path.read_bytes()]


def test_features_stay_with_their_events():
    class WithFeatures(ListSource):
        def decode(self, records):
            decoded = super().decode(records)
            return decoded._replace(features=[{"t": t} for t in decoded.times])

    log = {f"p/{i}": [(float(t + i), "a", "k") for t in range(0, 10, 2)] for i in range(2)}
    events = list(EventStream([WithFeatures(log)], idle_seconds=1e9))
    assert events == [Event(float(t), "a", "k", {"t": float(t)}) for t in range(10)]


def sizes_of_polls(count, polls, seconds):
    """Return the sizes of batches for a reader that takes so many seconds an event."""
    sizes = []
    source = ListSource({"p": [(float(i), "a", "x") for i in range(count)]}, polls)
    for batch in EventStream([source], clock=lambda: seconds * sum(sizes)).batches():
        sizes.append(batch.size)
    assert sum(sizes) == count
    return sizes


def test_a_poll_gives_no_more_than_a_slow_reader_takes_in_a_moment():
    """Even if records came one by one for long, when they come in hundreds each is soon learned."""
    several = [(0, 1)] * 500 + [(0, 1_000)] * 450
    sizes = sizes_of_polls(3_000, several, 0.3e-3)
    many = [size for size in sizes if size > 1]
    assert len(many) >= 900
    assert max(many) <= 16
    assert set(many[5:]) == {2}


def test_a_slow_reader_that_is_far_behind_gets_more_than_that():
    sizes = sizes_of_polls(9_000, [(0, 1_000)], 0.3e-3)
    assert set(sizes[10:495]) == {2}
    assert set(sizes[510:-1]) == {64}  # 20 ms: twice as many would be learned in less than 50


def test_a_poll_gives_much_to_a_fast_reader():
    sizes = sizes_of_polls(20_000, [(0, 20_000)], 1e-6)
    assert 200 <= sorted(sizes)[len(sizes) // 2] <= 1_000
