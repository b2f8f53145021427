"""A live system: learners of both worlds, each in a process of its own, and the memories that they share.

Ray starts the processes, places them and starts them again when they die. Here is decided when a learner is
tried again and when it is given up; whatever happens to one, the rest goes on. Nothing passes between
processes at a sample: a learner runs the loop of `train` or `ingest` with its own checkpoints, and goes on
from these.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from streamwise.memory.shared import MemoryCounts
from streamwise.runs.config import RunConfig
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest
from streamwise.runs.partition_worker import Worker, WorkerOutcome, WorkerProgress
from streamwise.runs.partitioned import arranged
from streamwise.runs.partitions import worker_config
from streamwise.runs.ray_cluster import (
    Journal,
    RayStoppedError,
    answered,
    errors_of_others_to,
    pause_after,
    reach,
    running_ray,
    there,
    why_it_ended,
)
from streamwise.runs.shared_memory import LinkCounts, MemoryActor, MemorySettings
from streamwise.runs.storage import replace_durably
from streamwise.runs.sweep_runner import Outcome, Where
from streamwise.runs.train import make_environment
from streamwise.runs.up_learner import AgentEnd, AgentLearner, AgentNews, Sharing
from streamwise.runs.up_spec import FOR_EVER, LearnerPlan, SystemSpec, wiring
from streamwise.runs.up_status import STATUS_FILE, SystemDisplay, serving
from streamwise.streams import UsageError

__all__ = ["SystemResult", "UpOptions", "run_system"]

_LONGEST_WAIT_SECONDS = 0.25
_ASK_EVERY_SECONDS = 1.0
_STOP_WITHIN_SECONDS = 60.0
_RATE_SECONDS = 5.0  # that a speed is measured over


@dataclass(frozen=True)
class UpOptions:
    """Where a system runs, and how much it puts up with.

    address: of a Ray cluster ("auto": the one this machine belongs to), whose nodes all see `out`; None
    starts Ray here. max_failures: a learner is given up after so many failures in a row from which it has
    not come further. until_end: event streams are read to where they end now. serve:
    the port of a page that shows the system.
    """

    out: Path
    address: str | None = None
    max_failures: int = 10
    until_end: bool = False
    serve: int | None = None
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class SystemResult:
    """How a system ended: its learners' states, by name, why some were given up, and the signal, if any."""

    directory: Path
    states: dict[str, str]
    failed: dict[str, str]
    signal: int | None


@dataclass(eq=False)
class Member:
    """One process that learns: a learner, or one of the workers of one."""

    name: str
    plan: LearnerPlan
    config: Any
    sharing: Sharing | None
    actor: Any = None
    call: Any = None  # the answer comes when it ends
    asked: Any = None
    where: Where | None = None
    state: str = "starting"  # running, paused, finished, stopped, failed
    step: int = 0
    began_at: int = -1
    score: dict[str, float] = field(default_factory=dict)
    lag: int | None = None
    link: LinkCounts | None = None
    failures: int = 0  # in a row, from the same checkpoint
    restarts: int = 0
    not_before: float = 0.0
    message: str = ""  # why it last ended
    seen: list[tuple[float, int]] = field(default_factory=list)  # times and steps, of the last seconds

    @property
    def per_second(self) -> float:
        """How many samples it has learned a second, lately."""
        if self.state != "running" or len(self.seen) < 2:
            return 0.0
        (then, step), (now, later) = self.seen[0], self.seen[-1]
        return max(0.0, (later - step) / max(now - then, 1e-9))

    def status(self) -> dict[str, Any]:
        """Return what others may know of it, as JSON."""
        config, plan = self.config, self.plan
        of_events = isinstance(config, IngestConfig)
        endless = of_events or config.steps == FOR_EVER
        shared = None
        if plan.memory is not None:
            counts = dataclasses.asdict(self.link) if self.link is not None else None
            shared = {"name": plan.memory, "reads": plan.reads is not None, "writes": plan.writes is not None}
            shared |= {"link": counts}
        waits = self.link is not None and self.link.waits
        return {
            "name": self.name,
            "kind": config.model if of_events else config.agent,
            "stream": plan.stream,
            "state": f"waits for {plan.memory}" if waits and self.state == "running" else self.state,
            "step": self.step,
            "steps": None if endless else config.steps,
            "per_second": round(self.per_second, 1),
            "score": {key: value for key, value in self.score.items() if math.isfinite(value)},
            "lag": self.lag,
            "restarts": self.restarts,
            "memory": shared,
            "process": self.where and self.where.process,
            "host": self.where and self.where.host,
            "node": self.where and self.where.node,
            "directory": str(config.directory),
            "message": self.message,
        }


