"""The full state of an environment with its wrappers, as JSON: captured here, restored in another process.

After `restore(other, capture(env))` the same actions give `other` the observations, rewards and endings that
they give `env`, bit for bit, and so do later resets: every generator is part of a snapshot. `other` is made
by the same name with the same options; its seed, and what happened to it before, do not matter.

What can be captured is a list of classes (`_KNOWN`), because a guess cannot promise equal bits: Gymnasium's
classic control, toy text and MuJoCo, the tasks of the DM Control suite, Atari, MinAtar, POPGym, our memory
probes, and the wrappers of Gymnasium and of `streamwise.envs`. It has to be the class itself: a subclass may
keep anything anywhere.
An environment or a wrapper of your own joins in with two methods:

    def snapshot(self) -> dict        # of numbers, strings, lists, dicts, arrays, NumPy generators
    def restore(self, state) -> None  # gets what `snapshot` returned, arrays and generators included

They answer for that layer alone; what it wraps is captured by itself. A subclass of a known class that keeps
all its state in attributes writes `return attributes(self)` and `set_attributes(self, state)`.

How each family comes back:

- Pure Python (classic control, toy text, MinAtar, POPGym, memory probes, wrappers): by its attributes, which
  must be plain values, or members of an enumeration.
- MuJoCo: mjSTATE_INTEGRATION is what the next `mj_step` starts from, but not all that is read before it: Ant
  takes its velocity from the `xpos` of the step before, and DM Control's step begins in the middle of one,
  with `mj_step2`. So `mj_step1` rebuilds contacts, constraints and factorizations, and then the arrays of
  `_DERIVED` get their old values, which are not those that follow from the present state.
- DM Control: also the task's attributes, and what tasks write into the model when an episode starts (targets,
  sizes, terrain) or draw when they are made (the springs of lqr).
- Atari: the emulator's own saved state with its generator. That holds neither the screen, which
  `AtariPreprocessing` keeps as far as it is looked at again, nor the last action, which sticky actions
  repeat: `make` leaves those to Gymnasium's StickyAction, and an emulator that repeats by itself is refused.
  So are the games of `_LOSSY_GAMES`.

A model that was changed from outside (another mass, say) has to be changed in the same way before `restore`;
`streamwise.envs.changing` does so by itself, for wrappers are restored before what they wrap.
Nothing in a snapshot is executed, nor does it choose a class: it only fills layers that it fits.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import functools
import importlib.metadata
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, NoneType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from streamwise.streams import UsageError

__all__ = ["NoSnapshotError", "attributes", "capture", "restore", "set_attributes", "why_not"]

Environment = gymnasium.Env[Any, Any]
Snapshot = dict[str, Any]  # holds only what JSON can hold

_FORMAT = 2  # raise it when older snapshots no longer fit, be it for an attribute of one of our wrappers

_KNOWN = frozenset({  # modules, and packages whose modules, hold classes with all their state in attributes
    "ale_py.env", "dm_control.mujoco.engine", "dm_control.rl.control", "dm_control.suite",
    "gymnasium.envs.classic_control", "gymnasium.envs.mujoco", "gymnasium.envs.toy_text",
    "gymnasium.wrappers.atari_preprocessing", "gymnasium.wrappers.common",
    "gymnasium.wrappers.stateful_action", "gymnasium.wrappers.stateful_observation",
    "gymnasium.wrappers.stateful_reward", "gymnasium.wrappers.transform_action",
    "gymnasium.wrappers.transform_observation", "gymnasium.wrappers.transform_reward",
    "gymnasium.wrappers.utils", "minatar", "minatar.environments", "popgym.core.deck", "popgym.envs",
    "popgym.wrappers.discrete_action", "shimmy.dm_control_compatibility", "streamwise.envs.ballet",
    "streamwise.envs.probes", "streamwise.envs.rooms", "streamwise.envs.routes", "streamwise.envs.wrappers",
})  # fmt: skip
_TAKE_A_FUNCTION = ("TransformAction", "TransformObservation", "TransformReward")  # which may remember things

_LEFT_ALONE = frozenset({  # attributes: what the options decide, what only draws, and a clock
    "P", "_action_set", "_cached_spec", "_ezpickle_args", "_ezpickle_kwargs", "_metadata", "_saved_kwargs",
    "ax", "camera_id", "camera_name", "cell_size", "clock", "closed", "cmap", "default_camera_config", "desc",
    "display_time", "env_type", "episode_start_time", "fullpath", "height", "isopen", "metadata", "model",
    "mujoco_renderer", "norm", "observation_structure", "render_kwargs", "render_mode", "screen",
    "screen_dim", "screen_height", "screen_width", "spec", "stacked_obs", "surf", "viewer", "visualized",
    "width", "window", "window_size", "window_surface",
})  # fmt: skip
_PICTURES = ("_img", "_imgs")  # how their names end in toy text

_DERIVED = (  # arrays of mjData that may be read before the next step computes them anew
    "qacc", "act_dot", "sensordata", "energy", "xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis",
    "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "subtree_com", "cdof", "cinert", "ten_length",
    "ten_velocity", "actuator_length", "actuator_velocity", "cvel", "subtree_linvel", "subtree_angmom",
    "actuator_force", "qfrc_actuator", "qfrc_bias", "qfrc_passive", "qfrc_constraint", "cacc", "cfrc_int",
    "cfrc_ext",
)  # fmt: skip
_WRITTEN_BY_TASKS = (  # arrays of mjModel that the tasks of the DM Control suite write or draw
    "body_pos", "body_quat", "dof_damping", "geom_pos", "geom_size", "geom_rgba", "hfield_data",
    "jnt_stiffness", "light_pos", "mat_rgba", "site_pos", "site_rgba", "site_size", "wrap_prm",
)  # fmt: skip

# ALE 0.12.1 saves only a part of what these go on from, and restoring Q*bert often enough crashes it: see its
# pull requests 732 (unfinished frames, fractional clocks, a cartridge) and 739 (screens painted in parts).
# The last two were found by restoring every game and comparing 120 frames, six times.
_LOSSY_GAMES = (
    "amidar", "koolaid", "miniature_golf", "pitfall2", "qbert", "tetris", "tic_tac_toe_3d", "yars_revenge"
)  # fmt: skip

_BIT_GENERATORS = {kind.__name__: kind for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox)}

_NEW_EPISODE = "start a new episode"
_SAME_OPTIONS = f"make the environment by the same name with the same options, or {_NEW_EPISODE}"


class NoSnapshotError(UsageError):
    """An environment that cannot be captured; the text is one line that says why."""


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
        if _is_known(kind):
            state = writer.attributes(layer)
        elif hasattr(kind, "snapshot") and hasattr(kind, "restore"):
            state = writer.plain(layer, "snapshot()", layer.snapshot())
        else:
            raise NoSnapshotError(
                f"{_name(kind)} cannot be captured: it is none of the classes that are known to keep their "
                "state in attributes, and lacks the methods snapshot and restore."
            )
        layers.append({"type": _name(kind), "options": _options(layer), "state": state})
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
                f"took it; use that version, or {_NEW_EPISODE}."
            )
        _check_versions(snapshot["versions"], _versions(env))
        layers, saved_layers = list(_layers(env)), snapshot["layers"]
        here, there = ([_name(type(x)) for x in layers], [saved["type"] for saved in saved_layers])
        if here != there:
            raise UsageError(
                f"the snapshot is of {' > '.join(there)}, not {' > '.join(here)}; {_SAME_OPTIONS}."
            )
        pairs = list(zip(layers, saved_layers, strict=True))
        for layer, saved in reversed(pairs):  # the name of the environment is an option of the innermost
            _check_options(_name(type(layer)), saved["options"], _options(layer))
        for layer, saved in pairs:
            if _is_known(type(layer)):
                reader.attributes(layer, saved["state"])
            else:
                reader.later(layer.restore, reader.value(saved["state"]))
    except UsageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise UsageError(
            f"the snapshot is damaged ({type(error).__name__}: {what}); use an earlier one, or "
            f"{_NEW_EPISODE}."
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


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_known(kind: type) -> bool:
    module = kind.__module__
    known = module in _KNOWN or module.rpartition(".")[0] in _KNOWN
    return known and kind.__name__ not in _TAKE_A_FUNCTION


def _options(layer: Any) -> Snapshot:
    """Return what a layer was made with, as far as it is plain and does more than draw."""
    spec = vars(layer).get("spec")
    given = vars(layer).get("_saved_kwargs", {}) if spec is None else {"id": spec.id, **spec.kwargs}
    options = {}
    for name, value in given.items():
        if name not in _LEFT_ALONE:
            with contextlib.suppress(_NotPlainError):
                options[name] = _Writer().value(value)
    if "desc" in vars(layer):  # FrozenLake draws a map of its own if it is given none
        options["map"] = _Writer().value(layer.desc)
    return options


def _check_options(name: str, there: Snapshot, here: Snapshot) -> None:
    other = sorted(option for option in {**there, **here} if there.get(option) != here.get(option))
    if other:
        raise UsageError(f"{name} has another {', '.join(other)} than in the snapshot; {_SAME_OPTIONS}.")


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
                f"may go on otherwise; install {package}=={version}, or {_NEW_EPISODE}."
            )


# --- attributes and values as JSON -------------------------------------------------------------------------

# These have to fit what is there; a plain value is replaced.
_PARTS = ("object", "space", "emulator", "simulation", "member")
_PLAIN = (NoneType, bool, int, float, str, list, tuple, dict, np.ndarray)


def _part(value: Any) -> str | None:
    """Return which kind of part of an environment `value` is; None for a plain value, and for the unknown."""
    kind = type(value)
    if kind in _PLAIN:
        return None
    if isinstance(value, spaces.Space):
        return "space"
    name = _name(kind)
    if name == "ale_py._ale_py.ALEInterface":
        return "emulator"
    if isinstance(value, enum.Enum):  # its class is not to be chosen by a snapshot
        return "member" if _is_known(kind) else None
    if not _is_known(kind):
        return "simulation" if name == "mujoco._structs.MjData" else None
    return "simulation" if hasattr(kind, "legacy_step") else "object"  # only DM Control's Physics has it


def _is_left_alone(name: str, value: Any) -> bool:
    return name in _LEFT_ALONE or isinstance(value, FunctionType | gymnasium.Env) or name.endswith(_PICTURES)


class _NotPlainError(Exception):
    """A value that no snapshot holds; the text says what it is."""


class _Writer:
    """Turns attributes into JSON. One a snapshot, because it numbers the generators that it sees.

    MinAtar has one generator by two names, and it has to be one afterwards, too. Each name holds all of it,
    for who reads it may come to either first: JSON is stored with its keys sorted.
    """

    def __init__(self) -> None:
        self._generators: list[Any] = []

    def attributes(self, thing: Any) -> Snapshot:
        return {
            name: self.attribute(thing, name, value)
            for name, value in vars(thing).items()
            if not _is_left_alone(name, value)
        }

    def attribute(self, thing: Any, name: str, value: Any) -> Any:
        match _part(value):
            case None:
                return self.plain(thing, name, value)
            case "object":
                return {"kind": "object", "type": _name(type(value)), "state": self.attributes(value)}
            case "space":
                return self._space(value)
            case "simulation":
                return {"kind": "simulation", **_simulation(value)}
            case "member":
                return {"kind": "member", "name": value.name}
        return self._emulator(value, thing._game)

    def plain(self, thing: Any, name: str, value: Any) -> Any:
        try:
            return self.value(value)
        except _NotPlainError as error:
            raise NoSnapshotError(
                f"{_name(type(thing))} cannot be captured: {name} holds {error}, which no snapshot can."
            ) from None

    def value(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:  # JSON readers other than Python's stop at 64 bits; generators do not
            return value if -(2**63) <= value < 2**63 else {"kind": "int", "text": str(value)}
        if kind is float:  # JSON has neither infinity nor NaN
            return value if math.isfinite(value) else {"kind": "float", "text": repr(value)}
        if kind is list:
            return [self.value(item) for item in value]
        if kind is tuple:
            return {"kind": "tuple", "items": [self.value(item) for item in value]}
        if kind is deque:
            return {"kind": "deque", "items": [self.value(item) for item in value], "length": value.maxlen}
        if kind is dict:  # pairs, because its keys may be numbers
            return {"kind": "dict", "items": [[self.value(key), self.value(value[key])] for key in value]}
        if kind is np.ndarray or isinstance(value, np.generic):
            return array_to_json(value)
        if kind is np.random.Generator or kind is np.random.RandomState:
            return self._generator(value, "generator" if kind is np.random.Generator else "random state")
        raise _NotPlainError(f"a {_name(kind)}")

    def _generator(self, generator: Any, kind: str) -> Snapshot:
        number = next((i for i, seen in enumerate(self._generators) if seen is generator), None)
        if number is None:
            number = len(self._generators)
            self._generators.append(generator)
        with_gauss = kind == "random state"  # the second of two normal numbers waits there
        state = generator.get_state(legacy=False) if with_gauss else generator.bit_generator.state
        if state["bit_generator"] not in _BIT_GENERATORS:
            raise _NotPlainError(f"the generator {state['bit_generator']}")
        return {"kind": kind, "number": number, "state": self.value(state)}

    def _emulator(self, emulator: Any, game: str) -> Snapshot:
        if game in _LOSSY_GAMES:
            raise NoSnapshotError(f"{game} cannot be captured: the emulator does not save all of its state.")
        if emulator.getFloat("repeat_action_probability") > 0.0:
            raise NoSnapshotError(
                "an emulator that repeats actions by itself cannot be captured; make the game with "
                "repeat_action_probability=0.0 and Gymnasium's StickyAction, as streamwise.envs.make does."
            )
        state = emulator.cloneState(include_rng=True).serialize()
        return {"kind": "emulator", "bytes": _to_text(state), "checksum": zlib.crc32(state)}

    def _space(self, space: spaces.Space[Any]) -> Snapshot:
        """A space has a generator to sample with, and so have its parts."""
        return {
            "kind": "space",
            "layout": _layout(space),
            "generator": None if space._np_random is None else self._generator(space._np_random, "generator"),
            "parts": [self._space(part) for part in _parts(space)],
        }


class _Reader:
    """Reads what a writer wrote. What it changes, it changes in `finish`, when all has been found to fit."""

    def __init__(self) -> None:
        self._generators: dict[int, Any] = {}  # by their number in the snapshot
        self._changes: list[Callable[[], Any]] = []

    def later(self, change: Callable[..., Any], *arguments: Any) -> None:
        self._changes.append(functools.partial(change, *arguments))

    def finish(self) -> None:
        for change in self._changes:
            change()

    def attributes(self, thing: Any, state: Snapshot) -> None:
        present = {name: value for name, value in vars(thing).items() if not _is_left_alone(name, value)}
        for name in (
            present.keys() - state.keys()
        ):  # came with a step or a reset that the snapshot had not had
            _expect(None, _part(present[name]), thing, name)
            self.later(vars(thing).pop, name)
        for name, saved in state.items():
            _expect(_is_left_alone(name, vars(thing).get(name)), False, thing, name)
            current = present.get(name)
            kind = saved["kind"] if isinstance(saved, dict) else None
            _expect(kind if kind in _PARTS else None, _part(current), thing, name)
            match kind:
                case "object":
                    _expect(saved["type"], _name(type(current)), thing, name)
                    self.attributes(current, saved["state"])
                case "space":
                    self._space(present[name], saved)
                case "emulator":
                    self._emulator(current, saved)
                case "simulation":
                    self.later(_set_simulation, current, *_read_simulation(current, saved))
                case "member":
                    members: Any = type(current)
                    self.later(vars(thing).__setitem__, name, members[saved["name"]])
                case _:
                    value = self.value(saved)
                    if isinstance(value, np.ndarray) and isinstance(current, np.ndarray):
                        _expect(value.shape, current.shape, thing, name)
                    self.later(vars(thing).__setitem__, name, value)

    def value(self, saved: Any) -> Any:
        if isinstance(saved, list):
            return [self.value(item) for item in saved]
        if not isinstance(saved, dict):
            return saved
        match saved["kind"]:
            case "int":
                return int(saved["text"])
            case "float":
                return float(saved["text"])
            case "tuple":
                return tuple(self.value(item) for item in saved["items"])
            case "deque":
                return deque((self.value(item) for item in saved["items"]), saved["length"])
            case "dict":
                return {self.value(key): self.value(item) for key, item in saved["items"]}
            case "array" | "scalar":
                return array_from_json(saved)
        number = saved["number"]
        if number not in self._generators:
            self._generators[number] = self._new_generator(saved["kind"], self.value(saved["state"]))
        return self._generators[number]

    def _new_generator(self, kind: str, state: Any) -> Any:
        bits: Any = _BIT_GENERATORS[state["bit_generator"]](0)
        if kind == "random state":
            generator = np.random.RandomState(bits)
            generator.set_state(state)
            return generator
        bits.state = state
        return np.random.Generator(bits)

    def _space(self, space: spaces.Space[Any], saved: Snapshot) -> None:
        _expect(saved["layout"], _layout(space), space, "layout")
        self.later(setattr, space, "_np_random", self.value(saved["generator"]))
        for part, saved_part in zip(_parts(space), saved["parts"], strict=True):
            self._space(part, saved_part)

    def _emulator(self, emulator: Any, saved: Snapshot) -> None:
        import ale_py

        state = base64.b64decode(saved["bytes"], validate=True)
        if zlib.crc32(state) != saved["checksum"]:  # the emulator itself takes whatever it is given
            raise ValueError("the emulator's state has another checksum")
        self.later(emulator.restoreState, ale_py.ALEState(state))


def _expect(there: Any, here: Any, thing: Any, name: str) -> None:
    if there != here:
        raise UsageError(
            f"the snapshot does not fit {_name(type(thing))}: {name} is {there} there, and {here} here; "
            f"{_SAME_OPTIONS}."
        )


def _layout(space: spaces.Space[Any]) -> list[Any]:
    shape, dtype = space.shape, space.dtype
    return [type(space).__name__, list(shape or ()), dtype and dtype.str, int(getattr(space, "n", 0))]


def _parts(space: Any) -> list[spaces.Space[Any]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, spaces.Tuple) else []


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def array_to_json(array: NDArray[Any] | np.generic) -> Snapshot:
    """Return an array or a NumPy scalar, of numbers or text, as JSON that `array_from_json` reads exactly."""
    if array.dtype.kind not in "biufcSU":
        raise _NotPlainError(f"an array of {array.dtype}")
    return {
        "kind": "array" if isinstance(array, np.ndarray) else "scalar",
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "bytes": _to_text(array.tobytes()),
    }


def array_from_json(saved: Snapshot) -> Any:
    """Return the array, writable, or the scalar. Raises LookupError, TypeError or ValueError otherwise."""
    flat = np.frombuffer(base64.b64decode(saved["bytes"], validate=True), np.dtype(saved["dtype"]))
    array = flat.reshape(saved["shape"]).copy()
    return array if saved["kind"] == "array" else array[()]


# --- MuJoCo ------------------------------------------------------------------------------------------------


def _arrays(thing: Any) -> tuple[Any, Any, list[NDArray[Any]], list[NDArray[Any]]]:
    """Return model and data, and of each the arrays that are captured beside mjSTATE_INTEGRATION."""
    if _is_known(type(thing)):  # DM Control's Physics
        model, data = thing.model.ptr, thing.data.ptr
        of_model = [getattr(model, name) for name in _WRITTEN_BY_TASKS]
    else:  # Gymnasium's mjData
        model, data, of_model = thing.model, thing, []
    return model, data, of_model, [getattr(data, name) for name in _DERIVED]


def _simulation(thing: Any) -> Snapshot:
    import mujoco

    model, data, of_model, of_data = _arrays(thing)
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    # One array, of float64, in which float32 is exact: to encode each by itself takes several times as long.
    values = np.concatenate([state, *(array.ravel() for array in of_model + of_data)])
    return {"structure": str(model.signature), "values": array_to_json(values)}


def _read_simulation(thing: Any, saved: Snapshot) -> list[Any]:
    """Return the state, the values of the model's arrays, and those of the data's."""
    import mujoco

    model, _, of_model, of_data = _arrays(thing)
    _expect(saved["structure"], str(model.signature), thing, "the structure of the model")
    sizes = [mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)]
    sizes += [array.size for array in of_model + of_data]
    values = array_from_json(saved["values"])
    _expect((values.shape, str(values.dtype)), ((sum(sizes),), "float64"), thing, "the array of its values")
    state, *arrays = np.split(values, np.cumsum(sizes)[:-1])
    return [state, arrays[: len(of_model)], arrays[len(of_model) :]]


def _set_simulation(
    thing: Any, state: NDArray[Any], model_values: list[NDArray[Any]], data_values: list[NDArray[Any]]
) -> None:
    import mujoco

    model, data, of_model, of_data = _arrays(thing)
    for array, values in zip(of_model, model_values, strict=True):
        array[...] = values.reshape(array.shape)
    mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_step1(model, data)
    for array, values in zip(of_data, data_values, strict=True):
        array[...] = values.reshape(array.shape)
