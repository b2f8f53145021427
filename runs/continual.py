"""Continual learning, compared: methods on streams whose world changes, what they keep and what they cost.

    name = "digits"
    seeds = 5                        # 0 to 4; they draw examples, the order of classes, and first weights
    consolidate = "boundaries"       # or "never", "every:500", "adwin", "page-hinkley"
    looks = 5                        # at all experiences, in each segment, at equal distances

    [schedules]                      # names for the report, and streams
    split = "dataset:digits?schedule=split&experiences=5"      # or regimes:..., of events

    [learner]                        # of every method; see `ClassifierConfig`, `WindowTPPConfig`
    batch_size = 10

    [methods."nothing"]              # see runs/continual_methods.py
    [methods."replay of 50"]
    method = "replay"
    capacity = 50

A unit of work is one method on one schedule with one seed. Each example is predicted, then learned, once; at
every look all experiences are tested on examples that are never learned, and it is made sure that looking
changed nothing. Units run on Ray, one core each; a checkpoint at every look, which holds the learner, where
the stream is and what was seen, makes the same command go on with what is missing, bit for bit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from streamwise.runs.checkpoint import CheckpointError, Checkpoints, check_finite
from streamwise.runs.config import read_toml
from streamwise.runs.continual_methods import (
    MethodSpec,
    World,
    check_consolidate,
    check_settings,
    make_learner,
    method_spec,
    world_of,
)
from streamwise.runs.continual_metrics import fading_accuracy
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest
from streamwise.runs.ray_cluster import reach
from streamwise.runs.storage import LocalStorage, replace_durably
from streamwise.runs.unit_pool import Pool, result_path, run_units
from streamwise.streams import DivergedError, UsageError
from streamwise.streams.errors import nearest

__all__ = [
    "ContinualOptions",
    "ContinualResult",
    "ContinualSpec",
    "Unit",
    "is_continual",
    "load_continual",
    "protocol_names",
    "run_continual",
    "run_unit",
    "units_of",
]

_PROTOCOLS = Path(__file__).parent / "protocols"
_FILE = "continual.toml"
_KEYS = ("name", "seeds", "consolidate", "looks", "schedules", "learner", "methods")
_CURVE_POINTS = 200  # of the accuracy of a stream


@dataclass(frozen=True)
class ContinualOptions:
    """Where a comparison runs, and how much it puts up with."""

    out: Path
    cpus: int | None = None
    address: str | None = None
    max_failures: int = 3


@dataclass(frozen=True)
class ContinualSpec:
    """A comparison: schedules by name, methods by name, and the tables it was read from."""

    name: str
    world: World
    seeds: int
    looks: int
    schedules: Mapping[str, str]
    learner: Mapping[str, Any]
    methods: Mapping[str, MethodSpec]
    tables: Mapping[str, Any]


@dataclass(frozen=True)
class ContinualResult:
    """How it ended: units done of all, why others were given up, and the signal that stopped it, if any."""

    directory: Path
    done: int
    units: int
    failed: dict[str, str]
    signal: int | None


@dataclass(frozen=True)
class Unit:
    """One method on one schedule with one seed."""

    schedule: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The unit as its files are named."""
        return f"{_slug(self.schedule)}.{_slug(self.method)}.{self.seed}"


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text).split())


def units_of(spec: ContinualSpec) -> list[Unit]:
    """Return the units: a seed of every method and schedule after the other, so that all come along."""
    return [
        Unit(schedule, method, seed)
        for seed in range(spec.seeds)
        for schedule, method in itertools.product(spec.schedules, spec.methods)
    ]


# ---- the specification


def protocol_names() -> list[str]:
    """Return the names of the specifications that come with streamwise."""
    return sorted(path.stem for path in _PROTOCOLS.glob("*.toml"))


def is_continual(directory: Path) -> bool:
    """Whether a directory holds a comparison of methods of continual learning."""
    return (directory / _FILE).is_file()


def load_continual(source: str, seeds: int | None = None) -> ContinualSpec:
    """Read a specification: a TOML file, the directory of a comparison, or one of `protocol_names`.

    A folder that holds no comparison does not stand before a name. seeds: instead of the file's. Raises
    UsageError, in one line that says where, for what cannot be read or understood.
    """
    path = Path(source)
    if is_continual(path) or (path.is_dir() and source not in protocol_names()):
        path = path / _FILE
    elif not source.endswith(".toml"):
        path = _PROTOCOLS / f"{source}.toml"
    if not path.is_file():
        if path.parent == _PROTOCOLS:
            raise UsageError(
                f"{source!r} is neither a .toml file, nor the directory of a comparison, nor the name of one."
                f"{nearest(source, protocol_names())}"
            )
        raise UsageError(f"{path} is not there.")
    return _understood(read_toml(path), path, seeds)


