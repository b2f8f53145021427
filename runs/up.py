"""A live system: learners of both worlds, each in a process of its own, and the memories that they share.

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
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from streamwise.memory.shared import MemoryCounts
from streamwise.runs.averaging import Averaging
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
    storage_of,
    there,
    why_it_ended,
)
from streamwise.runs.shared_memory import MemoryActor, MemorySettings
from streamwise.runs.storage import replace_durably
from streamwise.runs.sweep_data import read_events
from streamwise.runs.sweep_runner import Outcome, Where
from streamwise.runs.train import fetch, make_environment
from streamwise.runs.up_learner import AgentEnd, AgentLearner, AgentNews, Sharing
from streamwise.runs.up_members import Member, SharedOne
from streamwise.runs.up_spec import LearnerPlan, SystemSpec, wiring
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

    address: of a Ray cluster ("auto": the one this machine belongs to); None starts Ray here. storage: a
    folder or URL that every node sees, for all that agents need to go on; None: every node sees `out`.
    max_failures: a learner is given up after so many failures in a row from which it has
    not come further. until_end: event streams are read to where they end now. serve:
    the port of a page that shows the system.
    """

    out: Path
    address: str | None = None
    storage: str | None = None
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


def run_system(spec: SystemSpec, options: UpOptions, console: Console | None = None) -> SystemResult:
    """Run a system until all its learners have finished, or a signal comes.

    A directory of a system goes on where each learner was. On a cluster the processes outlive a driver that
    was killed, and the next one takes them over. Raises UsageError for what the user can mend,
    RayStoppedError if Ray stops.
    """
    if options.address and ":" in options.address and "://" not in options.address:
        reach(options.address)  # Ray itself tries for minutes
    out = options.out.absolute()
    if out.is_file() or (
        out.is_dir()
        and not (out / "system.toml").is_file()
        and any(not path.name.startswith(".") for path in out.iterdir())
    ):
        raise UsageError(f"{out} already exists and is no live system; choose another --out.")
    storage = storage_of(out, "up", options.storage, out / "learners")
    options = dataclasses.replace(options, out=out, storage=storage)
    widths = dict(_widths(spec))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        before, tables = None, tomli_w.dumps({**spec.tables, "name": spec.name}).encode()
        if (out / "system.toml").is_file():
            before = (out / "system.toml").read_bytes()
        journal = Journal(out / "events.jsonl")
        memories = {
            name: dataclasses.replace(settings, width=widths[name])
            for name, settings in spec.memories.items()
        }
        if options.address is None:
            _check_left(out, None)
        for name, settings in memories.items():
            _check_shards(out / "memories" / name, name, settings.shards)
        with ExitStack() as stack:
            stderr = stack.enter_context(errors_of_others_to(out / "ray.log"))
            processes = sum(_processes(plan) for plan in spec.learners)
            cpus = max(os.cpu_count() or 1, processes)  # so many were asked for, whatever there is
            stack.enter_context(running_ray(options.address, cpus))
            cluster = _cluster() if options.address is not None else None
            _check_left(out, cluster)
            if before not in (None, tables) and left_running(out):
                raise UsageError(
                    f"the processes of {out} run on without a driver, by another specification; end them "
                    f"with `streamwise up {out} --address {options.address}` and Ctrl-C."
                )
            replace_durably(out / "system.toml", tables)
            members = list(_members(spec, options, stack))
            journal.add("up", learners=len(members), memories=len(memories), storage=storage, address=cluster)
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


def _cluster() -> str:
    """Return the address of the cluster that this is connected to, however that was called."""
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


def _check_left(out: Path, cluster: str | None) -> None:
    """Raise UsageError if the system may run on without a driver in another cluster than this one."""
    last = [event for event in read_events(out / "events.jsonl") if event["event"] in ("up", "down")][-1:]
    for address in (event.get("address") for event in last):
        if address not in (None, cluster):
            with contextlib.suppress(UsageError):
                reach(address)
                raise RayStoppedError(
                    f"the processes of {out} may run on in the cluster at {address} without a driver; "
                    f"take them over with `streamwise up {out} --address {address}`."
                )


def _processes(plan: LearnerPlan) -> int:
    return plan.config.workers if isinstance(plan.config, IngestConfig) else 1


def _check_shards(directory: Path, name: str, shards: int) -> None:
    """Raise UsageError if what is kept of a memory is divided otherwise."""
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    divided = {int(folder.partition("-of-")[2] or 1) for folder in there}
    if divided - {shards}:
        raise UsageError(
            f"memory {name} has been kept in {max(divided)} shards until now ({directory}), not in {shards}; "
            f"use shards = {max(divided)}, or another --out."
        )


