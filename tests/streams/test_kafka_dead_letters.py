"""Refused records in a Kafka topic: they arrive in order, and a broker that is away is waited for."""

from __future__ import annotations

import itertools

import pytest
from brokers import wait_until
from kafka_support import Reader

from streamwise.streams import UsageError
from streamwise.streams.kafka_dead_letters import KafkaDeadLetters

pytest.importorskip("confluent_kafka")


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

    def arrived():
        reader.poll(source)
        return [letter for letter in itertools.chain(*reader.values.values()) if letter != b"lost"]

    wait_until(arrived)  # beside it "lost", perhaps: the broker may find it in its socket when it goes on
    assert arrived() == [b"kept"]


def test_a_dead_letter_that_is_too_long_is_a_warning(broker, topic):
    letters = KafkaDeadLetters(broker.address, topic)
    with pytest.warns(UserWarning, match="could not be written"):
        letters.write(b"x" * 2_000_000)
    letters.write(b"short")
    assert letters.flush(30.0) == 0
    letters.close()
