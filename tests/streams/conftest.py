"""Fixtures of tests of Kafka: a broker and a mock for each file, a topic and sources for each test."""

from __future__ import annotations

import pytest
from brokers import kafka_broker, mock_kafka
from kafka_support import names

from streamwise.streams.fields import Fields
from streamwise.streams.kafka import KafkaSource


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
