"""What happened to a live system, and when: its events.jsonl read back.

A driver that was killed has left it without an end, and its last line cut off.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["LATEST", "History", "Past", "Record", "Span", "Who", "happenings", "read_history"]

Record = dict[str, Any]

LATEST = 1e11  # seconds since 1970; what is later is no time

ENDS = ("lost", "failed", "finished", "stopped")  # of something that was at work
MARKS = ("lost", "failed", "recovered", "finished", "stopped")


class Who(NamedTuple):
    """A learner, a worker of one, or a memory: two kinds may share a name."""

    kind: str  # learner, memory
    name: str


class Span(NamedTuple):
    """From when to when something was at work, in seconds since 1970."""

    begin: float
    end: float


@dataclass
class Past:
    """What happened to one process: when it was at work, and what came between."""

    spans: list[Span] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    restarts: int = 0
    last: str = ""  # event
    message: str = ""  # of the last failure


@dataclass(frozen=True)
class History:
    """What happened to a system. lives: from when to when a driver was at work."""

    lives: list[Span]
    pasts: dict[Who, Past]
    counts: Counter[str]

    @property
    def seconds(self) -> float:
        """At work, of all drivers; pauses between them do not count."""
        return sum(life.end - life.begin for life in self.lives)

    def at_work(self, time: float) -> float:
        """Return the seconds at work up to a time."""
        return sum(min(max(time, life.begin), life.end) - life.begin for life in self.lives)


def happenings(events: Iterable[Record]) -> list[Record]:
    """Return, in order of time, the events that say when they were."""
    timed = (event for event in events if isinstance(event.get("time"), int | float))
    return sorted(
        (event for event in timed if 0.0 <= event["time"] < LATEST), key=lambda event: float(event["time"])
    )


def read_history(events: Iterable[Record], memories: Iterable[str], now: float = -math.inf) -> History:
    """Return what events tell. memories: begin with a driver. now: until when those without an end last."""
    history, memories = History([], {}, Counter()), list(memories)
    begun: dict[Who, float] = {}  # who is at work, and since when
    started: set[Who] = set()  # in this life of the driver
    life, last = math.nan, math.nan  # when it began; NaN between two

    def end_all(time: float) -> None:
        nonlocal life
        for who, begin in begun.items():
            history.pasts[who].spans.append(Span(begin, max(begin, time)))
        if not math.isnan(life):
            history.lives.append(Span(life, max(life, time)))
        begun.clear()
        life = math.nan

    for event in happenings(events):
        time, kind = float(event["time"]), str(event["event"])
        if kind == "up":
            end_all(last)  # of a driver that was killed, this is the last that is known
        if kind == "down":
            end_all(time)
            last = time
            continue
        if math.isnan(life):
            life = time
            started.clear()
            for name in memories:
                history.pasts.setdefault(who := Who("memory", name), Past())
                begun[who] = time
        last = time
        of = next((of for of in ("learner", "memory") if isinstance(event.get(of), str)), None)
        if of is None:
            continue
        history.counts[kind] += 1
        past = history.pasts.setdefault(who := Who(of, event[of]), Past())
        if kind in ENDS and who in begun:
            past.spans.append(Span(begun.pop(who), time))
        elif kind in ("started", "recovered"):
            begun.setdefault(who, time)
            past.restarts += who in started or kind == "recovered"
            started.add(who)
        if kind in MARKS:
            past.marks.append((time, kind))
        past.last = kind
        past.message = str(event.get("message") or past.message)
    end_all(max(last, now) if not math.isnan(last) else now)
    return history
