"""What a run is made from: typed settings, which are also the flags of `train` and the saved config.toml."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import tomli_w
import tyro

from streamwise.agents import StreamSettings, agent_class
from streamwise.agents.exploration import ExplorationSettings
from streamwise.agents.native import Backend
from streamwise.runs.storage import open_storage, replace_durably
from streamwise.streams import UsageError
from streamwise.streams.csv_series import DEFAULT_TRACE_DECAYS
from streamwise.streams.errors import nearest
from streamwise.streams.series import FORMS, is_series, path_of

__all__ = [
    "Preset",
    "RunConfig",
    "load_config",
    "load_preset",
    "made_otherwise",
    "preset_names",
    "read_toml",
    "save_config",
    "settings_of",
    "why_no_run",
]

Settings = TypeVar("Settings", bound=StreamSettings)
_NO_RUNS = (  # what else commands leave, by the file that says so
    ("sweep.toml", "a sweep, with its runs in runs/", "sweep"),
    ("system.toml", "a live system, with its runs in learners/", "up"),
    ("continual.toml", "a comparison of methods", "continual"),
)
_PRESETS = Path(__file__).parent / "presets"
_RECORDED_VERSIONS = (
    "streamwise",
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "dm-control",
    "ale-py",
    "minatar",
)


@dataclass(frozen=True)
class RunConfig(Generic[Settings]):
    """One run."""

    environment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    """An environment by the name its makers gave it (HalfCheetah-v5, dm_control/walker-walk-v0, ALE/Pong-v5,
    MinAtar/Breakout-v1), or csv:PATH to predict a time series with stream-td."""
    settings: tyro.conf.OmitArgPrefixes[Settings]
    agent: str = "stream-ac"
    """stream-ac (Box or Discrete actions), stream-q or stream-sarsa (Discrete), stream-td (prediction)."""
    preset: str | None = None
    """Settings to start from: a name (stream-x, stream-x-q, ...) or a TOML file. Flags override it."""
    backend: Backend = "auto"
    """native: one C++ call an update; torch: the reference, any network; auto: native where it can be."""
    steps: int = 100_000
    """How many samples to learn from."""
    seed: int = 0
    """Seeds the network, the exploration and the environment."""
    checkpoint_every: int = 10_000
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 3
    """How many checkpoints are kept: the newest ones."""
    keep_every: int | None = None
    """Also keep, for ever, the checkpoints of every so many steps. Unset: none."""
    storage: str | None = None
    """A folder or URL (s3://bucket/folder) for all that this run needs to go on: checkpoints, settings, rows.
    Unset: the run directory."""
    fail_on_save_error: bool = False
    """Stop at the first checkpoint that cannot be written. Unset: warn, go on, and try again."""
    out: Path | None = None
    """The run directory. Unset: outputs/<environment>-<agent>-<rule>-seed<seed>, with a series' target."""
    label: str | None = None
    """What reports call this agent. Unset: its algorithm, and what tells it from others."""
    target: str | None = None
    """csv: only. The column whose discounted sum is predicted."""
    features: tuple[str, ...] | None = None
    """csv: only. The columns that are observed. Unset: every numeric one, the target included."""
    trace_decays: tuple[float, ...] | None = None
    """csv: only. Each adds how far every feature is above its exponential trace. Unset: 0.9 0.99."""
    episodic_life: bool = False
    """Atari only. Let a lost life end the episode, without resetting the game."""
    plasticity_every: int = 0
    """Steps between measures of how able to learn the networks still are: units out of use, size of weights,
    rank of features. They join the metrics. 0: none."""

    def __post_init__(self) -> None:
        lowest = {"steps": 1, "checkpoint_every": 1, "keep_checkpoints": 1, "keep_every": 1, "seed": 0,
                  "plasticity_every": 0}  # fmt: skip
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; use {low} or more.")
        predicts = is_series(self.environment)
        if predicts != (self.agent == "stream-td"):
            wanted = "--agent stream-td" if predicts else f"{FORMS} instead of an environment"
            raise UsageError(
                f"{self.agent} on {self.environment}: use {wanted}; stream-td predicts series only."
            )
        if predicts and self.target is None:
            raise UsageError(f"{self.environment} needs --target COLUMN, the column to predict.")
        for name in ("target", "features", "trace_decays"):
            if getattr(self, name) is not None and not predicts:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} belongs to {FORMS}, not to {self.environment}.")
        if self.episodic_life and not self.environment.startswith("ALE/"):
            raise UsageError(f"--episodic-life belongs to Atari (ALE/...), not to {self.environment}.")

    @property
    def directory(self) -> Path:
        """Where the run keeps everything."""
        if self.out is not None:
            return self.out
        of_what = path_of(self.environment) + (f"-{self.target}" if self.target is not None else "")
        name = f"{of_what}-{self.agent}-{self.settings.step_size_rule}-seed{self.seed}"
        return Path("outputs") / re.sub(r"[/:?&=\s]+", "-", name).strip("-.")

    def resolved(self) -> RunConfig[Settings]:
        """Return this configuration with every value that depends on another filled in."""
        settings = self.settings
        decays = self.trace_decays
        if decays is None and is_series(self.environment):
            decays = DEFAULT_TRACE_DECAYS
        if isinstance(settings, ExplorationSettings) and settings.exploration_steps is None:
            duration = round(settings.exploration_fraction * self.steps)
            settings = dataclasses.replace(settings, exploration_steps=duration)
        storage = self.storage
        if storage is not None and "://" not in storage:
            storage = str(Path(storage).absolute())  # resumed from any folder
        return dataclasses.replace(self, settings=settings, trace_decays=decays, storage=storage)


