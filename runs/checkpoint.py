"""Checkpoints that carry no code: safetensors and JSON, verified by checksum, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
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

from streamwise.agents import AGENTS, Learner, agent_class
from streamwise.agents.native import Backend
from streamwise.agents.networks import NetworkBuilder
from streamwise.streams import DivergedError, UsageError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "load",
    "read_checkpoint",
    "save",
    "write_checkpoint",
]

FORMAT = 1


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, or from a newer streamwise."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds: the learner's state, and everything else as JSON."""

    path: Path
    state: dict[str, Tensor]
    meta: dict[str, Any]


def write_checkpoint(directory: Path, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write state.safetensors and meta.json so that `directory` either is complete or does not exist.

    Raises DivergedError, writing nothing, if the state holds NaN or an infinity: the learner has diverged.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DivergedError(
                f"the learner has diverged: {name!r} is not finite. The last good checkpoint was kept; "
                "try a smaller step_size or intended_change."
            )
    payload = save_tensors(state)
    meta = {"format": FORMAT, **meta, "sha256": hashlib.sha256(payload).hexdigest()}
    temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_durably(temporary / "state.safetensors", payload)
    _write_durably(temporary / "meta.json", json.dumps(meta, indent=2).encode())
    _sync_directory(temporary)
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)
    _sync_directory(directory.parent)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises CheckpointError if it is missing, damaged or too new."""
    try:
        meta = json.loads((directory / "meta.json").read_bytes())
        payload = (directory / "state.safetensors").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise CheckpointError(f"{directory / 'meta.json'} is damaged: it is not JSON.") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
        raise CheckpointError(f"{directory / 'meta.json'} is damaged: it names no format.")
    if meta["format"] > FORMAT:
        raise CheckpointError(
            f"{directory} has format {meta['format']}, this streamwise reads up to {FORMAT}; upgrade it."
        )
    if hashlib.sha256(payload).hexdigest() != meta.get("sha256"):
        raise CheckpointError(f"{directory / 'state.safetensors'} is damaged: its checksum does not hold.")
    try:
        return Checkpoint(directory, load_tensors(payload), meta)
    except SafetensorError as error:
        raise CheckpointError(f"{directory / 'state.safetensors'} is damaged: {error}.") from None


class Checkpoints:
    """The checkpoints of one run directory: `checkpoints/step-<12 digits>`, the last `keep` of them."""

    def __init__(self, run_directory: Path, keep: int = 3) -> None:
        self.directory = run_directory / "checkpoints"
        self.keep = keep

    def save(self, step: int, state: dict[str, Tensor], meta: dict[str, Any]) -> Path:
        """Write the checkpoint of this step, then remove the oldest beyond `keep`."""
        path = self.directory / f"step-{step:012d}"
        write_checkpoint(path, state, {**meta, "step": step})
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def paths(self) -> list[Path]:
        """Return the checkpoints present, oldest first."""
        return sorted(self.directory.glob("step-*"))

    def latest(self) -> Checkpoint:
        """Read the newest one that is whole; warn about any damaged newer one. Raises CheckpointError."""
        reasons = []
        for path in reversed(self.paths()):
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                reasons.append(str(error))
                warnings.warn(f"{error} Trying the checkpoint before it.", stacklevel=2)
        found = " ".join(reasons) or f"{self.directory} holds no checkpoint yet."
        raise CheckpointError(f"nothing to go on from: {found}")


def describe(learner: Learner) -> dict[str, Any]:
    """Return what `restore` needs to make this learner again, apart from its state, as JSON."""
    name = next((name for name, kind in AGENTS.items() if type(learner) is kind), None)
    if name is None:
        raise UsageError(f"{type(learner).__name__} is not one of streamwise's agents: {', '.join(AGENTS)}.")
    made: Any = learner
    return {
        "agent": name,
        "settings": asdict(made.config),
        "observation_space": _describe_space(made.observation_space),
        "action_space": _describe_space(made.action_space),
    }


def restore(
    checkpoint: Checkpoint, network: NetworkBuilder | None = None, backend: Backend = "auto"
) -> Learner:
    """Make the learner of a checkpoint again. Raises CheckpointError if its parts do not fit together."""
    meta = checkpoint.meta
    try:
        kind = agent_class(meta["agent"])
        learner: Learner = kind(
            _make_space(meta["observation_space"]),
            _make_space(meta["action_space"]),
            msgspec.convert(meta["settings"], kind.Config),
            network=network,
            backend=backend,
        )
        learner.load_state_dict(checkpoint.state)
    except (KeyError, TypeError, RuntimeError, msgspec.ValidationError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the learner it names ({error}); an agent with a network of its "
            "own is loaded with load(path, network=...)."
        ) from None
    return learner


def save(learner: Learner, path: str | Path) -> None:
    """Write a learner to the directory `path`; an earlier one there is replaced.

    Raises DivergedError if the learner has diverged.
    """
    write_checkpoint(Path(path), learner.state_dict(), describe(learner))


def load(path: str | Path, *, network: NetworkBuilder | None = None, backend: Backend = "auto") -> Any:
    """Return the learner in a directory that `save` wrote, or the newest of a run directory.

    Raises CheckpointError. Nothing is unpickled or executed.
    """
    path = Path(path)
    is_run = (path / "checkpoints").is_dir()
    return restore(Checkpoints(path).latest() if is_run else read_checkpoint(path), network, backend)


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


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
