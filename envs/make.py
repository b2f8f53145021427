"""Environments by name, ready for an agent.

The libraries behind a family of environments are imported when the first of its names is made.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import dataclasses
import difflib
import importlib
import importlib.util
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, parse_env_id

from streamwise.envs.changing import GAMES, OPTIONS, changing_world
from streamwise.envs.wrappers import (
    EpisodicLife,
    FireOnReset,
    TimeFeature,
    standard_actions,
    standard_observations,
)
from streamwise.streams import UsageError

__all__ = ["check_families", "environment_names", "family_of", "make"]

Environment = gymnasium.Env[Any, Any]

CLASSIC, MUJOCO, DM_CONTROL, ATARI, MINATAR, PROBES, POPGYM, OTHER = (
    "Classic control", "MuJoCo", "DM Control", "Atari", "MinAtar", "Memory probes", "POPGym", "Other",
)  # fmt: skip

_ONE_OF_EACH = {
    CLASSIC: "CartPole-v1",
    MUJOCO: "HalfCheetah-v5",
    DM_CONTROL: "dm_control/cheetah-run-v0",
    ATARI: "ALE/Breakout-v5",
    MINATAR: "MinAtar/Breakout-v1",
}

_PROBES = {  # our own environments, by the module they are in
    "ballet": ("Ballet",),
    "probes": (
        "DelayedRecall",
        "PairRecall",
        "OrderRecall",
        "EventRecall",
        "TMaze",
        "ShellGame",
        "Naming",
        "Told",
    ),
    "rooms": ("KeyDoor", "VisualMatch"),
    "routes": ("GraphRoutes",),
}

_WRAP_A_GIVEN_ENVIRONMENT = (
    "dm_control/compatibility-env-v0",
    "bsuite/compatibility-env-v0",
    "GymV21Environment-v0",
    "GymV26Environment-v0",
)

_OPTIONS_OF_MAKE = ("seed", "render_mode", "time_feature", "episodic_life")

_SET_BY_ATARI_PREPROCESSING = ("frameskip", "obs_type", "continuous", "sound_obs")

_logger = logging.getLogger("streamwise.envs")


def make(
    name: str,
    *,
    seed: int | None = None,
    render_mode: str | None = None,
    time_feature: bool = False,
    episodic_life: bool = False,
    **kwargs: Any,
) -> Environment:
    """Make the environment that the ecosystem calls `name`.

    name: `HalfCheetah-v5` or any other Gymnasium id (`module:Name-v0` imports the module first),
    `dm_control/dog-walk-v0`, `ALE/Pong-v5`, `MinAtar/Breakout-v1`, `popgym-RepeatFirstEasy-v0`, or a memory
    probe of ours, such as `streamwise/Ballet-v0`. kwargs: for the environment itself, and
    `max_episode_steps`. A name may bring them along, for where there is nothing but a name (a command, a
    sweep): `streamwise/Ballet-v0?dancers=4&obs=grid`, with values in JSON (numbers, true, false, lists) or
    else text. With `change` among them the world changes while the agent lives: `streamwise.envs.changing`.

    Observations: images stay uint8 (Atari: the last four frames, [4, 84, 84]), grids (MinAtar) become float32
    in their own shape, a flat float64 array stays one, everything else becomes one flat float32
    array; `FlattenObservations` says in which order.
    Actions: Box ones are clipped to their bounds, Discrete ones count from 0, the pairs of numbers that some
    of POPGym's games take become one Discrete. Rewards are untouched.

    Atari follows Machado et al. (2018): up to 30 no-ops at a reset, each action for 4 frames, the last two
    maximized, grey, 84 x 84; FIRE is pressed at a reset where the game has that action. The sticky actions of
    the `ALE/` names stay (probability 0.25). A step is four frames, for `max_episode_steps` too.

    seed: seeds action space and environment, so that later resets without a seed are reproducible.
    time_feature: adds a last feature that rises from -0.5 by 1 / (time limit in steps) each step.
    episodic_life: an Atari life lost ends the episode, not the game (see `EpisodicLife`).

    Raises UsageError for a name, an option or a space that cannot be used, in one line that says what can.

    >>> env = make("CartPole-v1", seed=1, time_feature=True)
    >>> observation, info = env.reset()
    >>> observation.shape, float(observation[-1])
    ((5,), -0.5)
    """
    name, options = _split_options(name)
    if twice := options.keys() & kwargs.keys():
        raise UsageError(f"{', '.join(sorted(twice))} is given twice for {name}, in its name and beside it.")
    kwargs |= options
    is_changing = "change" in kwargs
    changes = {option: kwargs.pop(option) for option in OPTIONS if is_changing and option in kwargs}
    if name.startswith("dm_control/"):  # DM Control chooses its renderer, if any, when it is imported
        if render_mode is not None:
            _prepare_rendering(DM_CONTROL)
        elif not _is_of_the_suite(name):  # some of the others see through a camera
            with contextlib.suppress(UsageError):
                _prepare_rendering(DM_CONTROL)
    spec = _find_spec(name)
    family = _family(spec)
    if episodic_life and family != ATARI:
        raise UsageError(f"episodic_life is for Atari games; {name} has no lives.")
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if family == MUJOCO and render_mode is not None:
        _prepare_rendering(MUJOCO)
    if family in (MUJOCO, DM_CONTROL):
        _report_mujoco_warnings_by_logging()
    with contextlib.ExitStack() as on_error:
        if family == ATARI:
            env = _make_atari(spec, name, episodic_life, kwargs)
        else:
            env = _create(spec, name, kwargs)
        on_error.callback(env.close)
        if family == POPGYM:
            env = _with_one_action(env)
        if family == MUJOCO and render_mode is not None:
            _follow_with_the_camera(env)
        env = standard_observations(standard_actions(env, name), name)
        if changes:
            env = changing_world(env, name, **changes)
        if time_feature:
            env = TimeFeature(env, _time_limit_for_feature(env, name))
        if seed is not None:
            env.action_space.seed(seed)
            env.reset(seed=seed)
        on_error.pop_all()
    return env


def environment_names() -> dict[str, list[str]]:
    """Return every name that `make` knows, by family. Imports the libraries of all families."""
    names: dict[str, list[str]] = {
        family: [] for family in (CLASSIC, MUJOCO, DM_CONTROL, ATARI, MINATAR, PROBES, POPGYM, OTHER)
    }
    for name, spec in sorted(_all_specs().items()):
        names[_family(spec)].append(name)
    return names


def family_of(name: str) -> str:
    """Return the family that `environment_names` lists `name` under. Raises UsageError if there is none."""
    return _family(_find_spec(_split_options(name)[0]))


def check_families() -> dict[str, str | None]:
    """Make and step one environment of each family; return None for those that work, else one line of why."""
    return {family: _error_of(name) for family, name in _ONE_OF_EACH.items()}


def _error_of(name: str) -> str | None:
    try:
        env = make(name, seed=0)
        try:
            env.reset()
            env.step(env.action_space.sample())
        finally:
            env.close()
    except Exception as error:  # whatever is broken in the family's libraries is what the doctor is asked
        return f"{name}: {_one_line(error)}"
    return None


# --- names -------------------------------------------------------------------------------------------------


def _split_options(name: str) -> tuple[str, dict[str, Any]]:
    """Return the name before its question mark, and the options after it."""
    bare, mark, text = name.partition("?")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(mark))
    except ValueError:
        raise UsageError(f"{name}: write options as {bare}?OPTION=VALUE&OPTION=VALUE.") from None
    options = {option: _option_value(value) for option, value in pairs}
    if len(options) < len(pairs):
        raise UsageError(f"{name}: an option is given twice.")
    if wrong := sorted(options.keys() & set(_OPTIONS_OF_MAKE)):
        raise UsageError(f"{name}: {wrong[0]} is no option of the environment; give it beside the name.")
    return bare, options


def _option_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _find_spec(name: str) -> EnvSpec:
    """Return the specification of `name`, importing what its family needs."""
    module, _, bare = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"{name}: the module {module!r} cannot be imported ({_one_line(error)})."
            ) from error
    load = {"ALE": _load_atari, "dm_control": _load_dm_control, "MinAtar": _require_minatar}
    load.get(bare.partition("/")[0], lambda: None)()
    if bare.startswith("popgym-"):
        _require_popgym()
    known = gymnasium.registry.get(bare) or _minatar_specs().get(bare) or _probe_specs().get(bare)
    known = known or _all_specs().get(bare)
    if known is None or _is_placeholder(known):
        near = _nearest(bare, _all_specs())
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UsageError(f"No environment is named {name!r}{hint}. `environment_names()` lists all.")
    return known


def _nearest(name: str, specs: Mapping[str, EnvSpec], most: int = 5) -> list[str]:
    """Return the names most like `name`: first those that differ in namespace or version only."""
    parts = {other: _split(other) for other in specs}
    wanted, version = _split(name)
    same = [other for other, (base, _) in parts.items() if base == wanted]
    same.sort(key=lambda other: (parts[other][1] != version, -parts[other][1]))
    bases = difflib.get_close_matches(wanted, {base for base, _ in parts.values()}, n=most, cutoff=0.6)
    alike = [other for base in bases for other in sorted(parts, reverse=True) if parts[other][0] == base]
    return list(dict.fromkeys(same + alike))[:most]


def _split(name: str) -> tuple[str, int]:
    """Return the name without namespace and version, in lower case, and the version (-1: none)."""
    try:
        _, base, version = parse_env_id(name)
    except gymnasium.error.Error:
        return name.rpartition("/")[2].lower(), -1
    return base.lower(), -1 if version is None else version


def _all_specs() -> dict[str, EnvSpec]:
    """Return the specifications of every name that can be made."""
    _load_atari()
    _load_dm_control()
    with contextlib.suppress(UsageError):
        _require_popgym()
    known = {**gymnasium.registry, **_minatar_specs(), **_probe_specs()}
    return {name: spec for name, spec in known.items() if not _is_placeholder(spec)}


def _is_placeholder(spec: EnvSpec) -> bool:
    """Whether the name only exists to raise an error (HalfCheetah-v3) or to wrap a given environment."""
    raises = getattr(spec.entry_point, "__name__", "").startswith("_raise_") or spec.entry_point is None
    return raises or spec.id in _WRAP_A_GIVEN_ENVIRONMENT


def _family(spec: EnvSpec) -> str:
    by_namespace = {"dm_control": DM_CONTROL, "ALE": ATARI, "MinAtar": MINATAR, "streamwise": PROBES}
    if spec.namespace in by_namespace:
        return by_namespace[spec.namespace]
    entry_point = str(spec.entry_point)
    by_module = {
        "ale_py": ATARI,
        "gymnasium.envs.classic_control": CLASSIC,
        "gymnasium.envs.mujoco": MUJOCO,
        "popgym": POPGYM,
    }
    return next((family for module, family in by_module.items() if entry_point.startswith(module)), OTHER)


# --- loading what a family needs ---------------------------------------------------------------------------


def _load_atari() -> None:
    import ale_py

    gymnasium.register_envs(ale_py)  # importing it has registered them
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def _load_dm_control() -> None:
    """Import shimmy, which registers the DM Control names; without a renderer unless one was asked for."""
    if "shimmy" in sys.modules:
        return
    chosen_here = "MUJOCO_GL" not in os.environ
    os.environ.setdefault("MUJOCO_GL", "disabled")
    try:
        with _without_precision_warnings():
            importlib.import_module("shimmy")
    finally:
        if chosen_here:  # DM Control has read it; if it stayed, Gymnasium could not draw either
            del os.environ["MUJOCO_GL"]
    _report_mujoco_warnings_by_logging()


def _require_minatar() -> None:
    if importlib.util.find_spec("minatar") is None:
        raise UsageError('MinAtar is not installed; run `pip install "streamwise[minatar]"`.')


def _require_popgym() -> None:
    """Import POPGym, which registers its names. Raises UsageError if it is not there."""
    try:
        importlib.import_module("popgym")
    except ImportError as error:
        raise UsageError(
            f'POPGym cannot be imported ({_one_line(error)}); run `pip install "streamwise[popgym]"`.'
        ) from error


def _probe_specs() -> dict[str, EnvSpec]:
    """Return the names of our own environments; their modules are imported when one is made."""
    return {
        spec.id: spec
        for module, names in _PROBES.items()
        for name in names
        for spec in [EnvSpec(id=f"streamwise/{name}-v0", entry_point=f"streamwise.envs.{module}:{name}")]
    }


def _minatar_specs() -> dict[str, EnvSpec]:
    """Return MinAtar's names: v0 has six actions in every game, v1 only those that the game uses.

    And our sequence of them, which has six.

    MinAtar's own registration imports seaborn and pandas, 2 seconds that only a made game is worth.
    """
    games = [
        EnvSpec(
            id=f"MinAtar/{name}-v{version}",
            entry_point="minatar.gym:BaseEnv",
            kwargs={"game": game, "use_minimal_action_set": version == 1},
        )
        for name, game in GAMES.items()
        for version in (0, 1)
    ]
    sequence = EnvSpec(id="MinAtar/Sequence-v0", entry_point="streamwise.envs.changing:GameSequence")
    return {spec.id: spec for spec in (*games, sequence)}


def _is_of_the_suite(name: str) -> bool:
    """Whether a DM Control name is that of a suite task, `domain-task-v0`: the others have no such hyphen."""
    return "-" in name.removesuffix("-v0")


def _follow_with_the_camera(env: Environment) -> None:
    """Film with the model's own "track" camera, where it has one; Gymnasium's default stays where it is."""
    import mujoco

    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        if camera >= 0:
            renderer.camera_id = camera


def _prepare_rendering(family: str) -> None:
    """Choose how MuJoCo draws, unless the user has. Raises UsageError if it cannot draw in this process."""
    off = ("off", "disable", "disabled", "false", "0")
    if os.environ.get("MUJOCO_GL") in off:
        raise UsageError("MUJOCO_GL switches rendering off; unset it, or set it to egl, osmesa or glfw.")
    loaded = sys.modules.get("dm_control._render")
    if family == DM_CONTROL and loaded is not None and loaded.BACKEND in off:
        raise UsageError(
            "DM Control was loaded without a renderer in this process; "
            "make the environment that renders first, or set MUJOCO_GL=egl."
        )
    if "MUJOCO_GL" not in os.environ:
        # EGL draws on a GPU or in software, without a display; OSMesa in software.
        for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa"), ("glfw", "glfw")):
            if ctypes.util.find_library(library):
                os.environ["MUJOCO_GL"] = backend
                break
        else:
            raise UsageError(
                "MuJoCo cannot draw: no EGL, OSMesa or GLFW here; install libegl1 or libosmesa6."
            )


def _report_mujoco_warnings_by_logging() -> None:
    """Send MuJoCo's warnings to logging, not to standard error and a MUJOCO_LOG.TXT in the working folder.

    A callback that the user has set stays; DM Control's own, set when it is imported, does not.
    """
    import mujoco

    present = mujoco.get_mju_user_warning()
    core = sys.modules.get("dm_control.mujoco.wrapper.core")
    if present is None or (core is not None and present is core._warning_callback):
        mujoco.set_mju_user_warning(_log_mujoco_warning)


def _log_mujoco_warning(message: str) -> None:
    # What a model file should say nowadays is for whoever wrote the file, not for who trains on it.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    _logger.log(level, "MuJoCo: %s", message.strip())


@contextlib.contextmanager
def _without_precision_warnings() -> Iterator[None]:
    """Silence what Gymnasium says about casting the bounds of spaces: the cast is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*precision lowered by casting.*")
        yield


