"""Windows of events of a world whose regime changes on the way, each an `Example`.

    regimes:synthetic?pattern=ABACA&process=hawkes&types=5     a random process for each letter
    regimes:synthetic?pattern=ABCDE&process=renewal            gaps and a chain of types for each letter
    regimes:file:events.csv.gz?key=user&pattern=ABCDE          five parts of the calendar, equally long
    regimes:file:events.csv.gz?key=user&pattern=ABCDE&mixed=true    the same, shuffled together

A window holds `length` events of one key that follow each other: the gap before each, in seconds, 0 for the
first, and its type, float32 [length, 2]; its label is the type of the last. A regime is a process, or a part
of the time of a file, A the first. The pattern says in which order they come; one that comes back goes on
where it was, so that no window comes twice. Some windows of each are tests and never come: of a file, those
that end last.

The time of a file is divided between the 0.1% and the 99.9% point of its events, much as `streamwise tasks`
does, and the events of a key in a part are cut into windows from the first on. What is in none is counted, in
`left_out`.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode

import numpy as np
from numpy.typing import NDArray

from streamwise.streams.dead_letters import DeadLetterLog
from streamwise.streams.errors import UsageError, nearest
from streamwise.streams.event_stream import EventStream
from streamwise.streams.experiences import ExperienceStream, Labelled, Segment, read_setting
from streamwise.streams.point_processes import HawkesProcess, LogNormalGaps, Process, RenewalProcess
from streamwise.streams.sources import open_source

__all__ = ["PROCESSES", "Regime", "RegimeSettings", "RegimeStream", "regime_stream"]

PROCESSES = ("hawkes", "renewal")
_RATE = 1.0 / 360.0  # events a second of the first regime; of others, up to twice or half of it
_TIME_SCALES = 60.0, 600.0  # seconds: what excites is within a window
_OUTSIDE = 0.001  # of the events at either end of a file, which would stretch the first and last part
_FIELDS = ("time", "type", "key", "unit", "format", "delimiter", "version", "versions", "max_bytes")

Array = NDArray[Any]


class Regime(NamedTuple):
    """The windows of one regime, in the order in which they come."""

    training: Labelled
    tests: Labelled


@dataclass(frozen=True)
class RegimeSettings:
    """Which regimes there are, and in which order; all that is drawn follows from the seed."""

    source: str = "synthetic"
    """synthetic, or the URL of a file of events."""
    pattern: str = "ABACA"
    """Regimes by letter, in the order in which they come."""
    length: int = 32
    """Events in a window."""
    windows: int = 0
    """Windows in each segment. 0: 200 of a process, and all that a file has."""
    tests: int = 0
    """Test windows of each regime. 0: 50 of a process, and the last fifth of what a file has."""
    process: Literal["hawkes", "renewal"] = "hawkes"
    """What synthetic events come from."""
    types: int = 5
    """How many types synthetic events have; those of a file are what it has."""
    mixed: bool = False
    """All regimes in one segment, shuffled: what could be had if nothing changed."""
    seed: int = 0
    """Of processes and their events, and of the order if all is mixed."""

    def __post_init__(self) -> None:
        known = string.ascii_uppercase[: len(set(self.pattern))]
        if not self.pattern or set(self.pattern) != set(known):
            raise UsageError(f"pattern is {self.pattern!r}; use letters from A on, such as ABACA or ABCDE.")
        for name, least in (("length", 2), ("windows", 0), ("tests", 0), ("types", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; use {least} or more.")
        if self.process not in PROCESSES:
            raise UsageError(f"there is no process {self.process!r}.{nearest(self.process, PROCESSES)}")

    @property
    def regimes(self) -> int:
        """How many regimes there are."""
        return len(set(self.pattern))


def regime_stream(url: str) -> RegimeStream:
    """Return the stream of `regimes:SOURCE?KEY=VALUE&...`. Raises UsageError for what it cannot be.

    SOURCE: synthetic, or file:PATH, with the parameters of such a URL that say which field is what.
    """
    source, _, query = url.removeprefix("regimes:").partition("?")
    of_file = source.startswith("file:")
    if not of_file and source != "synthetic":
        raise UsageError(
            f"{url}: there are no regimes of {source!r}; write regimes:synthetic?... or regimes:file:PATH?..."
        )
    known: dict[str, Callable[[str], Any]] = {
        "pattern": str, "length": int, "windows": int, "tests": int, "seed": int,
        "mixed": {"true": True, "false": False}.__getitem__,
    }  # fmt: skip
    known.update(dict.fromkeys(_FIELDS, str) if of_file else {"process": str, "types": int})
    values: dict[str, Any] = {}
    fields: list[tuple[str, str]] = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        read = read_setting(url, key, value, known)
        if of_file and key in _FIELDS:
            fields.append((key, read))
        else:
            values[key] = read
    if of_file and fields:
        source = f"{source}?{urlencode(fields)}"
    try:
        return RegimeStream(RegimeSettings(source, **values))
    except UsageError as error:
        raise UsageError(f"{url}: {error}") from None


class RegimeStream(ExperienceStream):
    """Windows in the order of a pattern. Raises UsageError for what cannot be, such as a file without events.

    types, length: how many types, and events in a window. unit: the median gap of what is learned of the
    first regime, in seconds. training, tests: of each regime, what is learned and what never is. segments: in
    the order of the stream. left_out: how many events of a file are in no window: "refused" (by its reader),
    "outside" (of the time that is divided), "incomplete" (too few for a window of their key and part), and
    "more" (than is wanted).

    >>> stream = RegimeStream(RegimeSettings(pattern="ABA", length=8, windows=10))
    >>> [(segment.start, segment.stop, segment.experience) for segment in stream.segments]
    [(0, 10, 0), (10, 20, 1), (20, 30, 0)]
    >>> next(iter(stream)).features.shape, [len(test.labels) for test in stream.tests]
    ((8, 2), [50, 50])
    """

    def __init__(self, settings: RegimeSettings) -> None:
        self.settings, self.length = settings, settings.length
        self.left_out: dict[str, int] = {}
        if settings.source == "synthetic":
            self.types = settings.types
            regimes = [_drawn(settings, regime) for regime in range(settings.regimes)]
        else:
            events = _read(settings.source, self.left_out)
            self.types = int(events.types.max()) + 1
            regimes = _of_file(settings, events, self.left_out)
        training, tests = ([part[i] for part in regimes] for i in range(2))
        super().__init__(training, tests, *_ordered(settings, training))
        gaps = self.training[0].features[:, 1:, 0]
        self.unit = float(np.median(gaps[gaps > 0.0])) if (gaps > 0.0).any() else 1.0


def _ordered(settings: RegimeSettings, learned: list[Labelled]) -> tuple[NDArray[np.int64], list[Segment]]:
    """Return the regime and the row of each window, [n, 2], and the segments."""
    letters = [string.ascii_uppercase.index(letter) for letter in settings.pattern]
    times = np.bincount(letters)  # that each regime comes
    parts = [
        iter(np.array_split(np.arange(len(training.labels)), count))
        for training, count in zip(learned, times, strict=True)
    ]
    order, segments, start = [], [], 0
    for regime in letters:
        rows = next(parts[regime])
        order.append(np.stack([np.full(len(rows), regime), rows], axis=1))
        segments.append(Segment(start, start + len(rows), regime))
        start += len(rows)
    found = np.concatenate(order)
    if not settings.mixed:
        return found, segments
    random = np.random.default_rng(settings.seed)
    return found[random.permutation(len(found))], [Segment(0, len(found), 0)]


def _windows(times: Array, types: Array) -> Labelled:
    """Return events, float64 and int64 [n, length], as windows."""
    gaps = np.diff(times, axis=1, prepend=times[:, :1])
    features = np.stack([gaps, types], axis=2).astype(np.float32)
    return Labelled(features, types[:, -1].astype(np.int64))


# ---- regimes that are drawn


def _drawn(settings: RegimeSettings, regime: int) -> Regime:
    """Return a regime's windows: those of one key that goes on and on, and tests of another key."""
    process = _process(settings, regime)
    counts = ((settings.windows or 200) * settings.pattern.count(string.ascii_uppercase[regime]),
              settings.tests or 50)  # fmt: skip
    parts = []
    for key, count in enumerate(counts):
        uniforms = _uniforms(np.random.default_rng([settings.seed, regime, 1 + key]))
        time, state, events = 0.0, process.first_state(), []
        for _ in range((count + 1) * settings.length):
            time, event_type, state = process.next_event(time, state, uniforms)
            events.append((time, event_type))
        # The first window is not taken: a process that begins without a past is not yet what it will be.
        times, types = (
            np.array(events)[settings.length :].reshape(count, settings.length, 2).transpose(2, 0, 1)
        )
        parts.append(_windows(times, types.astype(np.int64)))
    return Regime(*parts)