def _understood(tables: dict[str, Any], path: Path, seeds: int | None) -> ContinualSpec:
    for key in tables:
        if key not in _KEYS:
            raise UsageError(f"{path}: unknown key {key!r}.{nearest(key, _KEYS)}")
    wanted = {"seeds": int, "looks": int, "schedules": dict[str, str], "learner": dict[str, Any],
              "methods": dict[str, dict[str, Any]], "name": str}  # fmt: skip
    for key, kind in wanted.items():
        try:
            msgspec.convert(tables.get(key, kind() if key != "seeds" else 5), kind)
        except msgspec.ValidationError as error:
            raise UsageError(f"{path}: {key} is {tables[key]!r}: {error}.") from None
    seeds = tables.get("seeds", 5) if seeds is None else seeds
    looks = tables.get("looks", 5)
    if seeds < 1 or looks < 1:
        raise UsageError(f"{path}: seeds is {seeds}, looks {looks}; use 1 or more.")
    for key in ("schedules", "methods"):
        if not tables.get(key):
            raise UsageError(f"{path}: [{key}] names none.")
    worlds, streams = [], []
    for name, url in tables["schedules"].items():
        if "seed=" in url:
            raise UsageError(f"{path}: schedule {name!r} has a seed of its own; the seeds of units go there.")
        try:
            worlds.append(world_of(url))
            streams.append(_opened(worlds[-1], url, 0))
        except UsageError as error:
            raise UsageError(f"{path}: schedule {name!r}: {error}") from None
    if any(world is not worlds[0] for world in worlds):
        raise UsageError(f"{path}: schedules are of several kinds; make a file for each.")
    consolidate = tables.get("consolidate", "boundaries")
    check_consolidate(consolidate, str(path))
    methods = {
        name: method_spec(name, table, consolidate, str(path)) for name, table in tables["methods"].items()
    }
    spec = ContinualSpec(
        tables.get("name", path.stem if path.name != _FILE else path.parent.name),
        worlds[0],
        seeds, looks, tables["schedules"], tables.get("learner", {}), methods, tables,
    )  # fmt: skip
    names = [unit.name for unit in units_of(spec)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{path}: two units would be named {twice!r}; give a method or schedule another.")
    for stream in streams:  # a setting that a method refuses is found before anything runs
        for method in methods.values():
            try:
                check_settings(method, spec.learner, spec.world, stream)
            except UsageError as error:
                raise UsageError(f"{path}: {error}") from None
    return spec


def _opened(world: World, url: str, seed: int, *, mixed: bool = False) -> Any:
    more = f"seed={seed}{'&mixed=true' if mixed else ''}"
    return world.open(f"{url}{'&' if '?' in url else '?'}{more}")


# ---- one unit


def run_unit(
    unit: Unit, spec: ContinualSpec, directory: Path, on_look: Callable[[int], None] = lambda looks: None
) -> dict[str, Any]:
    """Run one unit, from its last checkpoint on, and return its result, as JSON.

    on_look: told how many looks there were. Raises DivergedError if weights are no longer finite.
    """
    method, world, url = spec.methods[unit.method], spec.world, spec.schedules[unit.schedule]
    torch.set_num_threads(1)
    stream = _opened(world, url, unit.seed, mixed=method.mixed)
    segments = len(_opened(world, url, unit.seed).segments) if method.mixed else 1
    learner = make_learner(method, spec.learner, world, stream, unit.seed)
    looks = _looks(stream, spec.looks * segments)
    ends = {segment.stop for segment in stream.segments}
    checkpoints = Checkpoints(LocalStorage(directory / "checkpoints" / unit.name), keep=1)
    seen: dict[str, Any] = {"rows": [[world.test(learner, test) for test in stream.tests]], "seconds": 0.0}
    online = np.zeros(len(stream), np.float32)  # how well each sample was predicted
    if checkpoints.names():
        checkpoint = checkpoints.latest()
        online = checkpoint.state.pop("run.online").numpy().copy()
        learner.load_state_dict(checkpoint.state)
        stream.seek(checkpoint.meta["position"])
        seen = checkpoint.meta["seen"]
    on_look(len(seen["rows"]) - 1)
    samples = iter(stream)
    for look in looks[len(seen["rows"]) - 1 :]:
        began = time.perf_counter()
        while (number := stream.position["example"]) < look:
            online[number] = learner.learn_one(next(samples))[world.online]
            if number + 1 in ends and method.consolidate == "boundaries":
                learner.consolidate()
        seen["seconds"] += time.perf_counter() - began
        state = learner.state_dict()
        check_finite(state, "try a smaller step_size")
        seen["rows"].append([world.test(learner, test) for test in stream.tests])
        _check_unchanged(state, learner.state_dict(), unit)
        checkpoints.save(
            look,
            {**state, "run.online": torch.from_numpy(online)},
            {"unit": unit.name, "position": stream.position, "seen": seen},
        )
        on_look(len(seen["rows"]) - 1)
    state = learner.state_dict()
    network = getattr(learner, "network", None)
    return {
        "schedule": unit.schedule,
        "method": unit.method,
        "seed": unit.seed,
        "patterns": [len(test.labels) for test in stream.tests],
        "segments": [list(segment) for segment in stream.segments],
        "looks": [0, *looks],
        "scores": seen["rows"],
        "online": float(online.mean(dtype=np.float64)),
        "online_curve": _curve(online),
        "microseconds": 1e6 * seen["seconds"] / len(stream),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        "trained": sum(p.numel() for p in network.parameters() if p.requires_grad) if network else 0,
        "told": method.told,
        "drifts": int(state["drift.drifts"]) if "drift.drifts" in state else None,
    }


def _looks(stream: Any, count: int) -> list[int]:
    """Return after how many examples all experiences are tested: `count` times in each segment."""
    return [
        segment.start + (segment.stop - segment.start) * look // count
        for segment in stream.segments
        for look in range(1, count + 1)
    ]


def _check_unchanged(before: dict[str, Tensor], after: dict[str, Tensor], unit: Unit) -> None:
    """Raise RuntimeError if testing has changed a learner: its figures would be those of something else."""
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    if changed or before.keys() != after.keys():
        raise RuntimeError(f"{unit.name}: testing has changed {', '.join(changed) or 'what is kept'}.")


def _curve(online: NDArray[np.float32]) -> list[list[float]]:
    """Return some points of the fading mean: after how many samples, and what it was."""
    fading = fading_accuracy(online, 0.99)
    places = np.unique(np.linspace(0, len(online) - 1, _CURVE_POINTS).astype(int))
    return [[int(place) + 1, float(fading[place])] for place in places]


def score_text(world: World, score: float) -> str:
    """Return a score as it is told."""
    return f"{100 * score:.1f}%" if world.unit == "accuracy" else f"{score:.3f} nats an event"


# ---- all of them


class Worker:
    """Runs one unit at a time in a process of its own, the body of a Ray actor; another call asks how far."""

    def __init__(self, spec: ContinualSpec, directory: Path) -> None:
        self.spec, self.directory, self.done = spec, directory, 0

    def run(self, unit: Unit) -> dict[str, Any] | str:
        """Run a unit; return its result, or why another attempt would fail, too."""

        def on_look(looks: int) -> None:
            self.done = looks

        self.done = 0
        try:
            return run_unit(unit, self.spec, self.directory, on_look)
        except (DivergedError, CheckpointError, ValueError, OSError) as error:
            return " ".join(str(error).split())

    def progress(self) -> int:
        """Return how many looks of the unit there were."""
        return self.done


def run_continual(
    spec: ContinualSpec,
    options: ContinualOptions,
    *,
    console: Console | None = None,
    stop: StopRequest | None = None,
) -> ContinualResult:
    """Run the units that are missing, and write a result for each.

    Raises UsageError for what the user can mend: a directory of something else or of another comparison, a
    cluster that is not there. Raises RayStoppedError if Ray stops.
    """
    reach(options.address)
    directory = options.out.absolute()
    _check_same(spec, directory)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        tables = {**spec.tables, "name": spec.name, "seeds": spec.seeds}
        replace_durably(directory / _FILE, tomli_w.dumps(tables).encode())
        units, stop = units_of(spec), stop or StopRequest()
        segments = {name: len(_opened(spec.world, url, 0).segments) for name, url in spec.schedules.items()}
        pool = Pool(
            directory,
            Worker,
            (spec, directory),
            parts=lambda unit: spec.looks * segments[unit.schedule],
            part="look",
            worth=lambda answer: f"{score_text(spec.world, np.mean(answer['scores'][-1]))} at the end, ",
            address=options.address,
            cpus=options.cpus,
            max_failures=options.max_failures,
        )
        failed = run_units(units, pool, console, stop)
        done = sum(result_path(directory, unit).is_file() for unit in units)
        return ContinualResult(directory, done, len(units), failed, stop.signal)


def _check_same(spec: ContinualSpec, directory: Path) -> None:
    """Raise UsageError unless the directory is free, or of this comparison, of which parts may be new."""
    if not is_continual(directory):
        if directory.exists() and any(path.name != ".lock" for path in directory.iterdir()):
            raise UsageError(f"{directory} already exists and is no comparison; choose another --out.")
        return
    there = load_continual(str(directory))
    same = there.looks == spec.looks and there.learner == spec.learner
    for ours, theirs in ((spec.methods, there.methods), (spec.schedules, there.schedules)):
        same = same and all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())
    if not same:
        raise UsageError(
            f"{directory} holds a comparison with other settings of the same names; choose another --out, or "
            "give what has changed another name."
        )
