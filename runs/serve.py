"""A run on events over HTTP: a page that shows it live, predictions, health, and metrics for Prometheus."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from streamwise.agents.event_model import Array, Score, UnknownKeyError
from streamwise.runs.prequential import baselines, own_scores
from streamwise.runs.web import BusyError, Server, html_page, json_response, listening
from streamwise.streams import UsageError
from streamwise.streams.errors import meant
from streamwise.streams.event_stream import EventBatch

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streamwise.runs.ingest import LiveRun

__all__ = ["Watch", "serve", "serve_metrics"]

_STUCK_SECONDS = 30.0  # without a turn of the loop, and the run is not healthy
_PATIENCE_SECONDS = 5.0  # for the lock
_LOOK_SECONDS = 0.25  # between two looks at the stream
_RATE_SECONDS, _RATES = 1.0, 301  # the rate is drawn over five minutes,
_RATE_OVER = 10  # and said over ten seconds
_EVENTS_SHOWN, _TYPES_SHOWN, _ROWS_SHOWN = 20, 20, 300
_LONGEST_TEXT = 200  # characters of a key, type or detail that are sent to the page

_COLUMNS = ("step", "wall_time", "log_likelihood", "log_likelihood_window", "type_error", "type_error_window")
_SCORES = {  # name in the scores, and what it is
    "log_likelihood": "Log-likelihood per event, in nats, of gaps in the run's time unit.",
    "time_log_likelihood": "The part of the log-likelihood per event that is due to the time.",
    "type_log_loss": "Negative log-probability of the type of an event, in nats.",
    "type_error": "Share of events that were not of the type thought most likely.",
    "time_rmse": "Root of the mean squared error of the expected gap, in the run's time unit.",
    "time_mae": "Mean absolute error of the expected gap, in the run's time unit.",
    "coverage_50": "Share of gaps within the central interval that should hold 50% of them.",
    "coverage_90": "Share of gaps within the central interval that should hold 90% of them.",
}
_OVER = {"all": "", "last": "_window", "fading": "_fading"}  # which events, and the suffix of their scores
_COUNTERS = {
    "events": "Events learned, over all resumptions of the run.",
    "drift_alarms": "Alarms of the drift test.",
    "types_overflowed": "Events whose type found no room in the vocabulary.",
}
_GAUGES = {
    "events_per_second": "Events learned a second, over ten seconds.",
    "seconds_since_last_event": "Since an event was learned.",
    "seconds_since_last_turn": "Since the loop came round.",
    "ks": "Kolmogorov-Smirnov distance of the newest residuals from Exp(1).",
    "ks_critical": "The distance that a true model exceeds once in twenty times.",
    "drift": "How far the drift test is towards its next alarm, from 0 to 1.",
    "lag": "Records that wait in the sources.",
    "watermark_timestamp_seconds": "The event time up to which all has come.",
    "watermark_delay_seconds": "The clock less the watermark.",
    "waiting_events": "Events that were polled and wait for earlier ones.",
    "keys": "Keys that had an event.",
    "keys_in_memory": "Keys whose state is in memory and not on disk.",
    "types": "Types of events in the vocabulary.",
}
_TYPE_LOG_PROBABILITY = Score._fields.index("type_log_probability")


@contextmanager
def serve(run: LiveRun, *, port: int, host: str = "127.0.0.1") -> Iterator[Server]:
    """Serve the page, /state, /predict, /health and /metrics of a run inside the block, from a thread.

    port: 0 takes any that is free. Raises UsageError if it cannot be listened on, or a library is missing.
    """
    with (
        _watching(run) as watch,
        listening(run.config.directory, "serve", host, port, lambda: _pages(watch)) as server,
    ):
        yield server


@contextmanager
def serve_metrics(run: LiveRun, *, port: int, host: str = "127.0.0.1") -> Iterator[Server]:
    """Serve /metrics alone, as `serve` does."""
    with (
        _watching(run) as watch,
        listening(run.config.directory, "metrics-port", host, port, lambda: [_metrics_page(watch)]) as server,
    ):
        yield server


class Watch:
    """What a run looks like from outside. The loop's thread tells it, the server's threads ask it.

    The loop calls `saw` at every turn, holding the run's lock. That is also when the stream is looked at: it
    is polled without the lock, so no other thread may touch it. Whoever asks takes the lock, but briefly.
    """

    def __init__(self, run: LiveRun) -> None:
        self.run = run
        self.started_at = time.time()
        self.heartbeat = time.monotonic()
        self.last_event_at: float | None = None  # by time.monotonic()
        self.watermark = run.stream.watermark
        self.waiting = run.stream.waiting
        self.lag: int | None = None
        self.refused = dict(run.stream.dead_letters.counts)
        self.letters = list(run.stream.dead_letters.newest)
        # time, key, type, the probability that the model gave to the type
        self._newest: deque[tuple[float, str, str, float]] = deque(maxlen=_EVENTS_SHOWN)
        self._counts = deque([(self.heartbeat, run.recorder.step)], maxlen=_RATES)
        self._looked_at = -math.inf
        self._rows = Thinned(_ROWS_SHOWN)
        for row in _rows_so_far(run):
            self._rows.add(row)

    # By the thread of the loop.

    def saw(self, batch: EventBatch, scores: Array) -> None:
        """Take note of a turn of the loop: events that were just learned, or none, and their scores."""
        now = self.heartbeat = time.monotonic()
        if batch.size:
            self.last_event_at = now
            last = slice(-_EVENTS_SHOWN, None)
            likely = np.exp(scores[last, _TYPE_LOG_PROBABILITY]).tolist()
            self._newest.extend(
                zip(batch.times[last], batch.keys[last], batch.types[last], likely, strict=True)
            )
            self._take_rows()
        if now - self._counts[-1][0] >= _RATE_SECONDS:
            self._counts.append((now, self.run.recorder.step))
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            stream = self.run.stream
            self.watermark, self.waiting, self.lag = stream.watermark, stream.waiting, stream.lag()
            self.refused = dict(stream.dead_letters.counts)
            self.letters = list(stream.dead_letters.newest)

    def _take_rows(self) -> None:
        last = self._rows.newest[0] if self._rows.newest else 0
        waiting = self.run.recorder.metrics.waiting
        for row in reversed(list(takewhile(lambda row: row["step"] > last, reversed(waiting)))):
            self._rows.add(tuple(row[name] for name in _COLUMNS))

    # By the threads of the server.

    @contextmanager
    def held(self) -> Iterator[LiveRun]:
        """Hold the run's lock. Raises BusyError if the loop has not let go of it for a while."""
        if not self.run.lock.acquire(timeout=_PATIENCE_SECONDS):
            raise BusyError(f"the run has been busy for more than {_PATIENCE_SECONDS:g} s; try again.")
        try:
            yield self.run
        finally:
            self.run.lock.release()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the loop turns, and some figures. Needs no lock, which a stuck loop may hold."""
        now = time.monotonic()
        still = now - self.heartbeat
        return still < _STUCK_SECONDS, {
            "status": "ok" if still < _STUCK_SECONDS else "stuck",
            "events": self.run.recorder.step,
            "seconds_since_last_event": self._since_last_event(now),
            "seconds_since_last_turn": still,
        }

    def predict(self, key: str, now: float | None, horizon: float | None) -> dict[str, Any]:
        """Predict the next event of a key, by default as of the watermark. Raises as `predict_one` does."""
        with self.held() as run:
            row = run.model.keys.find(key)
            if now is None and row is not None:
                now = max(self.watermark, float(row["last_time"]))
            prediction = run.model.predict_one(key, now=now, horizon=horizon)
        return dataclasses.asdict(prediction)

    def figures(self) -> dict[str, Any]:
        """Return where the run stands, without its history."""
        with self.held() as run:
            recorder, model = run.recorder, run.model
            scores = recorder.scores.scores()
            row = recorder.row or scores
            shown = [*_SCORES, *model.extras]
            now = time.monotonic()
            counts = [*self._counts, (now, recorder.step)]
            before, events = counts[max(len(counts) - 1 - _RATE_OVER, 0)]
            return {
                "model": run.config.model,
                "sources": [source.name for source in run.stream.sources],
                "events": recorder.step,
                "events_per_second": (recorder.step - events) / max(now - before, 1e-3),
                "seconds_since_last_event": self._since_last_event(now),
                "seconds_since_last_turn": now - self.heartbeat,
                "scores": {
                    over: {
                        name: (row if over == "last" else scores).get(f"{name}{suffix}", math.nan)
                        for name in shown
                    }
                    for over, suffix in _OVER.items()
                },
                "statistics": model.statistics(),
                **{name: scores[name] for name in ("ks", "ks_critical", "drift", "drift_alarms")},
                "last_alarm": recorder.scores.last_alarm,
                "lag": self.lag,
                "watermark_timestamp_seconds": self.watermark,
                "watermark_delay_seconds": max(time.time() - self.watermark, 0.0),
                "waiting_events": self.waiting,
                "dead_letters": self.refused,
                "latency": {
                    share: 1e-3 * recorder.row.get(f"latency_{name}_ms", math.nan)
                    for share, name in (("0.5", "p50"), ("0.99", "p99"))
                },
                "keys": len(model.keys),
                "keys_in_memory": model.keys.in_memory,
                "types": len(model.vocabulary),
                "types_overflowed": model.overflowed,
            }

    def _since_last_event(self, now: float) -> float | None:
        return None if self.last_event_at is None else now - self.last_event_at

    def state(self) -> dict[str, Any]:
        """Return all that the page shows, as JSON but for numbers that are not finite."""
        state = self.figures()
        with self.held() as run:
            types = self._types()
            counts = list(self._counts)
            rows = self._rows.all()
            newest = list(self._newest)
            letters = self.letters
            elapsed = run.recorder.elapsed
            pit = run.recorder.scores.pit.tolist()
        now, clock = time.monotonic(), time.time()
        rates = [
            (clock - (now - until), (events - before) / (until - since))
            for (since, before), (until, events) in pairwise(counts)
        ]
        return state | {
            "title": f"{state['model']} on {', '.join(state['sources'])}",
            "time": clock,
            "since": self.started_at,
            "elapsed": elapsed,
            "interval": self.run.config.interval,
            "time_unit": self.run.config.time_unit,
            "rates": rates,
            "history": {"columns": _COLUMNS, "rows": rows},
            "pit": pit,
            "own_scores": {
                name: state["scores"]["fading"][name] for name in own_scores(self.run.model.extras)
            },
            "baselines": _leads(state["scores"]["fading"], self.run.model.extras),
            "by_type": types,
            "dead_letters": {
                "total": sum(self.refused.values()),
                "reasons": self.refused,
                "newest": [
                    letter | {"detail": _short(letter["detail"]), "position": _short(str(letter["position"]))}
                    for letter in reversed(letters)
                ],
            },
            "memory": resident_bytes(),
            "newest": [
                {"time": at, "key": _short(key), "type": _short(event_type), "likely": likely}
                for at, key, event_type, likely in reversed(newest)
            ],
        }

    def _types(self) -> list[dict[str, Any]]:
        scores = self.run.recorder.scores.type_scores()
        scored = scores["scored"]
        often = [int(i) for i in np.argsort(-scored, kind="stable")[:_TYPES_SHOWN] if scored[i]]
        return [
            {
                "name": _short(self.run.model.type_name(i)),
                "share": float(scored[i] / scored.sum()),
                "type_error": float(scores["type_error"][i]),
                "type_log_loss": float(scores["type_log_loss"][i]),
            }
            for i in often
        ]

    def collect(self) -> Iterable[Metric]:
        """Return what Prometheus asks for. A number that nobody knows is left out."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        figures = self.figures()
        about = {"model": figures["model"], "sources": ", ".join(figures["sources"])}
        yield InfoMetricFamily("streamwise_run", "The model and what it learns from.", value=about)
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"streamwise_{name}", text, value=figures[name])
        refused = CounterMetricFamily(
            "streamwise_dead_letters", "Records that were refused.", labels=["reason"]
        )
        for reason, count in sorted(figures["dead_letters"].items()):
            refused.add_metric([reason], count)
        yield refused

        # Name, what it is, the names of its labels, and values by labels.
        gauges: list[tuple[str, str, Sequence[str], Mapping[Any, float | None]]] = [
            (name, text, (), {(): figures[name]}) for name, text in _GAUGES.items()
        ]
        scores = figures["scores"]
        over_what = "Over all events, the last full row, and fading by 0.999 an event."
        for name, text in _SCORES.items():
            by_window = {(over,): scores[over][name] for over in _OVER}
            gauges.append((name, f"{text} {over_what}", ("window",), by_window))
        others = {(name, over): scores[over][name] for name in self.run.model.extras for over in _OVER}
        gauges.append(("score", "Averages that only this model has.", ("score", "window"), others))
        statistics = {(name,): value for name, value in figures["statistics"].items()}
        gauges.append(("statistic", "What this model says of itself.", ("statistic",), statistics))
        text = "From the poll of an event until it was learned, over the last full row."
        latencies = {(share,): value for share, value in figures["latency"].items()}
        gauges.append(("latency_seconds", text, ("quantile",), latencies))
        for name, text, labels, values in gauges:
            family = GaugeMetricFamily(f"streamwise_{name}", text, labels=labels)
            for of, value in values.items():
                if value is not None and math.isfinite(value):
                    family.add_metric(of, value)
            if family.samples:
                yield family