@dataclass(eq=False)
class SharedOne:
    """One shared memory, and what it last said."""

    name: str
    settings: MemorySettings
    actor: Any
    asked: Any = None
    counts: MemoryCounts | None = None
    restarts: int = 0
    state: str = "starting"  # up, away

    def status(self) -> dict[str, Any]:
        """Return what others may know of it, as JSON."""
        counts = {} if self.counts is None else self.counts._asdict()
        counts.pop("age", None)  # which means nothing to others
        return {
            "name": self.name,
            "state": self.state,
            "capacity": self.settings.capacity,
            "process": None,
            **counts,
            "restarts": self.restarts,
        }


def run_system(spec: SystemSpec, options: UpOptions, console: Console | None = None) -> SystemResult:
    """Run a system until all its learners have finished, or a signal comes.

    A directory of a system goes on where each learner was. Raises UsageError for what the user can mend,
    RayStoppedError if Ray stops.
    """
    if options.address and ":" in options.address and "://" not in options.address:
        reach(options.address)  # Ray itself tries for minutes
    options = dataclasses.replace(options, out=options.out.absolute())
    out = options.out
    if out.is_file() or (
        out.is_dir()
        and not (out / "system.toml").is_file()
        and any(not path.name.startswith(".") for path in out.iterdir())
    ):
        raise UsageError(f"{out} already exists and is no live system; choose another --out.")
    widths = dict(_widths(spec))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        replace_durably(out / "system.toml", tomli_w.dumps({**spec.tables, "name": spec.name}).encode())
        journal = Journal(out / "events.jsonl")
        memories = {
            name: dataclasses.replace(settings, width=widths[name])
            for name, settings in spec.memories.items()
        }
        with ExitStack() as stack:
            members = list(_members(spec, options, stack))
            cpus = max(os.cpu_count() or 1, len(members))  # so many were asked for, whatever there is
            stderr = stack.enter_context(errors_of_others_to(out / "ray.log"))
            stack.enter_context(running_ray(options.address, cpus))
            driver = _Driver(spec, options, members, memories, journal, console or Console(file=stderr))
            try:
                with serving(out, options.serve, options.host, driver.display.say):
                    return driver.run()
            except (RayStoppedError, driver.ray.exceptions.RayError) as error:
                reason = str(error).partition("\n")[0]
                raise RayStoppedError(
                    f"Ray has stopped ({reason}); go on with `streamwise up {out}`."
                ) from None


def _widths(spec: SystemSpec) -> Iterator[tuple[str, int]]:
    """Yield how many numbers an item of each memory has; raise UsageError where learners do not agree."""
    first: dict[str, tuple[str, int]] = {}
    for plan in spec.learners:
        if plan.memory is None:
            continue
        env = make_environment(plan.config)  # type: ignore[arg-type]  # who shares a memory is an agent
        shape = env.observation_space.shape
        env.close()
        if shape is None or len(shape) != 1:
            raise UsageError(f"learner {plan.name} observes pictures, which no memory is shared of.")
        other, width = first.setdefault(plan.memory, (plan.name, shape[0]))
        if width != shape[0]:
            raise UsageError(
                f"learners {other} and {plan.name} share memory {plan.memory}, and observe {width} and "
                f"{shape[0]} numbers; share it among learners of one kind of observation."
            )
        yield plan.memory, width


def _members(spec: SystemSpec, options: UpOptions, stack: ExitStack) -> Iterator[Member]:
    """Yield every process that is to learn, with the place where it keeps everything.

    stack: holds the directories of learners that are several processes.
    """
    for plan in spec.learners:
        directory = options.out / "learners" / plan.name
        if isinstance(plan.config, RunConfig):
            yield Member(plan.name, plan, dataclasses.replace(plan.config, out=directory), None)
            continue
        config = dataclasses.replace(plan.config, out=directory, until_end=options.until_end)
        config = config.resolved()
        if config.workers == 1:
            yield Member(plan.name, plan, config, None)
            continue
        arrangement, _ = stack.enter_context(arranged(config))
        for number in range(config.workers):
            yield Member(f"{plan.name}/{number}", plan, worker_config(config, arrangement, number), None)


