"""The live display of a run on events: two lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from streamwise.runs.texts import seconds_text

if TYPE_CHECKING:
    from streamwise.runs.ingest import LiveRun

__all__ = ["EventDisplay"]

_TERMINAL_INTERVAL_SECONDS, _PLAIN_INTERVAL_SECONDS = 0.25, 10.0


class EventDisplay:
    """Shows events, events/s, the newest scores, lag, the delay of the watermark, and what was refused."""

    def __init__(self, run: LiveRun, note: str = "", console: Console | None = None) -> None:
        self.run = run
        self.note = note
        self.console = console or Console(stderr=True)
        self.title = f"{run.config.model} on {', '.join(source.name for source in run.stream.sources)}"
        self._live: Live | None = None
        self._interval = _PLAIN_INTERVAL_SECONDS
        if self.console.is_terminal:
            self._interval = _TERMINAL_INTERVAL_SECONDS
            self._live = Live(console=self.console, refresh_per_second=4, transient=False)
        self._shown_at = self._rate_from = time.perf_counter()
        self._rate_step = self._shown_step = run.recorder.step

    def update(self) -> None:
        """Call often; draws when it is time to."""
        now = time.perf_counter()
        if now - self._shown_at >= self._interval:
            self._show(now)

    def _show(self, now: float) -> None:
        step = self.run.recorder.step
        rate = (step - self._rate_step) / max(now - self._rate_from, 1e-9)
        first, second = self._status(rate)
        if self._live is not None:
            self._live.update(Text(f"{first}\n{second}", no_wrap=True, overflow="ellipsis"))
        else:
            self.console.print(f"{self.title}: {first}; {second}", highlight=False, soft_wrap=True)
        self._shown_at, self._shown_step = now, step
        if now - self._rate_from > 5.0:  # the rate follows the last seconds, not the whole run
            self._rate_from, self._rate_step = now, step

    def _status(self, rate: float) -> tuple[str, str]:
        stream, recorder = self.run.stream, self.run.recorder
        first = [f"{recorder.step:,} events", f"{rate:,.0f}/s", f"{len(self.run.model.keys):,} keys"]
        lag = stream.lag()
        if lag is not None:
            first.append(f"lag {lag:,}")
        if math.isfinite(stream.watermark):
            first.append(f"watermark {seconds_text(max(time.time() - stream.watermark, 0.0))} ago")
        if stream.waiting:
            first.append(f"{stream.waiting:,} waiting")
        if stream.dead_letters.total:
            first.append(f"{stream.dead_letters.total:,} refused")
        scores = recorder.row if recorder.row else recorder.scores.scores()
        of, since = ("latest events: ", "_window") if recorder.row else ("", "")
        second = [
            f"{of}log-likelihood {scores[f'log_likelihood{since}']:.3f}",
            f"type loss {scores[f'type_log_loss{since}']:.3f}",
            f"type error {100 * scores[f'type_error{since}']:.1f}%",
            f"KS of all {scores['ks']:.3f}",
        ]
        if scores["drift_alarms"]:
            second.append(f"{scores['drift_alarms']:.0f} drift alarms")
        return ", ".join(first), ", ".join(second).replace("nan%", "-").replace("nan", "-")

    def __enter__(self) -> EventDisplay:
        note = f": {self.note}" if self.note else ""
        self.console.print(f"{self.title}{note}", highlight=False, soft_wrap=True)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.run.recorder.step > self._shown_step:
            self._show(time.perf_counter())
        if self._live is not None:
            self._live.stop()
