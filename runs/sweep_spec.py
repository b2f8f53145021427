"""What a sweep runs: environments, agents and seeds as a grid, or a list of runs, from a TOML file.

    name = "comparison"                # of the report and of outputs/<name>; unset: the file's
    environments = ["HalfCheetah-v5", "ALE/Pong-v5"]
    seeds = 5                          # 0 to 4; or a list: [0, 7, 13]
    steps = 100_000                    # like every key below: a flag of `streamwise train`, for every run

    [agents.intentional]               # a name for the report, and the flags that make this agent
    [agents.published]
    preset = "stream-x"

    [overrides."ALE/Pong-v5"]          # flags for one environment
    steps = 20_000

    [grid]                             # every combination of these values, of every agent
    trace_decay = [0.8, 0.9]

    [[runs]]                           # single runs, with or without a grid
    environment = "Hopper-v5"
    agent = "published"
    seed = 3

    [resources]                        # of one run; one core is the default
    cpus = 1
    gpus = 0
    memory_gb = 1.5

Flags are written as on the command line, with underscores; of two, the later holds: the preset's, those of
the whole file, the agent's, the environment's, the grid's, the run's own. A file without [agents] means
`streamwise train` as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from streamwise.agents import AGENTS, agent_class
from streamwise.runs.config import RunConfig, load_preset
from streamwise.runs.spec_file import SpecReader, find_spec, spec_names
from streamwise.streams import UsageError
from streamwise.streams.errors import nearest
from streamwise.streams.series import is_series, path_of

__all__ = ["PlannedRun", "Resources", "SweepSpec", "load_sweep", "sweep_names"]

_SWEEPS = Path(__file__).parent / "sweeps"
_TABLES = ("name", "environments", "seeds", "agents", "overrides", "grid", "runs", "resources")
_GIVEN_ELSEWHERE = {  # flags of `train` that a specification does not set
    "environment": "name it in 'environments' or in [[runs]]",
    "seed": "use 'seeds', or 'seed' in [[runs]]",
    "label": "the name of the agent's table is its label",
    "out": "use --out of `streamwise sweep`",
    "storage": "use --storage of `streamwise sweep`",
    "settings": "write settings beside the other flags",
}
_OPTIONS = {option.name for option in dataclasses.fields(RunConfig)} - _GIVEN_ELSEWHERE.keys()
_SETTINGS = {setting.name for kind in AGENTS.values() for setting in dataclasses.fields(kind.Config)}

Flags = dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What one run is given of the machine it runs on; cpus may be a fraction."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float | None = None
    custom: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        amounts = {"cpus": self.cpus, "gpus": self.gpus, "memory_gb": self.memory_gb or 0.0, **self.custom}
        for name, amount in amounts.items():
            if amount < 0.0 or (name == "cpus" and amount == 0.0):
                raise UsageError(f"{name} is {amount:g}; use a number above 0.")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; its directory has its name."""

    name: str
    config: RunConfig[Any]


@dataclass(frozen=True)
class SweepSpec:
    """A sweep: its name, its runs, what each may use, and the tables it was read from."""

    name: str
    runs: tuple[PlannedRun, ...]
    resources: Resources
    tables: Mapping[str, Any]


def sweep_names() -> list[str]:
    """Return the names of the specifications that come with streamwise."""
    return spec_names(_SWEEPS)


def load_sweep(source: str) -> SweepSpec:
    """Read a specification: a TOML file, the directory of a sweep, or a name of `sweep_names`.

    Raises UsageError, in one line that says where, for what cannot be read or understood.
    """
    return _Reader(find_spec(source, "sweep", _SWEEPS)).spec()