def _process(settings: RegimeSettings, regime: int) -> Process:
    random = np.random.default_rng([settings.seed, regime, 0])
    rate = _RATE * (2.0 ** random.uniform(-1.0, 1.0) if regime else 1.0)
    if settings.process == "hawkes":
        return HawkesProcess.random(random, settings.types, _TIME_SCALES, rate=rate)
    sigma = random.uniform(0.5, 1.5)
    chain = random.dirichlet(np.full(settings.types, 0.5), size=settings.types)
    return RenewalProcess(LogNormalGaps(float(np.exp(-0.5 * sigma**2) / rate), sigma), chain)


def _uniforms(random: np.random.Generator) -> Iterator[tuple[float, float]]:
    while True:
        yield from map(tuple, random.random((256, 2)).tolist())


# ---- regimes of the calendar


class _Events(NamedTuple):
    """Events sorted by key, and of a key by time: float64, and int64 by number."""

    times: Array
    types: Array
    keys: Array


def _read(url: str, left_out: dict[str, int]) -> _Events:
    """Read all events of a source. Raises UsageError if it has none."""
    source, letters = open_source(url, until_end=True), DeadLetterLog(None)
    times: list[float] = []
    columns: tuple[list[int], list[int]] = ([], [])
    numbers: tuple[dict[str, int], dict[str, int]] = ({}, {})
    try:
        for batch in EventStream([source], letters, until_end=True).batches():
            times += batch.times
            for column, known, names in zip(columns, numbers, (batch.types, batch.keys), strict=True):
                column += [known.setdefault(name, len(known)) for name in names]
    finally:
        source.close()
        letters.close()
    if not times:
        raise UsageError(f"{url} has no events; nothing can be learned.")
    if letters.total:
        left_out["refused"] = letters.total
    types, keys = (np.array(column, np.int64) for column in columns)
    order = np.argsort(keys, kind="stable")  # of a key, they are in order of time
    return _Events(np.array(times)[order], types[order], keys[order])


