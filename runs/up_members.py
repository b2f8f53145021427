"""What the driver of a live system knows of each learner and each memory."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Any

from streamwise.memory.shared import MemoryCounts
from streamwise.runs.partition_worker import WorkerProgress
from streamwise.runs.shared_memory import LinkCounts, MemorySettings
from streamwise.runs.sweep_runner import Where
from streamwise.runs.up_learner import AgentNews, Sharing
from streamwise.runs.up_spec import LearnerPlan, owner

__all__ = ["Member", "SharedOne"]

_RATE_SECONDS = 5.0  # that a speed is measured over


@dataclass(eq=False)
class Member:
    """One process that learns: a learner, or one of the workers of one."""

    name: str
    plan: LearnerPlan
    config: Any
    sharing: Sharing | None = None
    actor: Any = None
    call: Any = None  # the answer comes when it ends
    asked: Any = None
    where: Where | None = None
    state: str = "starting"  # running, paused, finished, stopped, failed
    step: int = 0
    began_at: int = -1
    score: dict[str, float] = field(default_factory=dict)
    lag: int | None = None
    link: LinkCounts | None = None
    failures: int = 0  # in a row, from the same checkpoint
    restarts: int = 0
    not_before: float = 0.0
    message: str = ""  # why it last ended
    seen: list[tuple[float, int]] = field(default_factory=list)  # times and steps, of the last seconds

    @property
    def is_learning(self) -> bool:
        """Whether it has said so since it last began."""
        return self.state == "running" and bool(self.seen)

    @property
    def per_second(self) -> float:
        """How many samples it has learned a second, lately."""
        if self.state != "running" or len(self.seen) < 2:
            return 0.0
        (then, step), (now, later) = self.seen[0], self.seen[-1]
        return max(0.0, (later - step) / max(now - then, 1e-9))

    def hear(self, news: AgentNews | WorkerProgress) -> None:
        """Take in how far it says it is."""
        if isinstance(news, AgentNews):
            self.link, progress = news.link, news.progress
            if progress is None:
                return
            self.step, began_at = progress.step, progress.began_at
            self.score = {} if progress.mean_return is None else {"episode_return": progress.mean_return}
        else:
            self.step, began_at = news.events, news.began_at
            self.lag, self.score = news.lag, {"log_likelihood": news.log_likelihood}
        self.began_at = max(self.began_at, began_at)
        now = time.monotonic()
        self.seen.append((now, self.step))
        while now - self.seen[0][0] > _RATE_SECONDS:
            self.seen.pop(0)

    def status(self) -> dict[str, Any]:
        """Return what others may know of it, as JSON."""
        plan = self.plan
        shared = None
        if plan.memory is not None:
            counts = dataclasses.asdict(self.link) if self.link is not None else None
            shared = {"name": plan.memory, "reads": plan.reads is not None, "writes": plan.writes is not None}
            shared |= {"link": counts}
        waits = self.link is not None and self.link.waits
        return {
            "name": self.name,
            "kind": plan.kind,
            "stream": plan.stream,
            "state": f"waits for {plan.memory}" if waits and self.state == "running" else self.state,
            "step": self.step,
            "steps": plan.steps,
            "per_second": round(self.per_second, 1),
            "score": {key: value for key, value in self.score.items() if math.isfinite(value)},
            "lag": self.lag,
            "restarts": self.restarts,
            "memory": shared,
            "process": self.where and self.where.process,
            "host": self.where and self.where.host,
            "node": self.where and self.where.node,
            "directory": str(self.config.directory),
            "message": self.message,
        }


@dataclass(eq=False)
class SharedOne:
    """One shared memory, or a shard of one, and what it last said."""

    name: str  # of a shard: memory/number
    settings: MemorySettings
    actor: Any
    asked: Any = None
    counts: MemoryCounts | None = None
    restarts: int = 0
    state: str = "starting"  # up, away

    @property
    def memory(self) -> str:
        """The memory that this is, or is a shard of."""
        return owner(self.name)

    def status(self) -> dict[str, Any]:
        """Return what others may know of it, as JSON."""
        counts = {} if self.counts is None else self.counts._asdict()
        counts.pop("age", None)  # which means nothing to others
        return {
            "name": self.name,
            "state": self.state,
            "capacity": self.settings.capacity,
            "process": None,
            **counts,
            "restarts": self.restarts,
        }
