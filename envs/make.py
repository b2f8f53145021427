"""Environments by name, ready for an agent.

The libraries behind a family of environments are imported when the first of its names is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import re
import sys
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from streamwise.envs.changing import OPTIONS, changing_world
from streamwise.envs.libraries import (
    one_line,
    prepare_rendering,
    quiet_root_logger,
    report_mujoco_warnings_by_logging,
    without_precision_warnings,
)
from streamwise.envs.names import (
    ATARI,
    CLASSIC,
    DM_CONTROL,
    MINATAR,
    MUJOCO,
    POPGYM,
    family_by_spec,
    find_spec,
    split_options,
)
from streamwise.envs.wrappers import (
    EpisodicLife,
    FireOnReset,
    TimeFeature,
    standard_actions,
    standard_observations,
)
from streamwise.streams import UsageError
from streamwise.streams.errors import nearest

__all__ = ["check_families", "make"]

Environment = gymnasium.Env[Any, Any]

_ONE_OF_EACH = {
    CLASSIC: "CartPole-v1",
    MUJOCO: "HalfCheetah-v5",
    DM_CONTROL: "dm_control/cheetah-run-v0",
    ATARI: "ALE/Breakout-v5",
    MINATAR: "MinAtar/Breakout-v1",
}

_SET_BY_ATARI_PREPROCESSING = ("frameskip", "obs_type", "continuous", "sound_obs")


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
    name, options = split_options(name)
    if twice := options.keys() & kwargs.keys():
        raise UsageError(f"{', '.join(sorted(twice))} is given twice for {name}, in its name and beside it.")
    kwargs |= options
    changes = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs} if "change" in kwargs else {}
    if name.startswith("dm_control/"):
        _choose_renderer_of_dm_control(name, draws=render_mode is not None)
    spec = find_spec(name)
    family = family_by_spec(spec)
    if episodic_life and family != ATARI:
        raise UsageError(f"episodic_life is for Atari games; {name} has no lives.")
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    with contextlib.ExitStack() as on_error:
        if family == ATARI:
            env = _make_atari(spec, name, episodic_life, kwargs)
        else:
            env = _make_other(spec, name, family, kwargs)
        on_error.callback(env.close)
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
        return f"{name}: {one_line(error)}"
    return None


def _choose_renderer_of_dm_control(name: str, *, draws: bool) -> None:
    """Do so in time: DM Control takes its renderer, if any, when it is imported."""
    if draws:
        prepare_rendering(by_dm_control=True)
    elif "-" not in name.removesuffix("-v0"):  # no task of the suite: some of the others see through a camera
        with contextlib.suppress(UsageError):
            prepare_rendering(by_dm_control=True)


def _make_other(spec: EnvSpec, name: str, family: str, kwargs: dict[str, Any]) -> Environment:
    """Make what is no Atari game."""
    draws = "render_mode" in kwargs
    if family == MUJOCO and draws:
        prepare_rendering(by_dm_control=False)
    if family in (MUJOCO, DM_CONTROL):
        report_mujoco_warnings_by_logging()
    env = _create(spec, name, kwargs)
    if family == MUJOCO and draws:
        _follow_with_the_camera(env)
    return _with_one_action(env) if family == POPGYM else env


def _follow_with_the_camera(env: Environment) -> None:
    """Film with the model's own "track" camera, where it has one; Gymnasium's default stays where it is."""
    import mujoco

    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        if camera >= 0:
            renderer.camera_id = camera


def _create(spec: EnvSpec, name: str, kwargs: dict[str, Any]) -> Environment:
    # Gymnasium would check at every step that a reset came before it: streams see to that.
    spec = dataclasses.replace(spec, order_enforce=False)
    quiet = quiet_root_logger() if spec.namespace == "MinAtar" else contextlib.nullcontext()
    try:
        with without_precision_warnings(), quiet:
            env: Environment = gymnasium.make(spec, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, TypeError, RuntimeError, UsageError) as error:
        if isinstance(error, RuntimeError) and "OpenGL" not in str(error):
            raise
        raise UsageError(f"{name} cannot be made: {_why(error, spec)}") from error
    return env


def _why(error: Exception, spec: EnvSpec) -> str:
    """Say what Python says of an option that an environment does not have in the words of who set it."""
    option = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
    if option is None or spec.entry_point is None:
        return f"{one_line(error)}."
    creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
    known = [
        name
        for name, parameter in inspect.signature(creator).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return f"it has no option {option[1]!r}.{nearest(option[1], known)}"


def _with_one_action(env: Environment) -> Environment:
    """Number the pairs of row and column that some of POPGym's games take as an action."""
    if not isinstance(env.action_space, spaces.MultiDiscrete):
        return env
    from popgym.wrappers.discrete_action import DiscreteAction

    discrete: Environment = DiscreteAction(env)
    return discrete


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
        raise UsageError(f"{name} cannot be made: {one_line(error)}.") from error
    env = gymnasium.wrappers.AtariPreprocessing(env)
    if max_episode_steps is not None:
        # Here it counts the agent's steps, and a lost life does not set it back.
        env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
    if episodic_life:
        env = EpisodicLife(env)
    if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]  # Atari's own
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
