"""Checkpoints that carry no code: safetensors and JSON, verified by checksum, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from streamwise.agents import AGENTS, EVENT_MODELS, EventModel, Learner, agent_class, event_model_class
from streamwise.agents.native import Backend
from streamwise.agents.networks import NetworkBuilder
from streamwise.runs.config import RunConfig, load_config
from streamwise.runs.ingest_config import IngestConfig, is_ingest, load_ingest
from streamwise.runs.storage import LocalStorage, Storage, open_storage
from streamwise.streams import DivergedError, UsageError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "check_finite",
    "load",
    "read_checkpoint",
    "save",
    "write_checkpoint",
]

FORMAT = 2  # 1 had no checksum of meta.json and no environment in it


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, or from another streamwise."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds: the learner's state, and everything else as JSON."""

    path: str
    state: dict[str, Tensor]
    meta: dict[str, Any]


def check_finite(
    state: dict[str, Tensor], remedy: str = "try a smaller step_size or intended_change"
) -> None:
    """Raise DivergedError if the state holds NaN or an infinity: such a state is never written."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        # A finite sum has finite terms, and takes a fourth of the time.
        if not math.isfinite(tensor.sum().item()) and not torch.isfinite(tensor).all():
            raise DivergedError(
                f"the learner has diverged: {name!r} is not finite. The last good checkpoint was kept; "
                f"{remedy}."
            )


def write_checkpoint(storage: Storage, name: str, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write state.safetensors and meta.json to a folder that is listed only when it is whole.

    Raises OSError where the storage fails.
    """
    payload = save_tensors(state)
    meta = {"format": FORMAT, **meta, "state_sha256": hashlib.sha256(payload).hexdigest()}
    text = _canonical(meta)
    checksum = hashlib.sha256(text).hexdigest()
    signed = text[:-1] + f', "sha256": "{checksum}"}}'.encode()
    storage.write(name, {"state.safetensors": payload, "meta.json": signed})


def read_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """Read and verify one checkpoint. Raises CheckpointError if it is missing, damaged or from elsewhere."""
    path = storage.describe(name)
    try:
        text, payload = storage.read(name, "meta.json"), storage.read(name, "state.safetensors")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}.") from None
    try:
        meta = json.loads(text)
        version, checksum = meta["format"], meta.pop("sha256", None)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"{path}: meta.json is damaged: it names no format.") from None
    if version != FORMAT and isinstance(version, int):
        remedy = "upgrade it" if version > FORMAT else "it was written by an older one; train afresh"
        raise CheckpointError(f"{path} has format {version}, this streamwise reads {FORMAT}; {remedy}.")
    if checksum != hashlib.sha256(_canonical(meta)).hexdigest():
        raise CheckpointError(f"{path}: meta.json is damaged: its checksum does not hold.")
    if hashlib.sha256(payload).hexdigest() != meta.get("state_sha256"):
        raise CheckpointError(f"{path}: state.safetensors is damaged: its checksum does not hold.")
    try:
        return Checkpoint(path, load_tensors(payload), meta)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: state.safetensors is damaged: {error}.") from None


def _canonical(meta: dict[str, Any]) -> bytes:
    """What the checksum is of: the content, however its JSON is spelled."""
    return json.dumps(meta, sort_keys=True).encode()


def _reason(error: OSError) -> str:
    return error.strerror or str(error).splitlines()[0]


