"""Kafka topics are read exactly once, from a real broker, and from a mock where that is too simple."""

from __future__ import annotations

import itertools
import json
import logging
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from brokers import kafka_broker, mock_kafka, produce, tls_front, wait_until

from streamwise.streams import UsageError
from streamwise.streams.decode import Fields
from streamwise.streams.event import Records

kafka = pytest.importorskip("confluent_kafka")

from streamwise.streams.kafka import KafkaSource  # noqa: E402
from streamwise.streams.kafka_dead_letters import KafkaDeadLetters  # noqa: E402

SECRET = "hunter2-Zm9vYmFy"
names = (f"topic{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def broker():
    with kafka_broker() as broker:
        yield broker


@pytest.fixture(scope="module")
def mock():
    with mock_kafka() as address:
        yield address


@pytest.fixture
def topic(broker):
    name = next(names)
    broker.create_topic(name, 4)
    return name


@pytest.fixture
def open_source():
    """Return a function that opens sources, which are closed after the test."""
    sources = []

    def open_source(address, topic, **options):
        sources.append(KafkaSource(address, topic, Fields(), **options))
        return sources[-1]

    yield open_source
    for source in sources:
        source.close()


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


def test_an_unknown_topic_is_named_with_the_nearest(broker, topic):
    with pytest.raises(UsageError) as refused:
        KafkaSource(broker.address, topic + "s", Fields())
    assert f"{broker.address} has no topic '{topic}s'." in str(refused.value)
    assert "Did you mean 'topic" in str(refused.value)


def test_a_broker_that_is_not_there_is_named(capfd):
    with pytest.raises(
        UsageError, match=r"kafka://127\.0\.0\.1:9/clicks: no broker has answered within 0\.5 s"
    ):
        KafkaSource("127.0.0.1:9", "clicks", Fields(), connect_seconds=0.5)
    assert capfd.readouterr() == ("", "")


def test_a_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="properties file") as refused:
        KafkaSource(f"ann:{SECRET}@127.0.0.1:9", "clicks", Fields())
    assert SECRET not in str(refused.value)


def written(folder, *lines):
    path = folder / "client.properties"
    path.write_text("\n".join(["# how to log in", "", *lines]))
    return path


def test_secrets_are_in_no_error_no_text_and_no_log(tmp_path, broker, topic, open_source, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    login = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", "sasl.username=ann")
    config = written(tmp_path, *login, f"sasl.password = {SECRET}")
    said = []
    with pytest.raises(UsageError) as refused:  # this broker knows no SASL
        KafkaSource(broker.address, topic, Fields(), config_path=config, connect_seconds=1.0)
    said.append(str(refused.value))

    source = open_source(broker.address, topic, config_path=written(tmp_path, f"client.id={SECRET}"))
    source._cluster.hear(kafka.KafkaError(kafka.KafkaError._TRANSPORT, f"lost {SECRET}"))
    assert source.poll(1, 0.0, set()) is not None
    source._cluster.hear(kafka.KafkaError(kafka.KafkaError._AUTHENTICATION, f"not {SECRET}"))
    with pytest.raises(
        UsageError, match=r"refuses the login; check sasl\.\* in .*client\.properties"
    ) as refused:
        source.poll(1, 0.0, set())
    said += [str(refused.value), source.name, repr(source), repr(source._cluster), caplog.text]
    assert SECRET not in " ".join([*said, *capfd.readouterr()])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"sasl.pasword={SECRET}", "'sasl.pasword'. Did you mean 'sasl.password'?"),
        (f"security.protocol={SECRET}", "refuses 'security.protocol'."),
        (f"socket.timeout.ms={SECRET}", "refuses 'socket.timeout.ms'."),
        (f"ssl.ca.location=/nowhere/{SECRET}", "refuses"),
        (SECRET, "line 3: write KEY=VALUE"),
        (f"sasl.password={SECRET}\nsasl.password={SECRET}", "line 4: 'sasl.password' is given twice"),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(tmp_path, line, said):
    lines = line if "ca.location" not in line else f"security.protocol=SSL\n{line}"
    config = written(tmp_path, lines)
    with pytest.raises(UsageError) as refused:
        KafkaSource("127.0.0.1:9", "clicks", Fields(), config_path=config, connect_seconds=0.1)
    assert str(config) in str(refused.value)
    assert said in str(refused.value)
    shown = refused.value
    while shown is not None:
        assert SECRET not in str(shown)
        shown = shown.__cause__ or shown.__context__


