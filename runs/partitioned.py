"""A run on events with several workers: each learns from some of the partitions, in a process of its own.

Ray starts the processes, places them and starts them again when they die. Which partitions each reads, when
one is given up, and what they tell each other is decided here. Nothing passes between processes at an event:
a worker runs the loop of `ingest`, with its own checkpoints, and goes on from these by itself.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from streamwise.runs.averaging import Averaging
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.event_progress import EventDisplay
from streamwise.runs.ingest import IngestResult, check_same, ingest
from streamwise.runs.ingest_config import IngestConfig, is_ingest, load_ingest, save_ingest
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest
from streamwise.runs.merged_run import finish_merged
from streamwise.runs.partition_display import PartitionDisplay
from streamwise.runs.partition_worker import Worker, WorkerOutcome, WorkerProgress
from streamwise.runs.partitions import (
    Arrangement,
    check_divisible,
    listed,
    worker_config,
)
from streamwise.runs.ray_cluster import (
    Journal,
    RayStoppedError,
    errors_of_others_to,
    have_stop,
    pause_after,
    reach,
    running_ray,
    take_in,
    there,
    why_it_ended,
)
from streamwise.runs.rebalance import held, rebalance, tidy
from streamwise.runs.sweep_runner import Where
from streamwise.runs.train import is_unused
from streamwise.streams import UsageError

__all__ = ["Slot", "WorkerError", "arranged", "ingest_partitioned"]

_ASK_EVERY_SECONDS = 1.0  # each worker for its progress
_LOOK_EVERY_SECONDS = 30.0  # for partitions that have appeared
_STOP_WITHIN_SECONDS = 120.0


class WorkerError(OSError):
    """A worker's end that ends the run; all others are in their checkpoints."""


@dataclass(eq=False)
class Slot:
    """One worker: its process, the call it is busy with, and what it last said. events: that it has learned.

    began_at: the furthest that an attempt went on from; failures: in a row, from there.
    """

    number: int
    config: IngestConfig[Any]
    runner: Any
    call: Any
    where: Where | None = None
    running: bool = False
    done: bool = False
    asked: Any = None
    progress: WorkerProgress | None = None
    events: int = 0
    began_at: int = -1
    failures: int = 0
    restarts: int = 0
    not_before: float = 0.0


def ingest_partitioned(
    config: IngestConfig[Any],
    *,
    console: Console | None = None,
    display: Callable[..., Any] = EventDisplay,
    stop: StopRequest | None = None,
) -> IngestResult:
    """Start a run of several workers, or go on with one, by as many as the configuration has.

    A run that had one worker is divided where it is; one that is to have one goes on in this process, without
    Ray. Raises UsageError for what the user can mend, WorkerError and RayStoppedError where a run fails.
    display: of a single worker; stop: ends the run when it is set, in place of SIGINT and SIGTERM.
    """
    config = dataclasses.replace(config.resolved(), out=config.directory.absolute())
    directory = config.directory
    if directory.exists() and not is_ingest(directory) and not is_unused(directory):
        raise UsageError(f"{directory} already exists and holds no run on events; give another --out.")
    reach(config.address)
    with arranged(config) as (arrangement, journal):
        signal = _run(config, arrangement, journal, console, display, stop)
        return finish_merged(directory, signal)


@contextmanager
def arranged(config: IngestConfig[Any]) -> Iterator[tuple[Arrangement, Journal]]:
    """Hold a run's directory, with the arrangement of its partitions that is asked for.

    config: resolved. Raises UsageError for fewer partitions than workers, other settings than before, or a
    directory that another process holds.
    """
    directory = config.directory
    arrangement = held(directory)
    known = () if arrangement is None else arrangement.sources
    sources, labels = listed(config, known)
    check_divisible(config, labels)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        if is_ingest(directory) and (arrangement is not None or Checkpoints.of(config).names()):
            check_same(load_ingest(directory), config)
        save_ingest(config, directory)
        journal = Journal(directory / "events.jsonl")
        yield _rearranged(config, sources, labels, arrangement, journal), journal


