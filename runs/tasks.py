"""Streams as tasks: what methods learn, keep and forget when a stream is divided into windows.

A unit of work is one method with one seed. It learns the tasks in order, and after each scores its test part,
those before, and the next: row i of its matrices is what it knew after task i. Units run on Ray, one core
each. A unit's checkpoint after every task, and its result at the end, make the same command go on with what
is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import ArrayLike, NDArray
from rich.console import Console

from streamwise.agents.tpp_training import TrainingSettings
from streamwise.runs.checkpoint import CheckpointError, Checkpoints, check_finite
from streamwise.runs.config import made_otherwise, read_toml, save_config, settings_of
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest
from streamwise.runs.ray_cluster import reach
from streamwise.runs.storage import LocalStorage, replace_durably
from streamwise.runs.task_methods import BASES, NEURAL, make_method
from streamwise.runs.task_scores import METRICS, MethodSettings
from streamwise.runs.task_split import By, Events, Split
from streamwise.runs.task_statistics import STATISTICAL
from streamwise.runs.unit_pool import Pool, result_path, run_units
from streamwise.streams import DivergedError, UsageError
from streamwise.streams.dead_letters import DeadLetterLog
from streamwise.streams.errors import nearest
from streamwise.streams.event_stream import EventStream
from streamwise.streams.sources import open_source, resolved_url

__all__ = [
    "Summary",
    "TasksConfig",
    "TasksResult",
    "Unit",
    "as_floats",
    "is_tasks",
    "load_tasks",
    "read_source",
    "run_tasks",
    "run_unit",
    "summarize",
    "units_of",
]

_KIND = "tasks"
_FREE = ("methods", "bases", "seeds", "out", "address", "cpus", "max_failures")  # may change on going on


@dataclass(frozen=True)
class TasksConfig:
    """One comparison of methods on the tasks of a stream."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Where events come from: file:PATH, synthetic:hawkes, or a broker, read to where it ends now."""
    methods: tuple[str, ...] = ("all",)
    """all, or some of: pretrained retrained online ewc replay prompt-tpp random-retrieval frozen-pool
    leaky-retrieval (neural), repeat-last markov hawkes counts (statistical)."""
    bases: tuple[str, ...] = BASES
    """What the neural methods are built on: attnhp (attention), nhp (recurrent), or both."""
    seeds: int = 5
    """How often each neural method is run, with seeds from 0 on. The statistical ones draw nothing."""
    tasks: int = 10
    """Into how many windows the stream is divided."""
    by: By = "time"
    """Windows of equal time, or of an equal count of events."""
    events: int | None = None
    """Read so many events. Unset: to the end of the source."""
    lateness: float = 0.0
    """Seconds by which an event may be older than the newest before it. Later ones are refused."""
    time_unit: float = 1.0
    """Seconds in the unit of time that log-likelihoods, RMSE and MAE are reported in."""
    out: Path | None = None
    """The directory. Unset: outputs/tasks-<source>. The same command again goes on in it."""
    epochs: int = 5
    """The most passes over a task's training part."""
    steps: int = 200
    """The most optimizer steps in a task; retrained has so many for every task so far."""
    batch: int = 8
    """Sequences in a step."""
    window: int = 64
    """The most events of its key that a sequence has as context, and the most that it scores."""
    predictions: int = 400
    """Of how many events of a test part the next event is predicted, at most; all are scored."""
    width: int = 32
    """Of the states of the neural methods."""
    layers: int = 2
    """Layers of attention."""
    heads: int = 2
    """Heads of attention."""
    prompts: int = 16
    """Prompts in a pool."""
    selected: int = 4
    """Prompts that a sequence retrieves."""
    rows: int = 4
    """Rows of each prompt."""
    consolidation: float = 1.0
    """ewc: how much an event of earlier tasks weighs beside one of the present."""
    replayed: int = 256
    """replay: sequences that are kept; a batch has half its size of them in addition."""
    settings: tyro.conf.OmitArgPrefixes[TrainingSettings] = field(default_factory=TrainingSettings)
    cpus: int | None = None
    """How many cores of this machine to use, without --address. Unset: all."""
    address: str | None = None
    """A Ray cluster: HOST:PORT, or auto for the one this machine belongs to. Every node must see --out."""
    max_failures: int = 3
    """Give a unit up after so many failures of its process."""

    def __post_init__(self) -> None:
        lowest = {
            "tasks": 2, "seeds": 1, "events": 1, "epochs": 1, "steps": 1, "batch": 1, "window": 1,
            "predictions": 1, "width": 1, "layers": 1, "heads": 1, "prompts": 1, "selected": 1, "rows": 1,
            "replayed": 1, "cpus": 1, "max_failures": 0, "lateness": 0.0, "time_unit": 1e-9,
            "consolidation": 0.0,
        }  # fmt: skip
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; use {low} or more.")
        if self.selected > self.prompts:
            raise UsageError(f"--selected is {self.selected}, of {self.prompts} prompts; select fewer.")
        if self.address is not None and self.cpus is not None:
            raise UsageError("--cpus is of this machine alone; with --address, the nodes say what they have.")
        for kind, given, known in (
            ("methods", self.methods, ["all", *NEURAL, *STATISTICAL]),
            ("bases", self.bases, BASES),
        ):
            if not given:
                raise UsageError(f"--{kind} names none; choose from: {', '.join(known)}.")
            for name in given:
                if "," in name:
                    raise UsageError(f"--{kind} {name}: write them with spaces between, not commas.")
                if name not in known:
                    raise UsageError(f"--{kind}: there is no {name!r}.{nearest(name, known)}")

    @property
    def directory(self) -> Path:
        """Where everything is kept."""
        if self.out is not None:
            return self.out
        name = re.sub(r"\?.*", "", self.source.removeprefix("file:")).rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", name).replace("synthetic-", "").strip("-.")
        return Path("outputs") / f"tasks-{name}"

    def resolved(self) -> TasksConfig:
        """Return this configuration as it means the same from any folder."""
        return dataclasses.replace(self, source=resolved_url(self.source), out=self.directory.absolute())

    @property
    def of_methods(self) -> MethodSettings:
        """Return what the methods need to know."""
        names = [field.name for field in dataclasses.fields(MethodSettings) if field.name != "training"]
        return MethodSettings(training=self.settings, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Unit:
    """One method with one seed. base: None for a statistical method, which has one seed."""

    method: str
    base: str | None
    seed: int

    @property
    def label(self) -> str:
        """The method as tables name it."""
        return self.method if self.base is None else f"{self.method} {self.base}"

    @property
    def name(self) -> str:
        """The unit as its files are named."""
        return f"{self.label.replace(' ', '-')}-seed{self.seed}"


@dataclass(frozen=True)
class TasksResult:
    """How it ended: units done of all, why others were given up, and the signal that stopped it, if any."""

    directory: Path
    done: int
    units: int
    failed: dict[str, str]
    signal: int | None


def units_of(config: TasksConfig) -> list[Unit]:
    """Return the units of a comparison: a seed of every method after the other, so that all come along."""
    chosen = [*NEURAL, *STATISTICAL] if "all" in config.methods else list(dict.fromkeys(config.methods))
    statistical = [Unit(name, None, 0) for name in chosen if name in STATISTICAL]
    neural = [
        Unit(name, base, seed)
        for seed in range(config.seeds)
        for base in dict.fromkeys(config.bases)
        for name in chosen
        if name in NEURAL
    ]
    return statistical + neural


# ---- what is learned ----


def read_source(config: TasksConfig, dead_letters: Path | None = None) -> Events:
    """Read all events of a source. Raises UsageError if it has no end, or no events."""
    if config.source.startswith("stdin:"):
        raise UsageError("stdin: can be read once only, and tasks can be gone on with; save it to a file.")
    source = open_source(config.source, until_end=True)
    with ExitStack() as stack:
        stack.callback(source.close)
        letters = DeadLetterLog(dead_letters)
        stack.callback(letters.close)
        stream = EventStream([source], letters, lateness=config.lateness, until_end=True, most=config.events)
        times: list[float] = []
        columns: tuple[list[int], list[int]] = ([], [])
        numbers: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for batch in stream.batches():
            times += batch.times
            for column, known, names in zip(columns, numbers, (batch.types, batch.keys), strict=True):
                column += [known.setdefault(name, len(known)) for name in names]
    if not times:
        raise UsageError(f"{config.source} has no events; nothing can be learned.")
    types, keys = (np.array(column, np.int64) for column in columns)
    return Events(np.array(times), types, keys, tuple(numbers[0]), len(numbers[1]))


def run_unit(
    unit: Unit,
    config: TasksConfig,
    split: Split,
    on_task: Callable[[int], None] = lambda task: None,
) -> dict[str, Any]:
    """Run one unit, from the last task in its checkpoint on, and return its result, as JSON.

    on_task: told how many tasks are done. Raises DivergedError if weights are no longer finite.
    """
    method = make_method(unit.method, unit.base, config.of_methods, split, unit.seed)
    checkpoints = Checkpoints(LocalStorage(config.directory / "checkpoints" / unit.name), keep=1)
    done: list[dict[str, Any]] = []
    tensors = 0
    if checkpoints.names():
        checkpoint = checkpoints.latest()
        tensors = method.load_state_dict(checkpoint.state)
        done = checkpoint.meta["tasks"]
    on_task(len(done))
    for task in range(len(done), split.tasks):
        started = time.perf_counter()
        learned = method.learn(task)
        learned_at = time.perf_counter()
        row = {
            "scores": [_plain(cell) for cell in method.scores(min(task + 2, split.tasks))],
            "silence": _finite(method.silence(task)),
            "fit": None if learned is None else {k: _finite(v) for k, v in learned._asdict().items()},
            "learning_seconds": learned_at - started,
            "scoring_seconds": time.perf_counter() - learned_at,
        }
        done.append(row)
        state = method.state_dict()
        check_finite(state, "try a smaller --step-size")
        checkpoints.save(task + 1, state, {"unit": unit.name, "tasks": done})
        on_task(task + 1)
    unknown: dict[str, float | None] = dict.fromkeys(METRICS)
    matrices = {
        name: [
            [cell[name] for cell in row["scores"] + [unknown] * (split.tasks - len(row["scores"]))]
            for row in done
        ]
        for name in METRICS
    }
    return {
        "method": unit.method,
        "base": unit.base,
        "seed": unit.seed,
        "parameters": method.parameters,
        "tensors_restored": tensors,
        "matrices": matrices,
        **{name: [row[name] for row in done] for name in done[0] if name != "scores"},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(cell: dict[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in cell.items()}


class Summary(NamedTuple):
    """What a matrix R says; row i was measured after task i, column j on the test part of task j.

    average: the mean of R[i][i]. forward: of R[i][i + 1]. forgetting: the mean over all tasks but the last of
    how much worse R[n][j] is than the best that is known of column j; 0 where nothing was lost.
    """

    average: float
    forward: float
    forgetting: float


def summarize(matrix: ArrayLike, higher_is_better: bool = True) -> Summary:
    """Return average, forward transfer and forgetting of a matrix, [tasks, tasks]; NaN is what is not known.

    >>> summarize([[1.0, 0.5], [0.75, 2.0]])
    Summary(average=1.5, forward=0.5, forgetting=0.25)
    """
    known = np.array(matrix, np.float64)
    gain = known if higher_is_better else -known
    lost = (np.fmax.reduce(gain) - gain[-1])[:-1]
    return Summary(float(np.diagonal(known).mean()), float(np.diagonal(known, 1).mean()), float(lost.mean()))


# ---- the directory ----


def is_tasks(directory: Path) -> bool:
    """Whether a directory holds a comparison on tasks."""
    path = directory / "config.toml"
    return path.is_file() and read_toml(path).get("kind") == _KIND


def load_tasks(directory: Path) -> TasksConfig:
    """Read the config.toml of a directory. Raises UsageError if it is of something else, or damaged."""
    path = directory / "config.toml"
    if not is_tasks(directory):
        raise UsageError(f"{directory} holds no result of `streamwise tasks`.")
    table = read_toml(path)
    del table["kind"]
    table.pop("versions", None)
    known = [field.name for field in dataclasses.fields(TasksConfig)]
    for key in table:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}.{nearest(key, known)}")
    settings = settings_of(TrainingSettings, table.pop("settings", {}), "tasks", path)
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    try:
        return TasksConfig(**{**table, **lists}, settings=settings, out=directory)
    except TypeError as error:
        raise UsageError(f"{path}: {error}.") from None


def _check_same(config: TasksConfig, directory: Path) -> None:
    """Raise UsageError unless the directory is free, or of the same comparison."""
    if not is_tasks(directory):
        left = {".lock", "dead_letters.jsonl"}  # by a start that was refused
        if directory.exists() and any(path.name not in left for path in directory.iterdir()):
            raise UsageError(f"{directory} already exists and holds no result of tasks; give another --out.")
        return
    there = dataclasses.asdict(load_tasks(directory))
    here = dataclasses.asdict(config)
    there, here = ({**table.pop("settings"), **table} for table in (there, here))
    for name in here:
        if name not in _FREE and there[name] != here[name]:
            raise made_otherwise(directory, f"--{name}", there[name], here[name])


def _describe(events: Events, split: Split) -> dict[str, Any]:
    """Return what was learned from: enough to notice that a source has changed, and to label a report."""
    digest = hashlib.sha256()
    for column in (events.times, events.types, events.keys):
        digest.update(column.tobytes())
    return {
        "events": len(events.times),
        "keys": events.key_count,
        "types": len(events.type_names),
        "first": float(events.times[0]),
        "last": float(events.times[-1]),
        "bounds": split.bounds.tolist(),
        "train": [len(part.scored) for part in split.train],
        "validation": [len(part.scored) for part in split.validation],
        "test": [len(part.scored) for part in split.test],
        "model_unit": split.unit,
        "sha256": digest.hexdigest(),
    }


def run_tasks(
    config: TasksConfig, *, console: Console | None = None, stop: StopRequest | None = None
) -> TasksResult:
    """Run the units that are missing, and write a result for each.

    Raises UsageError for what the user can mend: a directory of something else or of other settings, a source
    that has changed, parts without events, a cluster that is not there. Raises RayStoppedError if Ray stops.
    """
    config = config.resolved()
    directory = config.directory
    reach(config.address)
    _check_same(config, directory)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        events = read_source(config, directory / "dead_letters.jsonl")
        split = _split(events, config)
        about, path = _describe(events, split), directory / "data.json"
        if path.is_file() and json.loads(path.read_bytes())["sha256"] != about["sha256"]:
            raise UsageError(
                f"{config.source} has other events than when {directory} was begun; give another --out."
            )
        replace_durably(path, json.dumps(about).encode())
        save_config(config, directory, kind=_KIND)
        units, stop = units_of(config), stop or StopRequest()
        pool = Pool(
            directory,
            Worker,
            (config, events),
            parts=lambda unit: config.tasks,
            part="task",
            worth=_worth,
            address=config.address,
            cpus=config.cpus,
            max_failures=config.max_failures,
        )
        failed = run_units(units, pool, console, stop)
        done = sum(result_path(directory, unit).is_file() for unit in units)
        return TasksResult(directory, done, len(units), failed, stop.signal)


def _worth(answer: dict[str, Any]) -> str:
    average = summarize(as_floats(answer["matrices"]["log_likelihood"])).average
    return "" if math.isnan(average) else f"log-likelihood {average:.3f} on average, "


def _split(events: Events, config: TasksConfig) -> Split:
    return Split(events, config.tasks, config.by, window=config.window, predictions=config.predictions)


# ---- on Ray ----


class Worker:
    """Runs one unit at a time in a process of its own, the body of a Ray actor; another call asks how far."""

    def __init__(self, config: TasksConfig, events: Events) -> None:
        torch.set_num_threads(1)
        self.config, self.split = config, _split(events, config)
        self.done = 0

    def run(self, unit: Unit) -> dict[str, Any] | str:
        """Run a unit; return its result, or why another attempt would fail, too."""

        def on_task(done: int) -> None:
            self.done = done

        self.done = 0
        try:
            return run_unit(unit, self.config, self.split, on_task)
        except (DivergedError, CheckpointError, UsageError, OSError) as error:
            return " ".join(str(error).split())

    def progress(self) -> int:
        """Return how many tasks of the unit are done."""
        return self.done


def as_floats(matrix: list[list[float | None]]) -> NDArray[np.float64]:
    """Return a matrix of a result; NaN where a number is not known."""
    return np.array([[math.nan if x is None else x for x in row] for row in matrix], np.float64)
