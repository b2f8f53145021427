"""Units of a comparison on Ray: each in a process of its own, one core each, resumable one by one.

A unit is whatever has a name and goes on from its own checkpoint. Its result, once there, is a file of JSON;
the same command again runs the units that have none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from rich.console import Console

from streamwise.runs.loop import StopRequest
from streamwise.runs.progress import clock
from streamwise.runs.ray_cluster import RayStoppedError, errors_of_others_to, running_ray
from streamwise.runs.storage import replace_durably

__all__ = ["Named", "Pool", "UnitWorker", "result_path", "run_units"]

_LOOK_EVERY_SECONDS = 0.25
_SHOW_EVERY_SECONDS = 10.0


class Named(Protocol):
    """A unit: its name is that of its files."""

    @property
    def name(self) -> str:
        """As it is shown, and as its files are named."""


Unit = TypeVar("Unit", bound=Named)
Unit_contra = TypeVar("Unit_contra", bound=Named, contravariant=True)


class UnitWorker(Protocol[Unit_contra]):
    """Runs one unit at a time, the body of a Ray actor; another call asks how far it is."""

    def run(self, unit: Unit_contra, /) -> dict[str, Any] | str:
        """Run a unit; return its result, as JSON, or why another attempt would fail, too."""

    def progress(self) -> int:
        """Return how many parts of the unit are done."""


@dataclass(frozen=True)
class Pool(Generic[Unit]):
    """How units are run. worker: a class, made of `arguments`, which go to each process once.

    parts: of a unit, as `progress` counts them; part: what one is called. worth: what a result was, in words,
    or nothing.
    """

    directory: Path
    worker: Callable[..., UnitWorker[Unit]]
    arguments: tuple[Any, ...]
    parts: Callable[[Unit], int]
    part: str
    worth: Callable[[dict[str, Any]], str]
    address: str | None = None
    cpus: int | None = None
    max_failures: int = 3


def result_path(directory: Path, unit: Named) -> Path:
    """Return where the result of a unit is."""
    return directory / "results" / f"{unit.name}.json"


def run_units(
    units: Sequence[Unit], pool: Pool[Unit], console: Console | None, stop: StopRequest
) -> dict[str, str]:
    """Run the units that have no result yet; return why some were given up, by name.

    Raises UsageError for a cluster that is not there, RayStoppedError if Ray stops.
    """
    (pool.directory / "results").mkdir(exist_ok=True)
    missing = [unit for unit in units if not result_path(pool.directory, unit).is_file()]
    if not missing:
        return {}
    with (
        errors_of_others_to(pool.directory / "ray.log") as stderr,
        running_ray(pool.address, pool.cpus),
        stop.on_signals(),
    ):
        return _Driver(pool, units, missing, console or Console(file=stderr), stop).run()


@dataclass(eq=False)
class _Slot(Generic[Unit]):
    """One worker, the unit it is at, and the calls that have yet to answer."""

    worker: Any
    unit: Unit | None = None
    call: Any = None
    asked: Any = None
    done: int = 0
    began: float = field(default_factory=time.monotonic)


class _Driver(Generic[Unit]):
    """Hands units to workers until none is left, and writes their results."""

    def __init__(
        self,
        pool: Pool[Unit],
        units: Sequence[Unit],
        missing: Sequence[Unit],
        console: Console,
        stop: StopRequest,
    ) -> None:
        import ray

        self.ray: Any = ray
        self.pool, self.console, self.stop = pool, console, stop
        self.units, self.waiting = units, list(missing)
        self.finished = [unit for unit in units if unit not in missing]
        self.failures: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.arguments = [ray.put(argument) for argument in pool.arguments]
        self.shown_at, self.began = 0.0, time.monotonic()
        self.done_before = sum(map(pool.parts, self.finished))

    def run(self) -> dict[str, str]:
        """Run all that waits; return why units were given up, by name."""
        self._say(f"{len(self.units)} units, {len(self.finished)} of them done before")
        cores = int(self.ray.cluster_resources().get("CPU", 1))
        slots = [self._new_slot() for _ in range(max(1, min(cores, len(self.waiting))))]
        try:
            with self._display() as show:
                while self.stop.signal is None and (self.waiting or any(slot.unit for slot in slots)):
                    self._assign(slots)
                    self._wait(slots)
                    show(slots)
        except self.ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0]
            raise RayStoppedError(f"Ray has stopped ({reason}); the same command goes on.") from None
        return self.failed

    def _new_slot(self) -> _Slot[Unit]:
        worker = self.ray.remote(concurrency_groups={"watch": 1})(self.pool.worker)
        return _Slot(worker.options(num_cpus=1).remote(*self.arguments))

    def _assign(self, slots: list[_Slot[Unit]]) -> None:
        for slot in slots:
            if slot.unit is None and self.waiting:
                slot.unit, slot.done, slot.began = self.waiting.pop(0), 0, time.monotonic()
                slot.call = slot.worker.run.remote(slot.unit)
            if slot.unit is not None and slot.asked is None:
                slot.asked = slot.worker.progress.options(concurrency_group="watch").remote()

    def _wait(self, slots: list[_Slot[Unit]]) -> None:
        calls = [slot.call for slot in slots if slot.unit is not None]
        self.ray.wait(calls, timeout=_LOOK_EVERY_SECONDS)
        for slot in slots:
            if slot.asked is not None and self._answered(slot.asked):
                asked, slot.asked = slot.asked, None
                try:
                    slot.done = self.ray.get(asked)
                except self.ray.exceptions.RayError:  # what became of the unit is the answer of its own call
                    continue
        for slot in slots:
            if slot.unit is not None and self._answered(slot.call):
                self._take(slot)

    def _answered(self, call: Any) -> bool:
        return bool(self.ray.wait([call], timeout=0)[0])

    def _take(self, slot: _Slot[Unit]) -> None:
        """A unit has ended, or its process has died."""
        unit, slot.unit = slot.unit, None
        assert unit is not None
        try:
            answer = self.ray.get(slot.call)
        except self.ray.exceptions.RayActorError:
            self.failures[unit.name] = self.failures.get(unit.name, 0) + 1
            fresh = self._new_slot()
            slot.worker, slot.asked = fresh.worker, None
            if self.failures[unit.name] > self.pool.max_failures:
                self._give_up(unit, "its process died")
            else:
                self._say(f"{unit.name}: its process died; it goes on from its last {self.pool.part}")
                self.waiting.insert(0, unit)
            return
        except self.ray.exceptions.RayTaskError as error:
            self._give_up(unit, " ".join(str(error.cause).split()) or type(error.cause).__name__)
            return
        if isinstance(answer, str):
            self._give_up(unit, answer)
            return
        replace_durably(result_path(self.pool.directory, unit), msgspec.json.encode(answer))
        self.finished.append(unit)
        self._say(f"{unit.name}: {self.pool.worth(answer)}{clock(time.monotonic() - slot.began)}")

    def _give_up(self, unit: Unit, reason: str) -> None:
        self.failed[unit.name] = reason
        self._say(f"{unit.name}: failed: {reason}")

    @contextmanager
    def _display(self) -> Iterator[Callable[[list[_Slot[Unit]]], None]]:
        """Yield what shows how far it is: a bar on a terminal, a line now and then elsewhere."""
        if not self.console.is_terminal:
            yield self._show_line
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=True) as bar:
            shown = bar.add_task("starting", total=sum(map(self.pool.parts, self.units)))

            def show(slots: list[_Slot[Unit]]) -> None:
                how_far = f"{self._at_work(slots)}{self._left(slots)}"
                bar.update(shown, completed=self._parts_done(slots), description=how_far)

            yield show

    def _parts_done(self, slots: list[_Slot[Unit]]) -> int:
        under_way = sum(slot.done for slot in slots if slot.unit is not None)
        return sum(map(self.pool.parts, self.finished)) + under_way

    def _at_work(self, slots: list[_Slot[Unit]]) -> str:
        return ", ".join(
            f"{slot.unit.name} {self.pool.part} {min(slot.done + 1, self.pool.parts(slot.unit))}"
            for slot in slots
            if slot.unit
        )

    def _left(self, slots: list[_Slot[Unit]]) -> str:
        """Say about how long it will take, if what is left takes as long for each part as what was done."""
        done = self._parts_done(slots)
        left = sum(self.pool.parts(unit) for unit in self.units if unit.name not in self.failed) - done
        if done <= self.done_before:
            return ""
        return f"; about {clock((time.monotonic() - self.began) * left / (done - self.done_before))} left"

    def _show_line(self, slots: list[_Slot[Unit]]) -> None:
        now = time.monotonic()
        if now - self.shown_at >= _SHOW_EVERY_SECONDS and any(slot.unit for slot in slots):
            self.shown_at = now
            done = f"{len(self.finished)} of {len(self.units)} units done"
            self._say(f"{done}; {self._at_work(slots)}{self._left(slots)}")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
