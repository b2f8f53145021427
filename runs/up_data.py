"""The directory of a live system read back: its learners and memories, and how they are.

What the driver wrote last (status.json) may be missing or damaged, and what it was writing (events.jsonl) cut
off: the specification and the directories of the learners tell the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from streamwise.runs.config import RunConfig
from streamwise.runs.event_run_data import EventRun, read_event_runs
from streamwise.runs.run_data import Run, read_groups
from streamwise.runs.shared_memory import MemorySettings
from streamwise.runs.sweep_data import read_events
from streamwise.runs.up_history import History, Past, Record, Who, happenings, read_history
from streamwise.runs.up_last_status import LinkStatus, MemoryStatus, ProcessStatus, Status, read_last_status
from streamwise.runs.up_spec import LearnerPlan, SystemSpec, check_system, load_system, owner, process_names
from streamwise.runs.up_status import is_held
from streamwise.streams import UsageError

__all__ = ["LearnerData", "MemoryData", "System", "read_system"]

AT_WORK = ("starting", "running", "paused")  # states that hold only as long as there is a driver


def _together(states: Sequence[str]) -> str:
    """Return one state, or how many are in which."""
    counts = Counter(states)
    if len(counts) < 2:
        return next(iter(counts), "unknown")
    return ", ".join(f"{count} {state}" for state, count in counts.items())


@dataclass(frozen=True, eq=False)
class LearnerData:
    """One learner: what it is, what it has recorded, how its processes are. place: among all of them."""

    plan: LearnerPlan
    place: int
    path: Path
    run: Run | EventRun | None
    problem: str  # why it has none that can be drawn; empty if it has not begun
    processes: list[ProcessStatus]
    pasts: list[Past]
    is_at_work: bool  # the driver

    @property
    def name(self) -> str:
        """Its name."""
        return self.plan.name

    @property
    def state(self) -> str:
        """In a word; of several workers, how many are in which."""
        if self.processes:
            states = [process.state for process in self.processes]
        else:
            states = ["running" if past.last == "started" else past.last for past in self.pasts]
        states = [self._now(state) for state in states] or ["unfinished" if self.run else "not begun"]
        return _together(states)

    def _now(self, state: str) -> str:
        holds = self.is_at_work or not (state in AT_WORK or state.startswith("waits "))
        return state if holds and state != "lost" else "unfinished"

    @property
    def step(self) -> int:
        """The furthest that is known of: rows are written some time after."""
        recorded = 0
        if isinstance(self.run, Run):
            recorded = self.run.last_step
        elif self.run is not None:
            recorded = int(self.run.steps[-1])
        return max(recorded, sum(process.step for process in self.processes))

    @property
    def mean_return(self) -> float:
        """Of the last 20 episodes; before they are recorded, as the learner said last."""
        recorded = self.run.final if isinstance(self.run, Run) else math.nan
        return recorded if math.isfinite(recorded) else self._told("episode_return")

    @property
    def log_likelihood(self) -> float:
        """Of an event, over all events of all workers."""
        if isinstance(self.run, EventRun):
            return float(self.run.rows["log_likelihood"][-1])
        return self._told("log_likelihood")

    def _told(self, score: str) -> float:
        one = len(self.processes) == 1
        return self.processes[0].score.get(score, math.nan) if one else math.nan

    @property
    def error_ratio(self) -> float:
        """Squared error of a predicted series, relative to predicting the mean so far."""
        scores = self.run.scores if isinstance(self.run, Run) else None
        return scores.ratio_to_running_mean if scores and scores.scored_steps else math.nan

    @property
    def steps_per_second(self) -> float:
        """Over the whole run."""
        if isinstance(self.run, Run):
            return self.run.steps_per_second
        seconds = float(self.run.rows["wall_time"][-1]) if self.run else math.nan
        return float(self.run.steps[-1]) / seconds if self.run and seconds > 0.0 else math.nan

    @property
    def per_second(self) -> float:
        """Lately; NaN if it is not at work."""
        speed = sum(process.per_second for process in self.processes)
        return speed if self.is_at_work and speed else math.nan

    @property
    def lag(self) -> int | None:
        """The records that wait for it: as its processes say, or as it wrote down last."""
        told = [process.lag for process in self.processes if process.lag is not None]
        if self.is_at_work and told and any(process.state == "running" for process in self.processes):
            return sum(told)
        recorded = self.run.known("lag") if isinstance(self.run, EventRun) else []
        return int(recorded[-1]) if recorded else None

    @property
    def link(self) -> LinkStatus | None:
        """What it has exchanged with its shared memory."""
        links = [process.memory.link for process in self.processes if process.memory is not None]
        return links[0] if links else None

    @property
    def restarts(self) -> int:
        """Of all its processes. The status knows of the present driver alone, the events of all."""
        told = sum(process.restarts for process in self.processes)
        return max(told, sum(past.restarts for past in self.pasts))

    @property
    def message(self) -> str:
        """Why it last ended before its time; empty if it never did."""
        said = [process.message for process in self.processes] + [past.message for past in self.pasts]
        return next(filter(None, said), "")

    @property
    def versions(self) -> dict[str, Any]:
        """Of the libraries that it ran with last."""
        if isinstance(self.run, Run):
            return dict(self.run.config["versions"])
        return dict(self.run.table.get("versions", {})) if self.run else {}


@dataclass(frozen=True, eq=False)
class MemoryData:
    """One shared memory, of one or several processes. processes: empty where the driver has said nothing."""

    name: str
    settings: MemorySettings
    processes: list[MemoryStatus]
    pasts: list[Past]
    is_at_work: bool  # the driver

    @property
    def state(self) -> str:
        """In a word."""
        return _together([one.state for one in self.processes]) if self.is_at_work else "closed"

    @property
    def chunks(self) -> int:
        """That it holds."""
        return sum(one.chunks for one in self.processes)

    @property
    def written(self) -> dict[str, int]:
        """Chunks by writer."""
        counts: Counter[str] = Counter()
        for one in self.processes:
            counts.update(one.written)
        return dict(sorted(counts.items()))

    @property
    def restarts(self) -> int:
        """See `LearnerData`."""
        return max(sum(one.restarts for one in self.processes), sum(past.restarts for past in self.pasts))


@dataclass(frozen=True, eq=False)
class System:
    """A live system read back. problem: why there is no status; text: of system.toml."""

    path: Path
    spec: SystemSpec
    text: str
    status: Status | None
    problem: str
    events: list[Record]
    history: History
    learners: list[LearnerData]
    memories: list[MemoryData]
    is_at_work: bool

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.is_at_work:
            return self.status.state if self.status else "running"
        if self.status:
            return self.status.state if self.status.state in ("finished", "stopped") else "not running"
        last = happenings(self.events)[-1:]
        return "ended" if last and last[0]["event"] == "down" else "not running"

    @cached_property
    def everyone(self) -> list[Who]:
        """Learners, their workers one by one, and memories, as far as something happened to them."""
        return sorted(self.history.pasts, key=lambda who: (who.kind, self.place(who), _natural(who.name)))

    def place(self, who: Who) -> int:
        """Return the place of its learner among all; the number of them where it is none of these."""
        names = [learner.name for learner in self.learners]
        name = owner(who.name)
        return names.index(name) if who.kind == "learner" and name in names else len(names)


def read_system(path: Path) -> System:
    """Read the directory of a live system, also beside one that goes on.

    Raises UsageError for a directory of none, for a damaged specification, and where nothing has begun.
    """
    check_system(path)
    spec = load_system(str(path))
    events = read_events(path / "events.jsonl")
    status, problem = read_last_status(path)
    if status is None and not events and not (path / "learners").is_dir():
        raise UsageError(f"{path} has nothing to draw yet; start it with: streamwise up {path}")
    is_at_work = is_held(path)
    memories = [
        process
        for name, settings in spec.memories.items()
        for process in process_names(name, settings.shards)
    ]
    history = read_history(events, memories, status.time if status else -math.inf)
    return System(
        path,
        spec,
        (path / "system.toml").read_text(encoding="utf-8"),
        status,
        problem,
        events,
        history,
        [
            _read_learner(path, plan, place, status, history, is_at_work)
            for place, plan in enumerate(spec.learners)
        ],
        [
            MemoryData(
                name,
                settings,
                [one for one in (status.memories if status else []) if owner(one.name) == name],
                _pasts(history, "memory", name),
                is_at_work,
            )
            for name, settings in spec.memories.items()
        ],
        is_at_work,
    )


def _read_learner(
    system: Path,
    plan: LearnerPlan,
    place: int,
    status: Status | None,
    history: History,
    is_at_work: bool,
) -> LearnerData:
    path = system / "learners" / plan.name
    run: Run | EventRun | None = None
    problem = ""
    if (path / "config.toml").is_file():
        try:
            run = _read_run(path, plan, place)
        except (UsageError, OSError) as error:  # it may be a file that its process was just replacing
            problem = " ".join(str(error).split())
    mine = [one for one in (status.learners if status else []) if owner(one.name) == plan.name]
    pasts = _pasts(history, "learner", plan.name)
    return LearnerData(plan, place, path, run, problem, mine, pasts, is_at_work)


def _natural(name: str) -> tuple[str, int, str]:
    """Sort key: worker 2 before worker 10."""
    of, _, number = name.partition("/")
    return of, len(number), number


def _pasts(history: History, kind: str, name: str) -> list[Past]:
    return [past for who, past in history.pasts.items() if who.kind == kind and owner(who.name) == name]


def _read_run(path: Path, plan: LearnerPlan, place: int) -> Run | EventRun:
    if isinstance(plan.config, RunConfig):
        ((run,),) = (group.runs for group in read_groups([path]))
        return run
    (events,) = read_event_runs([path])
    events.details, events.place = [plan.name], place
    return events