def _leads(scores: Mapping[str, float], extras: Iterable[str]) -> list[dict[str, Any]]:
    """Return by how much the model is better than each of its baselines, by score."""
    return [
        {"name": name}
        | {
            score: scores[column] - scores[score]
            if score in ("type_log_loss", "type_error")
            else scores[score] - scores[column]
            for score, column in columns.items()
        }
        for name, columns in baselines(extras).items()
    ]


class Thinned:
    """Rows spread evenly over a run of any length: when there are too many, every second one goes.

    >>> rows = Thinned(4)
    >>> for step in range(1, 12):
    ...     rows.add((step,))
    >>> rows.all()
    [(1,), (5,), (9,), (11,)]
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.newest: tuple[float, ...] | None = None
        self._kept: list[tuple[float, ...]] = []
        self._stride, self._seen = 1, 0

    def add(self, row: tuple[float, ...]) -> None:
        """Take the next row."""
        self.newest = row
        if self._seen % self._stride == 0:
            self._kept.append(row)
            if len(self._kept) >= self.limit:
                del self._kept[1::2]
                self._stride *= 2
        self._seen += 1

    def all(self) -> list[tuple[float, ...]]:
        """Return the rows that were kept, and the newest: at most `limit`."""
        if self.newest is None or self._kept[-1] is self.newest:
            return list(self._kept)
        return [*self._kept, self.newest]


def _rows_so_far(run: LiveRun) -> Iterator[tuple[float, ...]]:
    """Yield the rows that a run made before it was resumed."""
    rows = run.recorder.metrics
    last = 0.0
    if rows.path.is_file():
        table = pq.read_table(rows.path, columns=list(_COLUMNS))
        for row in zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True):
            last = row[0]
            yield row
    for waiting in rows.waiting:
        if waiting["step"] > last:
            yield tuple(waiting[name] for name in _COLUMNS)


def resident_bytes() -> int:
    """Return the memory that this process holds; where only its highest is known, that."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


