"""Kafka topics, as sources whose position is ours and not the broker's."""

from __future__ import annotations

import logging
import math
import threading
import time
import warnings
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from streamwise.streams.decode import JsonDecoder
from streamwise.streams.errors import UsageError, meant
from streamwise.streams.event import Decoded, Records
from streamwise.streams.fields import Fields
from streamwise.streams.kafka_cluster import ASK_SECONDS, CLOSE_SECONDS, KafkaCluster

__all__ = ["KafkaSource"]

_logger = logging.getLogger("streamwise")

_HELD = 10_000  # records of a paused partition that wait here, before its fetching stops


class _Decoder(Protocol):
    def decode(self, values: Sequence[Any]) -> Decoded: ...


@dataclass(slots=True)
class _Partition:
    """What was fetched of one partition and not yet polled, and how far both have come."""

    number: int
    name: str
    next: int = -1  # the offset after the last record fetched; negative until the start is known
    end: int = -1  # the offset it ended at when it was opened; negative until that is known
    end_is_told: bool = False  # by what came with its first record, too
    values: list[bytes | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    begun: bool = True  # False until a poll has told where it starts
    fetching: bool = False
    astray: bool = False  # the broker does not have `next`
    at_end: bool = False  # nothing followed the last record fetched
    ended: bool = False  # that has been so at least once

    def waits(self) -> bool:
        """Whether it has something for a poll."""
        return bool(self.offsets) or not (self.begun or self.next < 0)

    def take(self, limit: int, now: float) -> Records:
        """Return up to `limit` of the records that wait."""
        values, offsets = self.values[:limit], self.offsets[:limit]
        del self.values[:limit], self.offsets[:limit]
        self.begun = True
        return Records(self.name, values, offsets, offsets[-1] + 1 if offsets else self.next, now)


class KafkaSource:
    """The records of a topic, by partition; a position is the offset of the next record.

    Partitions are assigned to this reader, and where to go on is for `seek` to say, never for the broker: the
    offsets that `commit` publishes under `group` are for lag monitoring alone. A record whose offset has been
    delivered is dropped, so a fetch that repeats itself repeats nothing here; gaps in the offsets, as
    compaction and transactions leave them, are no matter.

    brokers: HOST:PORT, separated by commas. start: "earliest", "latest" or seconds since 1970, for a source
    without positions. Its first poll also gives `Records` without values for each partition, so that a
    checkpoint knows the start of those where nothing has happened yet. Partitions that appear while it runs,
    or are unknown to the positions given to `seek`, are read from their earliest record; they are looked for
    every `metadata_seconds`. until_end: finished once each partition has been read to where it ended when the
    source was opened. Where retention has deleted the records that come next, a warning says how many offsets
    are lost, and the earliest record is next.

    only: the partitions to read, of those that there are; new ones are then not looked for.

    decoder: None for JSON, "avro" with a `schema` file of JSON, or "protobuf" with a `schema` file that holds
    a FileDescriptorSet and the full name of the `message`. config_path: a properties file (key=value lines)
    of librdkafka's settings, for TLS, SASL and tuning; its values are never shown. connect_seconds: how long
    the first answer may take; later outages are waited out.

    A poll can come back early with nothing when the end of a partition has been reached. Raises UsageError
    for an unknown topic, brokers that do not answer or refuse the login, a bad option, and a position that
    is behind the partition's end.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        fields: Fields,
        *,
        start: Literal["earliest", "latest"] | float = "earliest",
        config_path: Path | None = None,
        group: str = "streamwise",
        decoder: str | None = None,
        schema: Path | None = None,
        message: str | None = None,
        until_end: bool = False,
        only: Collection[str] | None = None,
        metadata_seconds: float = 30.0,
        connect_seconds: float = 10.0,
    ) -> None:
        self._cluster = KafkaCluster(brokers, topic, config_path)
        self._kafka = self._cluster.kafka
        self.name = self._cluster.where
        self.finished = False
        checked = _checked_start(start, self.name)
        self._until_end = until_end
        self._metadata_seconds = math.inf if only is not None else metadata_seconds
        self._decoder = _decoder(decoder, fields, schema, message, self.name)
        ours = {
            "group.id": group,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "on_commit": _on_commit,
        }
        self._consumer = self._cluster.client("Consumer", ours)
        numbers = self._cluster.partitions(self._consumer, connect_seconds)
        if only is not None:
            numbers = self._chosen(numbers, only)
        self._partitions = {number: _Partition(number, f"{topic}/{number}") for number in numbers}
        self._first = list(self._partitions.values())
        self.partitions: Sequence[str] = [p.name for p in self._first]
        self._starts: dict[int, str | float] = dict.fromkeys(numbers, checked)  # where they have not begun
        self._looked_at = time.monotonic()
        self._closed = False

    def _chosen(self, numbers: list[int], only: Collection[str]) -> list[int]:
        topic = self._cluster.topic
        missing = set(only) - {f"{topic}/{number}" for number in numbers}
        if missing:
            raise UsageError(f"{self.name} has no partition {min(missing)!r}; it had one when the run began.")
        return [number for number in numbers if f"{topic}/{number}" in only]

    def seek(self, positions: dict[str, Any]) -> None:
        """Go on from these offsets, and in other partitions from the earliest; before the first poll."""
        by_name = {p.name: p for p in self._first}
        for name, offset in positions.items():
            if name not in by_name:
                raise UsageError(
                    f"{self.name}: the position has a partition {name!r}, the topic only "
                    f"{', '.join(self.partitions[:10])}; give the topic that the run was started with."
                )
            by_name[name].next = int(offset)
        if positions:
            self._starts = {p.number: "earliest" for p in self._first if p.next < 0}

    def poll(self, limit: int, timeout: float, paused: AbstractSet[str]) -> list[Records]:
        """Return up to `limit` records, waiting up to `timeout` seconds for the first."""
        self._cluster.check()
        if self.finished or self._closed:
            return []
        self._look_for_partitions()
        self._direct(paused)
        if not any(p.waits() and p.name not in paused for p in self._partitions.values()):
            self._fetch(limit, timeout)
        records: list[Records] = []
        now = time.monotonic()
        for partition in self._partitions.values():
            if limit > 0 and partition.waits() and partition.name not in paused:
                records.append(partition.take(limit, now))
                limit -= len(records[-1].values)
        self.finished = self._until_end and self._has_ended()
        return records

    def decode(self, records: Records) -> Decoded:
        """Read the values; never raises for anything that a record holds."""
        return self._decoder.decode(records.values)

    def at_end(self, partition: str) -> bool:
        """Whether all that the partition held when last looked at has been polled."""
        found = self._partitions[_number(partition)]
        return found.at_end and not found.offsets

    def commit(self, positions: dict[str, Any]) -> None:
        """Publish how far each partition is durably learned, without waiting for the broker's answer."""
        offsets = [self._at(_number(name), offset) for name, offset in positions.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except (self._kafka.KafkaException, RuntimeError) as error:
            _logger.debug("%s: offsets were not published: %s", self.name, type(error).__name__)

    def lag(self) -> int | None:
        """Return how many offsets are not polled yet, by the brokers' last word; None before there is one."""
        lag = 0
        for partition in self._partitions.values():
            if self.at_end(partition.name):
                continue
            position = partition.offsets[0] if partition.offsets else partition.next
            if position < 0 or self._closed:
                return None
            _, high = self._consumer.get_watermark_offsets(self._at(partition.number), cached=True)
            if high < 0:
                return None
            lag += max(0, high - position)
        return lag

    def close(self) -> None:
        """Leave the brokers, waiting a moment for what `commit` sent."""
        if self._closed:
            return
        self._closed = True
        # A broker that hangs would hold up the last commit, and with it the end of the process.
        closing = threading.Thread(target=self._consumer.close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _fetch(self, limit: int, timeout: float) -> None:
        """Wait for a record, and take along all that have come with it."""
        try:
            # Asked for more than one, `consume` waits for all of them or the timeout.
            messages = self._consumer.consume(1, max(0.0, timeout))
            if messages and limit > 1:
                messages += self._consumer.consume(min(limit - 1, 1_000_000), 0.0)
        except self._kafka.KafkaException as error:
            self._cluster.hear(error.args[0])
            messages = []
        partitions = self._partitions
        for message in messages:
            fault = message.error()
            if fault is not None:
                self._hear(fault, message.partition(), message.offset())
                continue
            partition = partitions[message.partition()]
            offset = message.offset()
            if offset >= partition.next:
                partition.values.append(message.value())
                partition.offsets.append(offset)
                partition.next = offset + 1
                partition.at_end = False
                if not partition.end_is_told:
                    self._learn_end(partition)
        self._cluster.check()

    def _learn_end(self, partition: _Partition) -> None:
        """Believe the later of two ends: some brokers, asked for it, leave out the last batch."""
        _, end = self._consumer.get_watermark_offsets(self._at(partition.number), cached=True)
        partition.end, partition.end_is_told = max(partition.end, end), True

    def _hear(self, error: Any, number: int | None, offset: int | None) -> None:
        """Heed an error that came in place of a record."""
        errors = self._kafka.KafkaError
        partition = None if number is None else self._partitions.get(number)
        if partition is None:
            self._cluster.hear(error)
        elif error.code() == errors._PARTITION_EOF:
            # A broker that is slow may leave out the last batch from here, as well.
            partition.at_end = offset is None or offset >= partition.end
            partition.ended |= partition.at_end
        elif error.code() in (errors._AUTO_OFFSET_RESET, errors._LOG_TRUNCATION):
            partition.astray = True
        else:
            self._cluster.hear(error)
            _logger.warning("%s: %s", partition.name, self._cluster.reason(error))

    def _direct(self, paused: AbstractSet[str]) -> None:
        """Begin, stop and mend the fetching of partitions."""
        for partition in self._partitions.values():
            try:
                if partition.number in self._starts or (self._until_end and partition.end < 0):
                    self._begin(partition)
                if partition.astray:
                    self._lead_back(partition)
            except self._kafka.KafkaException as error:
                self._cluster.hear(error.args[0])
                return
            # To pause it would drop what has been fetched. That is kept here, and only much of it stops more.
            wanted = partition.name not in paused or len(partition.offsets) < _HELD
            if wanted and not partition.fetching:
                self._consumer.incremental_assign([self._at(partition.number, partition.next)])
            elif partition.fetching and not wanted:
                self._consumer.incremental_unassign([self._at(partition.number)])
            partition.fetching = wanted

    def _begin(self, partition: _Partition) -> None:
        """Ask where a partition starts and ends. Raises KafkaException if that cannot be known now."""
        low, end = self._bounds(partition)
        start = self._starts.get(partition.number)
        if start == "earliest":
            partition.next = low
        elif start == "latest":
            partition.next = end
        elif start is not None:
            at = self._at(partition.number, int(float(start) * 1000.0))
            [found] = self._consumer.offsets_for_times([at], timeout=ASK_SECONDS)
            if found.error is not None:
                raise self._kafka.KafkaException(found.error)
            partition.next = found.offset if found.offset >= 0 else end
        partition.end = end
        if start is not None:
            partition.begun = False
            del self._starts[partition.number]

    def _lead_back(self, partition: _Partition) -> None:
        """Find out why the broker does not have the next offset, and go on where it can."""
        low, high = self._bounds(partition)
        expected = partition.next
        if expected > high:
            raise UsageError(
                f"{partition.name} on {self._cluster.brokers} ends at offset {high}, before {expected}, "
                "where this run goes on; the topic was made anew or has lost records, so start a new run."
            )
        if expected < low:
            warnings.warn(
                f"{partition.name}: retention has deleted the {low - expected:,} offsets from {expected} to "
                f"{low - 1} before they were read; going on at {low}.",
                stacklevel=4,
            )
            partition.next = low
        if partition.fetching:
            self._consumer.incremental_unassign([self._at(partition.number)])
        partition.astray = partition.fetching = False

    def _look_for_partitions(self) -> None:
        """Now and then, take up the partitions that the topic has got since."""
        now = time.monotonic()
        if now - self._looked_at < self._metadata_seconds:
            return
        self._looked_at = now
        for number in self._cluster.partitions_now(self._consumer):
            if number not in self._partitions:
                partition = _Partition(number, f"{self._cluster.topic}/{number}")
                self._partitions[number] = partition
                self._starts[number] = "earliest"
                self.partitions = [*self.partitions, partition.name]

    def _has_ended(self) -> bool:
        """Whether every first partition has been polled to where it ended when it was opened."""
        if any(p.offsets or p.next < 0 for p in self._first):
            return False
        return all(p.ended or (p.end_is_told and p.next >= p.end) for p in self._first)

    def _bounds(self, partition: _Partition) -> tuple[int, int]:
        """Ask for the first offset of a partition and the one after its last. Raises KafkaException."""
        found = self._consumer.get_watermark_offsets(self._at(partition.number), timeout=ASK_SECONDS)
        if found is None:
            raise self._kafka.KafkaException(self._kafka.KafkaError(self._kafka.KafkaError._TIMED_OUT))
        low, high = found
        return low, high

    def _at(self, number: int, offset: int | None = None) -> Any:
        known = self._kafka.OFFSET_INVALID if offset is None else offset
        return self._kafka.TopicPartition(self._cluster.topic, number, known)


def _decoder(
    kind: str | None, fields: Fields, schema: Path | None, message: str | None, where: str
) -> _Decoder:
    if kind is None or kind == "json":
        if schema is not None or message is not None:
            raise UsageError(f"{where}: schema and message are for decoder=avro and decoder=protobuf.")
        return JsonDecoder(fields)
    if kind not in ("avro", "protobuf"):
        hint = meant(kind, ("json", "avro", "protobuf"))
        raise UsageError(f"{where}: no decoder is named {kind!r}.{hint} Choose from: json, avro, protobuf.")
    from streamwise.streams.decode_binary import AvroDecoder, ProtobufDecoder

    if schema is None:
        raise UsageError(f"{where}: decoder={kind} needs schema=FILE.")
    if kind == "avro":
        if message is not None:
            raise UsageError(f"{where}: message is for decoder=protobuf; an Avro schema is one record.")
        return AvroDecoder(fields, schema)
    if message is None:
        raise UsageError(f"{where}: decoder=protobuf needs message=FULL.NAME, one of those in {schema}.")
    return ProtobufDecoder(fields, schema, message)


def _checked_start(start: str | float, where: str) -> str | float:
    if isinstance(start, str):
        if start in ("earliest", "latest"):
            return start
    elif math.isfinite(start) and start >= 0.0:
        return start
    raise UsageError(f"{where}: start is {start!r}; give earliest, latest, or seconds since 1970.")


def _on_commit(error: Any, _offsets: Any) -> None:
    if error is not None:
        _logger.debug("offsets were not published: %s", error.name())


def _number(partition: str) -> int:
    return int(partition.rpartition("/")[2])