@dataclass(frozen=True)
class Preset:
    """A preset file: the run options it sets, and the agent's settings."""

    agent: str
    options: Mapping[str, Any]
    settings: StreamSettings


def preset_names() -> list[str]:
    """Return the names of the presets that come with streamwise."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def load_preset(name: str) -> Preset:
    """Read a preset by name or path. Raises UsageError for unknown names, unreadable files, unknown keys."""
    path = Path(name) if name.endswith(".toml") else _PRESETS / f"{name}.toml"
    if path.parent == _PRESETS and not path.is_file():
        raise UsageError(f"no preset is named {name!r}.{nearest(name, preset_names())} Or give a .toml file.")
    table = read_toml(path)
    options = {key: value for key, value in table.items() if key not in ("agent", "settings")}
    allowed = ["agent", "settings", "backend", "steps", "checkpoint_every", "episodic_life"]
    allowed += ["keep_checkpoints", "keep_every"]
    for key in table:
        if key not in allowed:
            raise UsageError(f"{path}: unknown key {key!r}.{nearest(key, allowed)}")
    agent = table.get("agent", "stream-ac")
    return Preset(agent, options, _settings(table.get("settings", {}), agent, path))


def save_config(config: Any, directory: Path, **more: str) -> None:
    """Write config.toml: every setting of the run, and the versions it ran with; to its storage, too."""
    table = {**more, **{key: value for key, value in dataclasses.asdict(config).items() if value is not None}}
    table.pop("out", None)
    table["settings"] = {key: value for key, value in table.pop("settings").items() if value is not None}
    table["versions"] = _versions()
    text = tomli_w.dumps(table).encode()
    if getattr(config, "storage", None) is not None:
        open_storage(config.storage).put("config.toml", text)
    replace_durably(directory / "config.toml", text)


def why_no_run(directory: Path) -> str:
    """Say what is wrong with a directory that has no config.toml, and which runs lie in it or beside it."""
    for file, what, command in _NO_RUNS:
        if (directory / file).is_file():
            return f"{directory} is no run, but {what}; `streamwise {command} {directory}` goes on with it."
    if directory.exists():
        return f"{directory} is not a run directory: it has no config.toml."
    runs = sorted(path.parent.name for path in directory.parent.glob("*/config.toml"))
    there = f"; {directory.parent} has {', '.join(runs[:20])}" if runs else ""
    return f"there is no {directory}{there}."


def load_config(directory: Path) -> RunConfig[Any]:
    """Read the config.toml of a run directory. Raises UsageError if it is no run or was damaged."""
    path = directory / "config.toml"
    if not path.is_file():
        raise UsageError(why_no_run(directory))
    table = read_toml(path)
    if (kind := table.get("kind")) == "ingest":
        raise UsageError(
            f"{directory} is a run of `streamwise ingest`, which learns events; this is for agents."
        )
    if kind is not None:
        raise UsageError(
            f"{directory} is of `streamwise {kind}`, and no run of an agent; what made it goes on with it."
        )
    table.pop("versions", None)
    settings = _settings(table.pop("settings", {}), table.get("agent", "stream-ac"), path)
    known = {field.name for field in dataclasses.fields(RunConfig)}
    for key in table:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}.{nearest(key, known)}")
    for key in ("features", "trace_decays"):
        if key in table:
            table[key] = tuple(table[key])
    try:
        return RunConfig(**table, settings=settings, out=directory)
    except TypeError as error:
        raise UsageError(f"{path}: {error}.") from None


def _settings(table: Any, agent: str, path: Path) -> StreamSettings:
    settings: StreamSettings = settings_of(agent_class(agent).Config, table, agent, path)
    return settings


def settings_of(kind: type[Any], table: Any, name: str, path: Path) -> Any:
    """Return the settings of a learner from the [settings] of a file. Raises UsageError, naming the key."""
    known = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(table, dict):
        raise UsageError(f"{path}: 'settings' must be a table, [settings].")
    for key in table:
        if key not in known:
            raise UsageError(f"{path}: {name} has no setting {key!r}.{nearest(key, known)}")
    try:
        return msgspec.convert(table, kind)
    except (msgspec.ValidationError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from None


def made_otherwise(directory: Path, name: str, there: object, here: object) -> UsageError:
    """Return the error for a directory whose run has another value of a setting than the one that is given.

    >>> print(made_otherwise(Path("out"), "sources", ("file:a", "file:b"), ("file:a",)))
    out was made with sources file:a file:b, not file:a; choose another --out, or remove it.
    """
    was, is_now = (" ".join(map(str, each)) if isinstance(each, tuple) else each for each in (there, here))
    return UsageError(
        f"{directory} was made with {name.replace('_', '-')} {was}, not {is_now}; "
        "choose another --out, or remove it."
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises UsageError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path} cannot be read: {reason}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}.") from None


def _versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED_VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
