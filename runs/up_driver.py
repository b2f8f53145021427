"""The driver of a live system: keeps every learner at work, and everybody informed.

Ray starts the processes, places them and starts them again when they die. Here is decided when a learner is
tried again and when it is given up; whatever happens to one, the rest goes on. Nothing passes between
processes at a sample: a learner runs the loop of `train` or `ingest` with its own checkpoints, and goes on
from these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from streamwise.memory.shared import MemoryCounts
from streamwise.runs.averaging import Averaging
from streamwise.runs.config import RunConfig
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.loop import StopRequest
from streamwise.runs.partition_worker import WorkerOutcome, WorkerProgress
from streamwise.runs.ray_cluster import (
    Journal,
    have_stop,
    pause_after,
    scratch_of,
    take_in,
    there,
    why_it_ended,
)
from streamwise.runs.shared_memory import MemorySettings
from streamwise.runs.sweep_runner import Outcome, Where
from streamwise.runs.train import fetch
from streamwise.runs.up_learner import AgentEnd, AgentNews, Sharing
from streamwise.runs.up_members import Member, SharedOne
from streamwise.runs.up_processes import Processes, UpOptions, shards_of
from streamwise.runs.up_spec import SystemSpec, wiring
from streamwise.runs.up_status import STATUS_FILE, SystemDisplay

__all__ = ["Driver", "SystemResult"]

_ASK_EVERY_SECONDS = 1.0
_STOP_WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class SystemResult:
    """How a system ended: its learners' states, by name, why some were given up, and the signal, if any."""

    directory: Path
    states: dict[str, str]
    failed: dict[str, str]
    signal: int | None