def _rearranged(
    config: IngestConfig[Any],
    sources: Sequence[str],
    labels: Sequence[str],
    arrangement: Arrangement | None,
    journal: Journal,
) -> Arrangement:
    """Return the arrangement that is asked for, made of the one that holds if it is another."""
    if arrangement is not None:
        tidy(config.directory, arrangement.generation)
        same = {label for part in arrangement.workers for label in part} == set(labels)
        if same and len(arrangement.workers) == config.workers:
            journal.add("resumed", workers=config.workers, generation=arrangement.generation)
            return arrangement
    new = rebalance(config, sources, labels, config.workers, arrangement)
    _say_rebalanced(journal, new, "started" if arrangement is None else "rebalanced")
    return new


def _say_rebalanced(journal: Journal, new: Arrangement, event: str, **more: Any) -> None:
    what = {str(i): list(labels) for i, labels in enumerate(new.workers)}
    journal.add(event, workers=len(new.workers), generation=new.generation, partitions=what, **more)


def _run(
    config: IngestConfig[Any],
    arrangement: Arrangement,
    journal: Journal,
    console: Console | None,
    display: Callable[..., Any],
    stop: StopRequest | None,
) -> int | None:
    """Learn until the partitions end or a signal comes; return that."""
    if config.workers == 1:
        return ingest(worker_config(config, arrangement, 0), display=display, stop=stop).signal
    directory = config.directory
    with (
        errors_of_others_to(directory / "ray.log") as stderr,
        running_ray(config.address, _cpus(config.workers)),
    ):
        driver = _Driver(config, arrangement, journal, console or Console(file=stderr), stop)
        try:
            return driver.run()
        except (RayStoppedError, driver.ray.exceptions.RayError) as error:
            reason = str(error).partition("\n")[0]
            raise RayStoppedError(
                f"Ray has stopped ({reason}); go on with `streamwise resume {directory}`."
            ) from None


def _cpus(workers: int) -> int:
    """Return how many cores Ray is told of: so many workers were asked for, whatever there is."""
    return max(workers, os.cpu_count() or 1)


