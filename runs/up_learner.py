"""A learner of a live system, in a process of its own: the body of a Ray actor."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from streamwise.memory.shared import MemoryLink
from streamwise.runs.config import RunConfig
from streamwise.runs.loop import StopRequest
from streamwise.runs.shared_memory import LinkCounts, Linked, RayConnection
from streamwise.runs.sweep_runner import Outcome, Progress, Runner

__all__ = ["AgentEnd", "AgentLearner", "AgentNews", "Sharing"]


@dataclass(frozen=True)
class Sharing:
    """The memory that a learner shares: the handles of its shards, and what the learner does with it."""

    shards: tuple[Any, ...]
    writes: bool
    reads: bool


@dataclass(frozen=True)
class AgentNews:
    """How far a learner is, and what it has exchanged; None between runs, and without a shared memory."""

    progress: Progress | None
    link: LinkCounts | None


@dataclass(frozen=True)
class AgentEnd:
    """How a run ended, and what had been exchanged by then."""

    outcome: Outcome
    link: LinkCounts | None


class AgentLearner(Runner):
    """Runs an agent as `Runner` does, with its memory linked to a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self._linked: Linked | None = None
        self._why_stopped = ""

    def learn(
        self, name: str, config: RunConfig[Any], sharing: Sharing | None, scratch: str | None
    ) -> AgentEnd:
        """Start a run, or go on with it, and return when it ends; scratch: as for `Runner.run`."""
        self._why_stopped, self._linked = "", None
        attach = None if sharing is None else self._attach(name, sharing)
        outcome = self.run(name, config, scratch, attach)
        if self._why_stopped and outcome.error is None:
            outcome = replace(outcome, stopped=False, error=self._why_stopped, is_final=True)
        return AgentEnd(outcome, self._counts())

    def _attach(self, name: str, sharing: Sharing) -> Any:
        @contextlib.contextmanager
        def attached(learner: Any, stop: StopRequest) -> Iterator[Callable[[], None]]:
            link = MemoryLink(learner.memory, name, sharing.writes, sharing.reads, len(sharing.shards))

            def give_up(reason: str) -> None:
                self._why_stopped, stop.signal = reason, signal.SIGTERM

            def is_over() -> bool:
                return stop.signal is not None

            connections = [RayConnection(actor) for actor in sharing.shards]
            with Linked(link, connections, give_up) as self._linked:
                yield lambda: link.turn(is_over)
                link.settle(is_over)

        return attached

    def news(self) -> AgentNews:
        """Return how far it is."""
        return AgentNews(self.progress(), self._counts())

    def _counts(self) -> LinkCounts | None:
        linked = self._linked
        return None if linked is None else linked.counts()
