"""Synthetic events as a source: their order, where they go on, and when they come."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_support import URLS, drained, opened

from streamwise.streams.errors import UsageError
from streamwise.streams.event import LAST_TIME, Event
from streamwise.streams.point_processes import (
    LogNormalGaps,
    RenewalProcess,
)
from streamwise.streams.synthetic import SyntheticSource


@pytest.mark.parametrize("name", URLS)
def test_events_come_in_order_of_time_and_as_many_as_asked_for(name):
    source = opened(name, events=700, keys=7, start=1_000)
    events, _ = drained(source, limit=97)
    assert len(events) == 700
    assert events[0].time >= 1_000.0
    assert all(before.time <= after.time for before, after in pairwise(events))
    assert {e.key for e in events} == set("0123456")
    assert {e.type for e in events} <= {str(k) for k in range(source.truth.types)}
    assert source.poll(10, 0.0, set()) == []


@pytest.mark.parametrize("name", URLS)
def test_other_keys_do_not_change_the_events_of_a_key(name):
    few, _ = drained(opened(name, events=400, keys=4))
    many, _ = drained(
        opened(name, events=30_000, keys=3_000) if name == "poisson" else opened(name, events=4_000, keys=20)
    )
    for key in "0123":
        alone = [e for e in few if e.key == key]
        among = [e for e in many if e.key == key]
        shared = min(len(alone), len(among))
        assert shared > 0
        assert alone[:shared] == among[:shared]


def test_keys_and_seeds_draw_differently():
    events, _ = drained(opened("lognormal", events=2_000, keys=2))
    gaps = [np.diff([e.time for e in events if e.key == key])[:900] for key in "01"]
    assert abs(np.corrcoef(*gaps)[0, 1]) < 3.0 / math.sqrt(900)
    others, _ = drained(opened("lognormal", events=2_000, keys=2, seed=1))
    assert not {e.time for e in events} & {e.time for e in others}


@pytest.mark.parametrize("name", URLS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_from_any_position_it_goes_on_as_if_never_stopped(name, data):
    whole, _ = drained(opened(name, events=400, keys=3), limit=400)
    source, events = opened(name, events=400, keys=3), []
    for cut in sorted(data.draw(st.lists(st.integers(1, 399), max_size=5))):
        for records in source.poll(cut - len(events), 0.0, set()):
            events += [Event(*value) for value in records.values]
            position = json.loads(json.dumps({records.partition: records.next_position}))
            source = opened(name, events=400, keys=3)
            source.seek(position)
    assert events + drained(source)[0] == whole


@pytest.mark.parametrize("name", ["hawkes", "lognormal", "gradual"])
@pytest.mark.parametrize("keys", [3, 5_001])
def test_it_goes_on_exactly_before_at_and_after_each_copy_of_the_state(name, keys):
    """Copies are taken every 4,096 events, or every 5,001 with so many keys."""
    limit = 1_024 if keys == 3 else 2_000
    events, positions = drained(opened(name, events=11_000, keys=keys), limit)
    assert len({position["events"] for position in positions}) > 1
    assert len(json.dumps(positions[-1])) < 500 + 300 * keys
    for i, position in enumerate(positions[:-1]):
        again = opened(name, events=11_000, keys=keys)
        again.seek({"synthetic": json.loads(json.dumps(position))})
        emitted = limit * (i + 1)
        assert position["events"] + position["again"] == emitted
        assert drained(again, limit) == (events[emitted:], positions[i + 1 :])


def test_a_position_takes_more_events_but_no_other_parameters():
    _, positions = drained(opened("hawkes", events=50, keys=3))
    position = {"synthetic": positions[-1]}
    longer = opened("hawkes", events=80, keys=3)
    longer.seek(position)
    assert longer.lag() == 30
    shorter = opened("hawkes", events=20, keys=3)
    shorter.seek(position)
    assert shorter.finished
    for other in ({"seed": 1}, {"keys": 4}, {"start": 0}, {"branching": 0.5}):
        with pytest.raises(UsageError, match="belongs to another synthetic:hawkes; open it with"):
            opened("hawkes", **({"events": 80, "keys": 3} | other)).seek(position)


def test_a_position_of_another_partition_leaves_it_at_the_start():
    source = opened("poisson", events=5)
    source.seek({"clicks/0": 17})
    assert source.lag() == 5


def test_records_decode_to_columns_and_say_where_they_are():
    source = opened("recurring", events=40, keys=3)
    source.poll(15, 0.0, set())
    [records] = source.poll(20, 0.0, set())
    assert records.partition == "synthetic" == source.partitions[0]
    assert list(records.positions) == list(range(15, 35))
    decoded = source.decode(records)
    rows = zip(decoded.times, decoded.types, decoded.keys, decoded.features, strict=True)
    assert list(rows) == list(records.values)
    assert list(decoded.which) == list(range(20))
    assert decoded.refused == []
    hawkes = opened("hawkes")
    assert hawkes.decode(hawkes.poll(5, 0.0, set())[0]).features is None
    assert hawkes.decode(hawkes.poll(5, 0.0, set())[0]._replace(values=[], positions=[])).times == []


def test_a_paused_partition_waits():
    source = opened("hawkes", events=30, keys=3)
    assert source.poll(10, 0.0, {"synthetic"}) == []
    assert source.poll(0, 0.0, set()) == []
    assert (source.lag(), source.at_end("synthetic"), source.finished) == (30, False, False)
    assert len(drained(source)[0]) == 30
    assert (source.lag(), source.at_end("synthetic"), source.finished) == (0, True, True)


def test_no_number_of_events_means_no_end():
    source = opened("hawkes", events=0, keys=3)
    assert source.lag() is None
    for _ in range(5):
        assert len(source.poll(1_000, 0.0, set())[0].values) == 1_000
    assert not source.finished


def test_the_year_9999_is_the_end_of_all_events():
    source = opened("lognormal", events=0, keys=3, start=LAST_TIME - 3_600.0, median=60)
    events, _ = drained(source)
    assert 100 < len(events) < 1_000
    assert events[-1].time <= LAST_TIME


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.time = 50.0
        self.slept = []

    def __call__(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds


def test_with_a_speed_events_come_when_they_are_due():
    """At speed 60 a gap of a minute takes a second, counted from the first event."""
    clock = Clock()
    truth = RenewalProcess(LogNormalGaps(60.0, 0.0), [[1.0]])
    source = SyntheticSource(truth, keys=1, events=6, start=0.0, speed=60.0, clock=clock, sleep=clock.sleep)
    assert not source.at_end("synthetic")

    [records] = source.poll(10, 5.0, set())
    assert [value[0] for value in records.values] == [60.0]
    assert (clock.slept, records.polled_at) == ([], 50.0)
    assert source.at_end("synthetic")
    assert source.lag() == 0

    assert source.poll(10, 0.25, set()) == []  # nothing is due, and it waits no longer than it may
    assert clock.slept == [0.25]
    [records] = source.poll(10, 5.0, set())
    assert [value[0] for value in records.values] == [120.0]
    assert clock.slept == [0.25, 0.75]

    clock.time += 3.5  # a slow reader finds what came in the meantime, and is not told how much it was
    [records] = source.poll(2, 5.0, set())
    assert [value[0] for value in records.values] == [180.0, 240.0]
    assert not source.at_end("synthetic")
    assert source.lag() is None
    [records] = source.poll(10, 5.0, set())
    assert [value[0] for value in records.values] == [300.0]
    assert len(clock.slept) == 2

    resumed = SyntheticSource(truth, keys=1, events=6, start=0.0, speed=60.0, clock=clock, sleep=clock.sleep)
    resumed.seek({"synthetic": records.next_position})
    [records] = resumed.poll(10, 5.0, set())  # the first after a restart is due at once
    assert [value[0] for value in records.values] == [360.0]
    assert len(clock.slept) == 2
    assert resumed.finished


def test_commit_and_close_change_nothing():
    source = opened("hawkes", events=10, keys=2)
    [records] = source.poll(5, 0.0, set())
    source.commit({"synthetic": records.next_position})
    source.close()
    source.close()
    assert source.lag() == 5
