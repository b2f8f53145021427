"""Events of a live log, and what every source of them can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, Protocol

__all__ = ["LAST_TIME", "Decoded", "Event", "Records", "Refused", "Source", "time_fault"]

LAST_TIME = 253_402_300_799.0  # the end of the year 9999, which ISO 8601 and most databases cannot pass


class Event(NamedTuple):
    """Something that happened.

    time: float, seconds since 1970, or since whatever start the source has. type: what happened. key: the
    sequence that it belongs to, such as a user, a card or a machine. features: whatever else the record said.
    """

    time: float
    type: str
    key: str
    features: dict[str, Any] | None = None


class Refused(NamedTuple):
    """A record that is no event: which of its `Records`, a reason of one or two words, and the details."""

    which: int
    reason: str
    detail: str


class Records(NamedTuple):
    """Records that follow each other in one partition, as a poll gave them; none where only a position is.

    partition: a name that stays the same over restarts, such as "clicks/3". values: one a record, in whatever
    form the source's `decode` reads. positions: where each is, for a person who looks for it. next_position:
    where the record after the last comes from, in JSON's own types; `seek` takes it. polled_at: seconds, of
    time.monotonic().
    """

    partition: str
    values: Sequence[Any]
    positions: Sequence[int | str]
    next_position: Any
    polled_at: float


class Decoded(NamedTuple):
    """What some records say: the events among them as columns of equal length, and the rest refused.

    which: which record each event was. features: None if no event has any.
    """

    which: Sequence[int]
    times: list[float]
    types: list[str]
    keys: list[str]
    features: list[dict[str, Any] | None] | None
    refused: list[Refused]


class Source(Protocol):
    """Partitions of records, each in an order of its own, that can be read again from any position.

    It knows nothing of event time, and remembers nothing but where it is.
    """

    @property
    def name(self) -> str:
        """What people call it; free of secrets."""
        ...

    @property
    def partitions(self) -> Sequence[str]:
        """The partitions known by now; more may appear while polling."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing will ever follow."""
        ...

    def poll(self, limit: int, timeout: float, paused: AbstractSet[str]) -> list[Records]:
        """Return up to `limit` records, waiting up to `timeout` seconds for the first, or for news of an end.

        Nothing is read from the partitions in `paused`; what they have waits, and the call need not. A broker
        that cannot be reached is not an error: nothing comes until it is back. Raises UsageError for what
        waiting cannot mend, such as a topic that does not exist.
        """
        ...

    def decode(self, records: Records) -> Decoded:
        """Read the values of records just as `poll` gave them; never raises for anything that they hold."""
        ...

    def at_end(self, partition: str) -> bool:
        """Whether all that the partition held when last looked at has been polled; not before the first."""
        ...

    def seek(self, positions: dict[str, Any]) -> None:
        """Go on from these positions by partition, as `next_position` gave them; before the first poll."""
        ...

    def commit(self, positions: dict[str, Any]) -> None:
        """Tell the outside how far each partition is durably learned. Failing to is not an error."""
        ...

    def lag(self) -> int | None:
        """Return how many records wait to be polled, or None if nobody knows."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


def time_fault(time: float) -> str | None:
    """Return what is impossible about a time, or None."""
    if not math.isfinite(time):
        return "the time is not finite"
    if time < 0.0:
        return "the time is negative"
    if time > LAST_TIME:
        return "the time is after the year 9999; are its units right?"
    return None
