"""The live display of a run on events with several workers: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.partitions import Arrangement
from streamwise.runs.table_display import TableDisplay

if TYPE_CHECKING:
    from streamwise.runs.partitioned import Slot

__all__ = ["PartitionDisplay"]


class PartitionDisplay(TableDisplay):
    """Shows of every worker its partitions, events, speed, lag and restarts, and the sums."""

    def __init__(self, config: IngestConfig[Any], arrangement: Arrangement, console: Console) -> None:
        super().__init__(console)
        self.arrangement = arrangement
        self.title = f"{config.model}, {config.workers} workers"
        self._rates: dict[int, tuple[float, int, float]] = {}  # seconds, events, events/s of the last look

    def update(self, slots: Sequence[Slot]) -> None:
        """Draw again when it is time to."""
        if not self._is_due():
            return
        for slot in slots:
            self._look(slot)
        status = self._status(slots)
        if self._live is None:
            self._print(f"{self.title}: {status}")
        else:
            self._live.update(Group(self._table(slots), Text(status)))

    def _look(self, slot: Slot) -> None:
        """Note how fast a worker has been since the last look."""
        progress = slot.progress
        if progress is None or not slot.running:
            self._rates.pop(slot.number, None)
            return
        seconds, events, rate = self._rates.get(slot.number, (0.0, progress.began_at, 0.0))
        if progress.seconds < seconds:  # another attempt
            seconds, events = 0.0, progress.began_at
        if progress.seconds > seconds:
            rate = (progress.events - events) / (progress.seconds - seconds)
        self._rates[slot.number] = (progress.seconds, progress.events, rate)

    def _status(self, slots: Sequence[Slot]) -> str:
        events = self.arrangement.past.events + sum(slot.events for slot in slots)
        speed = sum(rate for _, _, rate in self._rates.values())
        parts = [f"{events:,} events", f"{speed:,.0f}/s", f"{sum(slot.running for slot in slots)} at work"]
        seen = [slot.progress for slot in slots if slot.progress is not None]
        lags = [progress.lag for progress in seen if progress.lag is not None]
        if lags:
            parts.append(f"lag {sum(lags):,}")
        refused = sum(progress.refused for progress in seen)
        if refused:
            parts.append(f"{refused:,} refused")
        scored = sum(progress.scored for progress in seen)
        if scored:
            known = [p for p in seen if not math.isnan(p.log_likelihood)]
            mean = sum(p.scored * p.log_likelihood for p in known) / scored
            parts.append(f"log-likelihood {mean:.3f}")
        return ", ".join(parts)

    def _table(self, slots: Sequence[Slot]) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("worker")
        for column in ("partitions", "events", "events/s", "lag", "log-likelihood", "restarts"):
            table.add_column(column, justify="right", no_wrap=True)
        for slot in slots:
            progress = slot.progress
            state = "finished" if slot.done else "" if slot.running else "starting"
            rate = self._rates.get(slot.number, (0.0, 0, 0.0))[2]
            known = progress is not None and not math.isnan(progress.log_likelihood)
            table.add_row(
                f"{slot.number} {state}".strip(),
                str(len(self.arrangement.workers[slot.number])),
                f"{slot.events:,}",
                f"{rate:,.0f}" if rate else "",
                "" if progress is None or progress.lag is None else f"{progress.lag:,}",
                f"{progress.log_likelihood:.3f}" if progress is not None and known else "",
                str(slot.restarts or ""),
            )
        return table

    def finished(self, slot: Slot) -> None:
        """A worker has come to the end of its partitions."""
        self.note(f"worker {slot.number}: its partitions have ended after {slot.events:,} events")

    def gave_up(self, slot: Slot, reason: str) -> None:
        """A worker is lost for good."""
        self.note(f"worker {slot.number}: given up: {reason}; the others take its partitions")

    def lost(self, slot: Slot, reason: str, pause: float) -> None:
        """A worker goes on later."""
        self.note(f"worker {slot.number}: {reason}; it goes on from its checkpoint in {pause:g} s")

    def rebalanced(self, arrangement: Arrangement) -> None:
        """Partitions were divided anew."""
        self.arrangement = arrangement
        self._rates.clear()
        sizes = ", ".join(str(len(labels)) for labels in arrangement.workers)
        self.note(f"partitions are divided anew: {sizes}")

    def stopping(self, running: int) -> None:
        """All workers are to end."""
        self.note(f"stopping; {running} workers write their checkpoints (Ctrl-C: at once)")

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self._print(f"{self.title}: {line}")

    def __enter__(self) -> Self:
        counts = ", ".join(str(len(labels)) for labels in self.arrangement.workers)
        self._print(f"{self.title}: {sum(map(len, self.arrangement.workers))} partitions ({counts})")
        return super().__enter__()
