"""What a live system is: streams, learners, memories, and who reads and writes what, from a TOML file.

name = "clicks and doors"             # of outputs/<name>; unset: the file's

[streams.doors]
environment = "streamwise/KeyDoor-v0" # by any name that `streamwise train` takes
[streams.clicks]
source = "kafka://localhost:9092/clicks"   # or a list of them, as for `streamwise ingest`

[memories.rooms]                      # what several learners may share
chunk_length = 4                      # steps in a chunk
capacity = 100_000                    # chunks, of all who write
retention = "ring"                    # or reservoir, log-thinning: what goes when it is full
shards = 1                            # processes that divide its writers

[learners.ann]
stream = "doors"
agent = "stream-ac"                   # and any flag of `streamwise train`, with underscores
steps = 5_000_000                     # unset: for ever
seed = 1
writes = "rooms"                      # its memory's chunks go there
[learners.bob]
stream = "doors"
reads = "rooms"                       # and others' come from there; both may be given
memory_guests = 256                   # at most so many of others at a time
[learners.shop]
stream = "clicks"
model = "prompt-tpp"                  # and any flag of `streamwise ingest`
workers = 2                           # processes that divide the partitions
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from streamwise.agents import agent_class, event_model_class
from streamwise.runs.config import RunConfig, load_preset
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.shared_memory import RETENTIONS, MemorySettings
from streamwise.runs.spec_file import SpecReader, find_spec, spec_names
from streamwise.streams import UsageError
from streamwise.streams.errors import nearest
from streamwise.streams.series import absolute, is_series
from streamwise.streams.sources import resolved_url

__all__ = [
    "LearnerPlan",
    "SystemSpec",
    "check_system",
    "is_system",
    "load_system",
    "owner",
    "process_names",
    "system_names",
    "wiring",
]

_SYSTEMS = Path(__file__).parent / "systems"
FOR_EVER = 10**15  # steps
_GUESTS = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_TABLES = ("name", "streams", "memories", "learners")
_NOT_HERE = {  # flags of `train` and `ingest` that a specification does not set
    "environment": "name it in [streams]",
    "sources": "name them in [streams]",
    "out": "use --out of `streamwise up`",
    "storage": "use --storage of `streamwise up`",
    "label": "its name is its label",
    "settings": "write settings beside the other flags",
    "until_end": "use --until-end of `streamwise up`",
    "address": "use --address of `streamwise up`",
}


@dataclass(frozen=True)
class LearnerPlan:
    """One learner: its settings, and the shared memory that it reads and writes, if any."""

    name: str
    stream: str
    config: RunConfig[Any] | IngestConfig[Any]
    reads: str | None = None
    writes: str | None = None

    @property
    def memory(self) -> str | None:
        """The shared memory that its own is linked to."""
        return self.reads or self.writes

    @property
    def kind(self) -> str:
        """The agent or the model."""
        return self.config.agent if isinstance(self.config, RunConfig) else self.config.model

    @property
    def workers(self) -> int:
        """The processes that divide its stream."""
        return 1 if isinstance(self.config, RunConfig) else self.config.workers

    @property
    def steps(self) -> int | None:
        """The steps that it is to learn; None for ever, and for streams of events."""
        if isinstance(self.config, RunConfig) and self.config.steps < FOR_EVER:
            return self.config.steps
        return None

    @property
    def about(self) -> str:
        """What it is, in a word or three."""
        return self.kind + (f", {self.workers} workers" if self.workers > 1 else "")


@dataclass(frozen=True)
class SystemSpec:
    """A live system. memories: settings by name, without the width, which follows from who writes."""

    name: str
    learners: tuple[LearnerPlan, ...]
    memories: Mapping[str, MemorySettings]
    tables: Mapping[str, Any]


def system_names() -> list[str]:
    """Return the names of the specifications that come with streamwise."""
    return spec_names(_SYSTEMS)


def is_system(path: Path) -> bool:
    """Return whether a directory is that of a live system."""
    return (path / "system.toml").is_file()


def check_system(path: Path) -> None:
    """Raise UsageError for a directory of no live system."""
    if not is_system(path):
        raise UsageError(f"{path} is no live system: it has no system.toml, as `streamwise up` leaves.")


def process_names(name: str, count: int) -> list[str]:
    """Return what the processes of a learner or a memory are called: as it is, or NAME/NUMBER of several."""
    return [name] if count == 1 else [f"{name}/{number}" for number in range(count)]


def owner(process: str) -> str:
    """Return the learner or memory that a process is, or is one of several of."""
    return process.partition("/")[0]


def load_system(source: str) -> SystemSpec:
    """Read a specification: a TOML file, the directory of a system, or a name of `system_names`.

    Raises UsageError, in one line that says where, for what cannot be read or understood.
    """
    return _Reader(find_spec(source, "system", _SYSTEMS)).spec()


class _Reader(SpecReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for key in self.tables:
            if key not in _TABLES:
                raise self.error(f"unknown key {key!r}.{nearest(key, _TABLES)}")

    def spec(self) -> SystemSpec:
        streams = {name: self.stream(name, table) for name, table in self.named("streams").items()}
        memories = {name: self.memory(name, table) for name, table in self.named("memories").items()}
        learners = [
            self.learner(name, table, streams, memories) for name, table in self.named("learners").items()
        ]
        if not learners:
            raise self.error("it names no learners: give it [learners.NAME]")
        for what, names, used in (
            ("streams", streams, {plan.stream for plan in learners}),
            ("memories", memories, {plan.memory for plan in learners}),
        ):
            for name in names:
                if name not in used:
                    raise self.error(f"[{what}.{name}] is used by no learner")
        return SystemSpec(self.tables["name"], tuple(learners), memories, self.tables)

    def named(self, what: str) -> dict[str, dict[str, Any]]:
        tables = self.tables.get(what, {})
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            raise self.error(f"{what!r} must be tables, [{what}.NAME]")
        for name in tables:
            if not _NAME.fullmatch(name):
                raise self.error(
                    f"[{what}.{name}] has no name; use at most 32 letters, digits, '.', '_', '-'"
                )
        return tables

    def stream(self, name: str, table: dict[str, Any]) -> str | tuple[str, ...]:
        """Return the environment, or the sources of events."""
        known = ("environment", "source")
        for key in table:
            if key not in known:
                raise self.error(f"[streams.{name}]: unknown key {key!r}.{nearest(key, known)}")
        if len(table) != 1:
            raise self.error(f"[streams.{name}] must have an environment, or a source of events")
        (value,) = table.values()
        if "environment" in table and isinstance(value, str):
            value = table["environment"] = absolute(value)
            return value
        values = [value] if isinstance(value, str) else value
        if (
            "source" in table
            and isinstance(values, list)
            and values
            and all(isinstance(x, str) for x in values)
        ):
            # As it means the same from any folder: the system's directory keeps it.
            table["source"] = [resolved_url(url) for url in values]
            return tuple(table["source"])
        raise self.error(f"[streams.{name}]: {next(iter(table))} = {value!r} is not the name of one")

    def memory(self, name: str, table: dict[str, Any]) -> MemorySettings:
        where, known = f"[memories.{name}]", ("chunk_length", "capacity", "retention", "shards")
        for key in table:
            if key not in known:
                raise self.error(f"{where}: unknown key {key!r}.{nearest(key, known)}")
        filled = {"chunk_length": 4, "capacity": 100_000, "retention": "ring", "shards": 1, **table}
        for key in ("chunk_length", "capacity", "shards"):
            if type(filled[key]) is not int or filled[key] < 1:
                raise self.error(f"{where}: {key} = {filled[key]!r} must be a whole number of 1 or more")
        if filled["retention"] not in RETENTIONS:
            raise self.error(
                f"{where}: retention = {filled['retention']!r} is unknown."
                f"{nearest(str(filled['retention']), RETENTIONS)}"
            )
        if filled["retention"] == "log-thinning" and filled["capacity"] < 2 * filled["shards"]:
            raise self.error(f"{where}: log-thinning needs a capacity of 2 or more in each shard")
        return MemorySettings(width=0, **filled)

    def learner(
        self, name: str, table: dict[str, Any], streams: Mapping[str, Any], memories: Mapping[str, Any]
    ) -> LearnerPlan:
        where, given = f"[learners.{name}]", dict(table)
        stream = given.pop("stream", None)
        if stream not in streams:
            raise self.error(
                f"{where}: stream = {stream!r} is none of [streams].{nearest(str(stream), streams)}"
            )
        links = {way: given.pop(way, None) for way in ("reads", "writes")}
        for way, memory in links.items():
            if memory is not None and memory not in memories:
                raise self.error(
                    f"{where}: {way} = {memory!r} is none of [memories].{nearest(str(memory), memories)}"
                )
        if None not in links.values() and links["reads"] != links["writes"]:
            raise self.error(
                f"{where} reads {links['reads']} and writes {links['writes']}; one memory is shared"
            )
        of_events = isinstance(streams[stream], tuple)
        if of_events and any(links.values()):
            raise self.error(f"{where}: event models have no memory to share; leave out reads and writes")
        if of_events:
            config: Any = self.event_config(where, streams[stream], given)
        else:
            memory = links["reads"] or links["writes"]
            shared = None if memory is None else memories[memory]
            config = self.agent_config(where, streams[stream], name, given, shared, bool(links["reads"]))
        return LearnerPlan(name, stream, config, **links)

    def agent_config(
        self,
        where: str,
        environment: str,
        name: str,
        given: dict[str, Any],
        shared: MemorySettings | None,
        reads: bool,
    ) -> RunConfig[Any]:
        preset = load_preset(given["preset"]) if "preset" in given else None
        usual = "stream-td" if is_series(environment) else "stream-ac"
        agent = given.get("agent") or (preset.agent if preset else usual)
        if preset and preset.agent != agent:
            raise self.error(f"{where}: preset {given['preset']} is for {preset.agent}, not {agent}")
        settings = preset.settings if preset else self.of(agent_class, agent, where).Config()
        if shared is not None:
            given = {**self.of_shared(where, given, shared, reads), **given}
        options, own = self.divide(where, given, RunConfig, settings, f"streamwise train --agent {agent}")
        run = {
            **(preset.options if preset else {}),
            "steps": FOR_EVER,
            **options,
            "environment": environment,
            "agent": agent,
            "label": name,
            "settings": {**dataclasses.asdict(settings), **own},
        }
        config: RunConfig[Any] = self.converted(where, run, RunConfig[type(settings)])  # type: ignore[misc]  # known only now
        endless = config.steps == FOR_EVER
        if endless and getattr(config.settings, "exploration_steps", 0) is None:
            raise self.error(
                f"{where} goes on for ever, so a share of its steps is none: give exploration_steps, or steps"
            )
        return config

    def of_shared(
        self, where: str, given: dict[str, Any], shared: MemorySettings, reads: bool
    ) -> dict[str, Any]:
        """Return the settings of an agent that follow from the memory it shares, and refuse others."""
        fixed = {"memory": "hcam", "memory_span": "life", "memory_chunk_length": shared.chunk_length}
        for key, value in fixed.items():
            if given.get(key, value) != value:
                raise self.error(
                    f"{where}: {key} = {given[key]!r} does not go with a shared memory, where it is {value!r}"
                )
        if not reads and "memory_guests" in given:
            raise self.error(f"{where}: memory_guests are for who reads; it only writes")
        return fixed | ({"memory_guests": _GUESTS} if reads else {})

    def event_config(self, where: str, sources: tuple[str, ...], given: dict[str, Any]) -> IngestConfig[Any]:
        model = given.get("model", "counts")
        settings = self.of(event_model_class, model, where).Config()
        options, own = self.divide(where, given, IngestConfig, settings, f"streamwise ingest --model {model}")
        run = {
            **options,
            "sources": sources,
            "model": model,
            "settings": {**dataclasses.asdict(settings), **own},
        }
        config: IngestConfig[Any] = self.converted(where, run, IngestConfig[type(settings)])  # type: ignore[misc]  # known only now
        return config

    def of(self, find: Any, name: Any, where: str) -> Any:
        try:
            return find(name)
        except UsageError as error:
            raise self.error(f"{where}: {error}") from None

    def divide(
        self, where: str, given: dict[str, Any], kind: Any, settings: Any, command: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return which of the flags are the run's, and which the learner's settings."""
        options = {option.name for option in dataclasses.fields(kind)} - _NOT_HERE.keys()
        own = {setting.name for setting in dataclasses.fields(settings)}
        known = options | own | {"stream", "reads", "writes"}
        for key in given:
            if key in _NOT_HERE:
                raise self.error(f"{where}: {key!r} cannot be set here; {_NOT_HERE[key]}")
            if key not in known:
                raise self.error(
                    f"{where}: unknown key {key!r} (a flag of `{command}`).{nearest(key, known)}"
                )
        return (
            {key: value for key, value in given.items() if key in options},
            {key: value for key, value in given.items() if key in own},
        )

    def converted(self, where: str, run: dict[str, Any], kind: Any) -> Any:
        try:
            return msgspec.convert(run, kind)
        except (msgspec.ValidationError, UsageError) as error:
            raise self.error(f"{where}: {error}") from None


def wiring(spec: SystemSpec) -> list[str]:
    """Return a drawing of who learns from what, and shares what: doors ──▶ ann (stream-ac) ──▶ rooms."""
    plans: Sequence[LearnerPlan] = spec.learners
    streams = max(len(plan.stream) for plan in plans)
    titles = [f"{plan.name} ({plan.about})" for plan in plans]
    width = max(map(len, titles))
    arrows = {(True, True): "◀─▶", (True, False): "◀──", (False, True): "──▶"}
    lines = []
    for plan, title in zip(plans, titles, strict=True):
        line = f"{plan.stream:>{streams}} ──▶ {title}"
        if plan.memory is not None:
            arrow = arrows[plan.reads is not None, plan.writes is not None]
            line = f"{plan.stream:>{streams}} ──▶ {title:{width}} {arrow} {plan.memory}"
        lines.append(line)
    return lines