class _Driver:
    """Keeps every learner at work, and everybody informed."""

    def __init__(
        self,
        spec: SystemSpec,
        options: UpOptions,
        members: list[Member],
        memories: dict[str, MemorySettings],
        journal: Journal,
        console: Console,
    ) -> None:
        import ray

        self.ray: Any = ray
        self.spec, self.options, self.members, self.journal = spec, options, members, journal
        self.stop = StopRequest()
        self.display = SystemDisplay(spec.name, wiring(spec), console)
        self.memories = [
            SharedOne(name, settings, self._memory_actor(name, settings))
            for name, settings in memories.items()
        ]
        self._asked_at = -math.inf
        self._state = "running"

    def run(self) -> SystemResult:
        """Run until all have ended."""
        self.journal.add("up", learners=len(self.members), memories=len(self.memories))
        for member in self.members:
            self._make_actor(member)
        with self.display, self.stop.on_signals():
            while any(member.state not in ("finished", "failed") for member in self.members):
                if self.stop.signal is not None:
                    self._stop_all()
                    break
                self._start()
                self._ask()
                self._wait()
        self._state = "stopped" if self.stop.signal is not None else "finished"
        self._close_memories()
        self._tell()
        states = {member.name: member.state for member in self.members}
        failed = {member.name: member.message for member in self.members if member.state == "failed"}
        self.journal.add("down", failed=len(failed))
        return SystemResult(self.options.out, states, failed, self.stop.signal)

    # ---- processes ----

    def _memory_actor(self, name: str, settings: MemorySettings) -> Any:
        directory = self.options.out / "memories" / name
        return (
            self.ray.remote(MemoryActor)
            .options(num_cpus=0, max_restarts=-1)  # a learner that hears nothing asks again
            .remote(settings, directory)
        )

    def _make_actor(self, member: Member) -> None:
        kind = AgentLearner if isinstance(member.config, RunConfig) else Worker
        member.actor = (
            self.ray.remote(concurrency_groups={"watch": 1})(kind)
            .options(num_cpus=1, max_restarts=-1, scheduling_strategy="SPREAD")
            .remote()
        )
        plan = member.plan
        if plan.memory is not None:
            (shared,) = (one for one in self.memories if one.name == plan.memory)
            member.sharing = Sharing(shared.actor, plan.writes is not None, plan.reads is not None)
        member.call = there(member.actor)

    def _start(self) -> None:
        now = time.monotonic()
        for member in self.members:
            if member.call is None and member.state in ("starting", "paused") and member.not_before <= now:
                if isinstance(member.config, RunConfig):
                    member.call = member.actor.learn.remote(member.name, member.config, member.sharing)
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
        ends = {member.call: member for member in self.members if member.call is not None}
        asked = {member.asked: member for member in self.members if member.asked is not None}
        counts = {shared.asked: shared for shared in self.memories if shared.asked is not None}
        ready = answered(self.ray, [*ends, *asked, *counts], _LONGEST_WAIT_SECONDS)
        # News first: with an end, what was asked meanwhile is forgotten.
        for ref in asked.keys() & ready:
            self._take_news(asked[ref])
        for ref in ends.keys() & ready:
            self._take_end(ends[ref])
        for ref in counts.keys() & ready:
            self._take_counts(counts[ref])

    def _take_news(self, member: Member) -> None:
        call, member.asked = member.asked, None
        try:
            news: AgentNews | WorkerProgress | None = self.ray.get(call)
        except self.ray.exceptions.RayError:  # what became of it is the answer of another call
            return
        if member.state != "running":
            return
        if isinstance(news, AgentNews):
            member.link = news.link
            if news.progress is None:
                return
            member.step, member.began_at = news.progress.step, max(member.began_at, news.progress.began_at)
            mean = news.progress.mean_return
            member.score = {} if mean is None else {"episode_return": mean}
        elif news is not None:
            member.step, member.began_at = news.events, max(member.began_at, news.began_at)
            member.lag, member.score = news.lag, {"log_likelihood": news.log_likelihood}
        else:
            return
        now = time.monotonic()
        member.seen.append((now, member.step))
        while now - member.seen[0][0] > _RATE_SECONDS:
            member.seen.pop(0)

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
            member.step = outcome.step
            if outcome.mean_return is not None:
                member.score = {"episode_return": outcome.mean_return}
            self._ended(member, outcome)
        else:
            member.step = answer.events
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
        deadline, asked_at = time.monotonic() + _STOP_WITHIN_SECONDS, -math.inf
        while any(member.state == "running" for member in self.members) and time.monotonic() < deadline:
            if time.monotonic() - asked_at > _ASK_EVERY_SECONDS:  # again, for one may just have begun
                asked_at = time.monotonic()
                for member in self.members:
                    if member.state == "running":
                        member.actor.stop.options(concurrency_group="watch").remote()
            self._wait()
            for member in self.members:
                if member.state == "paused":
                    member.state = "stopped"

    def _close_memories(self) -> None:
        """Ask the memories a last time, and have them let go of their files."""
        for shared in self.memories:
            shared.asked = shared.asked or shared.actor.counts.remote()
            self._take_counts(shared)
            shared.asked = shared.actor.counts.remote()  # what was asked for before may be old
            self._take_counts(shared)
        calls = [shared.actor.close.remote() for shared in self.memories]
        if calls:
            self.ray.wait(calls, num_returns=len(calls), timeout=_STOP_WITHIN_SECONDS)
