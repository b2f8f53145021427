"""A sweep: many runs at once on Ray, each in a process of its own, resumable as a whole.

Ray starts the processes, places them on the nodes of a cluster and starts them again when they die. Which run
goes next, and when one is given up, is decided here. Ray Tune would bring a scheduler of trials with its own
checkpoints and its own record of what has finished; a run here resumes exactly from its own checkpoints, and
says by itself how far it is, so a queue is all that is left to do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from streamwise.envs import family_of
from streamwise.runs.config import RunConfig
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest
from streamwise.runs.ray_cluster import (
    Journal,
    RayStoppedError,
    errors_of_others_to,
    have_stop,
    pause_after,
    reach,
    running_ray,
    scratch_of,
    storage_of,
    take_in,
    there,
    why_it_ended,
)
from streamwise.runs.storage import replace_durably
from streamwise.runs.sweep_data import read_events
from streamwise.runs.sweep_display import SweepDisplay
from streamwise.runs.sweep_runner import Outcome, Progress, Runner, Where
from streamwise.runs.sweep_spec import PlannedRun, Resources, SweepSpec, load_sweep
from streamwise.runs.train import fetch
from streamwise.streams import UsageError
from streamwise.streams.series import is_series

__all__ = [
    "SweepOptions",
    "SweepResult",
    "check_environments",
    "run_sweep",
]

_ASK_EVERY_SECONDS = 1.0  # each runner for its progress
_COUNT_NODES_EVERY_SECONDS = 3.0
_STOP_WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class SweepOptions:
    """Where a sweep runs, and how much it puts up with.

    address: of a Ray cluster ("auto": the one this machine belongs to); None starts Ray here, for this sweep.
    storage: a folder or URL that every node sees, for all that runs need to go on. cpus: of this machine.
    max_failures: a run is given up after so many failures in a row from which it has not come further.
    """

    out: Path
    storage: str | None = None
    address: str | None = None
    cpus: int | None = None
    max_failures: int = 3


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended: how many runs have finished, why others were given up, and the signal, if any."""

    directory: Path
    finished: int
    failed: dict[str, str]
    runs: int
    signal: int | None


@dataclass
class Job:
    """One run in the queue. began_at: the furthest step that an attempt went on from."""

    run: PlannedRun
    config: RunConfig[Any]
    began_at: int = -1
    failures: int = 0  # in a row, from the same checkpoint
    restarts: int = 0
    not_before: float = 0.0


@dataclass(eq=False)
class Slot:
    """One runner, the call it is busy with, and what it last said of its run."""

    runner: Any
    call: Any
    where: Where | None = None
    job: Job | None = None
    asked: Any = None
    progress: Progress | None = None


