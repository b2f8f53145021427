"""The live display of a run: a progress line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streamwise.runs.recorder import Recorder
from streamwise.runs.texts import return_text

__all__ = ["ProgressDisplay", "clock"]

_TERMINAL_INTERVAL_SECONDS, _PLAIN_INTERVAL_SECONDS = 0.2, 10.0


class ProgressDisplay:
    """Shows step, steps/s, episode, mean return of the last 20 episodes and the time left."""

    def __init__(
        self, title: str, steps: int, recorder: Recorder, note: str = "", console: Console | None = None
    ) -> None:
        self.steps = steps
        self.recorder = recorder
        self.console = console or Console(stderr=True)
        self.title = title
        self.note = note
        self._live: Progress | None = None
        self._interval = _PLAIN_INTERVAL_SECONDS
        if self.console.is_terminal:
            self._interval = _TERMINAL_INTERVAL_SECONDS
            self._live = Progress(
                BarColumn(bar_width=12),  # the whole line fits 80 columns
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                refresh_per_second=5,
            )
            self._task = self._live.add_task("", total=steps, completed=recorder.step, status="")
        self._shown_at = self._rate_from = time.perf_counter()
        self._rate_step = self._first_step = recorder.step

    def update(self) -> None:
        """Call often; draws when it is time to."""
        now = time.perf_counter()
        if now - self._shown_at >= self._interval:
            self._show(now)

    def _show(self, now: float) -> None:
        recorder = self.recorder
        rate = (recorder.step - self._rate_step) / max(now - self._rate_from, 1e-9)
        if self._live is not None:
            self._live.update(self._task, completed=recorder.step, status=self._status(rate))
        else:
            left = (self.steps - recorder.step) / max(rate, 1e-9)
            self.console.print(
                f"{self.title}: step {recorder.step:,} of {self.steps:,}, {self._status(rate)}, "
                f"{clock(left)} left",
                highlight=False,
                soft_wrap=True,
            )
        self._shown_at = now
        if now - self._rate_from > 5.0:  # the rate follows the last seconds, not the whole run
            self._rate_from, self._rate_step = now, recorder.step

    def _status(self, rate: float) -> str:
        recorder = self.recorder
        parts = [f"{rate:,.0f} steps/s"]
        if not recorder.is_series:
            parts.append(f"episode {recorder.episodes:,}")
            if recorder.mean_return is not None:
                parts.append(
                    f"return {return_text(recorder.mean_return)} (last {len(recorder.recent_returns)})"
                )
        return ", ".join(parts)

    def __enter__(self) -> ProgressDisplay:
        if self.note:
            self.console.print(f"{self.title}: {self.note}", highlight=False, soft_wrap=True)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.recorder.step > self._first_step:
            self._show(time.perf_counter())
        if self._live is not None:
            self._live.stop()


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
