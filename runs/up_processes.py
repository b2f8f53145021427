"""The processes of a live system: which there are, and how Ray starts them or finds them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from streamwise.runs.config import RunConfig
from streamwise.runs.partition_worker import Worker
from streamwise.runs.partitioned import arranged
from streamwise.runs.partitions import worker_config
from streamwise.runs.shared_memory import MemoryActor, MemorySettings
from streamwise.runs.up_learner import AgentLearner
from streamwise.runs.up_members import Member
from streamwise.runs.up_spec import SystemSpec, process_names
from streamwise.streams import UsageError

__all__ = ["Processes", "UpOptions", "check_shards", "members_of", "shards_of"]


@dataclass(frozen=True)
class UpOptions:
    """Where a system runs, and how much it puts up with.

    address: of a Ray cluster ("auto": the one this machine belongs to); None starts Ray here. storage: a
    folder or URL that every node sees, for all that agents need to go on; None: every node sees `out`.
    max_failures: a learner is given up after so many failures in a row from which it has
    not come further. until_end: event streams are read to where they end now. serve:
    the port of a page that shows the system.
    """

    out: Path
    address: str | None = None
    storage: str | None = None
    max_failures: int = 10
    until_end: bool = False
    serve: int | None = None
    host: str = "127.0.0.1"


class Processes:
    """Starts processes; on a cluster, takes over those that a driver which was killed has left.

    left: the names of these.
    """

    def __init__(self, options: UpOptions) -> None:
        import ray

        self.ray: Any = ray
        self.options = options
        self._prefix = f"{sha256(str(options.out).encode()).hexdigest()[:12]} "  # of their names in a cluster
        self.left = [name for name in ray.util.list_named_actors() if name.startswith(self._prefix)]

    def learner(self, member: Member) -> Any:
        """Return the actor of who is to learn."""
        options = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
        if isinstance(member.config, RunConfig):
            return self._started(AgentLearner, f"learner {member.name}", **options)
        if self.options.storage is not None:
            options |= self._here()
        return self._started(Worker, f"learner {member.name}", **options)

    def memory(self, name: str, settings: MemorySettings, folder: str) -> Any:
        """Return the actor of a memory, or of a shard of one."""
        files = self.options.out / "memories" / folder
        here = {} if self.options.storage is None else self._here()
        return self._started(MemoryActor, f"memory {name}", settings, files, num_cpus=0, **here)

    def _here(self) -> dict[str, Any]:
        """Return options for a process whose files are on this node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self.ray.get_runtime_context().get_node_id()
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}

    def _started(self, body: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if self.options.address is not None:
            options |= {"name": f"{self._prefix}{name}", "lifetime": "detached", "get_if_exists": True}
        remote = self.ray.remote(concurrency_groups={"watch": 1})(body)
        # How often one is worth it, the driver decides; a learner that hears nothing of a memory asks again.
        return remote.options(max_restarts=-1, **options).remote(*arguments)


def members_of(spec: SystemSpec, options: UpOptions, stack: ExitStack) -> Iterator[Member]:
    """Yield every process that is to learn, with the place where it keeps everything.

    stack: holds the directories of learners that are several processes.
    """
    for plan in spec.learners:
        directory = options.out / "learners" / plan.name
        if isinstance(plan.config, RunConfig):
            storage = options.storage and f"{options.storage.rstrip('/')}/{plan.name}"
            placed = dataclasses.replace(plan.config, out=directory, storage=storage)
            yield Member(plan.name, plan, placed)
            continue
        config = dataclasses.replace(plan.config, out=directory, until_end=options.until_end)
        config = config.resolved()
        if config.workers == 1:
            yield Member(plan.name, plan, config)
            continue
        arrangement, _ = stack.enter_context(arranged(config))
        for number, name in enumerate(process_names(plan.name, config.workers)):
            yield Member(name, plan, worker_config(config, arrangement, number))


def shards_of(name: str, settings: MemorySettings) -> Iterator[tuple[str, MemorySettings, str]]:
    """Yield the name, the settings and the folder of each process of a memory."""
    part = dataclasses.replace(settings, capacity=-(-settings.capacity // settings.shards))
    for process in process_names(name, settings.shards):
        yield process, part, process if settings.shards == 1 else f"{process}-of-{settings.shards}"


def check_shards(directory: Path, name: str, shards: int) -> None:
    """Raise UsageError if what is kept of a memory is divided otherwise."""
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    divided = {int(folder.partition("-of-")[2] or 1) for folder in there}
    if divided - {shards}:
        raise UsageError(
            f"memory {name} has been kept in {max(divided)} shards until now ({directory}), not in {shards}; "
            f"use shards = {max(divided)}, or another --out."
        )
