"""The directory of a live system read back: its learners and memories, how they are, and what happened when.

What the driver wrote last (status.json) may be missing or damaged, and what it was writing (events.jsonl) cut
off: the specification and the directories of the learners tell the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from streamwise.runs.config import RunConfig
from streamwise.runs.event_run_data import EventRun, read_event_runs
from streamwise.runs.lock import InUseError, locked
from streamwise.runs.run_data import Run, read_groups
from streamwise.runs.shared_memory import MemorySettings
from streamwise.runs.sweep_data import read_events
from streamwise.runs.up_spec import FOR_EVER, LearnerPlan, SystemSpec, load_system
from streamwise.runs.up_status import STATUS_FILE
from streamwise.streams import UsageError

__all__ = [
    "History",
    "LearnerData",
    "MemoryData",
    "System",
    "Who",
    "happenings",
    "is_system",
    "read_history",
    "read_system",
]

Record = dict[str, Any]

LATEST = 1e11  # seconds since 1970; what is later is no time

ENDS = ("lost", "failed", "finished", "stopped")  # of something that was at work
MARKS = ("lost", "failed", "recovered", "finished", "stopped")
AT_WORK = ("starting", "running", "paused")  # states that hold only as long as there is a driver


def is_system(path: Path) -> bool:
    """Return whether a directory is that of a live system."""
    return (path / "system.toml").is_file()


# ---- status.json ----


class LinkStatus(msgspec.Struct, frozen=True):
    """What a learner has exchanged with its shared memory."""

    received: int = 0
    sent: int = 0
    problem: str = ""


class SharingStatus(msgspec.Struct, frozen=True):
    """How a learner shares a memory."""

    link: LinkStatus | None = None


class ProcessStatus(msgspec.Struct, frozen=True):
    """How a learner is, or one of the workers of one."""

    name: str
    state: str
    step: int = 0
    per_second: float = 0.0
    score: dict[str, float] = {}
    lag: int | None = None
    restarts: int = 0
    memory: SharingStatus | None = None
    message: str = ""


class MemoryStatus(msgspec.Struct, frozen=True):
    """How a shared memory is; numbers are of its present life."""

    name: str
    state: str = "unknown"
    chunks: int = 0
    written: dict[str, int] = {}
    repeated: int = 0
    taken_back: int = 0
    given: int = 0
    restarts: int = 0


class Status(msgspec.Struct, frozen=True):
    """What the driver wrote last."""

    time: Annotated[float, msgspec.Meta(ge=0.0, lt=LATEST)]
    state: str
    learners: list[ProcessStatus]
    memories: list[MemoryStatus]


# ---- events.jsonl ----


class Who(NamedTuple):
    """A learner, a worker of one, or a memory: two kinds may share a name."""

    kind: str  # learner, memory
    name: str


class Span(NamedTuple):
    """From when to when something was at work, in seconds since 1970."""

    begin: float
    end: float


@dataclass
class Past:
    """What happened to one process: when it was at work, and what came between."""

    spans: list[Span] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    restarts: int = 0
    last: str = ""  # event
    message: str = ""  # of the last failure


@dataclass(frozen=True)
class History:
    """What happened to a system. lives: from when to when a driver was at work."""

    lives: list[Span]
    pasts: dict[Who, Past]
    counts: Counter[str]

    @property
    def seconds(self) -> float:
        """At work, of all drivers; pauses between them do not count."""
        return sum(life.end - life.begin for life in self.lives)

    def at_work(self, time: float) -> float:
        """Return the seconds at work up to a time."""
        return sum(min(max(time, life.begin), life.end) - life.begin for life in self.lives)


def happenings(events: Iterable[Record]) -> list[Record]:
    """Return, in order of time, the events that say when they were."""
    timed = (event for event in events if isinstance(event.get("time"), int | float))
    return sorted(
        (event for event in timed if 0.0 <= event["time"] < LATEST), key=lambda event: float(event["time"])
    )


def read_history(events: Iterable[Record], memories: Iterable[str], now: float = -math.inf) -> History:
    """Return what events tell. memories: begin with a driver. now: until when those without an end last."""
    history, memories = History([], {}, Counter()), list(memories)
    begun: dict[Who, float] = {}  # who is at work, and since when
    started: set[Who] = set()  # in this life of the driver
    life, last = math.nan, math.nan  # when it began; NaN between two

    def end_all(time: float) -> None:
        nonlocal life
        for who, begin in begun.items():
            history.pasts[who].spans.append(Span(begin, max(begin, time)))
        if not math.isnan(life):
            history.lives.append(Span(life, max(life, time)))
        begun.clear()
        life = math.nan

    for event in happenings(events):
        time, kind = float(event["time"]), str(event["event"])
        if kind == "up":
            end_all(last)  # of a driver that was killed, this is the last that is known
        if kind == "down":
            end_all(time)
            last = time
            continue
        if math.isnan(life):
            life = time
            started.clear()
            for name in memories:
                history.pasts.setdefault(who := Who("memory", name), Past())
                begun[who] = time
        last = time
        of = next((of for of in ("learner", "memory") if isinstance(event.get(of), str)), None)
        if of is None:
            continue
        history.counts[kind] += 1
        past = history.pasts.setdefault(who := Who(of, event[of]), Past())
        if kind in ENDS and who in begun:
            past.spans.append(Span(begun.pop(who), time))
        elif kind in ("started", "recovered"):
            begun.setdefault(who, time)
            past.restarts += who in started or kind == "recovered"
            started.add(who)
        if kind in MARKS:
            past.marks.append((time, kind))
        past.last = kind
        past.message = str(event.get("message") or past.message)
    end_all(max(last, now) if not math.isnan(last) else now)
    return history


# ---- the whole ----


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
    def kind(self) -> str:
        """The agent or the model."""
        config = self.plan.config
        return config.agent if isinstance(config, RunConfig) else config.model

    @property
    def workers(self) -> int:
        """The processes that divide its stream."""
        return 1 if isinstance(self.plan.config, RunConfig) else self.plan.config.workers

    @property
    def planned_steps(self) -> int | None:
        """The steps it was started for; None for ever."""
        config = self.plan.config
        return config.steps if isinstance(config, RunConfig) and config.steps < FOR_EVER else None

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
        name = who.name.partition("/")[0]
        return names.index(name) if who.kind == "learner" and name in names else len(names)


def read_system(path: Path) -> System:
    """Read the directory of a live system, also beside one that goes on.

    Raises UsageError for a directory of none, for a damaged specification, and where nothing has begun.
    """
    if not is_system(path):
        raise UsageError(f"{path} is no live system: it has no system.toml, as `streamwise up` leaves.")
    spec = load_system(str(path))
    events = read_events(path / "events.jsonl")
    status, problem = _read_status(path)
    if status is None and not events and not (path / "learners").is_dir():
        raise UsageError(f"{path} has nothing to draw yet; start it with: streamwise up {path}")
    is_at_work = _is_held(path)
    memories = [process for name, settings in spec.memories.items() for process in _processes(name, settings)]
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
                [one for one in (status.memories if status else []) if _is_of(name, one.name)],
                _pasts(history, "memory", name),
                is_at_work,
            )
            for name, settings in spec.memories.items()
        ],
        is_at_work,
    )


def _read_status(path: Path) -> tuple[Status | None, str]:
    """Return what the driver wrote last, or why that is not known."""
    file = path / STATUS_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Status), ""
    except FileNotFoundError:
        return None, f"{file} is missing; streamwise up {path} writes it anew"
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        return None, f"{file} is damaged ({why}); streamwise up {path} writes it anew"


def _is_held(path: Path) -> bool:
    """Return whether a driver is at work in a directory."""
    if not (path / ".lock").is_file():
        return False
    try:
        with locked(path):
            return False
    except InUseError:
        return True
    except OSError:  # a copy that cannot be written to
        return False


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
    mine = [one for one in (status.learners if status else []) if _is_of(plan.name, one.name)]
    pasts = _pasts(history, "learner", plan.name)
    return LearnerData(plan, place, path, run, problem, mine, pasts, is_at_work)


def _natural(name: str) -> tuple[str, int, str]:
    """Sort key: worker 2 before worker 10."""
    of, _, number = name.partition("/")
    return of, len(number), number


def _processes(name: str, settings: MemorySettings) -> list[str]:
    """Return what the driver calls the processes of a memory."""
    return [name] if settings.shards == 1 else [f"{name}/{number}" for number in range(settings.shards)]


def _pasts(history: History, kind: str, name: str) -> list[Past]:
    return [past for who, past in history.pasts.items() if who.kind == kind and _is_of(name, who.name)]


def _is_of(name: str, process: str) -> bool:
    """Return whether a process is that of the learner or memory, or one of several: NAME/NUMBER."""
    return process.partition("/")[0] == name


def _read_run(path: Path, plan: LearnerPlan, place: int) -> Run | EventRun:
    if isinstance(plan.config, RunConfig):
        ((run,),) = (group.runs for group in read_groups([path]))
        return run
    (events,) = read_event_runs([path])
    events.details, events.place = [plan.name], place
    return events
