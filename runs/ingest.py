"""Learning from live events: starting a run, and going on with it exactly where it was."""

from __future__ import annotations

import dataclasses
import math
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamwise.agents import EventModel, event_model_class
from streamwise.agents.event_model import Array, Prediction, UnknownKeyError
from streamwise.kernels import native_info
from streamwise.runs.checkpoint import Checkpoint, Checkpoints, check_finite, describe
from streamwise.runs.config import made_otherwise
from streamwise.runs.event_progress import EventDisplay
from streamwise.runs.event_recorder import EventRecorder
from streamwise.runs.ingest_config import FIXED, IngestConfig, is_ingest, load_ingest, save_ingest
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest, learn
from streamwise.runs.partitions import is_partitioned, learned_before, load_arrangement, worker_directory
from streamwise.runs.saver import Saver
from streamwise.runs.texts import plain
from streamwise.runs.train import is_unused
from streamwise.streams import UsageError
from streamwise.streams.dead_letters import DeadLetterLog
from streamwise.streams.event import Source
from streamwise.streams.event_stream import EventBatch, EventStream
from streamwise.streams.sources import open_source

__all__ = [
    "IngestResult",
    "LiveRun",
    "check_same",
    "ingest",
    "load_model",
    "predict",
    "worker_directories",
]


_REST = ("dead_letters.jsonl", "keys.sqlite", "keys.sqlite-wal", "keys.sqlite-shm", "metrics.parquet")


@dataclass(frozen=True)
class IngestResult:
    """How a run ended: where it is, its scores, what was refused, and the signal that stopped it, if any.

    known: of the events, those that it had learned before it was resumed, if it has one worker.
    """

    directory: Path
    events: int
    scores: dict[str, float]
    dead_letters: dict[str, int]
    signal: int | None
    known: int = 0


@dataclass
class LiveRun:
    """A run while it goes on, for those who look at it from another thread, holding `lock` meanwhile."""

    config: IngestConfig[Any]
    model: EventModel
    stream: EventStream
    recorder: EventRecorder
    lock: threading.Lock = field(default_factory=threading.Lock)
    watchers: list[Callable[[EventBatch, Array], None]] = field(default_factory=list)
    """Called at every turn of the loop, by its thread, with what was just learned; `lock` is held."""

    def learn_batch(self, batch: EventBatch) -> None:
        """Learn the events of a poll, each after it was scored, and record the scores."""
        with self.lock:
            scores: Array = self.model.learn_many(batch.times, batch.types, batch.keys)
            self.recorder.record(batch, scores)
            for watcher in self.watchers:
                watcher(batch, scores)


def ingest(
    config: IngestConfig[Any],
    *,
    display: Callable[..., Any] = EventDisplay,
    stop: StopRequest | None = None,
    on_start: Callable[[LiveRun], None] | None = None,
) -> IngestResult:
    """Start a run, or go on with the one in its directory. Raises UsageError for what the user can mend.

    stop: ends the run when it is set, in place of SIGINT and SIGTERM. on_start: called once it is open.
    """
    config = config.resolved()
    directory = config.directory
    if config.workers > 1 or is_partitioned(directory):
        raise UsageError(f"{directory} is of several workers; give it to ingest_partitioned.")
    if directory.exists() and not is_ingest(directory) and not is_unused(directory):
        raise UsageError(f"{directory} already exists and holds no run on events; give another --out.")
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory), _removed_if_refused(directory, is_new):
        checkpoints = Checkpoints.of(config)
        checkpoints.mend()
        checkpoint = checkpoints.latest() if checkpoints.names() else None
        if checkpoint is not None:  # without one, it is as if the run had not begun
            check_same(load_ingest(directory), config)
        return _run(config, checkpoints, checkpoint, display, stop, on_start)


@contextmanager
def _removed_if_refused(directory: Path, is_new: bool) -> Iterator[None]:
    """Leave no empty directory behind a source that could not be opened."""
    try:
        yield
    except UsageError:
        if is_new and is_unused(directory):
            shutil.rmtree(directory, ignore_errors=True)
        raise


def check_same(saved: IngestConfig[Any], given: IngestConfig[Any]) -> None:
    """Raise UsageError if what is learned would change in the middle of a run."""
    pairs = [(name, getattr(saved, name), getattr(given, name)) for name in FIXED]
    if saved.model == given.model:
        there, here = (dataclasses.asdict(config.settings) for config in (saved, given))
        pairs += [(name, there[name], here[name]) for name in there]
    for name, there, here in pairs:
        if there != here:
            raise made_otherwise(given.directory, name, there, here)