class _Reader(SpecReader):
    def spec(self) -> SweepSpec:
        flags = {key: value for key, value in self.tables.items() if key not in _TABLES}
        for key in flags:
            self.check_flag(key, _SETTINGS | set(_TABLES))
        agents = self.table("agents") or {"": {}}
        runs = [*self.grid(flags, agents), *self.single_runs(flags, agents)]
        if not runs:
            raise self.error("it names no runs: give it 'environments', or [[runs]]")
        names = [run.name for run in runs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise self.error(f"two runs are named {twice}; give one of them another seed, or agent")
        for key in flags.keys() - _OPTIONS:
            if not any(hasattr(run.config.settings, key) for run in runs):
                raise self.error(f"{key!r} is a flag of none of the agents here")
        return SweepSpec(self.tables["name"], tuple(runs), self.resources(), self.tables)

    def resources(self) -> Resources:
        table = self.table("resources")
        known = [field.name for field in dataclasses.fields(Resources)]
        for key in table.keys() - set(known):
            raise self.error(f"[resources]: unknown key {key!r}.{nearest(key, known)}")
        try:
            return msgspec.convert(table, Resources)
        except (msgspec.ValidationError, UsageError) as error:
            raise self.error(f"[resources]: {error}") from None

    def grid(self, flags: Flags, agents: dict[str, Flags]) -> Iterator[PlannedRun]:
        """Yield every environment with every agent, every combination of [grid] and every seed."""
        environments = self.tables.get("environments", [])
        if not isinstance(environments, list) or not all(isinstance(name, str) for name in environments):
            raise self.error(f"environments = {environments!r} must be a list of names")
        overrides = self.table("overrides")
        for name in overrides:
            if name not in environments:
                raise self.error(f'[overrides."{name}"] is of no environment.{nearest(name, environments)}')
        axes = self.table("grid")
        for key, values in axes.items():
            if not isinstance(values, list) or not values:
                raise self.error(f"[grid]: {key} = {values!r} must be a list of values")
        combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        places = itertools.product(environments, agents, combinations, self.seeds())
        for environment, agent, combination, seed in places:
            parts = {
                f"[agents.{agent}]": agents[agent],
                f'[overrides."{environment}"]': overrides.get(environment, {}),
                "[grid]": combination,
            }
            details = [f"{key}={value}" for key, value in combination.items()]
            yield self.planned(environment, agent, seed, flags, parts, details)

    def single_runs(self, flags: Flags, agents: dict[str, Flags]) -> Iterator[PlannedRun]:
        """Yield what [[runs]] lists."""
        runs = self.tables.get("runs", [])
        if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
            raise self.error("'runs' must be a list of tables, [[runs]]")
        for number, run in enumerate(runs, start=1):
            where = f"[[runs]] number {number}"
            own = dict(run)
            environment, agent, seed = (
                own.pop("environment", None),
                own.pop("agent", None),
                own.pop("seed", 0),
            )
            if not isinstance(environment, str):
                raise self.error(f"{where}: 'environment' must name one")
            if agent is None and len(agents) == 1:
                agent = next(iter(agents))
            if agent not in agents:
                raise self.error(
                    f"{where}: agent = {agent!r} is none of [agents].{nearest(str(agent), agents)}"
                )
            if type(seed) is not int:
                raise self.error(f"{where}: seed = {seed!r} must be a whole number")
            parts = {f"[agents.{agent}]": agents[agent], where: own}
            yield self.planned(environment, agent, seed, flags, parts, [f"{k}={v}" for k, v in own.items()])

    def planned(
        self,
        environment: str,
        agent: str,
        seed: int,
        flags: Flags,
        parts: dict[str, Flags],
        details: list[str],
    ) -> PlannedRun:
        """Return one run: the flags of the file, overridden by those of each part in turn."""
        named = {key: value for part in parts.values() for key, value in part.items()}
        given = flags | named
        preset = load_preset(given["preset"]) if "preset" in given else None
        usual = "stream-td" if is_series(environment) else "stream-ac"
        algorithm = given.get("agent") or (preset.agent if preset else usual)
        if preset and preset.agent != algorithm:
            raise self.error(
                f"{environment}: preset {given['preset']} is for {preset.agent}, not {algorithm}"
            )
        settings = preset.settings if preset else self.kind(algorithm)()
        known = {setting.name for setting in dataclasses.fields(settings)}
        for where, part in parts.items():
            for key in part:
                self.check_flag(key, known, where=f"{where}: ", algorithm=algorithm)
        options = {key: value for key, value in given.items() if key in _OPTIONS}
        own = {key: value for key, value in given.items() if key in known}
        label = " ".join([agent or algorithm, *details])
        run = {
            **(preset.options if preset else {}),
            **options,
            "environment": environment,
            "agent": algorithm,
            "seed": seed,
            "label": label,
            "settings": {**dataclasses.asdict(settings), **own},
        }
        try:
            config: RunConfig[Any] = msgspec.convert(run, RunConfig[type(settings)])  # type: ignore[misc]  # known only now
        except (msgspec.ValidationError, UsageError) as error:
            raise self.error(f"{environment}, {label}: {error}") from None
        name = re.sub(r"[^A-Za-z0-9._=-]+", "-", f"{path_of(environment)}-{label}-seed{seed}")
        return PlannedRun(name.strip("-."), config)

    def seeds(self) -> list[int]:
        seeds = self.tables.get("seeds", 1)
        if type(seeds) is int and seeds > 0:
            return list(range(seeds))
        if isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds):
            return seeds
        raise self.error(f"seeds = {seeds!r} must be how many (5: 0 to 4), or a list of them")

    def table(self, name: str) -> dict[str, Any]:
        table = self.tables.get(name, {})
        of_tables = name in ("agents", "overrides")
        if not isinstance(table, dict) or (
            of_tables and not all(isinstance(x, dict) for x in table.values())
        ):
            raise self.error(
                f"'{name}' must be {'tables' if of_tables else 'a table'}, [{name}{'.NAME' * of_tables}]"
            )
        return table

    def kind(self, algorithm: Any) -> Any:
        try:
            return agent_class(algorithm).Config
        except UsageError as error:
            raise UsageError(f"{self.path}: {error}") from None

    def check_flag(
        self,
        key: str,
        settings: set[str],
        *,
        where: str = "",
        algorithm: str = "",
    ) -> None:
        if key in _GIVEN_ELSEWHERE:
            raise self.error(f"{where}{key!r} cannot be set here; {_GIVEN_ELSEWHERE[key]}")
        known = _OPTIONS | settings
        if key not in known:
            of = f" (a flag of `streamwise train --agent {algorithm}`)" if algorithm else ""
            raise self.error(f"{where}unknown key {key!r}{of}.{nearest(key, known)}")