@pytest.mark.parametrize(
    "key",
    [
        "enable.auto.commit",
        "group.id",
        "auto.offset.reset",
        "enable.auto.offset.store",
        "enable.partition.eof",
    ],
)
def test_settings_that_would_change_what_is_read_are_refused(tmp_path, key):
    with pytest.raises(UsageError, match=f"line 3: '{key}' cannot be set"):
        KafkaSource("127.0.0.1:9", "clicks", Fields(), config_path=written(tmp_path, f"{key}=false"))


def test_a_missing_properties_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.properties, the client's settings, cannot be read"):
        KafkaSource("127.0.0.1:9", "clicks", Fields(), config_path=tmp_path / "absent.properties")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "newest"}, "start is 'newest'"),
        ({"start": -1.0}, "start is -1.0"),
        ({"start": float("nan")}, "start is nan"),
        ({"decoder": "avr"}, "Did you mean 'avro'?"),
        ({"decoder": "avro"}, "needs schema=FILE"),
        ({"decoder": "protobuf", "schema": Path("x")}, "needs message="),
        ({"schema": Path("x")}, "are for decoder=avro"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(UsageError) as refused:
        KafkaSource("127.0.0.1:9", "clicks", Fields(), connect_seconds=0.1, **options)
    assert said in str(refused.value)


def test_tls_is_used_and_an_unknown_certificate_is_refused(tmp_path, open_source):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2"
    command += (
        " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    trusting = {"security.protocol": "SSL", "ssl.ca.location": str(certificate)}
    config = written(tmp_path, *(f"{name}={value}" for name, value in trusting.items()))
    with tls_front(certificate, key) as front, kafka_broker(advertised_port=front.port) as broker:
        front.target, broker.address = broker.port, front.address
        broker.create_topic("safe", 1, trusting)
        produce(front.address, "safe", [(0, b"sealed")], trusting)
        before = front.connections
        source, reader = open_source(front.address, "safe", config_path=config), Reader()
        reader.read(source, 1)
        assert reader.values == {"safe/0": [b"sealed"]}
        assert front.connections > before
        doubting = written(tmp_path, "security.protocol=SSL")
        with pytest.raises(UsageError, match="certificate"):
            KafkaSource(front.address, "safe", Fields(), config_path=doubting, connect_seconds=2.0)


def test_dead_letters_arrive_in_order_and_without_their_line_ends(broker, topic, open_source):
    lines = [b'{"reason": "late", "number": %d}' % i for i in range(500)]
    letters = KafkaDeadLetters(broker.address, topic)
    for line in lines:
        letters.write(line + b"\n")
    assert letters.flush(30.0) == 0
    letters.close()
    source, reader = open_source(broker.address, topic), Reader()
    reader.read(source, len(lines))
    got = list(itertools.chain(*reader.values.values()))
    assert sorted(got) == sorted(lines)
    for values in reader.values.values():
        assert values == sorted(values, key=lines.index)


def test_dead_letters_without_a_broker_are_refused(capfd):
    with pytest.raises(UsageError, match=r"kafka://127\.0\.0\.1:9/refused: no broker has answered"):
        KafkaDeadLetters("127.0.0.1:9", "refused", connect_seconds=0.2)
    assert capfd.readouterr() == ("", "")


def test_dead_letters_wait_for_a_broker_that_hangs(broker, topic, open_source, monkeypatch):
    monkeypatch.setattr("streamwise.streams.kafka_dead_letters.CLOSE_SECONDS", 0.2)
    letters, lost = KafkaDeadLetters(broker.address, topic), KafkaDeadLetters(broker.address, topic)
    broker.pause()
    try:
        letters.write(b"kept")
        lost.write(b"lost")
        assert letters.flush(0.2) == 1
        with pytest.warns(UserWarning, match="the last 1 refused records did not get there"):
            lost.close()
    finally:
        broker.unpause()
    assert letters.flush(30.0) == 0
    source, reader = open_source(broker.address, topic), Reader()
    reader.read(source, 1)
    assert b"kept" in itertools.chain(*reader.values.values())


def test_a_dead_letter_that_is_too_long_is_a_warning(broker, topic):
    letters = KafkaDeadLetters(broker.address, topic)
    with pytest.warns(UserWarning, match="could not be written"):
        letters.write(b"x" * 2_000_000)
    letters.write(b"short")
    assert letters.flush(30.0) == 0
    letters.close()