def _of_file(settings: RegimeSettings, events: _Events, left_out: dict[str, int]) -> list[Regime]:
    low, high = np.quantile(events.times, [_OUTSIDE, 1.0 - _OUTSIDE])
    bounds = np.linspace(low, high, settings.regimes + 1)
    bounds[-1] = np.nextafter(high, np.inf)
    parts = np.searchsorted(bounds, events.times, side="right") - 1
    inside = (parts >= 0) & (parts < settings.regimes)
    left_out["outside"] = int((~inside).sum())
    left_out["incomplete"] = 0
    left_out["more"] = 0
    found = []
    for regime, letter in enumerate(sorted(set(settings.pattern))):
        part = _Events(*(column[parts == regime] for column in events))
        whole, rest = _cut(part, settings.length)
        left_out["incomplete"] += rest
        tested = settings.tests or len(whole.labels) // 5
        training = len(whole.labels) - tested
        segments = settings.pattern.count(letter)
        if tested < 1 or training < segments:
            raise UsageError(
                f"regime {letter} has {len(whole.labels)} windows of {settings.length} events, too few to "
                "learn and test; use a smaller length, or fewer letters."
            )
        taken = np.arange(training)
        if settings.windows and settings.windows * segments < training:
            taken = np.linspace(0, training - 1, settings.windows * segments).astype(np.int64)
            left_out["more"] += (training - len(taken)) * settings.length
        found.append(
            Regime(
                Labelled(whole.features[taken], whole.labels[taken]),
                Labelled(whole.features[training:], whole.labels[training:]),
            )
        )
    return found


def _cut(events: _Events, length: int) -> tuple[Labelled, int]:
    """Return the windows of all keys, by the time at which they end, and how many events are in none."""
    starts = np.searchsorted(events.keys, events.keys)  # of each event, where its key begins
    stops = np.searchsorted(events.keys, events.keys, side="right")
    places = np.arange(len(events.keys))
    begins = places[((places - starts) % length == 0) & (places + length <= stops)]
    begins = begins[np.argsort(events.times[begins + length - 1], kind="stable")]
    rows = begins[:, None] + np.arange(length)
    return _windows(events.times[rows], events.types[rows]), len(places) - rows.size