def _members(spec: SystemSpec, options: UpOptions, stack: ExitStack) -> Iterator[Member]:
    """Yield every process that is to learn, with the place where it keeps everything.

    stack: holds the directories of learners that are several processes.
    """
    for plan in spec.learners:
        directory = options.out / "learners" / plan.name
        if isinstance(plan.config, RunConfig):
            storage = options.storage and f"{options.storage.rstrip('/')}/{plan.name}"
            placed = dataclasses.replace(plan.config, out=directory, storage=storage)
            yield Member(plan.name, plan, placed, None)
            continue
        config = dataclasses.replace(plan.config, out=directory, until_end=options.until_end)
        config = config.resolved()
        if config.workers == 1:
            yield Member(plan.name, plan, config, None)
            continue
        arrangement, _ = stack.enter_context(arranged(config))
        for number in range(config.workers):
            yield Member(f"{plan.name}/{number}", plan, worker_config(config, arrangement, number), None)


def _shards(name: str, settings: MemorySettings) -> Iterator[tuple[str, MemorySettings, str]]:
    """Yield the name, the settings and the folder of each process of a memory."""
    if settings.shards == 1:
        yield name, settings, name
        return
    part = dataclasses.replace(settings, capacity=-(-settings.capacity // settings.shards))
    for number in range(settings.shards):
        yield f"{name}/{number}", part, f"{name}/{number}-of-{settings.shards}"


def _prefix(out: Path) -> str:
    """Return how the names of a system's processes in its cluster begin."""
    return f"{sha256(str(out).encode()).hexdigest()[:12]} "


def left_running(out: Path) -> list[str]:
    """Return the names of a system's processes that are there, which outlive a driver on a cluster."""
    import ray

    return [name for name in ray.util.list_named_actors() if name.startswith(_prefix(out))]


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
        self._left = left_running(options.out)
        self.memories = [
            SharedOne(name, part, self._memory_actor(name, part, directory))
            for whole, settings in memories.items()
            for name, part, directory in _shards(whole, settings)
        ]
        self._averaging = {
            plan.name: Averaging(
                plan.config, ray, partial(self._note, plan.name), partial(journal.add, learner=plan.name)
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
        if self._left:
            self.journal.add("taken over", processes=len(self._left))
            self.display.say(f"{len(self._left)} processes had gone on without a driver; they go on")
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

    def _process(self, body: Any, name: str, *arguments: Any, **options: Any) -> Any:
        """Start a process, or take over that of this name, which a driver that was killed has left."""
        if self.options.address is not None:
            options |= {"name": f"{_prefix(self.options.out)}{name}", "lifetime": "detached"}
            options["get_if_exists"] = True
        if self.options.storage is not None and body is not AgentLearner:  # its files are here
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = self.ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        remote = self.ray.remote(concurrency_groups={"watch": 1})(body)
        # How often one is worth it is decided here; a learner that hears nothing of a memory asks again.
        return remote.options(max_restarts=-1, **options).remote(*arguments)

    def _memory_actor(self, name: str, settings: MemorySettings, directory: str) -> Any:
        files = self.options.out / "memories" / directory
        return self._process(MemoryActor, f"memory {name}", settings, files, num_cpus=0)

    def _make_actor(self, member: Member) -> None:
        body = AgentLearner if isinstance(member.config, RunConfig) else Worker
        member.actor = self._process(body, f"learner {member.name}", num_cpus=1, scheduling_strategy="SPREAD")
        plan = member.plan
        if plan.memory is not None:
            shards = [one.actor for one in self.memories if one.memory == plan.memory]
            member.sharing = Sharing(tuple(shards), plan.writes is not None, plan.reads is not None)
        member.call = there(member.actor)

    def _scratch(self) -> str | None:
        """Return the name of this system's folder among a node's temporary ones; None if none is needed."""
        storage = self.options.storage
        return storage and f"{self.spec.name}-{sha256(storage.encode()).hexdigest()[:8]}"

    def _start(self) -> None:
        now = time.monotonic()
        for member in self.members:
            if member.call is None and member.state in ("starting", "paused") and member.not_before <= now:
                if isinstance(member.config, RunConfig):
                    # In a process that was taken over it waits for the one that is under way, and goes on.
                    member.call = member.actor.learn.remote(
                        member.name, member.config, member.sharing, self._scratch()
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
