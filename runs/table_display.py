"""What the live displays of many processes share: tables on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

__all__ = ["TableDisplay"]

_TERMINAL_INTERVAL_SECONDS, _PLAIN_INTERVAL_SECONDS = 0.5, 10.0


class TableDisplay:
    """Draws twice a second in place on a terminal; elsewhere there is a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._interval = _PLAIN_INTERVAL_SECONDS
        if console.is_terminal:
            self._interval = _TERMINAL_INTERVAL_SECONDS
            self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._shown_at = time.monotonic()

    def _is_due(self) -> bool:
        """Return whether it is time to draw again; then it is taken to be done."""
        now = time.monotonic()
        if now - self._shown_at < self._interval:
            return False
        self._shown_at = now
        return True

    def _print(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