# --- making ------------------------------------------------------------------------------------------------


def _create(spec: EnvSpec, name: str, kwargs: dict[str, Any]) -> Environment:
    try:
        with _without_precision_warnings(), _quiet_root_logger(spec):
            env: Environment = gymnasium.make(_unchecked(spec), disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, TypeError, RuntimeError, UsageError) as error:
        if isinstance(error, RuntimeError) and "OpenGL" not in str(error):
            raise
        raise UsageError(f"{name} cannot be made: {_one_line(error)}.") from error
    return env


def _with_one_action(env: Environment) -> Environment:
    """Number the pairs of row and column that some of POPGym's games take as an action."""
    if not isinstance(env.action_space, spaces.MultiDiscrete):
        return env
    from popgym.wrappers.discrete_action import DiscreteAction

    discrete: Environment = DiscreteAction(env)
    return discrete


def _unchecked(spec: EnvSpec) -> EnvSpec:
    """Without Gymnasium's check, at every step, that a reset came before it: streams see to that."""
    return dataclasses.replace(spec, order_enforce=False)


@contextlib.contextmanager
def _quiet_root_logger(spec: EnvSpec) -> Iterator[None]:
    """Keep MinAtar's import from configuring logging when seaborn, which only draws, is missing."""
    if spec.namespace != "MinAtar":
        yield
        return
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def _make_atari(spec: EnvSpec, name: str, episodic_life: bool, kwargs: dict[str, Any]) -> Environment:
    for option in _SET_BY_ATARI_PREPROCESSING:
        if option in kwargs:
            raise UsageError(f"{option} cannot be set for {name}: agents get four grey frames of 84 x 84.")
    max_episode_steps = kwargs.pop("max_episode_steps", None)
    stickiness = kwargs.pop("repeat_action_probability", spec.kwargs.get("repeat_action_probability", 0.25))
    env = _create(spec, name, {**kwargs, "frameskip": 1, "repeat_action_probability": 0.0})
    # The emulator can repeat actions by itself, with the same probability at each frame. But its saved state
    # lacks the action that it would repeat, so that no snapshot could go on from there.
    try:
        env = gymnasium.wrappers.StickyAction(env, stickiness) if stickiness else env
    except (gymnasium.error.InvalidProbability, TypeError) as error:
        raise UsageError(f"{name} cannot be made: {_one_line(error)}.") from error
    env = gymnasium.wrappers.AtariPreprocessing(env)
    if max_episode_steps is not None:
        # Here it counts the agent's steps, and a lost life does not set it back.
        env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
    if episodic_life:
        env = EpisodicLife(env)
    if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
        env = FireOnReset(env)
    env.observation_space.seed(0)  # its generator is copied by the stack, and nobody else seeds it
    return gymnasium.wrappers.FrameStackObservation(env, 4)