class Checkpoints:
    """The checkpoints of one run: folders `step-<12 digits>` of a storage.

    Kept are the last `keep`, and those of steps that `keep_every` divides.
    """

    def __init__(self, storage: Storage, keep: int = 3, keep_every: int | None = None) -> None:
        self.storage = storage
        self.keep = keep
        self.keep_every = keep_every

    @classmethod
    def of(cls, run: RunConfig[Any] | IngestConfig[Any] | Path) -> Checkpoints:
        """Return those of a run, by its settings or its directory. Raises UsageError if it is no run."""
        config = (
            run if not isinstance(run, Path) else load_ingest(run) if is_ingest(run) else load_config(run)
        )
        if isinstance(config, IngestConfig):
            return cls(LocalStorage(config.directory / "checkpoints"), config.keep_checkpoints)
        storage = open_storage(config.storage or config.directory / "checkpoints")
        return cls(storage, config.keep_checkpoints, config.keep_every)

    def mend(self) -> None:
        """Put right what a killed process left half done; for the process that has the run's lock."""
        if isinstance(self.storage, LocalStorage):
            self.storage.mend()

    def save(self, step: int, state: dict[str, Tensor], meta: dict[str, Any]) -> str:
        """Write the checkpoint of this step, then remove what is not kept. Returns its name."""
        name = f"step-{step:012d}"
        write_checkpoint(self.storage, name, state, {**meta, "step": step})
        # Later ones are damaged, or the run would have gone on from there: they take nobody's place.
        for old in [name for name in self.names() if _step_of(name) <= step][: -self.keep]:
            if not self.keeps_for_ever(_step_of(old)):
                self.storage.remove(old)
        return name

    def keeps_for_ever(self, step: int) -> bool:
        """Whether the checkpoint of this step is never removed."""
        return self.keep_every is not None and step % self.keep_every == 0

    def names(self) -> list[str]:
        """Return the checkpoints present, oldest first."""
        return [name for name in self.storage.names() if _NAME.fullmatch(name)]

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints present, the first first."""
        return [_step_of(name) for name in self.names()]

    def last_step(self) -> int | None:
        """Return the step of the newest checkpoint, whole or not; None if there is none."""
        names = self.names()
        return _step_of(names[-1]) if names else None

    def latest(self) -> Checkpoint:
        """Read the newest one that is whole; warn about any damaged newer one. Raises CheckpointError."""
        reasons = []
        for name in reversed(self.names()):
            try:
                return read_checkpoint(self.storage, name)
            except CheckpointError as error:
                reasons.append(str(error))
                warnings.warn(f"{error} Trying the checkpoint before it.", stacklevel=2)
        found = " ".join(reasons) or f"{self.storage.describe('')} holds no checkpoint yet; wait for one."
        raise CheckpointError(f"nothing to go on from: {found}")

    def check(self) -> Iterator[tuple[int, int, str | None]]:
        """Yield step, bytes, and what is wrong (None: it is whole), oldest first."""
        for name in self.names():
            try:
                read_checkpoint(self.storage, name)
                wrong = None
            except CheckpointError as error:
                wrong = str(error)
            yield _step_of(name), self.storage.size(name), wrong


_NAME = re.compile(r"step-\d{12}")


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def describe(learner: Learner | EventModel) -> dict[str, Any]:
    """Return what `restore` needs to make this learner again, apart from its state, as JSON."""
    if isinstance(learner, EventModel):
        return {"model": learner.name, "settings": asdict(learner.config)}
    name = next((name for name, kind in AGENTS.items() if type(learner) is kind), None)
    if name is None:
        known = ", ".join([*AGENTS, *EVENT_MODELS])
        raise UsageError(f"{type(learner).__name__} is not one of streamwise's learners: {known}.")
    made: Any = learner
    return {
        "agent": name,
        "settings": asdict(made.config),
        "observation_space": _describe_space(made.observation_space),
        "action_space": _describe_space(made.action_space),
    }


def restore(checkpoint: Checkpoint, network: NetworkBuilder | None = None, backend: Backend = "auto") -> Any:
    """Make the learner of a checkpoint again. Raises CheckpointError if its parts do not fit together."""
    meta = checkpoint.meta
    try:
        if "model" in meta:
            kind = event_model_class(meta["model"])
            model: EventModel = kind(msgspec.convert(meta["settings"], kind.Config))
            model.load_state_dict(checkpoint.state)
            return model
        kind = agent_class(meta["agent"])
        learner: Learner = kind(
            _make_space(meta["observation_space"]),
            _make_space(meta["action_space"]),
            msgspec.convert(meta["settings"], kind.Config),
            network=network,
            backend=backend,
        )
        learner.load_state_dict(
            {name: tensor for name, tensor in checkpoint.state.items() if not name.startswith("run.")}
        )
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, msgspec.ValidationError) as error:
        if isinstance(error, UsageError):
            raise
        raise CheckpointError(
            f"{checkpoint.path} does not fit the learner it names ({error}); an agent with a network of its "
            "own is loaded with load(path, network=...)."
        ) from None
    return learner


def save(learner: Learner | EventModel, path: str | Path) -> None:
    """Write a learner or an event model to the directory `path`; an earlier one there is replaced.

    Raises DivergedError if the learner has diverged.
    """
    state, path = learner.state_dict(), Path(path).absolute()
    check_finite(state)
    write_checkpoint(LocalStorage(path.parent), path.name, state, describe(learner))


def load(path: str | Path, *, network: NetworkBuilder | None = None, backend: Backend = "auto") -> Any:
    """Return the learner in a directory that `save` wrote, or the newest of a run directory.

    Raises CheckpointError. Nothing is unpickled or executed.
    """
    path = Path(path).absolute()
    if is_ingest(path):
        from streamwise.runs.ingest import load_model  # which loads this module

        return load_model(path)[0]
    if (path / "config.toml").is_file():
        checkpoint = Checkpoints.of(path).latest()
    else:
        checkpoint = read_checkpoint(LocalStorage(path.parent), path.name)
    return restore(checkpoint, network, backend)


def _describe_space(space: spaces.Space[Any] | None) -> dict[str, Any] | None:
    if space is None:
        return None
    if isinstance(space, spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n)}
    if isinstance(space, spaces.Box):
        return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype)}
    raise UsageError(f"{space} cannot be saved; only Box and Discrete spaces can.")


def _make_space(description: dict[str, Any] | None) -> gymnasium.Space[Any] | None:
    """Bounds are not kept: agents do not look at them."""
    if description is None:
        return None
    if description["kind"] == "discrete":
        return spaces.Discrete(description["n"])
    dtype = np.dtype(description["dtype"])
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return spaces.Box(low, high, tuple(description["shape"]), dtype.type)
