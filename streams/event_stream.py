"""Events of several sources in one order: that of their times, whatever order they were polled in."""

from __future__ import annotations

import heapq
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from streamwise.streams.dead_letters import DeadLetterLog
from streamwise.streams.event import Decoded, Event, Records, Source
from streamwise.streams.sample import Position

__all__ = ["DUPLICATE", "FUTURE", "LATE", "EventBatch", "EventStream"]

LATE, FUTURE, DUPLICATE = "late", "in the future", "duplicate position"

_WAIT_SECONDS = 0.05  # for events, before the loop gets a chance to look after itself
# That a reader may take for what one poll gave it; polls become as small as that needs. So an event is
# learned soon after its poll. A reader that is behind gets larger, cheaper polls: there, events wait anyway.
_TURN_SECONDS, _TURN_SECONDS_BEHIND = 0.001, 0.05
_BEHIND = 500  # polls one after the other that left something
_FEWEST, _AT_FIRST = 2, 16  # records a poll
_NEVER = -math.inf

# time, partition, number in the partition, type, key, features, polled at: in this order they are released
Pending = tuple[float, str, int, str, str, dict[str, Any] | None, float]


class EventBatch(NamedTuple):
    """Events in order of time, as columns.

    numbers: of the event's record in its partition, from 0. features: None if no event has any. polled_at:
    when each came in, seconds, by time.monotonic().
    """

    times: Sequence[float]
    partitions: Sequence[str]
    numbers: Sequence[int]
    types: Sequence[str]
    keys: Sequence[str]
    features: Sequence[dict[str, Any] | None] | None
    polled_at: Sequence[float]

    @property
    def size(self) -> int:
        """How many events there are; len() would count the columns."""
        return len(self.times)


NOTHING = EventBatch([], [], [], [], [], None, [])


@dataclass
class _Partition:
    """How far one partition has come: every value follows from its own records alone."""

    label: str  # its name, and with several sources which of them
    source: int
    name: str
    records: int = 0  # polled so far
    next_position: Any = None
    newest: float = _NEVER  # event time
    watermark: float = _NEVER  # nothing before it is accepted any more
    ahead: list[float] = field(default_factory=list)  # a heap of the waiting times after the watermark
    waiting: int = 0
    ended_at: float | None = None  # when it was first seen to have nothing more

    def order(self) -> tuple[float, str]:
        """The first place in the common order that its further events can take."""
        return self.watermark, self.label


