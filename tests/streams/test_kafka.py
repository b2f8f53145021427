"""Kafka topics are read exactly once, from a real broker, and from a mock where that is too simple."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest
from brokers import kafka_broker, produce, wait_until
from kafka_support import Busy, Reader, Standing, names, numbered

from streamwise.streams import UsageError
from streamwise.streams.event import Records

kafka = pytest.importorskip("confluent_kafka")


@pytest.mark.parametrize("seed", range(3))
def test_every_record_comes_once_and_in_order_under_any_limits_and_pauses(
    broker, topic, open_source, monkeypatch, seed
):
    monkeypatch.setattr("streamwise.streams.kafka._HELD", 50)
    records, expected = numbered(topic, [700, 1, 0, 900])
    produce(broker.address, topic, records)
    source, reader, rng = open_source(broker.address, topic), Reader(), random.Random(seed)
    stopped = []

    class Watched(Standing):
        def incremental_unassign(self, partitions):
            stopped.extend(partitions)
            self.consumer.incremental_unassign(partitions)

    source._consumer = Watched(source._consumer)

    def step():
        for _ in range(5):
            paused = {name for name in source.partitions if rng.random() < 0.4}
            reader.poll(source, rng.choice([1, 7, 30]), rng.choice([0.0, 0.05]), paused)
        return reader.count >= len(records)

    wait_until(step)
    assert reader.poll(source) == []
    assert reader.values == expected
    assert stopped  # a partition was held for so long that its fetching had to stop
    assert reader.offsets == {name: list(range(len(values))) for name, values in expected.items()}
    assert all(source.at_end(name) for name in source.partitions)
    assert source.lag() == 0
    assert not source.finished


def test_a_paused_partition_waits_and_the_others_go_on(broker, topic, open_source):
    records, expected = numbered(topic, [50, 50, 50, 50])
    produce(broker.address, topic, records)
    source, reader = open_source(broker.address, topic), Reader()
    held = {f"{topic}/1", f"{topic}/2"}
    reader.read(source, 100, paused=held)
    assert reader.values == {name: values for name, values in expected.items() if name not in held}
    reader.read(source, 200)
    assert reader.values == expected


def test_a_partition_that_goes_on_is_no_longer_at_its_end(broker, topic, open_source):
    produce(broker.address, topic, [(1, b"first")])
    source, reader = open_source(broker.address, topic), Reader()
    assert not source.at_end(f"{topic}/1")
    wait_until(lambda: reader.poll(source) is None or all(map(source.at_end, source.partitions)))
    assert reader.count == 1
    source._consumer = Busy(source._consumer)
    produce(broker.address, topic, [(1, b"second")])
    reader.read(source, 2)
    assert [source.at_end(name) for name in source.partitions] == [True, False, True, True]


@pytest.mark.parametrize("seed", range(2))
def test_a_source_opened_again_at_any_point_loses_and_repeats_nothing(broker, topic, open_source, seed):
    records, expected = numbered(topic, [200, 30, 100, 0])
    produce(broker.address, topic, records)
    reader, rng = Reader(), random.Random(seed)
    for stop in [*sorted(rng.sample(range(1, len(records)), 6)), len(records)]:
        source = open_source(broker.address, topic, group=topic)
        source.seek(reader.positions)
        while reader.count < stop:
            reader.poll(source, limit=rng.choice([1, 13, 64]))
        source.commit(dict.fromkeys(source.partitions, 0))  # which must not matter
        source.close()
    assert reader.values == expected


def test_a_broker_that_stops_for_a_second_costs_nothing_but_time(broker, topic, open_source):
    records, expected = numbered(topic, [2000] * 4)
    later, added = numbered(topic, [50] * 4, first=2000)
    produce(broker.address, topic, records)
    source, reader = open_source(broker.address, topic), Reader()
    reader.read(source, 500, limit=100)
    broker.pause()
    try:
        wait_until(lambda: not reader.poll(source, timeout=1.0))
    finally:
        broker.unpause()
    produce(broker.address, topic, later)
    reader.read(source, len(records) + len(later))
    assert reader.poll(source) == []
    assert reader.values == {name: values + added[name] for name, values in expected.items()}


def test_a_broker_that_dies_is_waited_for_and_prints_nothing(open_source, monkeypatch, capfd):
    monkeypatch.setattr("streamwise.streams.kafka.CLOSE_SECONDS", 0.2)
    with kafka_broker() as own:
        own.create_topic("gone", 2)
        produce(own.address, "gone", [(0, b"first")])
        source, reader = open_source(own.address, "gone"), Reader()
        reader.read(source, 1)
        own.kill()
        for _ in range(5):
            assert reader.poll(source) == []
        source.commit(reader.positions)
        source.lag()
        source.close()
    assert capfd.readouterr() == ("", "")


def test_closing_does_not_wait_for_a_broker_that_hangs(broker, topic, open_source, monkeypatch):
    monkeypatch.setattr("streamwise.streams.kafka.CLOSE_SECONDS", 0.2)
    produce(broker.address, topic, [(0, b"first")])
    source, reader = open_source(broker.address, topic), Reader()
    reader.read(source, 1)
    broker.pause()
    try:
        source.commit(reader.positions)
        closing = threading.Thread(target=source.close)
        closing.start()
        closing.join(20.0)
        assert not closing.is_alive()
    finally:
        broker.unpause()
    source.close()
    assert source.poll(1, 0.0, set()) == []


@pytest.mark.slow  # 45 seconds, the time in which it once fell behind for ever
def test_a_steady_producer_of_single_records_is_kept_up_with(broker, open_source):
    name, count, rate = next(names), 40_000, 1_000.0
    broker.create_topic(name, 1)
    source, producer = (
        open_source(broker.address, name),
        kafka.Producer({"bootstrap.servers": broker.address, "linger.ms": 1}),
    )

    def produce_steadily():
        started = time.monotonic()
        for i in range(count):
            producer.produce(name, str(i), partition=0)
            producer.poll(max(started + i / rate - time.monotonic(), 0.0))
        producer.flush()

    thread = threading.Thread(target=produce_steadily)
    thread.start()
    found, deadline = [], time.monotonic() + 2.0 * count / rate
    while len(found) < count and time.monotonic() < deadline:
        found += [value for records in source.poll(100, 0.05, set()) for value in records.values]
    thread.join()
    assert found == [str(i).encode() for i in range(count)]


def test_what_a_fetch_repeats_is_dropped(broker, topic, open_source):
    records, expected = numbered(topic, [100, 100, 100, 100])
    produce(broker.address, topic, records)
    source, reader = open_source(broker.address, topic), Reader()

    class Repeating(Standing):
        """Gives the messages before each once more."""

        before = ()

        def consume(self, limit, timeout):
            messages = self.consumer.consume(limit, timeout)
            self.before, messages = messages, [*self.before, *messages]
            return messages

    source._consumer = Repeating(source._consumer)
    reader.read(source, len(records), limit=17)
    assert reader.poll(source) == []
    assert reader.values == expected


def test_a_partition_that_appears_is_read_from_its_beginning(broker, topic, open_source, monkeypatch):
    """The broker cannot add partitions, so the source is told of two of four at first."""
    records, expected = numbered(topic, [10, 10, 10, 10])
    produce(broker.address, topic, records)
    with monkeypatch.context() as patched:
        patched.setattr("streamwise.streams.kafka.KafkaCluster.partitions", lambda *_: [0, 2])
        source = open_source(broker.address, topic, metadata_seconds=0.0)
        source.seek({f"{topic}/0": 4, f"{topic}/2": 10})
    assert source.partitions == [f"{topic}/0", f"{topic}/2"]
    reader = Reader()
    reader.read(source, 26)
    assert source.partitions == [f"{topic}/{p}" for p in (0, 2, 1, 3)]
    assert reader.poll(source) == []
    held = {0: expected[f"{topic}/0"][4:], 1: expected[f"{topic}/1"], 3: expected[f"{topic}/3"]}
    assert reader.values == {f"{topic}/{p}": values for p, values in held.items()}
    assert reader.positions == dict.fromkeys((f"{topic}/{p}" for p in (0, 1, 3)), 10)


def test_a_source_of_some_partitions_reads_those_alone(broker, topic, open_source):
    records, expected = numbered(topic, [10, 10, 10, 10])
    produce(broker.address, topic, records)
    only = [f"{topic}/1", f"{topic}/3"]
    source = open_source(broker.address, topic, only=only, metadata_seconds=0.0, until_end=True)
    assert source.partitions == only
    reader = Reader()
    wait_until(lambda: reader.poll(source) is not None and source.finished)
    assert reader.values == {name: expected[name] for name in only}
    with pytest.raises(UsageError, match="no partition"):
        open_source(broker.address, topic, only=[f"{topic}/7"])


def test_what_is_committed_shows_at_the_broker(broker, topic, open_source):
    produce(broker.address, topic, numbered(topic, [5, 5, 5, 5])[0])
    source, reader = open_source(broker.address, topic, group=f"group-of-{topic}"), Reader()
    reader.read(source, 20)
    source.commit({f"{topic}/1": 3, f"{topic}/2": 5})
    asking = kafka.Consumer({"bootstrap.servers": broker.address, "group.id": f"group-of-{topic}"})

    def offsets():
        reader.poll(source)  # which serves the client
        partitions = [kafka.TopicPartition(topic, p) for p in range(4)]
        return {p.partition: p.offset for p in asking.committed(partitions, timeout=10.0) if p.offset >= 0}

    wait_until(lambda: offsets() == {1: 3, 2: 5})
    asking.close()


def test_the_lag_is_what_the_broker_has_and_nobody_polled(mock, open_source):
    topic = next(names)
    source, reader = None, Reader()
    produce(mock, topic, numbered(topic, [30, 10, 0, 0])[0])
    source = open_source(mock, topic)
    assert source.lag() is None
    reader.read(source, 25, limit=5)
    wait_until(lambda: source.lag() is not None)
    assert source.lag() == 40 - reader.count
    reader.read(source, 40)
    wait_until(lambda: reader.poll(source) is None or source.lag() == 0)


def test_a_value_is_decoded_as_json_and_a_tombstone_is_refused(broker, topic, open_source):
    event = json.dumps({"time": 1.5, "type": "view", "key": "ann"}).encode()
    produce(broker.address, topic, [(2, event), (2, None), (2, b"\xff"), (2, event)])
    source, polled = open_source(broker.address, topic), []
    wait_until(lambda: polled.extend(r for r in source.poll(100, 0.2, set()) if r.values) or polled)
    [records] = polled
    assert isinstance(records, Records)
    decoded = source.decode(records)
    assert list(decoded.which) == [0, 3]
    assert decoded.keys == ["ann", "ann"]
    assert [(index, reason) for index, reason, _ in decoded.refused] == [(1, "malformed"), (2, "malformed")]