# The pages.


def _pages(watch: Watch) -> list[Route]:
    from starlette.routing import Route

    # Plain functions: Starlette calls them in threads, where they may wait for the lock.
    def state(request: Request) -> Response:
        return json_response(watch.state())

    def health(request: Request) -> Response:
        well, about = watch.health()
        return json_response(about, 200 if well else 503)

    def predict(request: Request) -> Response:
        try:
            return json_response(watch.predict(**_asked(request)))
        except UnknownKeyError as error:
            return json_response({"error": str(error)}, 404)
        except UsageError as error:
            return json_response({"error": str(error)}, 400)

    return [
        Route("/", html_page("live.html")),
        Route("/state", state),
        Route("/health", health),
        Route("/predict", predict),
        _metrics_page(watch),
    ]


def _metrics_page(watch: Watch) -> Route:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
    from starlette.responses import Response
    from starlette.routing import Route

    registry: CollectorRegistry = CollectorRegistry()
    registry.register(watch)  # all it takes is a `collect`
    ProcessCollector(registry=registry)

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Route("/metrics", metrics)


def _asked(request: Request) -> dict[str, Any]:
    """Return the arguments of a request for a prediction. Raises UsageError."""
    known = ("key", "horizon", "now")
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in known:
            hint = meant(name, known)
            raise UsageError(f"no parameter is named {name!r}.{hint} Choose from: {', '.join(known)}.")
        if sum(name == other for other, _ in given) > 1:
            raise UsageError(f"{name} is given twice; give it once.")
    values = dict(given)
    if "key" not in values:
        raise UsageError("no key is given; ask for /predict?key=KEY.")
    asked: dict[str, Any] = {"key": values["key"], "horizon": None, "now": None}
    for name in ("horizon", "now"):
        if name in values:
            try:
                asked[name] = float(values[name])
            except ValueError:
                raise UsageError(f"{name} is {values[name]!r}; give a number of seconds.") from None
    return asked


@contextmanager
def _watching(run: LiveRun) -> Iterator[Watch]:
    watch = Watch(run)
    run.watchers.append(watch.saw)
    try:
        yield watch
    finally:
        run.watchers.remove(watch.saw)
