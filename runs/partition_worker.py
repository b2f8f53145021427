"""One of several workers of a run on events, in a process of its own: the body of a Ray actor.

It runs the loop of `ingest` on its partitions, unchanged; others look at it, and make it like the others,
between two polls.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from streamwise.agents.event_merge import Parameters, adopt, parameters
from streamwise.runs.checkpoint import CheckpointError
from streamwise.runs.ingest import IngestResult, LiveRun, ingest
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.lock import InUseError
from streamwise.runs.loop import StopRequest
from streamwise.runs.sweep_runner import Where, one_line, warnings_to
from streamwise.streams import DivergedError, NonFiniteSampleError, UsageError
from streamwise.streams.dead_letters import DeadLetterLimitError

__all__ = ["Shared", "Worker", "WorkerOutcome", "WorkerProgress"]

_LOOK_SECONDS = 0.5
_LOCK_SECONDS = 30.0
_HOLD_SECONDS = 10.0  # that a worker waits for the average of what it has given


@dataclass(frozen=True)
class WorkerProgress:
    """How far a worker is. events, began_at: learned in this arrangement, now and when it went on."""

    events: int
    began_at: int
    lag: int | None
    refused: int
    scored: int
    log_likelihood: float
    seconds: float


@dataclass(frozen=True)
class WorkerOutcome:
    """How a worker ended: at the end of its partitions, stopped on request, or by an error.

    is_final: trying again would end in the same way. kind: as whose error the run is to end.
    """

    events: int
    began_at: int = 0
    lag: int | None = None
    log_likelihood: float = float("nan")
    stopped: bool = False
    error: str | None = None
    is_final: bool = False
    kind: Literal["usage", "failed"] = "failed"


@dataclass(frozen=True)
class Shared:
    """What a worker gives to be averaged. events: learned since `round`, the average that it last took."""

    parameters: Parameters
    events: int
    round: int


class Worker:
    """Learns from some partitions in one thread; another may ask, stop it, and take and give parameters."""

    def __init__(self) -> None:
        self._watch: _Watch | None = None
        self._live: LiveRun | None = None
        self._stop = StopRequest()
        self._holding = threading.Lock()  # of what follows
        self._held_for = 0  # the round that the loop waits for; 0 if it does not
        self._round = self._events_then = 0

    def where(self) -> Where:
        """Return which process this is."""
        import os
        import socket

        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return Where(socket.gethostname(), node, os.getpid())

    def run(self, config: IngestConfig[Any]) -> WorkerOutcome:
        """Learn until the partitions end or `stop` is called; whatever ends it is in the outcome."""
        self._stop, self._round = StopRequest(), 0
        config.directory.mkdir(parents=True, exist_ok=True)

        def display(run: LiveRun, note: str = "") -> _Watch:
            self._watch = _Watch(run, note)
            return self._watch

        def begin(run: LiveRun) -> None:
            self._events_then = run.recorder.step
            self._live = run

        def outcome(**found: Any) -> WorkerOutcome:
            watch = self._watch
            found.setdefault("events", watch.run.recorder.step if watch else 0)
            if watch is None:
                return WorkerOutcome(began_at=found["events"], **found)
            seen = watch.seen
            return WorkerOutcome(
                began_at=watch.began_at, lag=seen.lag, log_likelihood=seen.log_likelihood, **found
            )

        try:
            result = self._ingest_soon(config, display=display, stop=self._stop, on_start=begin)
        except (InUseError, CheckpointError, OSError) as error:  # another time it may be otherwise
            return outcome(error=one_line(error))
        except UsageError as error:
            return outcome(error=one_line(error), is_final=True, kind="usage")
        except (DivergedError, NonFiniteSampleError, DeadLetterLimitError) as error:
            return outcome(error=one_line(error), is_final=True)
        except Exception as error:
            log = config.directory / "run.log"
            with contextlib.suppress(OSError), log.open("a") as file:
                traceback.print_exc(file=file)
            return outcome(error=f"{type(error).__name__}: {one_line(error)} (see {log})")
        else:
            return outcome(events=result.events, stopped=result.signal is not None)
        finally:
            self._live = self._watch = None

    def _ingest_soon(self, config: IngestConfig[Any], **options: Any) -> IngestResult:
        """Ingest once the process of a driver that was killed lets go of the directory."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return ingest(config, **options)
            except InUseError:
                if time.monotonic() > deadline or self._stop.signal is not None:
                    raise
            time.sleep(0.2)

    def progress(self) -> WorkerProgress | None:
        """Return how far it is; None while it is not at work."""
        watch = self._watch
        return None if watch is None else watch.seen

    def stop(self) -> None:
        """Have it end after its poll, with a checkpoint."""
        self._stop.signal = signal.SIGINT

    def parameters(self, round_number: int) -> Shared | None:
        """Return what is to be averaged, and learn no more until `set_parameters`; None if not at work.

        If nobody calls that for ten seconds, learning goes on, and this round without this worker.
        """
        run = self._live
        if run is None or not run.lock.acquire(timeout=_HOLD_SECONDS):
            return None
        if self._live is not run:
            run.lock.release()
            return None
        with self._holding:
            self._held_for = round_number
        timer = threading.Timer(_HOLD_SECONDS, self._let_go, (run, round_number))
        timer.daemon = True
        timer.start()
        return Shared(parameters(run.model), run.recorder.step - self._events_then, self._round)

    def set_parameters(self, round_number: int, given: Parameters | None) -> bool:
        """Take what all are to have, and learn on; None changes nothing. False if it came too late."""
        run = self._live
        with self._holding:
            if run is None or self._held_for != round_number:
                return False
            if given is not None:
                adopt(run.model, given)
                self._round, self._events_then = round_number, run.recorder.step
            self._held_for = 0
            run.lock.release()
        return True

    def _let_go(self, run: LiveRun, round_number: int) -> None:
        with self._holding:
            if self._held_for == round_number:
                self._held_for = 0
                run.lock.release()


class _Watch:
    """The display of a worker whose numbers others ask for; its words go to run.log."""

    def __init__(self, run: LiveRun, note: str) -> None:
        self.run, self._note = run, note
        self.began_at = run.recorder.step
        self._started = self._looked_at = time.perf_counter()
        self._stack = contextlib.ExitStack()
        self.seen = self._look()

    def update(self) -> None:
        """Look at the run now and then, in the thread that runs it: sources are not to be asked by others."""
        if time.perf_counter() - self._looked_at >= _LOOK_SECONDS:
            self.seen = self._look()

    def _look(self) -> WorkerProgress:
        self._looked_at = time.perf_counter()
        stream, recorder = self.run.stream, self.run.recorder
        scored, time_, kind = recorder.scores.total[:3].tolist()
        return WorkerProgress(
            events=recorder.step,
            began_at=self.began_at,
            lag=stream.lag(),
            refused=stream.dead_letters.total,
            scored=int(scored),
            log_likelihood=(time_ + kind) / scored if scored else float("nan"),
            seconds=self._looked_at - self._started,
        )

    def __enter__(self) -> _Watch:
        self._stack.enter_context(warnings_to(self.run.config.directory / "run.log", self._note))
        return self

    def __exit__(self, *error: Any) -> None:
        self.seen = self._look()
        self._stack.close()
