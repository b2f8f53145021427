"""The live display of a sweep: a table of the runs under way on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from streamwise.runs.progress import clock
from streamwise.runs.sweep_runner import Outcome
from streamwise.runs.sweep_spec import PlannedRun
from streamwise.runs.table_display import TableDisplay
from streamwise.runs.texts import return_text

if TYPE_CHECKING:
    from streamwise.runs.sweep import Job, Slot

__all__ = ["SweepDisplay"]

_MOST_ROWS = 30


class SweepDisplay(TableDisplay):
    """Shows every run under way, how many have finished, the speed of all, and the time left."""

    def __init__(
        self, name: str, runs: Sequence[PlannedRun], done: Collection[str], console: Console
    ) -> None:
        super().__init__(console)
        self.name = name
        self.runs = len(runs)
        self.skipped = len(done)
        self._steps = {run.name: run.config.steps for run in runs}
        self._left = {name: steps for name, steps in self._steps.items() if name not in done}
        self._all_steps = sum(self._steps.values())
        self._rates: dict[str, tuple[float, int, float]] = {}  # seconds, step and steps/s of the last look

    def update(
        self,
        slots: Sequence[Slot],
        waiting: Sequence[Job],
        finished: int,
        failed: Mapping[str, str],
    ) -> None:
        """Draw again when it is time to."""
        if not self._is_due():
            return
        at_work = [slot for slot in slots if slot.job is not None]
        for slot in at_work:
            self._look(slot)
        speed = sum(self._rates[slot.job.run.name][2] for slot in at_work if slot.job)
        left = sum(self._left.values())
        starting = sum(slot.where is None for slot in slots)
        counts = [f"{finished} of {self.runs} finished", f"{len(at_work)} running", f"{len(waiting)} waiting"]
        counts += [f"{starting} processes starting"] if starting else []
        counts += [f"{len(failed)} failed"] if failed else []
        status = f"{', '.join(counts)}; {speed:,.0f} steps/s, {clock(left / speed) if speed else '–'} left"
        if self._live is None:
            self._print(f"{self.name}: {status}")
            return
        bar = Progress(BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f}%"), TextColumn(status))
        bar.add_task("", total=self._all_steps, completed=self._all_steps - left)
        self._live.update(Group(self._table(at_work), bar))

    def _look(self, slot: Slot) -> None:
        """Note how far a run is, and how fast it has been since the last look."""
        assert slot.job is not None
        name, progress = slot.job.run.name, slot.progress
        if progress is None:
            self._rates.setdefault(name, (0.0, 0, 0.0))
            return
        seconds, step, rate = self._rates.get(name, (0.0, progress.began_at, 0.0))
        if progress.step < step or progress.seconds < seconds:  # another attempt
            seconds, step = 0.0, progress.began_at
        if progress.seconds > seconds:
            rate = (progress.step - step) / (progress.seconds - seconds)
        self._rates[name] = (progress.seconds, progress.step, rate)
        self._left[name] = max(0, self._steps[name] - progress.step)

    def _table(self, at_work: Sequence[Slot]) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("run", overflow="fold")
        nodes = {(slot.where.host, slot.where.node) for slot in at_work if slot.where}
        several = len(nodes) > 1
        for column in (*(["node"] if several else []), "step", "steps/s", "return", "restarts", "left"):
            table.add_column(column, justify="right", no_wrap=True)
        hosts = {host for host, _ in nodes}
        for slot in at_work[:_MOST_ROWS]:
            assert slot.job is not None
            name, progress = slot.job.run.name, slot.progress
            rate = self._rates[name][2]
            where = slot.where
            node = "" if where is None else where.host if len(hosts) == len(nodes) else where.node[:6]
            mean = None if progress is None else progress.mean_return
            table.add_row(
                name,
                *([node] if several else []),
                f"{progress.step:,} of {self._steps[name]:,}" if progress else "starting",
                f"{rate:,.0f}" if rate else "",
                "" if mean is None else return_text(mean),
                str(slot.job.restarts or ""),
                clock(self._left[name] / rate) if rate else "",
            )
        if len(at_work) > _MOST_ROWS:
            table.add_row(f"and {len(at_work) - _MOST_ROWS} more")
        return table

    def finished(self, job: Job, outcome: Outcome) -> None:
        """A run has finished."""
        self._forget(job)
        mean = (
            ""
            if outcome.mean_return is None
            else f", return {return_text(outcome.mean_return)} (last episodes)"
        )
        if self.runs <= 100:  # a line each would bury the others
            self._print(f"{job.run.name}: finished at step {outcome.step:,}{mean}")

    def gave_up(self, job: Job, reason: str) -> None:
        """A run has been given up."""
        self._forget(job)
        self._print(f"{job.run.name}: failed: {reason}")

    def lost(self, job: Job, reason: str, pause: float) -> None:
        """A run is tried again later."""
        self._print(f"{job.run.name}: {reason}; it goes on from its checkpoint in {pause:g} s")

    def stopping(self, running: int) -> None:
        """All runs are to end."""
        self._print(f"{self.name}: stopping; {running} runs write their checkpoints (Ctrl-C: at once)")

    def note(self, text: str) -> None:
        """Say something about the sweep."""
        self._print(f"{self.name}: {text}")

    def _forget(self, job: Job) -> None:
        self._left.pop(job.run.name, None)
        self._rates.pop(job.run.name, None)

    def __enter__(self) -> Self:
        skipped = f", {self.skipped} of them finished before" if self.skipped else ""
        self._print(f"{self.name}: {self.runs} runs{skipped}")
        return super().__enter__()