class Driver:
    """Keeps every learner at work, and everybody informed."""

    def __init__(
        self,
        spec: SystemSpec,
        options: UpOptions,
        processes: Processes,
        members: list[Member],
        memories: dict[str, MemorySettings],
        journal: Journal,
        console: Console,
    ) -> None:
        self.ray = processes.ray
        self.spec, self.options, self.processes, self.members = spec, options, processes, members
        self.journal = journal
        self.stop = StopRequest()
        self.display = SystemDisplay(spec.name, wiring(spec), console)
        self.memories = [
            SharedOne(name, part, processes.memory(name, part, folder))
            for whole, settings in memories.items()
            for name, part, folder in shards_of(whole, settings)
        ]
        self._averaging = {
            plan.name: Averaging(
                plan.config, self.ray, partial(self._note, plan.name), partial(journal.add, learner=plan.name)
            )
            for plan in spec.learners
            if isinstance(plan.config, IngestConfig) and plan.config.sync_seconds
        }
        self._asked_at = -math.inf
        self._state = "running"

    def run(self) -> SystemResult:
        """Run until all have ended; then no process is left."""
        try:
            return self._run()
        finally:
            actors = [member.actor for member in self.members] + [one.actor for one in self.memories]
            with contextlib.suppress(self.ray.exceptions.RayError, RuntimeError):  # if Ray has gone
                for actor in actors:
                    if actor is not None:
                        self.ray.kill(actor)

    def _run(self) -> SystemResult:
        if left := len(self.processes.left):
            self.journal.add("taken over", processes=left)
            self.display.say(f"{left} processes had gone on without a driver; they go on")
        for member in self.members:
            self._make_actor(member)
        with self.display, self.stop.on_signals():
            while any(member.state not in ("finished", "failed") for member in self.members):
                if self.stop.signal is not None:
                    self._stop_all()
                    break
                self._start()
                self._ask()
                for name, averaging in self._averaging.items():
                    averaging.when_due(
                        [one.actor for one in self.members if one.plan.name == name and one.is_learning]
                    )
                self._wait()
        self._state = "stopped" if self.stop.signal is not None else "finished"
        self._close_memories()
        self._tell()
        states = {member.name: member.state for member in self.members}
        failed = {member.name: member.message for member in self.members if member.state == "failed"}
        self.journal.add("down", failed=len(failed))
        return SystemResult(self.options.out, states, failed, self.stop.signal)

    def _note(self, learner: str, text: str) -> None:
        self.display.say(f"{learner}: {text}")

    # ---- processes ----

    def _make_actor(self, member: Member) -> None:
        member.actor = self.processes.learner(member)
        plan = member.plan
        if plan.memory is not None:
            shards = [one.actor for one in self.memories if one.memory == plan.memory]
            member.sharing = Sharing(tuple(shards), plan.writes is not None, plan.reads is not None)
        member.call = there(member.actor)

    def _start(self) -> None:
        now, scratch = time.monotonic(), scratch_of(self.spec.name, self.options.storage)
        for member in self.members:
            if member.call is None and member.state in ("starting", "paused") and member.not_before <= now:
                if isinstance(member.config, RunConfig):
                    # In a process that was taken over it waits for the one that is under way, and goes on.
                    member.call = member.actor.learn.remote(
                        member.name, member.config, member.sharing, scratch
                    )
                else:
                    member.call = member.actor.run.remote(member.config)
                member.state = "running"
                member.seen.clear()
                self.journal.add(
                    "started", learner=member.name, process=member.where and member.where.process
                )

    # ---- news ----

    def _ask(self) -> None:
        now = time.monotonic()
        if now - self._asked_at < _ASK_EVERY_SECONDS:
            return
        self._asked_at = now
        for member in self.members:
            if member.state == "running" and member.asked is None:
                method = "news" if isinstance(member.config, RunConfig) else "progress"
                member.asked = getattr(member.actor, method).options(concurrency_group="watch").remote()
        for shared in self.memories:
            if shared.asked is None:
                shared.asked = shared.actor.counts.remote()
        self._tell()

    def _wait(self) -> None:
        """Wait a moment for whatever comes first, and take it in."""
        # News first: with an end, what was asked meanwhile is forgotten.
        asked = [(member.asked, partial(self._take_news, member)) for member in self.members]
        ends = [(member.call, partial(self._take_end, member)) for member in self.members]
        counts = [(shared.asked, partial(self._take_counts, shared)) for shared in self.memories]
        take_in(self.ray, [*asked, *ends, *counts])

    def _take_news(self, member: Member) -> None:
        call, member.asked = member.asked, None
        try:
            news: AgentNews | WorkerProgress | None = self.ray.get(call)
        except self.ray.exceptions.RayError:  # what became of it is the answer of another call
            return
        if member.state == "running" and news is not None:
            member.hear(news)

    def _take_counts(self, shared: SharedOne) -> None:
        call, shared.asked = shared.asked, None
        try:
            counts: MemoryCounts = self.ray.get(call)
        except Exception as error:  # Ray's, or that of files which cannot be opened: it is tried again
            if shared.state == "up":
                why = why_it_ended(error)
                if isinstance(error, self.ray.exceptions.RayTaskError):  # it is there, and cannot do it
                    why = " ".join(str(error.cause).split())
                self.journal.add("lost", memory=shared.name, message=why)
                self.display.say(f"memory {shared.name}: {why}; learners go on meanwhile")
            shared.state = "away"
            return
        if shared.counts is not None and counts.age != shared.counts.age:
            shared.restarts += 1
            self.journal.add("recovered", memory=shared.name, chunks=counts.chunks)
            self.display.say(f"memory {shared.name}: it is back, with {counts.chunks:,} chunks")
        shared.counts, shared.state = counts, "up"

    def _tell(self) -> None:
        """Write status.json, and draw."""
        status = {
            "name": self.spec.name,
            "time": time.time(),
            "state": self._state,
            "process": os.getpid(),
            "wiring": wiring(self.spec),
            "learners": [member.status() for member in self.members],
            "memories": [shared.status() for shared in self.memories],
        }
        path = self.options.out / STATUS_FILE
        path.with_suffix(".new").write_text(json.dumps(status))
        path.with_suffix(".new").replace(path)
        self.display.update(status)

    # ---- ends ----

    def _take_end(self, member: Member) -> None:
        """A process has come up, or its learner has ended, or it has died."""
        call, member.call = member.call, None
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            member.call, member.asked = there(member.actor), None
            if member.state == "running":
                self._failed(member, why_it_ended(error), member.began_at, "lost")
            return
        if isinstance(answer, Where):
            member.where = answer
        elif isinstance(answer, AgentEnd):
            outcome, member.link = answer.outcome, answer.link or member.link
            if member.config.storage is not None:
                try:
                    fetch(member.config.storage, self.options.out / "learners" / member.name)
                except OSError as error:
                    outcome = dataclasses.replace(
                        outcome, error=f"{member.config.storage} cannot be read: {error}"
                    )
            member.step = outcome.step
            if outcome.mean_return is not None:
                member.score = {"episode_return": outcome.mean_return}
            self._ended(member, outcome)
        else:
            member.step = answer.events
            if answer.lag is not None:
                member.lag = answer.lag
            if math.isfinite(answer.log_likelihood):
                member.score = {"log_likelihood": answer.log_likelihood}
            self._ended(member, answer)

    def _ended(self, member: Member, outcome: Outcome | WorkerOutcome) -> None:
        if outcome.error is not None:
            self._failed(member, outcome.error, outcome.began_at, "failed", is_final=outcome.is_final)
            return
        member.state = "stopped" if outcome.stopped else "finished"
        self.journal.add(member.state, learner=member.name, step=member.step)
        self.display.say(f"{member.name}: {member.state} at {member.step:,}")

    def _failed(
        self, member: Member, reason: str, began_at: int, event: str, *, is_final: bool = False
    ) -> None:
        """Try again after a pause, or give the learner up; the others go on."""
        member.failures = 1 if began_at > member.began_at else member.failures + 1
        member.began_at, member.message = max(began_at, member.began_at), reason
        if is_final or member.failures > self.options.max_failures:
            member.state = "failed"
            self.journal.add("failed", learner=member.name, step=member.step, message=reason)
            self.display.say(f"{member.name}: given up: {reason}")
            return
        pause = pause_after(member.failures)
        member.restarts += 1
        member.not_before, member.state = time.monotonic() + pause, "paused"
        self.journal.add(event, learner=member.name, step=member.step, message=reason)
        self.display.say(f"{member.name}: {reason}; it goes on from its checkpoint in {pause:g} s")

    def _stop_all(self) -> None:
        """Have every learner end with a checkpoint."""
        self._state = "stopping"
        running = [member for member in self.members if member.state == "running"]
        self.display.say(f"stopping; {len(running)} learners write their checkpoints (Ctrl-C: at once)")
        for member in self.members:
            if member.state in ("starting", "paused"):
                member.state = "stopped"

        def wait() -> None:
            self._wait()
            for member in self.members:
                if member.state == "paused":
                    member.state = "stopped"

        have_stop(
            lambda: [member.actor for member in self.members if member.state == "running"],
            wait,
            _STOP_WITHIN_SECONDS,
        )

    def _close_memories(self) -> None:
        """Ask the memories a last time, and have them let go of their files."""
        for shared in self.memories:
            shared.asked = shared.actor.counts.remote()  # what was asked for before may be old
        asked = {shared.asked: shared for shared in self.memories}
        if asked:
            answered, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=_STOP_WITHIN_SECONDS)
            for call in answered:
                self._take_counts(asked[call])
        calls = [shared.actor.close.remote() for shared in self.memories]
        if calls:
            self.ray.wait(calls, num_returns=len(calls), timeout=_STOP_WITHIN_SECONDS)
        for shared in self.memories:
            shared.state = "closed" if shared.state == "up" else shared.state