class _Driver:
    """Keeps every worker at work until its partitions have ended, or the run is stopped."""

    def __init__(
        self,
        config: IngestConfig[Any],
        arrangement: Arrangement,
        journal: Journal,
        console: Console,
        stop: StopRequest | None,
    ) -> None:
        import ray

        self.ray: Any = ray
        self.config, self.arrangement, self.journal = config, arrangement, journal
        self.slots: list[Slot] = []
        self.display = PartitionDisplay(config, arrangement, console)
        self.given_stop = stop
        self.stop = stop or StopRequest()
        self.failure: Exception | None = None
        self.lost_for_good: Slot | None = None
        self._averaging = (
            Averaging(config, ray, self.display.note, journal.add) if config.sync_seconds else None
        )
        self._asked_at = -float("inf")
        self._looked_at = time.monotonic()
        self._looking = ThreadPoolExecutor(1)
        self._found: Future[Any] | None = None

    def run(self) -> int | None:
        """Run to the end; return the signal that stopped it, if any."""
        self._check_room()
        self.slots = [self._new_slot(i) for i in range(len(self.arrangement.workers))]
        try:
            if self.given_stop is not None:
                self._work()
            else:
                with self.stop.on_signals():
                    self._work()
        finally:
            self._looking.shutdown(wait=False, cancel_futures=True)
        if self.failure is not None:
            self.journal.add("failed", message=str(self.failure))
            raise self.failure
        event = "interrupted" if self.stop.signal is not None else "finished"
        self.journal.add(event, events=self.arrangement.past.events + sum(slot.events for slot in self.slots))
        return self.stop.signal

    def _work(self) -> None:
        with self.display:
            while not all(slot.done for slot in self.slots):
                if self.stop.signal is not None or self.failure is not None:
                    self._stop_all()
                    return
                if self.lost_for_good is not None:
                    self._hand_over(self.lost_for_good)
                self._take_up_new_partitions()
                self._start()
                self._ask()
                if self._averaging is not None:
                    self._averaging.when_due(
                        [slot.runner for slot in self.slots if slot.running and slot.progress is not None]
                    )
                self._wait()
                self.display.update(self.slots)

    def _check_room(self) -> None:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        room = sum(int(node.get("CPU", 0.0)) for node in nodes)
        if room < self.config.workers:
            raise UsageError(
                f"the cluster has {room} cores, and each of {self.config.workers} workers takes one; add "
                f"nodes, or use --workers {max(room, 1)}."
            )

    # ---- workers ----

    def _new_slot(self, number: int) -> Slot:
        runner = (
            self.ray.remote(concurrency_groups={"watch": 1})(Worker)
            .options(num_cpus=1, max_restarts=-1, scheduling_strategy="SPREAD")
            .remote()
        )
        config = worker_config(self.config, self.arrangement, number)
        return Slot(number, config, runner, there(runner))

    def _start(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.call is None and not slot.done and slot.not_before <= now:
                slot.progress, slot.running = None, True
                slot.call = slot.runner.run.remote(slot.config)
                where = slot.where
                self.journal.add(
                    "at work" if slot.began_at < 0 and not slot.restarts else "restarted",
                    worker=slot.number,
                    node=where and f"{where.host}:{where.node[:6]}",
                    process=where and where.process,
                )

    def _ask(self) -> None:
        now = time.monotonic()
        if now - self._asked_at < _ASK_EVERY_SECONDS:
            return
        self._asked_at = now
        for slot in self.slots:
            if slot.running and slot.asked is None:
                slot.asked = slot.runner.progress.options(concurrency_group="watch").remote()

    def _wait(self) -> None:
        """Wait a moment for whatever comes first, and take it in."""
        # Progress first: with an end, what was asked meanwhile is forgotten.
        asked = [(slot.asked, partial(self._take_progress, slot)) for slot in self.slots]
        calls = [(slot.call, partial(self._take_answer, slot)) for slot in self.slots]
        take_in(self.ray, asked + calls)

    def _take_progress(self, slot: Slot) -> None:
        call, slot.asked = slot.asked, None
        try:
            progress = self.ray.get(call)
        except self.ray.exceptions.RayError:  # what became of the worker is the answer of another call
            return
        if progress is not None and slot.running:
            slot.progress, slot.events = progress, progress.events
            self._check_refused()

    def _check_refused(self) -> None:
        limit = self.config.max_dead_letters
        if limit is None:
            return
        refused = sum(self.arrangement.past.dead_letters.values())
        refused += sum(slot.progress.refused for slot in self.slots if slot.progress is not None)
        if refused > limit and self.failure is None:
            self.failure = WorkerError(
                f"{refused:,} records were refused, more than the limit of {limit:,}; the workers' "
                "dead_letters.jsonl say why."
            )

    def _take_answer(self, slot: Slot) -> None:
        """A worker has come up, or ended, or died."""
        call, slot.call = slot.call, None
        was_running, slot.running = slot.running, False
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            slot.call, slot.asked = there(slot.runner), None
            if was_running:
                began_at = slot.progress.began_at if slot.progress else slot.began_at
                self._lost(slot, why_it_ended(error), began_at)
            return
        if isinstance(answer, Where):
            slot.where = answer
        else:
            self._ended(slot, answer)

    def _ended(self, slot: Slot, outcome: WorkerOutcome) -> None:
        if outcome.error is None:
            slot.events = outcome.events
            slot.done = True
            event = "worker stopped" if outcome.stopped else "worker finished"
            self.journal.add(event, worker=slot.number, events=outcome.events)
            if not outcome.stopped:
                self.display.finished(slot)
        elif outcome.is_final:
            slot.done = True
            kind = UsageError if outcome.kind == "usage" else WorkerError
            self.failure = self.failure or kind(outcome.error)
            self.journal.add("worker failed", worker=slot.number, message=outcome.error)
        else:
            self._lost(slot, outcome.error, outcome.began_at)

    def _lost(self, slot: Slot, reason: str, began_at: int) -> None:
        """Have a worker go on after a pause, or give it up."""
        slot.failures = 1 if began_at > slot.began_at else slot.failures + 1
        slot.began_at = max(began_at, slot.began_at)
        self.journal.add("lost", worker=slot.number, message=reason, events=slot.events)
        if slot.failures > self.config.max_failures:
            self.lost_for_good = slot
            self.display.gave_up(slot, reason)
            if len(self.slots) == 1:
                self.failure = WorkerError(
                    f"the last worker is lost: {reason}; go on with `streamwise resume "
                    f"{self.config.directory}`."
                )
            return
        pause = pause_after(slot.failures)
        slot.restarts += 1
        slot.not_before = time.monotonic() + pause
        self.display.lost(slot, reason, pause)

    # ---- another arrangement ----

    def _hand_over(self, gone: Slot) -> None:
        """Give the partitions of a worker that is lost for good to the others."""
        self.lost_for_good = None
        gone.done = True
        self.ray.kill(gone.runner)
        if not self._stop_all():
            self.failure = WorkerError(
                f"a worker does not stop, so the partitions of worker {gone.number} cannot be moved; end it, "
                f"and go on with `streamwise resume {self.config.directory}`."
            )
        elif self.failure is None:
            labels = [label for part in self.arrangement.workers for label in part]
            self._rearrange(self.arrangement.sources, labels, [gone])

    def _take_up_new_partitions(self) -> None:
        """Now and then look, beside the work, whether a topic or folder has got further partitions."""
        grows = self.config.follow or any(url.startswith("kafka:") for url in self.config.sources)
        if not grows or self.config.until_end:
            return
        if self._found is None:
            if time.monotonic() - self._looked_at > _LOOK_EVERY_SECONDS:
                self._found = self._looking.submit(listed, self.config, self.arrangement.sources)
            return
        if not self._found.done():
            return
        found, self._found, self._looked_at = self._found, None, time.monotonic()
        if found.exception() is not None:  # a broker that is away is the workers' to wait for
            return
        sources, labels = found.result()
        known = {label for part in self.arrangement.workers for label in part}
        if known < set(labels) and self._stop_all():
            self._rearrange(sources, labels, [])

    def _rearrange(self, sources: Sequence[str], labels: Sequence[str], gone: Sequence[Slot]) -> None:
        workers = len(self.slots) - len(gone)
        lost = [slot.number for slot in gone]
        self.arrangement = rebalance(self.config, sources, labels, workers, self.arrangement, lost)
        _say_rebalanced(self.journal, self.arrangement, "rebalanced", lost=lost or None)
        stay = [slot for slot in self.slots if slot not in gone]
        self.slots = [
            Slot(
                number,
                worker_config(self.config, self.arrangement, number),
                slot.runner,
                slot.call,
                where=slot.where,
                restarts=slot.restarts,
            )
            for number, slot in enumerate(stay)
        ]
        self.lost_for_good = None  # who was lost meanwhile tries again with what it has now
        self.display.rebalanced(self.arrangement)

    def _stop_all(self) -> bool:
        """Have every worker end with a checkpoint; return whether all of them have."""
        running = [slot for slot in self.slots if slot.running]
        self.display.stopping(len(running))
        have_stop(
            lambda: [slot.runner for slot in self.slots if slot.running], self._wait, _STOP_WITHIN_SECONDS
        )
        return not any(slot.running for slot in self.slots)
