"""The names of environments: what each stands for, its options and family; and the nearest to a wrong one."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import gymnasium
from gymnasium.envs.registration import EnvSpec, parse_env_id

from streamwise.envs.changing import GAMES
from streamwise.envs.libraries import load_atari, load_dm_control, one_line, require_minatar, require_popgym
from streamwise.streams import UsageError

__all__ = [
    "ATARI",
    "CLASSIC",
    "DM_CONTROL",
    "MINATAR",
    "MUJOCO",
    "POPGYM",
    "environment_names",
    "family_by_spec",
    "family_of",
    "find_spec",
    "split_options",
]

FAMILIES = CLASSIC, MUJOCO, DM_CONTROL, ATARI, MINATAR, PROBES, POPGYM, OTHER = (
    "Classic control", "MuJoCo", "DM Control", "Atari", "MinAtar", "Memory probes", "POPGym", "Other",
)  # fmt: skip

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

_WHERE_ALL_ARE = "`streamwise environments` lists all."
_OPTIONS_OF_MAKE = ("seed", "render_mode", "time_feature", "episodic_life")


def environment_names() -> dict[str, list[str]]:
    """Return every name that `make` knows, by family. Imports the libraries of all families."""
    names: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for name, spec in sorted(_all_specs().items()):
        names[family_by_spec(spec)].append(name)
    return names


def family_of(name: str) -> str:
    """Return the family that `environment_names` lists `name` under. Raises UsageError if there is none."""
    return family_by_spec(find_spec(split_options(name)[0]))


def split_options(name: str) -> tuple[str, dict[str, Any]]:
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


def find_spec(name: str) -> EnvSpec:
    """Return the specification of `name`, importing what its family needs."""
    module, _, bare = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"{name}: the module {module!r} cannot be imported ({one_line(error)})."
            ) from error
    load = {"ALE": load_atari, "dm_control": load_dm_control, "MinAtar": require_minatar}
    load.get(bare.partition("/")[0], lambda: None)()
    if bare.startswith("popgym-"):
        require_popgym()
    known = gymnasium.registry.get(bare) or _minatar_specs().get(bare) or _probe_specs().get(bare)
    known = known or _all_specs().get(bare)
    if known is None or _is_placeholder(known):
        near = _nearest(bare, _all_specs())
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UsageError(f"no environment is named {name!r}{hint}. {_WHERE_ALL_ARE}")
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
    load_atari()
    load_dm_control()
    with contextlib.suppress(UsageError):
        require_popgym()
    known = {**gymnasium.registry, **_minatar_specs(), **_probe_specs()}
    return {name: spec for name, spec in known.items() if not _is_placeholder(spec)}


def _is_placeholder(spec: EnvSpec) -> bool:
    """Whether the name only exists to raise an error (HalfCheetah-v3) or to wrap a given environment."""
    raises = getattr(spec.entry_point, "__name__", "").startswith("_raise_") or spec.entry_point is None
    return raises or spec.id in _WRAP_A_GIVEN_ENVIRONMENT


def family_by_spec(spec: EnvSpec) -> str:
    """Return the family that a specification belongs to."""
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