class EventStream:
    """Merges sources into one stream of events, and sees to those that come in disorder or are no events.

    A partition's watermark is its newest time less `lateness`: an event before it is late, and refused.
    Events wait until no partition can deliver an earlier one, and come out by time, then by partition, then
    in the order of the partition. So the order, and which events are late, do not depend on how polls
    happened to interleave, as long as no partition is given up as idle.

    lateness: seconds. buffer: events of a partition that may wait; one that is ahead of the others is not
    polled meanwhile, and where so many are within the lateness of each other, the watermark is raised to let
    the first of them out. idle_seconds: a partition without news for so long does not hold up the others, and
    when all of them are, everything is let out. until_end: stop where all sources have been read to their
    end. most: events to give out, over all resumptions. max_ahead: seconds that an event's time may be ahead
    of the clock.

    numbered: whether a partition is named after its source's number, too; unset, where there are several.
    last_time_of: when a key's last event was, or -inf; asked after a position that several others were made
    into, whose partitions need not have come equally far: an event before the last of its key is late.

    poll_limit: most records of a poll; where the reader is slow, fewer. Iterating gives single events;
    `batches` gives those that are ready after each poll, and now and then an empty one, so that a quiet
    stream does not keep its reader from other business.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        dead_letters: DeadLetterLog | None = None,
        *,
        lateness: float = 0.0,
        buffer: int = 10_000,
        poll_limit: int = 4096,
        idle_seconds: float = 5.0,
        until_end: bool = False,
        most: int | None = None,
        max_ahead: float = 86_400.0,
        numbered: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.sources = sources
        self.dead_letters = dead_letters or DeadLetterLog()
        self.lateness = lateness
        self.buffer = buffer
        self.poll_limit = poll_limit
        self.idle_seconds = idle_seconds
        self.until_end = until_end
        self.most = most
        self.max_ahead = max_ahead
        self.numbered = len(sources) > 1 if numbered is None else numbered
        self.last_time_of: Callable[[str], float] | None = None
        self._catch_up = _NEVER  # until all partitions are past this time, some key may be ahead of one
        self.released = 0
        self.records = 0
        self.decode_seconds = 0.0
        self.poll_seconds = 0.0
        self._clock, self._now = clock, now
        self._limit = min(_AT_FIRST, poll_limit)
        self._full = 0  # polls one after the other, up to the last, that could have given more
        self._partitions: dict[str, _Partition] = {}
        self._pending: list[Pending] = []  # sorted
        self._last: tuple[float, str] = (_NEVER, "")  # released
        self._batch: EventBatch | None = None  # being iterated, and
        self._taken = 0  # how much of it has been handed out

    # Reading.

    def __iter__(self) -> Iterator[Event]:
        """Yield events one by one; `position` follows each of them."""
        for batch in self.batches():
            features = batch.features or [None] * batch.size
            for i, event in enumerate(map(Event, batch.times, batch.types, batch.keys, features)):
                self._taken = i + 1
                yield event

    def batches(self) -> Iterator[EventBatch]:
        """Yield the events that each poll made ready, in order."""
        while not self._enough:
            polled = self._poll()
            for partition, records in polled:
                if (batch := self._take(partition, records)) is not None:
                    yield from self._hand_out(batch)
                    if self._enough:
                        return
            ready = self._release()
            if ready is not None:
                yield from self._hand_out(ready)
            elif not polled:
                if all(source.finished for source in self.sources):
                    return
                yield NOTHING

    @property
    def _enough(self) -> bool:
        return self.most is not None and self.released >= self.most

    def _hand_out(self, batch: EventBatch) -> Iterator[EventBatch]:
        room = batch.size if self.most is None else min(batch.size, max(self.most - self.released, 0))
        self._batch, self._taken = batch, room
        self.released += batch.size
        given_at = self._clock()
        if room == batch.size:
            yield batch
            self._batch = None
        elif room:
            yield EventBatch(*(None if column is None else column[:room] for column in batch))  # type: ignore[arg-type]  # in its order
        seconds = self._clock() - given_at
        turn = _TURN_SECONDS if self._full < _BEHIND else _TURN_SECONDS_BEHIND
        if seconds > turn:
            self._limit = max(min(_FEWEST, self.poll_limit), self._limit // 2)
        elif self._full and seconds < turn / 4.0:  # few records say nothing of many
            self._limit = min(2 * self._limit, self.poll_limit)

    def _poll(self) -> list[tuple[_Partition, Records]]:
        """Return what came in, waiting for a moment if there is nothing."""
        started = self._clock()
        held: list[set[str]] = [set() for _ in self.sources]
        for partition in self._partitions.values():
            if self._holds_back(partition):
                held[partition.source].add(partition.name)
        polled: list[tuple[int, Records]] = []
        several = len(self.sources) > 1
        for wait in (0.0, _WAIT_SECONDS / len(self.sources)) if several else (_WAIT_SECONDS,):
            for i, source in enumerate(self.sources):
                polled += ((i, records) for records in source.poll(self._limit, wait, held[i]))
            if polled:
                break
        full = sum(len(records.values) for _, records in polled) >= self._limit
        self._full = self._full + 1 if full else 0
        for i, source in enumerate(self.sources):
            for name in source.partitions:
                label = self._label(i, name)
                if label not in self._partitions:
                    self._partitions[label] = _Partition(label, i, name)
        self.poll_seconds += self._clock() - started
        return [(self._partitions[self._label(i, records.partition)], records) for i, records in polled]

    def _label(self, source: int, name: str) -> str:
        """What a partition is called here: two sources may have partitions of one name."""
        return f"{source}:{name}" if self.numbered else name

    def _holds_back(self, partition: _Partition) -> bool:
        if self.until_end and partition.ended_at is not None:
            return True
        # Those after its own watermark wait for its own late ones, and are few by themselves.
        waiting_for_others = partition.waiting - len(partition.ahead)
        return waiting_for_others >= self.buffer and len(self._partitions) > 1

    def _take(self, partition: _Partition, records: Records) -> EventBatch | None:
        """Put the events of one partition where they wait; return them at once if nothing can come before."""
        started = self._clock()
        decoded = self.sources[partition.source].decode(records)
        for index, reason, detail in decoded.refused:
            self._refuse(partition, records, index, reason, detail)
        self.decode_seconds += self._clock() - started
        self.records += len(records.values)
        first = partition.records
        partition.records += len(records.values)
        before, partition.next_position = partition.next_position, records.next_position
        partition.ended_at = None
        decoded = self._without_faults(partition, records, decoded, before)
        if not decoded.times:
            return None
        at_once = len(self._partitions) == 1 and not self._pending and self.lateness == 0.0
        count = len(decoded.times)
        names = [partition.label] * count
        numbers = [first + index for index in decoded.which]
        _, times, types, keys, features, _ = decoded
        polled_at = [records.polled_at] * count
        if at_once:
            self._last = (times[-1], partition.label)
            return EventBatch(times, names, numbers, types, keys, features, polled_at)
        features = features or [None] * count
        self._pending += zip(times, names, numbers, types, keys, features, polled_at, strict=True)
        partition.waiting += count
        return None

    def _without_faults(
        self, partition: _Partition, records: Records, decoded: Decoded, before: Any
    ) -> Decoded:
        """Refuse what is late, ahead of the clock or a repetition; move the watermark. Return the rest.

        before: the partition's position until now; if it is a number, as an offset is, so are the records'.
        """
        faults: dict[int, tuple[str, str]] = {}
        times = np.array(decoded.times)
        limit = self._now() + self.max_ahead
        for i in np.flatnonzero(times > limit).tolist():
            faults[i] = FUTURE, f"its time is {times[i] - limit + self.max_ahead:,.0f} s ahead of the clock"
        if isinstance(before, int) and decoded.times and records.positions[0] < before:  # type: ignore[operator]  # an int, as before is
            for i, index in enumerate(decoded.which):
                if records.positions[index] < before:  # type: ignore[operator]  # an int, as before is
                    faults[i] = DUPLICATE, "a record of this position came before"
        if self._catch_up > _NEVER and self.last_time_of is not None:
            for i in np.flatnonzero(times < self._catch_up).tolist():
                last = self.last_time_of(decoded.keys[i])
                if i not in faults and times[i] < last:
                    faults[i] = LATE, f"it is {last - times[i]:,.3f} s behind its key, known from elsewhere"
        if faults:
            sound = np.ones(len(times), bool)
            sound[list(faults)] = False
        else:
            sound = None
        self._raise_watermark(partition, times, sound, faults)
        if not faults:
            return decoded
        for i in sorted(faults):
            self._refuse(partition, records, decoded.which[i], *faults[i])
        kept = [i for i in range(len(times)) if i not in faults]
        return Decoded(
            [decoded.which[i] for i in kept],
            [decoded.times[i] for i in kept],
            [decoded.types[i] for i in kept],
            [decoded.keys[i] for i in kept],
            None if decoded.features is None else [decoded.features[i] for i in kept],
            [],
        )

    def _raise_watermark(
        self, partition: _Partition, times: Any, sound: Any, faults: dict[int, tuple[str, str]]
    ) -> None:
        """Move the watermark over these events, one after the other, and add the late ones to `faults`."""
        if not len(times):
            return
        last_time, last_name = self._last
        if self.lateness == 0.0:
            if sound is not None:
                times = np.where(sound, times, _NEVER)
            newest = np.maximum.accumulate(np.append(partition.newest, times))
            late = times < newest[:-1]
            if partition.label < last_name:
                late |= times <= last_time
            else:
                late |= times < last_time
            if sound is not None:
                late &= sound
            for i in np.flatnonzero(late).tolist():
                behind = max(newest[i], last_time) - times[i]
                faults[i] = LATE, f"it is {behind:,.3f} s behind, and lateness is 0 s"
            partition.newest = partition.watermark = float(newest[-1])
            return
        ahead = partition.ahead
        for i, event_time in enumerate(times.tolist()):
            if i in faults:
                continue
            if event_time < partition.watermark or (event_time, partition.label) < self._last:
                behind = max(partition.newest, last_time) - event_time
                faults[i] = LATE, f"it is {behind:,.3f} s behind, and lateness is {self.lateness:g} s"
                continue
            partition.newest = max(partition.newest, event_time)
            partition.watermark = max(partition.watermark, partition.newest - self.lateness)
            heapq.heappush(ahead, event_time)
            while ahead and ahead[0] <= partition.watermark:
                heapq.heappop(ahead)
            if len(ahead) > self.buffer:
                partition.watermark = heapq.heappop(ahead)

    def _refuse(self, partition: _Partition, records: Records, which: int, reason: str, detail: str) -> None:
        position, value = records.positions[which], records.values[which]
        self.dead_letters.add(reason, detail, partition.label, position, value)

    def _release(self) -> EventBatch | None:
        """Return the waiting events that no partition can come before any more."""
        now = self._clock()
        idle = self.idle_seconds if not self.until_end else 0.0
        active = []
        for partition in self._partitions.values():
            source = self.sources[partition.source]
            if not (source.finished or source.at_end(partition.name)):
                partition.ended_at = None
            elif partition.ended_at is None:
                partition.ended_at = now
            ended_at = partition.ended_at
            if ended_at is None or not (source.finished or now - ended_at >= idle):
                active.append(partition)
        if not self._pending:
            return None
        self._pending.sort()
        count = len(self._pending)
        if active:
            count = bisect_right(self._pending, (*min(p.order() for p in active), math.inf))
        if not count:
            return None
        batch = EventBatch(*zip(*self._pending[:count], strict=True))
        del self._pending[:count]
        for name in set(batch.partitions):
            self._partitions[name].waiting -= batch.partitions.count(name)
        self._last = (batch.times[-1], batch.partitions[-1])
        return batch if any(batch.features or ()) else batch._replace(features=None)

    # Where it is.

    @property
    def watermark(self) -> float:
        """The event time up to which everything that is not late has come; -inf before the first event."""
        return min((p.watermark for p in self._partitions.values() if p.newest > _NEVER), default=_NEVER)

    @property
    def waiting(self) -> int:
        """How many events wait for others."""
        return len(self._pending)

    def lag(self) -> int | None:
        """Return how many records wait in the sources; None if none of them knows."""
        lags = [lag for source in self.sources if (lag := source.lag()) is not None]
        return sum(lags) if lags else None

    @property
    def position(self) -> Position:
        """Where every partition is, with the events that were polled and not yet given out."""
        pending, last, left = self._pending, self._last, 0
        if self._batch is not None:
            left = self._batch.size - self._taken
        if self._batch is not None and left:
            batch, taken = self._batch, self._taken
            columns = (*batch[:5], batch.features or [None] * batch.size, batch.polled_at)
            pending = [*list(zip(*columns, strict=True))[taken:], *pending]
            last = (batch.times[taken - 1], batch.partitions[taken - 1])
        return {
            "partitions": {
                p.label: {
                    "source": p.source,
                    "name": p.name,
                    "next": p.next_position,
                    "records": p.records,
                    "newest": _finite(p.newest),
                    "watermark": _finite(p.watermark),
                }
                for p in self._partitions.values()
            },
            "pending": [list(event[:-1]) for event in pending],
            "last": [_finite(last[0]), last[1]],
            "catch_up": _finite(self._catch_up),
            "released": self.released - left,
            "records": self.records,
            "dead_letters": self.dead_letters.position,
        }

    def seek(self, position: Position) -> None:
        """Go on from `position`, before the first event is asked for.

        Raises UsageError if a source no longer has what comes next.
        """
        for i, source in enumerate(self.sources):
            if positions := _positions(position, i):
                source.seek(positions)
        self._partitions = {
            label: _Partition(
                label,
                state["source"],
                state["name"],
                records=state["records"],
                next_position=state["next"],
                newest=_number(state["newest"]),
                watermark=_number(state["watermark"]),
            )
            for label, state in position["partitions"].items()
        }
        now = self._clock()
        self._pending = [(*event, now) for event in position["pending"]]
        for event in self._pending:
            partition = self._partitions[event[1]]
            partition.waiting += 1
            if event[0] > partition.watermark:
                heapq.heappush(partition.ahead, event[0])
        self._last = (_number(position["last"][0]), position["last"][1])
        self._catch_up = _number(position.get("catch_up"))
        self.released, self.records = position["released"], position["records"]
        self.dead_letters.seek(position["dead_letters"])

    def commit(self, position: Position) -> None:
        """Tell the sources how far is durably learned."""
        for i, source in enumerate(self.sources):
            if positions := _positions(position, i):
                source.commit(positions)

    def close(self) -> None:
        """Close the sources and the log."""
        for source in self.sources:
            source.close()
        self.dead_letters.close()


def _positions(position: Position, source: int) -> dict[str, Any]:
    return {
        state["name"]: state["next"]
        for state in position["partitions"].values()
        if state["source"] == source and state["next"] is not None
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _number(value: float | None) -> float:
    return _NEVER if value is None else value