def _run(
    config: IngestConfig[Any],
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    new_display: Callable[..., Any],
    stop: StopRequest | None,
    on_start: Callable[[LiveRun], None] | None,
) -> IngestResult:
    with ExitStack() as stack:
        run = _open(config, is_new=checkpoint is None, stack=stack)
        stream, recorder = run.stream, run.recorder
        notes = [_backend_of(run.model)]
        if checkpoint is not None:
            notes.append(_go_on(run, checkpoint))
        saver = Saver(
            checkpoints,
            recorder,
            last_good_step=None if checkpoint is None else recorder.step,
            fail_at_once=config.fail_on_save_error,
        )
        saving, known = _Saving(run, saver), recorder.step

        notes += _serve(run, stack)
        shown = new_display(run, ", ".join(notes))
        stack.enter_context(shown)
        if on_start is not None:
            on_start(run)
        if stop is None:
            stop = stack.enter_context(StopRequest().on_signals())

        def show() -> None:
            shown.update()
            saving.commit()

        with saver:
            step = learn(
                stream.batches(),
                run.learn_batch,
                record=lambda batch, nothing: None,  # it has recorded them itself, holding the lock
                checkpoint=saving.save,
                due=saving.is_due,
                show=show,
                stop=stop,
                step=recorder.step,
                size=lambda batch: batch.size,
            )
            if stop.signal is None:
                recorder.finish()
                saving.save(last=True)
        saving.commit()
        refused = dict(stream.dead_letters.counts)
        return IngestResult(config.directory, step, recorder.scores.scores(), refused, stop.signal, known)


def _open(config: IngestConfig[Any], *, is_new: bool, stack: ExitStack) -> LiveRun:
    """Open sources, model and files of a run, which the stack closes. is_new: it has no checkpoint yet."""
    directory = config.directory
    sources = _open_sources(config, stack)
    if is_new:
        for name in _REST:  # what a run left that was killed before its first checkpoint
            (directory / name).unlink(missing_ok=True)
    save_ingest(config, directory)
    stream = _merged(config, sources, stack)
    model = event_model_class(config.model)(
        config.settings, backend=config.backend, keys_path=directory / "keys.sqlite"
    )
    stack.callback(model.close)
    stream.last_time_of = lambda key: _last_time(model, key)
    recorder = stack.enter_context(
        EventRecorder(directory, model, stream, interval=config.interval, time_unit=config.time_unit)
    )
    return LiveRun(config, model, stream, recorder)


def _open_sources(config: IngestConfig[Any], stack: ExitStack) -> list[Source]:
    sources = []
    for number, url in enumerate(config.sources):
        source = open_source(
            url,
            follow=config.follow,
            until_end=config.until_end,
            group=f"streamwise-{config.group}",
            only=config.partitions_of(number),
        )
        stack.callback(source.close)
        sources.append(source)
    return sources


def _merged(config: IngestConfig[Any], sources: Sequence[Source], stack: ExitStack) -> EventStream:
    """Return the events of all sources in the order of their times."""
    dead_letters = DeadLetterLog(
        config.directory / "dead_letters.jsonl",
        also=_kafka_letters(config, stack),
        limit=config.max_dead_letters,
    )
    stack.callback(dead_letters.close)
    return EventStream(
        sources,
        dead_letters,
        lateness=config.lateness,
        buffer=config.buffer,
        idle_seconds=config.idle_seconds,
        until_end=config.until_end,
        most=config.events,
        numbered=True if config.partitions is not None else None,
    )


def _go_on(run: LiveRun, checkpoint: Checkpoint) -> str:
    """Put a run where a checkpoint was; return where that is."""
    run.model.load_state_dict(checkpoint.state)
    position = checkpoint.meta["position"]
    run.stream.seek(position)
    run.recorder.resume(checkpoint.meta["recorder"])
    if "stdin" in position["partitions"]:
        warnings.warn("what is piped now is taken for what follows what was learned.", stacklevel=2)
    return f"goes on after {run.recorder.step:,} events"


class _Saving:
    """Has a run's checkpoints written when they are due, and lets go of what only older ones needed."""

    def __init__(self, run: LiveRun, saver: Saver) -> None:
        self.run, self.saver = run, saver
        self._saved_at, self._saved_records = time.monotonic(), run.stream.records
        # Of the keys' file, by the step of the checkpoint that needs it.
        self._generations: dict[int, int] = {}

    def is_due(self, step: int) -> bool:
        """Return whether there is something new to keep, and it is time to."""
        is_time = time.monotonic() - self._saved_at >= self.run.config.checkpoint_seconds
        return is_time and self.run.stream.records > self._saved_records

    def save(self, last: bool = False) -> None:
        """Have a checkpoint written of how things are."""
        model, stream = self.run.model, self.run.stream
        with self.run.lock:
            generation = model.keys.generation
            state = model.state_dict()
            check_finite(state, "please report the settings and what came last")
            position = {**stream.position, "keys_generation": generation}
        meta = {**describe(model), "position": position, "recorder": self.run.recorder.state()}
        self.saver.save(state, meta, last=last)
        self._saved_at, self._saved_records = time.monotonic(), stream.records
        self.commit()

    def commit(self) -> None:
        """Tell sources and keys what is on disk since the last time."""
        durable = self.saver.newly_durable()
        if durable is None:
            return
        self.run.stream.commit(durable)
        self._generations[durable["released"]] = durable["keys_generation"]
        # None is listed in the instant in which the only one is replaced.
        oldest = min(self.saver.checkpoints.steps(), default=durable["released"])
        if oldest in self._generations:
            self.run.model.keys.forget_before(self._generations[oldest])
        for step in [step for step in self._generations if step < oldest]:
            del self._generations[step]


