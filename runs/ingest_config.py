"""What a run on events is made from: typed settings, the flags of `ingest`, and the saved config.toml."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from streamwise.agents import event_model_class
from streamwise.agents.event_model import EventBackend, EventSettings
from streamwise.runs.config import read_toml, save_config, settings_of, why_no_run
from streamwise.streams import UsageError
from streamwise.streams.errors import nearest
from streamwise.streams.sources import resolved_url

__all__ = ["FIXED", "IngestConfig", "is_ingest", "load_ingest", "save_ingest"]

Settings = TypeVar("Settings", bound=EventSettings)

_KIND = "ingest"


@dataclass(frozen=True)
class IngestConfig(Generic[Settings]):
    """One run on events."""

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")]
    """Where events come from, one or more: file:PATH, kafka://BROKER/TOPIC, redis://HOST:PORT/STREAM, stdin:,
    synthetic:hawkes. Parameters say which field is what: 'file:log.csv?time=ts&type=action&key=user_id'."""
    settings: tyro.conf.OmitArgPrefixes[Settings]
    model: str = "counts"
    """counts (what follows what, after how long), hawkes (self-exciting), poisson (constant rates),
    prompt-tpp (attention to what a key did, beside the first two)."""
    out: Path | None = None
    """The run directory. Unset: outputs/<source>-<model>."""
    follow: bool = False
    """Wait for more at the end of a file, and survive its rotation."""
    until_end: bool = False
    """Stop where the log of a broker ends now, instead of waiting for more."""
    events: int | None = None
    """Stop once so many events were learned, counted from the run's beginning. Unset: go on."""
    lateness: float = 0.0
    """Seconds by which an event may be older than the newest before it. Later ones are refused."""
    buffer: int = 10_000
    """Events of one partition that may wait for those of others, or for late ones."""
    idle_seconds: float = 5.0
    """A partition without news for so long does not hold up the others; inf waits for it."""
    max_dead_letters: int | None = None
    """End the run when more records than this were refused; it can go on. Unset: never."""
    dead_letters: str | None = None
    """Send refused records to kafka://BROKER/TOPIC, too; they are always in dead_letters.jsonl."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 3
    """How many checkpoints are kept: the newest ones."""
    fail_on_save_error: bool = False
    """Stop at the first checkpoint that cannot be written. Unset: warn, go on, and try again."""
    interval: int = 1_000
    """Events a row of metrics covers."""
    time_unit: float = 1.0
    """Seconds in the unit of time that log-likelihoods, RMSE and MAE are reported in."""
    backend: EventBackend = "auto"
    """native: C++; reference: NumPy, slow, reads like the formulas; auto: native where it was built."""
    serve: int | None = None
    """Serve a page and an HTTP API on this port: the live stream, predictions, health, metrics. Unset: no."""
    metrics_port: int | None = None
    """Serve metrics alone to Prometheus on this port. Unset: no."""
    host: str = "127.0.0.1"
    """The address that --serve and --metrics-port listen on. Unset: this machine alone."""
    workers: int = 1
    """Processes that partitions are divided among, each with a model of its own; more than one use Ray."""
    sync: str | None = None
    """average:SECONDS makes the workers' models alike so often. Unset: each knows its own partitions."""
    address: str | None = None
    """A Ray cluster for the workers: HOST:PORT, or auto; its nodes have to see --out. Unset: this machine."""
    max_failures: int = 3
    """A worker lost so many times in a row without a new checkpoint leaves its partitions to the others."""
    partitions: Annotated[tuple[str, ...] | None, tyro.conf.Suppress] = None
    """What a worker reads, as SOURCE NUMBER:PARTITION. Unset: everything."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("name at least one source of events, for example file:events.csv.")
        if len(set(self.sources)) < len(self.sources):
            raise UsageError("a source is named twice; its events would be learned twice.")
        if sum(source.startswith("synthetic:") for source in self.sources) > 1:
            raise UsageError("one synthetic source is enough; two would give their partition the same name.")
        if self.follow and not any(source.startswith("file:") for source in self.sources):
            raise UsageError("--follow waits at the end of a file, and there is none; leave it out.")
        lowest = {
            "events": 1, "buffer": 1, "max_dead_letters": 0, "keep_checkpoints": 1, "interval": 1,
            "lateness": 0.0, "idle_seconds": 0.0, "checkpoint_seconds": 0.01, "time_unit": 1e-9,
            "serve": 0, "metrics_port": 0, "workers": 1, "max_failures": 0,
        }  # fmt: skip
        for name, low in lowest.items():
            value = getattr(self, name)
            most = math.inf if name == "idle_seconds" else math.nextafter(math.inf, 0.0)
            if value is not None and not low <= value <= most:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; use {low} or more.")
        for name in ("serve", "metrics_port"):
            if (getattr(self, name) or 0) > 65_535:
                raise UsageError(f"--{name.replace('_', '-')} is no port; use one below 65,536.")
        if self.dead_letters is not None and not self.dead_letters.startswith("kafka://"):
            raise UsageError(f"--dead-letters is {self.dead_letters}; give kafka://BROKER/TOPIC.")
        self._check_workers()

    def _check_workers(self) -> None:
        """Raise UsageError for what does not go together with several workers, or with one."""
        if self.sync_seconds is not None and self.workers == 1:
            raise UsageError("--sync makes several workers alike; give --workers, too.")
        if self.address is not None and self.workers == 1:
            raise UsageError("--address is where workers run; give --workers, too.")
        if self.workers == 1:
            return
        if any(source.startswith("stdin:") for source in self.sources):
            raise UsageError("a pipe is a single partition, of this process; leave --workers out.")
        if self.events is not None:
            raise UsageError("--events counts one stream, and --workers make several; leave it out.")
        for name in ("serve", "metrics_port"):
            if getattr(self, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} shows one stream; leave it out, or --workers.")

    @property
    def sync_seconds(self) -> float | None:
        """Seconds between two averages; None if there are none. Raises UsageError."""
        if self.sync is None:
            return None
        how, _, seconds = self.sync.partition(":")
        try:
            found = float(seconds)
        except ValueError:
            found = 0.0
        if how != "average" or not 0.1 <= found < math.inf:
            raise UsageError(f"--sync is {self.sync}; write average:SECONDS, such as average:10.")
        return found

    @property
    def directory(self) -> Path:
        """Where the run keeps everything."""
        if self.out is not None:
            return self.out
        names = [re.sub(r"\?.*", "", source) for source in self.sources]
        names = [re.sub(r"[^A-Za-z0-9.-]+", "-", name.rpartition("/")[2]) for name in names]
        return Path("outputs") / f"{'-'.join(names).replace('synthetic-', '').strip('-.')}-{self.model}"

    def with_workers(self, workers: int) -> IngestConfig[Settings]:
        """Return this configuration for so many workers; one has nobody to be alike with."""
        if workers > 1:
            return dataclasses.replace(self, workers=workers)
        return dataclasses.replace(self, workers=workers, sync=None, address=None)

    @property
    def group(self) -> str:
        """What brokers know the run by: its name, which its workers share."""
        return (self.directory if self.partitions is None else self.directory.parents[1]).name

    def partitions_of(self, source: int) -> tuple[str, ...] | None:
        """Return which partitions of a source are read; None for all of them."""
        if self.partitions is None:
            return None
        found = (label.partition(":") for label in self.partitions)
        return tuple(name for number, _, name in found if int(number) == source)

    def resolved(self) -> IngestConfig[Settings]:
        """Return this configuration as it means the same from any folder."""
        letters = None if self.dead_letters is None else resolved_url(self.dead_letters)
        sources = tuple(resolved_url(source) for source in self.sources)
        return dataclasses.replace(self, sources=sources, dead_letters=letters)


# What may not differ in a run that is gone on with, besides the model's settings: it decides what is learned.
FIXED = ("sources", "partitions", "model", "lateness", "buffer", "interval", "time_unit")


def is_ingest(directory: Path) -> bool:
    """Whether a directory holds a run on events."""
    path = directory / "config.toml"
    return path.is_file() and read_toml(path).get("kind") == _KIND


def save_ingest(config: IngestConfig[Any], directory: Path) -> None:
    """Write config.toml: every setting of the run, and the versions it ran with."""
    save_config(config, directory, kind=_KIND)


def load_ingest(directory: Path) -> IngestConfig[Any]:
    """Read the config.toml of a run directory. Raises UsageError if it is no run on events, or damaged."""
    path = directory / "config.toml"
    if not is_ingest(directory):
        if not path.is_file():
            raise UsageError(why_no_run(directory))
        command = read_toml(path).get("kind", "train")
        raise UsageError(f"{directory} is no run of `streamwise ingest`, but of `streamwise {command}`.")
    table = read_toml(path)
    del table["kind"]
    table.pop("versions", None)
    known = [field.name for field in dataclasses.fields(IngestConfig)]
    for key in table:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}.{nearest(key, known)}")
    kind = event_model_class(table.get("model", "counts")).Config
    given = table.pop("settings", {})
    if isinstance(given, dict):
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = settings_of(kind, given, table.get("model", "counts"), path)
    try:
        for name in ("sources", "partitions"):
            if name in table:
                table[name] = tuple(table[name])
        return IngestConfig(**table, settings=settings, out=directory)
    except (TypeError, KeyError) as error:
        raise UsageError(f"{path}: {error}.") from None
