"""Where a Kafka source begins and where it ends: starts, positions, retention, until_end."""

from __future__ import annotations

import time

import pytest
from brokers import produce, wait_until
from kafka_support import Busy, Reader, Standing, names, numbered

from streamwise.streams import UsageError

kafka = pytest.importorskip("confluent_kafka")


def test_until_end_finishes_when_everything_has_been_polled(broker, topic, open_source):
    records, expected = numbered(topic, [300, 0, 5, 40])
    produce(broker.address, topic, records)
    source, reader = open_source(broker.address, topic, until_end=True), Reader()
    wait_until(lambda: reader.poll(source, limit=50) is None or source.finished)
    assert reader.values == expected
    assert reader.poll(source) == []

    again, rest = open_source(broker.address, topic, until_end=True), Reader()
    again.seek({**reader.positions, f"{topic}/0": 290})
    wait_until(lambda: rest.poll(again) is None or again.finished)
    assert rest.values == {f"{topic}/0": expected[f"{topic}/0"][290:]}


def test_until_end_finishes_though_records_keep_coming(mock, open_source):
    """A topic that is never quiet never tells of its end, but where it ended at first is known."""
    topic = next(names)
    records, expected = numbered(topic, [20, 7, 3, 5])
    produce(mock, topic, records)
    source, reader = open_source(mock, topic, until_end=True), Reader()
    source._consumer = Busy(source._consumer)

    def polled():
        produce(mock, topic, [(p, b"more") for p in range(4)])
        return reader.poll(source, limit=8) is None or source.finished

    wait_until(polled)
    for name, values in expected.items():
        assert reader.values[name][: len(values)] == values


class Forgetful(Standing):
    """Asked for an end, leaves out much, and tells of ends that are none amid what it gives."""

    class End:
        def __init__(self, partition, offset):
            self.of, self.at = partition, offset

        def error(self):
            return kafka.KafkaError(kafka.KafkaError._PARTITION_EOF)

        def partition(self):
            return self.of

        def offset(self):
            return self.at

    def get_watermark_offsets(self, partition, **options):
        low, high = self.consumer.get_watermark_offsets(partition, **options)
        return low, high if options.get("cached") else min(high, 10)

    def consume(self, limit, timeout):
        found = self.consumer.consume(min(limit, 7), timeout)
        last = {m.partition(): self.End(m.partition(), m.offset() + 1) for m in found if m.error() is None}
        return [*(m for m in found if m.error() is None or m.offset() > 10), *last.values()]


def test_until_end_reads_all_from_a_broker_that_leaves_out_its_last_batch(broker, topic, open_source):
    """What came last was late once, or not read, under load: 136 records were refused in this way."""
    records, expected = numbered(topic, [90, 70, 80, 60])
    produce(broker.address, topic, records)
    source, reader = open_source(broker.address, topic, until_end=True), Reader()
    source._consumer = Forgetful(source._consumer)

    def polled():
        reader.poll(source)
        for name, values in expected.items():
            assert len(reader.values.get(name, ())) == len(values) or not source.at_end(name)
        time.sleep(0.02)  # as long as to learn takes
        return source.finished

    wait_until(polled)
    assert reader.values == expected


def test_until_end_of_an_empty_topic_is_at_once(broker, topic, open_source):
    source, reader = open_source(broker.address, topic, until_end=True), Reader()
    wait_until(lambda: reader.poll(source) is None or source.finished)
    assert reader.count == 0
    assert reader.positions == dict.fromkeys(source.partitions, 0)


def test_the_latest_start_is_remembered_where_nothing_has_happened(mock, open_source):
    topic = next(names)
    produce(mock, topic, numbered(topic, [10, 5, 0, 0])[0])
    source, reader = open_source(mock, topic, start="latest"), Reader()
    reader.poll(source)
    source.close()
    assert reader.count == 0
    assert reader.positions == {f"{topic}/0": 10, f"{topic}/1": 5, f"{topic}/2": 0, f"{topic}/3": 0}

    records, expected = numbered(topic, [3, 2, 1, 0], first=100)
    produce(mock, topic, records)
    again = open_source(mock, topic, start="latest")
    again.seek(reader.positions)
    reader.read(again, 6)
    assert reader.values == expected


@pytest.mark.parametrize(("found", "first"), [(7, 7), (-1, 10)])
def test_a_start_in_time_is_asked_for_in_milliseconds(mock, open_source, found, first):
    """Neither broker here can search by time, so its answer is given: an offset, or -1 for later than all."""
    topic = next(names)
    produce(mock, topic, numbered(topic, [10])[0])
    source, reader, asked = open_source(mock, topic, start=1_700_000_000.125), Reader(), []

    class Searching(Standing):
        def offsets_for_times(self, partitions, timeout):
            asked.extend(p.offset for p in partitions)
            return [
                kafka.TopicPartition(p.topic, p.partition, found if p.partition == 0 else -1)
                for p in partitions
            ]

    source._consumer = Searching(source._consumer)
    reader.poll(source)
    assert set(asked) == {1_700_000_000_125}
    assert reader.positions == {f"{topic}/0": first, **{f"{topic}/{p}": 0 for p in (1, 2, 3)}}
    produce(mock, topic, [(0, b"last")])
    reader.read(source, 11 - first)
    assert reader.offsets[f"{topic}/0"] == list(range(first, 11))


def test_records_that_retention_has_deleted_are_counted_and_passed_over(mock, open_source):
    topic = next(names)
    produce(mock, topic, [(0, b"%07d" % i + b"x" * 993) for i in range(8000)])  # the mock keeps 5 MB
    asking = kafka.Consumer({"bootstrap.servers": mock, "group.id": "asking"})
    low, high = asking.get_watermark_offsets(kafka.TopicPartition(topic, 0), timeout=10.0)
    asking.close()
    assert 100 < low < high == 8000
    source, reader = open_source(mock, topic), Reader()
    source.seek({f"{topic}/0": 100})
    with pytest.warns(
        UserWarning, match=rf"{topic}/0: retention has deleted the {low - 100:,} offsets"
    ) as told:
        reader.read(source, high - low)
    assert len(told) == 1
    assert reader.offsets[f"{topic}/0"] == list(range(low, high))


def test_a_position_behind_the_end_is_refused(mock, open_source):
    topic = next(names)
    produce(mock, topic, [(0, b"one"), (0, b"two")])
    source = open_source(mock, topic)
    source.seek({f"{topic}/0": 50})
    with pytest.raises(UsageError, match=rf"{topic}/0 on .* ends at offset 2, before 50"):
        Reader().read(source, 1)


def test_a_position_of_another_topic_is_refused(broker, topic, open_source):
    source = open_source(broker.address, topic)
    for name in (f"{topic}/4", "clicks/0"):
        with pytest.raises(UsageError, match=f"a partition '{name}'"):
            source.seek({name: 3})