def _last_time(model: EventModel, key: str) -> float:
    row = model.keys.find(key)
    return -math.inf if row is None else float(row["last_time"])


def _kafka_letters(config: IngestConfig[Any], stack: ExitStack) -> Callable[[bytes], None] | None:
    if config.dead_letters is None:
        return None
    from streamwise.streams.sources import open_dead_letters

    letters = open_dead_letters(config.dead_letters)
    stack.callback(letters.close)
    write: Callable[[bytes], None] = letters.write
    return write


def _serve(run: LiveRun, stack: ExitStack) -> list[str]:
    """Start the servers that are asked for; return where they are."""
    config = run.config
    notes: list[str] = []
    if config.serve is None and config.metrics_port is None:
        return notes
    from streamwise.runs.serve import serve, serve_metrics

    if config.serve is not None:
        server = stack.enter_context(serve(run, port=config.serve, host=config.host))
        notes.append(f"live at {server.url}")
    if config.metrics_port is not None:
        server = stack.enter_context(serve_metrics(run, port=config.metrics_port, host=config.host))
        notes.append(f"metrics at {server.url}/metrics")
    return notes


def _backend_of(model: EventModel) -> str:
    info = native_info()
    if model.native is None or info is None:
        return "reference back end"
    return "native back end"


def worker_directories(directory: Path) -> list[Path]:
    """Return the run directories that one consists of: those of its workers, or itself."""
    if not is_partitioned(directory):
        return [directory]
    arrangement = load_arrangement(directory)
    return [worker_directory(directory, arrangement, i) for i in range(len(arrangement.workers))]


def load_model(directory: Path) -> tuple[EventModel, Checkpoint]:
    """Return the model of a run's newest checkpoint, to look at beside a run that may be going on.

    Raises UsageError for a run of several workers, whose models are theirs.
    """
    if is_partitioned(directory):
        raise UsageError(
            f"{directory} has a model for each of its workers; name one, such as "
            f"{worker_directories(directory)[0]}."
        )
    config = load_ingest(directory)
    checkpoint = Checkpoints.of(config).latest()
    model: EventModel = event_model_class(config.model)(
        config.settings, backend=config.backend, keys_path=directory / "keys.sqlite", read_only=True
    )
    model.load_state_dict(checkpoint.state)
    return model, checkpoint


def predict(
    directory: Path, key: str, *, now: float | None = None, horizon: float | None = None
) -> tuple[Prediction, Checkpoint]:
    """Predict the next event of a key from a run's newest checkpoint.

    now: seconds, in the events' own time; by default how far the stream had come. Of several workers that one
    is asked which has seen the key last. Raises UsageError.
    """
    if is_partitioned(directory):
        directory = _knowing(worker_directories(directory), key)
    model, checkpoint = load_model(directory)
    step = checkpoint.meta["step"] + round(learned_before(directory))
    checkpoint = dataclasses.replace(checkpoint, meta={**checkpoint.meta, "step": step})
    partitions = checkpoint.meta["position"]["partitions"].values()
    row = model.keys.find(key)
    if row is None:
        some, _ = next(model.keys.chunks(3), ([], None))
        others = f" Seen were, among others, {', '.join(map(plain, some))}." if some else ""
        raise UnknownKeyError(f"no event of key {key!r} was seen.{others}")
    if now is None:
        known = [p["watermark"] for p in partitions if p["watermark"] is not None]
        now = max([float(row["last_time"]), *([min(known)] if known else [])])
    return model.predict_one(key, now=now, horizon=horizon), checkpoint


def _knowing(directories: Sequence[Path], key: str) -> Path:
    """Return the worker's directory whose newest checkpoint knows the latest event of a key."""
    begun = [path for path in directories if is_ingest(path) and Checkpoints.of(path).names()]
    last_times = {}
    for path in begun:
        model, _ = load_model(path)
        last_times[path] = _last_time(model, key)
        model.close()
    if not begun:
        raise UsageError(f"{directories[0].parents[1]} holds no checkpoint yet.")
    return max(last_times, key=lambda path: last_times[path])