def run_sweep(spec: SweepSpec, options: SweepOptions, console: Console | None = None) -> SweepResult:
    """Run what has not finished yet of a sweep.

    Raises UsageError for what the user can mend: a directory of another sweep or in use by another process,
    an environment that nobody knows, resources that no node has. Raises RayStoppedError if Ray does.
    """
    check_environments(spec)
    reach(options.address)
    out = options.out.absolute()
    _check_directory(spec, out)
    options = replace(
        options, out=out, storage=storage_of(out, "sweep started", options.storage, out / "runs")
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with locked(options.out):
        tables = {**spec.tables, "name": spec.name}
        replace_durably(options.out / "sweep.toml", tomli_w.dumps(tables).encode())
        with (
            errors_of_others_to(options.out / "ray.log") as stderr,
            running_ray(options.address, options.cpus),
        ):
            driver = _Driver(spec, options, console or Console(file=stderr))
            try:
                return driver.run()
            except (RayStoppedError, driver.ray.exceptions.RayError) as error:
                reason = str(error).partition("\n")[0]
                raise RayStoppedError(
                    f"Ray has stopped ({reason}); go on with `streamwise sweep {options.out}`."
                ) from None


def check_environments(spec: SweepSpec) -> None:
    """Raise UsageError for an environment that nobody knows."""
    for environment in {run.config.environment for run in spec.runs}:
        if not is_series(environment):
            family_of(environment)


def _check_directory(spec: SweepSpec, out: Path) -> None:
    """Raise UsageError unless nothing is there, or a part of this sweep."""
    if (out / "sweep.toml").is_file():
        sweep = load_sweep(str(out))
        if sweep.name != spec.name:
            raise UsageError(
                f"{out} holds the sweep {sweep.name!r}, not {spec.name!r}; choose another --out."
            )
        there = {run.name: run.config for run in sweep.runs}
        for run in spec.runs:
            before = there.get(run.name, run.config)
            if replace(before, steps=run.config.steps) != run.config:
                raise UsageError(
                    f"{out} holds {run.name} with other settings; choose another --out, or give the agent "
                    "another name."
                )
    elif out.is_file() or (out.is_dir() and any(path.name != ".lock" for path in out.iterdir())):
        raise UsageError(f"{out} already exists and is no sweep; choose another --out.")


class _Driver:
    """Hands runs to runners until all have finished or been given up."""

    def __init__(self, spec: SweepSpec, options: SweepOptions, console: Console) -> None:
        import ray

        self.ray: Any = ray
        self.spec, self.options = spec, options
        self.journal = Journal(options.out / "events.jsonl")
        self.slots: list[Slot] = []
        self.failed: dict[str, str] = {}
        done = self._finished_before()
        self.finished = len(done)
        self.waiting = [Job(run, self._placed(run)) for run in spec.runs if run.name not in done]
        self.display = SweepDisplay(spec.name, spec.runs, done, console)
        self.longer = sum(planned > run.config.steps for run in spec.runs if (planned := done.get(run.name)))
        self.stop = StopRequest()
        self.had_room = False
        self._asked_at = self._counted_at = -float("inf")

    def run(self) -> SweepResult:
        """Run all that waits."""
        resumed = any(read_events(self.journal.path))
        event = "sweep resumed" if resumed else "sweep started"
        self.journal.add(event, runs=len(self.spec.runs), storage=self.options.storage)
        with self.display, self.stop.on_signals():
            if self.longer:
                self.display.note(
                    f"{self.longer} finished with more steps than are asked for now, and stay as they are"
                )
            while self.waiting or any(slot.job for slot in self.slots):
                if self.stop.signal is not None:
                    self._stop_all()
                    break
                self._match_slots_to_cluster()
                self._assign()
                self._ask()
                self._wait()
                self.display.update(self.slots, self.waiting, self.finished, self.failed)
        event = "sweep interrupted" if self.stop.signal is not None else "sweep finished"
        self.journal.add(event, finished=self.finished, failed=len(self.failed))
        return SweepResult(
            self.options.out, self.finished, self.failed, len(self.spec.runs), self.stop.signal
        )

    # ---- what there is to do ----

    def _finished_before(self) -> dict[str, int]:
        """Return the runs whose end is in the journal, at the length that is asked for, and still there.

        And the steps that they were planned for when they ended.
        """
        steps = {run.name: run.config.steps for run in self.spec.runs}
        return {
            event["run"]: event["planned"]
            for event in read_events(self.journal.path)
            if event["event"] == "finished"
            and event["run"] in steps
            and event["planned"] >= steps[event["run"]]
            and (self._directory(event["run"]) / "config.toml").is_file()
        }

    def _directory(self, name: str) -> Path:
        return self.options.out / "runs" / name

    def _placed(self, run: PlannedRun) -> RunConfig[Any]:
        """Return the settings of a run with the place where it keeps everything.

        With a storage of its own, the sweep's directory need not be seen by the nodes: a run then works in a
        scratch folder of its node, and what it leaves is fetched when it has ended.
        """
        storage = self.options.storage
        if storage is None:
            return replace(run.config, out=self._directory(run.name))
        return replace(run.config, storage=f"{storage.rstrip('/')}/{run.name}")

    # ---- runners ----

    def _match_slots_to_cluster(self) -> None:
        """Have as many runners as the nodes that are alive have room for, and runs that wait for one."""
        now = time.monotonic()
        if now - self._counted_at < _COUNT_NODES_EVERY_SECONDS:
            return
        self._counted_at = now
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        room = sum(_room_on(node, self.spec.resources) for node in nodes)
        if room == 0 and not self.had_room:
            raise UsageError(
                f"no node has what one run is given ({_describe(self.spec.resources)}); "
                "change [resources], or add a node."
            )
        if room == 0 and self.options.address is None:
            raise RayStoppedError("its only node is gone")
        self.had_room = True  # a cluster may get its nodes back
        busy = sum(slot.job is not None for slot in self.slots)
        wanted = min(room, busy + len(self.waiting))
        for slot in [slot for slot in self.slots if slot.job is None][: max(0, len(self.slots) - wanted)]:
            self.ray.kill(slot.runner)
            self.slots.remove(slot)
        while len(self.slots) < wanted:
            self.slots.append(self._new_slot())

    def _new_slot(self) -> Slot:
        resources = self.spec.resources
        runner = (
            self.ray.remote(concurrency_groups={"watch": 1})(Runner)
            .options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                memory=None if resources.memory_gb is None else int(resources.memory_gb * 2**30),
                resources=resources.custom or None,
                max_restarts=-1,  # how often one is worth it is decided here, run by run
                scheduling_strategy="SPREAD",
            )
            .remote()
        )
        return Slot(runner, there(runner))

    def _assign(self) -> None:
        now, scratch = time.monotonic(), scratch_of(self.spec.name, self.options.storage)
        for slot in self.slots:
            if slot.call is None and slot.job is None:
                place = next((i for i, job in enumerate(self.waiting) if job.not_before <= now), None)
                if place is None:
                    return
                job = self.waiting.pop(place)
                slot.job, slot.progress = job, None
                slot.call = slot.runner.run.remote(job.run.name, job.config, scratch)
                node = slot.where and f"{slot.where.host}:{slot.where.node[:6]}"
                self.journal.add(
                    "started", run=job.run.name, node=node, process=slot.where and slot.where.process
                )

    def _ask(self) -> None:
        """Ask every runner that is at work how far it is, unless it has yet to answer."""
        now = time.monotonic()
        if now - self._asked_at < _ASK_EVERY_SECONDS:
            return
        self._asked_at = now
        for slot in self.slots:
            if slot.job is not None and slot.asked is None:
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
        except self.ray.exceptions.RayError:  # what became of the run is the answer of another call
            return
        if progress is not None and slot.job is not None and progress.run == slot.job.run.name:
            slot.progress = progress

    def _take_answer(self, slot: Slot) -> None:
        """A runner has come up, or its run has ended, or it has died."""
        call, slot.call = slot.call, None
        job, slot.job = slot.job, None
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            slot.call, slot.asked = there(slot.runner), None
            if job is not None:
                self._lost(job, slot, error)
            return
        if isinstance(answer, Where):
            slot.where = answer
        elif job is not None:
            self._ended(job, slot, answer)

    # ---- runs ----

    def _ended(self, job: Job, slot: Slot, outcome: Outcome) -> None:
        name = job.run.name
        what = {"run": name, "step": outcome.step, "seconds": outcome.seconds}
        what["megabytes"] = outcome.megabytes
        if job.config.storage is not None:
            try:
                fetch(job.config.storage, self._directory(name))
            except OSError as error:
                reason = f"{job.config.storage} cannot be read: {error}"
                self._failed(job, reason, outcome.began_at, what)
                return
        if outcome.error is None and not outcome.stopped:
            self.finished += 1
            self.journal.add("finished", **what, planned=job.config.steps, mean_return=outcome.mean_return)
            self.display.finished(job, outcome)
        elif outcome.error is None:
            self.journal.add("interrupted", **what)
            self.waiting.append(job)
        else:
            self._failed(job, outcome.error, outcome.began_at, what, is_final=outcome.is_final)

    def _lost(self, job: Job, slot: Slot, error: Exception) -> None:
        """The process of a run is gone, or its node."""
        progress, slot.progress = slot.progress, None
        step, began_at = (progress.step, progress.began_at) if progress else (None, job.began_at)
        what = {"run": job.run.name, "step": step, "seconds": progress and progress.seconds}
        self._failed(job, why_it_ended(error), began_at, what, event="lost")

    def _failed(
        self,
        job: Job,
        reason: str,
        began_at: int,
        what: dict[str, Any],
        *,
        event: str = "failed",
        is_final: bool = False,
    ) -> None:
        """Try again after a pause, or give the run up."""
        job.failures = 1 if began_at > job.began_at else job.failures + 1
        job.began_at = max(began_at, job.began_at)
        if is_final or job.failures > self.options.max_failures:
            self.failed[job.run.name] = reason
            self.journal.add("failed", **what, message=reason)
            self.display.gave_up(job, reason)
            return
        pause = pause_after(job.failures)
        job.restarts += 1
        job.not_before = time.monotonic() + pause
        self.waiting.insert(0, job)
        self.journal.add("lost", **what, message=reason)
        self.display.lost(job, reason, pause)

    # ---- the end ----

    def _stop_all(self) -> None:
        """Have every run end with a checkpoint."""
        self.display.stopping(sum(slot.job is not None for slot in self.slots))
        have_stop(
            lambda: [slot.runner for slot in self.slots if slot.job is not None],
            self._wait,
            _STOP_WITHIN_SECONDS,
        )


def _room_on(node: dict[str, float], resources: Resources) -> int:
    """Return how many runs fit on a node."""
    needed = {
        "CPU": resources.cpus,
        "GPU": resources.gpus,
        "memory": (resources.memory_gb or 0.0) * 2**30,
        **resources.custom,
    }
    return int(min(node.get(name, 0.0) / amount for name, amount in needed.items() if amount > 0.0))


def _describe(resources: Resources) -> str:
    parts = {"cpus": resources.cpus, "gpus": resources.gpus, "memory_gb": resources.memory_gb or 0.0}
    return ", ".join(f"{name} {amount:g}" for name, amount in {**parts, **resources.custom}.items() if amount)
