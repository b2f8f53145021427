"""What snapshots know of classes: which keep all their state in attributes, and which of these do not count.

These lists are what to extend for another family of environments. With them are the errors for what is not
known, or does not fit. How state is written and read is in `snapshot`.
"""

from __future__ import annotations

import enum
from types import FunctionType, NoneType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from streamwise.streams import UsageError

__all__ = [
    "LEFT_ALONE",
    "NEW_EPISODE",
    "PARTS",
    "SAME_OPTIONS",
    "NoSnapshotError",
    "class_name",
    "expect",
    "is_known",
    "is_left_alone",
    "part_kind",
]

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

LEFT_ALONE = frozenset({  # attributes: what the options decide, what only draws, and a clock
    "P", "_action_set", "_cached_spec", "_ezpickle_args", "_ezpickle_kwargs", "_metadata", "_saved_kwargs",
    "ax", "camera_id", "camera_name", "cell_size", "clock", "closed", "cmap", "default_camera_config", "desc",
    "display_time", "env_type", "episode_start_time", "fullpath", "height", "isopen", "metadata", "model",
    "mujoco_renderer", "norm", "observation_structure", "render_kwargs", "render_mode", "screen",
    "screen_dim", "screen_height", "screen_width", "spec", "stacked_obs", "surf", "viewer", "visualized",
    "width", "window", "window_size", "window_surface",
})  # fmt: skip
_PICTURES = ("_img", "_imgs")  # how their names end in toy text

# These have to fit what is there; a plain value is replaced.
PARTS = ("object", "space", "emulator", "simulation", "member")
_PLAIN = (NoneType, bool, int, float, str, list, tuple, dict, np.ndarray)

NEW_EPISODE = "start a new episode"
SAME_OPTIONS = f"make the environment by the same name with the same options, or {NEW_EPISODE}"


class NoSnapshotError(UsageError):
    """An environment that cannot be captured; the text is one line that says why."""


def expect(there: Any, here: Any, thing: Any, name: str) -> None:
    """Raise UsageError if something of a thing is another in the snapshot than here."""
    if there != here:
        raise UsageError(
            f"the snapshot does not fit {class_name(type(thing))}: {name} is {there} there, and {here} here; "
            f"{SAME_OPTIONS}."
        )


def class_name(kind: type) -> str:
    """Return the name of a class, with that of its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_known(kind: type) -> bool:
    """Whether the class itself, not one that it extends, keeps all its state in attributes."""
    module = kind.__module__
    known = module in _KNOWN or module.rpartition(".")[0] in _KNOWN
    return known and kind.__name__ not in _TAKE_A_FUNCTION


def part_kind(value: Any) -> str | None:
    """Return which kind of part of an environment `value` is; None for a plain value, and for the unknown."""
    kind = type(value)
    if kind in _PLAIN:
        return None
    if isinstance(value, spaces.Space):
        return "space"
    name = class_name(kind)
    if name == "ale_py._ale_py.ALEInterface":
        return "emulator"
    if isinstance(value, enum.Enum):  # its class is not to be chosen by a snapshot
        return "member" if is_known(kind) else None
    if not is_known(kind):
        return "simulation" if name == "mujoco._structs.MjData" else None
    return "simulation" if hasattr(kind, "legacy_step") else "object"  # only DM Control's Physics has it


def is_left_alone(name: str, value: Any) -> bool:
    """Whether no snapshot holds an attribute of this name with this value."""
    return name in LEFT_ALONE or isinstance(value, FunctionType | gymnasium.Env) or name.endswith(_PICTURES)