def _time_limit_for_feature(env: Environment, name: str) -> int:
    shape = env.observation_space.shape
    if not isinstance(env.observation_space, spaces.Box) or shape is None or len(shape) != 1:
        raise UsageError(f"time_feature needs a flat observation; {name} has one of shape {shape}.")
    limit = _time_limit(env)
    if math.isinf(limit):
        raise UsageError(f"time_feature needs a time limit, which {name} lacks; give it max_episode_steps.")
    return int(limit)


def _time_limit(env: Environment) -> float:
    """Return the steps after which an episode is truncated; infinity if it never is."""
    given = env.spec.max_episode_steps if env.spec is not None else None
    own = getattr(env.unwrapped, "step_limit", math.inf)  # the memory probes end by themselves
    limit = float(own if given is None else min(own, given))
    inner = getattr(env.unwrapped, "_env", None) if "dm_control" in sys.modules else None
    if inner is not None and hasattr(inner, "control_timestep"):
        # DM Control ends episodes by itself: the suite after 1,000 steps (lqr never), others by the clock.
        steps = getattr(inner, "_step_limit", None)
        if steps is None:
            steps = getattr(inner, "_time_limit", math.inf) / inner.control_timestep()
        # Half a millionth of a step is rounding in seconds divided by seconds, not another step.
        limit = min(limit, steps if math.isinf(steps) else math.ceil(steps - 5e-7))
    return limit


def _one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    said = str(error).partition(" was raised from the environment creator")[0]  # a tail that Gymnasium adds
    lines = said.strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
