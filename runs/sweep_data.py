"""Sweeps read back: their runs, and what the driver saw of them."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamwise.runs.run_data import Run, read_learning
from streamwise.streams import UsageError

__all__ = ["Sweep", "SweepRun", "is_sweep", "read_events", "read_sweeps"]

Record = dict[str, Any]  # from name to number, text or None

EVENTS = ("started", "finished", "failed", "lost", "interrupted")  # of a run


def is_sweep(path: Path) -> bool:
    """Return whether a directory is that of a sweep."""
    return (path / "sweep.toml").is_file()


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One run of a sweep: its directory, and what the driver saw of it."""

    sweep: str
    name: str
    label: str
    run: Run | None  # None where there is no directory that can be read
    events: list[Record]
    damage: str = ""  # why there is none

    @property
    def status(self) -> str:
        """In a word."""
        if self.events:
            last = str(self.events[-1]["event"])
            return "unfinished" if last == "started" else last
        if self.run is None:
            return "damaged"
        return "finished" if self.run.last_step and not self.run.stopped_early else "unfinished"

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self.count("started") - 1)

    @property
    def failures(self) -> int:
        """How often it was lost, or given up."""
        return self.count("lost") + self.count("failed")

    def count(self, event: str) -> int:
        """How often the driver saw this."""
        return sum(seen["event"] == event for seen in self.events)

    @property
    def seconds(self) -> float:
        """Of all attempts together; without events, up to the last row of metrics."""
        spent = [_number(event.get("seconds")) for event in self.events]
        known = [seconds for seconds in spent if math.isfinite(seconds)]
        return sum(known) if known else self.run.wall_time if self.run else math.nan

    @property
    def messages(self) -> list[str]:
        """Why it was lost or given up, each reason once."""
        said = [str(event["message"]) for event in self.events if event.get("message")]
        return [" ".join(message.split()) for message in dict.fromkeys(said)]

    @property
    def environment(self) -> str:
        """Empty where it is not known."""
        return self.run.environment if self.run else ""

    @property
    def final(self) -> float:
        """Mean return of the last 20 episodes; NaN for a series, and before the first episode."""
        return self.run.final if self.run else math.nan

    @property
    def last_step(self) -> int:
        """The last step that is on disk."""
        return self.run.last_step if self.run else 0

    @property
    def title(self) -> str:
        """As notes and tables name it."""
        return f"{self.name} ({self.sweep})" if self.sweep else self.name


@dataclass(frozen=True)
class Sweep:
    """One sweep read back."""

    name: str
    runs: list[SweepRun]
    planned_runs: int
    cores: float  # that each run was given
    wall_time: float  # seconds at work; NaN where events do not say

    @property
    def core_seconds(self) -> float:
        """Of all attempts of all runs."""
        return self.cores * float(np.nansum([run.seconds for run in self.runs]))


def read_sweeps(paths: Sequence[Path]) -> list[Sweep]:
    """Read sweeps, each once. Raises UsageError for what is none, or has no runs yet."""
    unique = list({path.resolve(): path for path in paths}.values())
    specs = [_read_specification(path) for path in unique]
    names = [str(spec.get("name") or path.resolve().name) for spec, path in zip(specs, unique, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name}, {path}" for name, path in zip(names, unique, strict=True)]
    several = len(unique) > 1
    return [_read_sweep(*found, several) for found in zip(unique, specs, names, strict=True)]


def _read_specification(path: Path) -> Record:
    if not is_sweep(path):
        raise UsageError(f"{path} is not a sweep: it has no sweep.toml; name the directory of a sweep.")
    try:
        return tomllib.loads((path / "sweep.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}  # the runs themselves tell the rest


def _read_sweep(path: Path, spec: Record, name: str, is_compared: bool) -> Sweep:
    events = read_events(path / "events.jsonl")
    by_run: dict[str, list[Record]] = {}
    for event in events:
        if isinstance(event.get("run"), str) and event["event"] in EVENTS:
            by_run.setdefault(event["run"], []).append(event)
    folders = {folder.name: folder for folder in (path / "runs").glob("*") if folder.is_dir()}
    if not folders and not by_run:
        raise UsageError(f"{path} has no runs yet; start it with: streamwise sweep {path / 'sweep.toml'}")
    runs = []
    # Runs were first started in the order of the specification, which is how its author thinks of them.
    for run_name in dict.fromkeys([*by_run, *sorted(folders, key=_natural)]):
        run, damage = None, "it has no directory"
        if run_name in folders:
            try:
                run, damage = read_learning(folders[run_name]), ""
            except UsageError as error:
                damage = str(error)
        label = str(run.config.get("label") or run.label) if run else ""
        if run and is_compared:
            label = f"{label} ({name})"
        seen = by_run.get(run_name, [])
        runs.append(SweepRun(name if is_compared else "", run_name, label, run, seen, damage))
    counts = [event["runs"] for event in events if isinstance(event.get("runs"), int)]
    resources = spec.get("resources")
    cores = _number(resources.get("cpus")) if isinstance(resources, dict) else math.nan
    return Sweep(
        name,
        runs,
        planned_runs=max(len(runs), *counts[-1:]) if counts else len(runs),
        cores=cores if math.isfinite(cores) else 1.0,
        wall_time=_wall_time(events),
    )


def read_events(file: Path) -> list[Record]:
    """Return the events of a sweep; lines that are cut off, or otherwise no event, are left out."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def _wall_time(events: Iterable[Record]) -> float:
    """Return the seconds at work: a pause between an interruption and going on does not count."""
    total, begun, last = math.nan, math.nan, math.nan
    for event in events:
        time = _number(event.get("time"))
        if not math.isfinite(time):
            continue
        if event["event"] in ("sweep started", "sweep resumed") or math.isnan(begun):
            total = np.nansum([total, last - begun])  # it may have ended without a word
            begun = time
        last = time
        if event["event"] in ("sweep finished", "sweep interrupted"):
            total, begun, last = np.nansum([total, last - begun]), math.nan, math.nan
    return float(np.nansum([total, last - begun])) if not math.isnan(total) else math.nan


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: run 2 before run 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
