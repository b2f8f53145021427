"""What tests of Kafka sources share: who reads, and who stands before a consumer."""

from __future__ import annotations

import itertools
import json

from brokers import wait_until

names = (f"topic{i}" for i in itertools.count())  # of topics


class Reader:
    """Collects what a source gives, by partition, and where it would go on."""

    def __init__(self):
        self.values, self.offsets, self.positions = {}, {}, {}

    def poll(self, source, limit=1000, timeout=0.2, paused=frozenset()):
        polled = source.poll(limit, timeout, paused)
        assert sum(len(records.values) for records in polled) <= limit
        for records in polled:
            assert records.partition not in paused
            assert len(records.values) == len(records.positions)
            self.values.setdefault(records.partition, []).extend(records.values)
            self.offsets.setdefault(records.partition, []).extend(records.positions)
            self.positions[records.partition] = json.loads(json.dumps(records.next_position))
        return polled

    @property
    def count(self):
        return sum(map(len, self.values.values()))

    def read(self, source, count, **options):
        wait_until(lambda: self.poll(source, **options) is None or self.count >= count)


class Standing:
    """Stands before a consumer, to change some of its answers."""

    def __init__(self, consumer):
        self.consumer = consumer

    def __getattr__(self, name):
        return getattr(self.consumer, name)


class Busy(Standing):
    """Never tells that a partition has ended for now."""

    def consume(self, limit, timeout):
        return [m for m in self.consumer.consume(limit, timeout) if m.error() is None]


def numbered(topic, counts, first=0):
    """Return records to produce, and what each partition then holds."""
    records = [(p, b"%d:%d" % (p, first + i)) for p, count in enumerate(counts) for i in range(count)]
    return records, {
        f"{topic}/{p}": [b"%d:%d" % (p, first + i) for i in range(count)] for p, count in enumerate(counts)
    }
