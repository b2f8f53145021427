"""Partitions are divided evenly among workers, and give every event once when they move between them."""

from __future__ import annotations

import json
import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.runs.partitions import assigned
from streamwise.runs.rebalance import redistributed
from streamwise.streams.event import Decoded, Records
from streamwise.streams.event_stream import EventStream


@given(
    before=st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=6),
    more=st.integers(1, 10),
    workers=st.integers(1, 8),
)
def test_partitions_are_divided_evenly_and_few_move(before, more, workers):
    seen, had = set(), []
    for labels in before:  # every partition is read by one
        had.append([str(label) for label in dict.fromkeys(labels) if label not in seen])
        seen |= set(labels)
    labels = [*(label for part in had for label in part), *(f"new {i}" for i in range(more))]
    after = assigned(labels, workers, had)
    assert sorted(label for part in after for label in part) == sorted(labels)
    sizes = [len(part) for part in after]
    assert max(sizes) - min(sizes) <= 1
    for old, new in zip(had, after, strict=False):
        assert len(set(old) & set(new)) == min(len(old), len(new)) or len(new) == len(old)


class Log:
    """Partitions of (time, type, key), read as a script says."""

    name = "log"

    def __init__(self, content, script):
        self.content, self.script, self.turn = content, script, 0
        self.partitions, self.at = list(content), dict.fromkeys(content, 0)

    @property
    def finished(self):
        return all(self.at[name] == len(values) for name, values in self.content.items())

    def poll(self, limit, timeout, paused):
        self.turn += 1
        which, count = self.script[self.turn % len(self.script)]
        start = which % len(self.partitions)
        for name in [*self.partitions[start:], *self.partitions[:start]]:
            first = self.at[name]
            values = self.content[name][first : first + min(limit, count)]
            if values and name not in paused:
                self.at[name] += len(values)
                return [Records(name, values, range(first, self.at[name]), self.at[name], 0.0)]
        return []

    def decode(self, records):
        return Decoded(
            range(len(records.values)), *(list(c) for c in zip(*records.values, strict=True)), None, []
        )

    def at_end(self, partition):
        return self.at[partition] == len(self.content[partition])

    def seek(self, positions):
        self.at.update(positions)

    def lag(self):
        return None


def stream_of(content, labels, script, lateness):
    part = {label.partition(":")[2]: content[label] for label in labels}
    return EventStream([Log(part, script)], lateness=lateness, idle_seconds=1e9, numbered=True, poll_limit=5)


sorted_times = st.lists(st.integers(0, 400), max_size=25).map(sorted)


@settings(deadline=None, max_examples=150)
@given(
    logs=st.lists(sorted_times, min_size=2, max_size=5),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    stops=st.lists(st.integers(0, 15), min_size=4, max_size=4),
    script=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=5),
    lateness=st.sampled_from([0.0, 30.0]),
)
def test_partitions_that_move_between_streams_give_every_event_once(logs, sizes, stops, script, lateness):
    """However the streams were stopped, and however far apart they had come: nothing is lost, late, twice."""
    content = {
        f"0:p{i}": [(float(t), f"{i}.{n}", f"key {i}") for n, t in enumerate(times)]
        for i, times in enumerate(logs)
    }
    labels, given_out = list(content), []
    assignment = assigned(labels, min(sizes[0], len(labels)))
    positions = [None] * len(assignment)
    for turn, size in enumerate([*sizes[1:], None]):
        stopped = []
        for number, part in enumerate(assignment):
            stream = stream_of(content, part, script, lateness)
            if positions[number] is not None:
                stream.seek(positions[number])
            stop = math.inf if size is None else stops[(turn + number) % 4]
            for n, event in enumerate(stream):
                given_out.append(event)
                if n + 1 >= stop:
                    break
            assert stream.dead_letters.total == 0
            stopped.append(json.loads(json.dumps(stream.position)))
        if size is None:
            break
        workers = min(size, len(labels))
        assignment = assigned(labels, workers, assignment)
        positions = redistributed(stopped, assignment)
        assert sum(p["records"] for p in positions if p) == sum(p["records"] for p in stopped)
    assert Counter(event.type for event in given_out) == Counter(
        x[1] for log in content.values() for x in log
    )
    for i in range(len(logs)):  # and those of a partition in its order
        mine = [int(event.type.partition(".")[2]) for event in given_out if event.key == f"key {i}"]
        times = [event.time for event in given_out if event.key == f"key {i}"]
        assert times == sorted(times)
        assert mine == sorted(mine)
