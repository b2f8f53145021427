"""The full state of an environment with its wrappers, as JSON: captured here, restored in another process.

After `restore(other, capture(env))` the same actions give `other` the observations, rewards and endings that
they give `env`, bit for bit, and so do later resets: every generator is part of a snapshot. `other` is made
by the same name with the same options; its seed, and what happened to it before, do not matter.

What can be captured is a list of classes (`snapshot_known`), because a guess cannot promise equal bits:
Gymnasium's classic control, toy text and MuJoCo, the tasks of the DM Control suite, Atari, MinAtar, POPGym,
our memory probes, and the wrappers of Gymnasium and of `streamwise.envs`. It has to be the class itself: a
subclass may keep anything anywhere.
An environment or a wrapper of your own joins in with two methods:

    def snapshot(self) -> dict        # of numbers, strings, lists, dicts, arrays, NumPy generators
    def restore(self, state) -> None  # gets what `snapshot` returned, arrays and generators included

They answer for that layer alone; what it wraps is captured by itself. A subclass of a known class that keeps
all its state in attributes writes `return attributes(self)` and `set_attributes(self, state)`.

How each family comes back:

- Pure Python (classic control, toy text, MinAtar, POPGym, memory probes, wrappers): by its attributes, which
  must be plain values, or members of an enumeration.
- MuJoCo and Atari: by the simulator's own saved state, and what is missing in it (`snapshot_simulators`).
- DM Control: also the task's attributes, and what tasks write into the model when an episode starts (targets,
  sizes, terrain) or draw when they are made (the springs of lqr).

A model that was changed from outside (another mass, say) has to be changed in the same way before `restore`;
`streamwise.envs.changing` does so by itself, for wrappers are restored before what they wrap.
Nothing in a snapshot is executed, nor does it choose a class: it only fills layers that it fits.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from streamwise.envs.snapshot_known import (
    LEFT_ALONE,
    NEW_EPISODE,
    PARTS,
    SAME_OPTIONS,
    NoSnapshotError,
    class_name,
    expect,
    is_known,
    is_left_alone,
    part_kind,
)
from streamwise.envs.snapshot_simulators import (
    emulator_to_json,
    read_emulator,
    read_simulation,
    set_simulation,
    simulation_to_json,
)
from streamwise.envs.snapshot_values import NotPlainError, ValueReader, ValueWriter
from streamwise.streams import UsageError

__all__ = ["NoSnapshotError", "attributes", "capture", "restore", "set_attributes", "why_not"]

Environment = gymnasium.Env[Any, Any]
Snapshot = dict[str, Any]  # holds only what JSON can hold

_FORMAT = 2  # raise it when older snapshots no longer fit, be it for an attribute of one of our wrappers


def capture(env: Environment) -> Snapshot:
    """Return the state of `env` and its wrappers, in what JSON can hold; `env` stays as it is.

    Raises NoSnapshotError if a class in it is not known, or holds something that is not a plain value.

    >>> import json
    >>> from streamwise.envs import make
    >>> env, other = make("CartPole-v1", seed=1), make("CartPole-v1", seed=2)
    >>> _ = env.reset(), env.step(0)
    >>> restore(other, json.loads(json.dumps(capture(env))))
    >>> bool((env.step(1)[0] == other.step(1)[0]).all())
    True
    """
    writer = _Writer()
    layers = []
    for layer in _layers(env):
        kind = type(layer)
        if is_known(kind):
            state = writer.attributes(layer)
        elif hasattr(kind, "snapshot") and hasattr(kind, "restore"):
            state = writer.plain(layer, "snapshot()", layer.snapshot())
        else:
            raise NoSnapshotError(
                f"{class_name(kind)} cannot be captured: it is none of the classes that are known to keep "
                "their state in attributes, and lacks the methods snapshot and restore."
            )
        layers.append({"type": class_name(kind), "options": _options(layer), "state": state})
    return {"format": _FORMAT, "versions": _versions(env), "layers": layers}


def restore(env: Environment, snapshot: Snapshot) -> None:
    """Bring `env` into the state of a snapshot, as `capture` gave it.

    Raises UsageError, before anything has changed, if it is of another environment, of other options or
    versions, or damaged. (What an environment's own `restore` raises comes later: reset `env` then.)
    """
    reader = _Reader()
    try:
        if snapshot["format"] != _FORMAT:
            raise UsageError(
                f"the snapshot has format {snapshot['format']}, not {_FORMAT}: another version of streamwise "
                f"took it; use that version, or {NEW_EPISODE}."
            )
        _check_versions(snapshot["versions"], _versions(env))
        layers, saved_layers = list(_layers(env)), snapshot["layers"]
        here, there = ([class_name(type(x)) for x in layers], [saved["type"] for saved in saved_layers])
        if here != there:
            raise UsageError(
                f"the snapshot is of {' > '.join(there)}, not {' > '.join(here)}; {SAME_OPTIONS}."
            )
        pairs = list(zip(layers, saved_layers, strict=True))
        for layer, saved in reversed(pairs):  # the name of the environment is an option of the innermost
            _check_options(class_name(type(layer)), saved["options"], _options(layer))
        for layer, saved in pairs:
            if is_known(type(layer)):
                reader.attributes(layer, saved["state"])
            else:
                reader.later(layer.restore, reader.value(saved["state"]))
    except UsageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise UsageError(
            f"the snapshot is damaged ({type(error).__name__}: {what}); use an earlier one, or {NEW_EPISODE}."
        ) from error
    reader.finish()


def why_not(env: Environment) -> str | None:
    """Return why `env` cannot be captured as it is now, in one line, or None if it can."""
    try:
        capture(env)
    except NoSnapshotError as error:
        return str(error)
    return None


def attributes(env: Any) -> Snapshot:
    """Return all attributes of `env`, for a `snapshot` method of its own. Raises NoSnapshotError."""
    return _Writer().attributes(env)


def set_attributes(env: Any, state: Snapshot) -> None:
    """Set what `attributes` returned, for a `restore` method of its own. Raises UsageError."""
    reader = _Reader()
    reader.attributes(env, state)
    reader.finish()


# --- what an environment consists of -----------------------------------------------------------------------


def _layers(env: Environment) -> Iterator[Any]:
    """Yield `env` and what it wraps, outermost first."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def _options(layer: Any) -> Snapshot:
    """Return what a layer was made with, as far as it is plain and does more than draw."""
    spec = vars(layer).get("spec")
    given = vars(layer).get("_saved_kwargs", {}) if spec is None else {"id": spec.id, **spec.kwargs}
    options = {}
    for name, value in given.items():
        if name not in LEFT_ALONE:
            with contextlib.suppress(NotPlainError):
                options[name] = _Writer().value(value)
    if "desc" in vars(layer):  # FrozenLake draws a map of its own if it is given none
        options["map"] = _Writer().value(layer.desc)
    return options


def _check_options(name: str, there: Snapshot, here: Snapshot) -> None:
    other = sorted(option for option in {**there, **here} if there.get(option) != here.get(option))
    if other:
        raise UsageError(f"{name} has another {', '.join(other)} than in the snapshot; {SAME_OPTIONS}.")


def _versions(env: Environment) -> dict[str, str]:
    """Return the versions of the libraries that decide what a snapshot of `env` holds and how it goes on."""
    packages = {type(layer).__module__.partition(".")[0] for layer in _layers(env)} - {"streamwise"}
    if "shimmy" in packages:
        packages |= {"dm_control", "mujoco"}
    elif any(kind.__module__.startswith("gymnasium.envs.mujoco.") for kind in type(env.unwrapped).__mro__):
        packages.add("mujoco")
    elif type(env.unwrapped).__module__ == "streamwise.envs.changing":  # a sequence of games
        packages.add("minatar")
    return {package: version for package in sorted(packages) if (version := _version(package))}


@functools.cache  # reading it takes a third of a millisecond
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a module of the user's own
        return None


def _check_versions(there: dict[str, str], here: dict[str, str]) -> None:
    for package, version in there.items():
        if package in here and here[package] != version:
            raise UsageError(
                f"the snapshot was taken with {package} {version}, and {here[package]} is installed, which "
                f"may go on otherwise; install {package}=={version}, or {NEW_EPISODE}."
            )


# --- attributes as JSON -------------------------------------------------------------------------------------


class _Writer(ValueWriter):
    """Turns attributes into JSON."""

    def attributes(self, thing: Any) -> Snapshot:
        return {
            name: self.attribute(thing, name, value)
            for name, value in vars(thing).items()
            if not is_left_alone(name, value)
        }

    def attribute(self, thing: Any, name: str, value: Any) -> Any:
        match part_kind(value):
            case None:
                return self.plain(thing, name, value)
            case "object":
                return {"kind": "object", "type": class_name(type(value)), "state": self.attributes(value)}
            case "space":
                return self._space(value)
            case "simulation":
                return simulation_to_json(value)
            case "member":
                return {"kind": "member", "name": value.name}
        return emulator_to_json(value, thing._game)

    def plain(self, thing: Any, name: str, value: Any) -> Any:
        try:
            return self.value(value)
        except NotPlainError as error:
            raise NoSnapshotError(
                f"{class_name(type(thing))} cannot be captured: {name} holds {error}, which no snapshot can."
            ) from None

    def _space(self, space: spaces.Space[Any]) -> Snapshot:
        """A space has a generator to sample with, and so have its parts."""
        return {
            "kind": "space",
            "layout": _layout(space),
            "generator": None if space._np_random is None else self.generator(space._np_random, "generator"),
            "parts": [self._space(part) for part in _parts(space)],
        }


class _Reader(ValueReader):
    """Reads what a writer wrote. What it changes, it changes in `finish`, when all has been found to fit."""

    def __init__(self) -> None:
        super().__init__()
        self._changes: list[Callable[[], Any]] = []

    def later(self, change: Callable[..., Any], *arguments: Any) -> None:
        self._changes.append(functools.partial(change, *arguments))

    def finish(self) -> None:
        for change in self._changes:
            change()

    def attributes(self, thing: Any, state: Snapshot) -> None:
        present = {name: value for name, value in vars(thing).items() if not is_left_alone(name, value)}
        for name in (
            present.keys() - state.keys()
        ):  # came with a step or a reset that the snapshot had not had
            expect(None, part_kind(present[name]), thing, name)
            self.later(vars(thing).pop, name)
        for name, saved in state.items():
            expect(is_left_alone(name, vars(thing).get(name)), False, thing, name)
            current: Any = present.get(name)
            kind = saved["kind"] if isinstance(saved, dict) else None
            expect(kind if kind in PARTS else None, part_kind(current), thing, name)
            match kind:
                case "object":
                    expect(saved["type"], class_name(type(current)), thing, name)
                    self.attributes(current, saved["state"])
                case "space":
                    self._space(present[name], saved)
                case "emulator":
                    self.later(current.restoreState, read_emulator(saved))
                case "simulation":
                    self.later(set_simulation, current, *read_simulation(current, saved))
                case "member":
                    members: Any = type(current)
                    self.later(vars(thing).__setitem__, name, members[saved["name"]])
                case _:
                    value = self.value(saved)
                    if isinstance(value, np.ndarray) and isinstance(current, np.ndarray):
                        expect(value.shape, current.shape, thing, name)
                    self.later(vars(thing).__setitem__, name, value)

    def _space(self, space: spaces.Space[Any], saved: Snapshot) -> None:
        expect(saved["layout"], _layout(space), space, "layout")
        self.later(setattr, space, "_np_random", self.value(saved["generator"]))
        for part, saved_part in zip(_parts(space), saved["parts"], strict=True):
            self._space(part, saved_part)


def _layout(space: spaces.Space[Any]) -> list[Any]:
    shape, dtype = space.shape, space.dtype
    return [type(space).__name__, list(shape or ()), dtype and dtype.str, int(getattr(space, "n", 0))]


def _parts(space: Any) -> list[spaces.Space[Any]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, spaces.Tuple) else []
