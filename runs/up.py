"""A live system: learners of both worlds, each in a process of its own, and the memories that they share.

What is checked before its processes are started, and what ends it. `up_driver` keeps them at work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import tomli_w
from rich.console import Console

from streamwise.runs.lock import locked
from streamwise.runs.ray_cluster import (
    Journal,
    RayStoppedError,
    errors_of_others_to,
    reach,
    running_ray,
    storage_of,
)
from streamwise.runs.storage import replace_durably
from streamwise.runs.sweep_data import read_events
from streamwise.runs.train import is_unused, make_environment
from streamwise.runs.up_driver import Driver, SystemResult
from streamwise.runs.up_processes import Processes, UpOptions, check_shards, members_of
from streamwise.runs.up_spec import SystemSpec, is_system
from streamwise.runs.up_status import serving
from streamwise.streams import UsageError

__all__ = ["run_system"]


def run_system(spec: SystemSpec, options: UpOptions, console: Console | None = None) -> SystemResult:
    """Run a system until all its learners have finished, or a signal comes.

    A directory of a system goes on where each learner was. On a cluster the processes outlive a driver that
    was killed, and the next one takes them over. Raises UsageError for what the user can mend,
    RayStoppedError if Ray stops.
    """
    reach(options.address)
    out = options.out.absolute()
    if out.exists() and not is_system(out) and not is_unused(out):
        raise UsageError(f"{out} already exists and is no live system; choose another --out.")
    storage = storage_of(out, "up", options.storage, out / "learners")
    options = dataclasses.replace(options, out=out, storage=storage)
    widths = dict(_widths(spec))
    memories = {
        name: dataclasses.replace(settings, width=widths[name]) for name, settings in spec.memories.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), ExitStack() as stack:
        file, tables = out / "system.toml", tomli_w.dumps({**spec.tables, "name": spec.name}).encode()
        is_other = is_system(out) and file.read_bytes() != tables
        journal = Journal(out / "events.jsonl")
        cluster = None
        if options.address is None:
            _check_left(out, cluster)
        for name, settings in memories.items():
            check_shards(out / "memories" / name, name, settings.shards)
        stderr = stack.enter_context(errors_of_others_to(out / "ray.log"))
        learning = sum(plan.workers for plan in spec.learners)
        cpus = max(os.cpu_count() or 1, learning)  # so many were asked for, whatever there is
        stack.enter_context(running_ray(options.address, cpus))
        if options.address is not None:
            cluster = _cluster()
            _check_left(out, cluster)
        processes = Processes(options)
        if is_other and processes.left:
            raise UsageError(
                f"the processes of {out} run on without a driver, by another specification; end them "
                f"with `streamwise up {out} --address {options.address}` and Ctrl-C."
            )
        replace_durably(file, tables)
        members = list(members_of(spec, options, stack))
        journal.add("up", learners=len(members), memories=len(memories), storage=storage, address=cluster)
        console = console or Console(file=stderr)
        driver = Driver(spec, options, processes, members, memories, journal, console)
        try:
            with serving(out, options.serve, options.host, driver.display.say):
                return driver.run()
        except (RayStoppedError, processes.ray.exceptions.RayError) as error:
            reason = str(error).partition("\n")[0]
            raise RayStoppedError(f"Ray has stopped ({reason}); go on with `streamwise up {out}`.") from None


def _widths(spec: SystemSpec) -> Iterator[tuple[str, int]]:
    """Yield how many numbers an item of each memory has; raise UsageError where learners do not agree."""
    first: dict[str, tuple[str, int]] = {}
    for plan in spec.learners:
        if plan.memory is None:
            continue
        env = make_environment(plan.config)  # type: ignore[arg-type]  # who shares a memory is an agent
        shape = env.observation_space.shape
        env.close()
        if shape is None or len(shape) != 1:
            raise UsageError(f"learner {plan.name} observes pictures, which no memory is shared of.")
        other, width = first.setdefault(plan.memory, (plan.name, shape[0]))
        if width != shape[0]:
            raise UsageError(
                f"learners {other} and {plan.name} share memory {plan.memory}, and observe {width} and "
                f"{shape[0]} numbers; share it among learners of one kind of observation."
            )
        yield plan.memory, width


def _cluster() -> str:
    """Return the address of the cluster that this is connected to, however that was called."""
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


def _check_left(out: Path, cluster: str | None) -> None:
    """Raise UsageError if the system may run on without a driver in another cluster than this one."""
    last = [event for event in read_events(out / "events.jsonl") if event["event"] in ("up", "down")][-1:]
    for address in (event.get("address") for event in last):
        if address not in (None, cluster):
            with contextlib.suppress(UsageError):
                reach(address)
                raise RayStoppedError(
                    f"the processes of {out} may run on in the cluster at {address} without a driver; "
                    f"take them over with `streamwise up {out} --address {address}`."
                )
