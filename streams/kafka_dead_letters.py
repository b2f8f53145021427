"""A Kafka topic to keep refused records in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from streamwise.streams.kafka_cluster import CLOSE_SECONDS, KafkaCluster

__all__ = ["KafkaDeadLetters"]


class KafkaDeadLetters:
    """Lines written to a topic, each once and in order as long as the process lives.

    While the brokers are away lines wait, and `write` waits when too many do. Raises UsageError as
    KafkaSource does, also from `write` and `flush`, once the brokers refuse for good; a single line that they
    refuse, such as one that is too long, is a warning. A broker that makes topics by itself makes this one.
    One without idempotent producers needs `enable.idempotence=false` in the properties file.
    """

    def __init__(
        self, brokers: str, topic: str, config_path: Path | None = None, *, connect_seconds: float = 10.0
    ) -> None:
        self._cluster = KafkaCluster(brokers, topic, config_path)
        self.name = self._cluster.where
        self._producer = self._cluster.client("Producer", {"message.timeout.ms": 0, "linger.ms": 50})
        self._cluster.partitions(self._producer, connect_seconds)

    def write(self, line: bytes) -> None:
        """Send a line, without its line end, as soon as there is room for it."""
        while True:
            try:
                self._producer.produce(self._cluster.topic, line.rstrip(b"\n"), on_delivery=self._delivered)
                break
            except BufferError:
                self._producer.poll(0.1)
                self._cluster.check()
            except self._cluster.kafka.KafkaException as error:
                self._delivered(error.args[0], None)
                break
        self._producer.poll(0.0)
        self._cluster.check()

    def flush(self, timeout: float = 10.0) -> int:
        """Wait up to `timeout` seconds until the brokers have every line; return how many they lack."""
        left = int(self._producer.flush(timeout))
        self._cluster.check()
        return left

    def close(self) -> None:
        """Wait a moment for what has been written."""
        left = int(self._producer.flush(CLOSE_SECONDS))
        if left:
            warnings.warn(f"{self.name}: the last {left:,} refused records did not get there.", stacklevel=2)
            self._producer.purge()

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is None:
            return
        self._cluster.hear(error)
        reason = self._cluster.reason(error)
        warnings.warn(f"{self.name}: a refused record could not be written there: {reason}", stacklevel=3)
