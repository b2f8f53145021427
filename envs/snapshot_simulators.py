"""The state of simulators: MuJoCo's as one array of numbers, the Atari emulator's as its own bytes.

MuJoCo: mjSTATE_INTEGRATION is what the next `mj_step` starts from, but not all that is read before it: Ant
takes its velocity from the `xpos` of the step before, and DM Control's step begins in the middle of one, with
`mj_step2`. So `mj_step1` rebuilds contacts, constraints and factorizations, and then the arrays of `_DERIVED`
get their old values, which are not those that follow from the present state.

Atari: the emulator's saved state holds neither the screen, which `AtariPreprocessing` keeps as far as it is
looked at again, nor the last action, which sticky actions repeat: `make` leaves those to Gymnasium's
StickyAction, and an emulator that repeats by itself is refused. So are the games of `_LOSSY_GAMES`.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.envs.snapshot_known import NoSnapshotError, expect, is_known
from streamwise.envs.snapshot_values import array_from_json, array_to_json, from_text, to_text

__all__ = ["emulator_to_json", "read_emulator", "read_simulation", "set_simulation", "simulation_to_json"]

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


def _arrays(thing: Any) -> tuple[Any, Any, list[NDArray[Any]], list[NDArray[Any]]]:
    """Return model and data, and of each the arrays that are captured beside mjSTATE_INTEGRATION."""
    if is_known(type(thing)):  # DM Control's Physics
        model, data = thing.model.ptr, thing.data.ptr
        of_model = [getattr(model, name) for name in _WRITTEN_BY_TASKS]
    else:  # Gymnasium's mjData
        model, data, of_model = thing.model, thing, []
    return model, data, of_model, [getattr(data, name) for name in _DERIVED]


def simulation_to_json(thing: Any) -> dict[str, Any]:
    """Return the state of MuJoCo's data, or of a Physics of DM Control's."""
    import mujoco

    model, data, of_model, of_data = _arrays(thing)
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    # One array, of float64, in which float32 is exact: to encode each by itself takes several times as long.
    values = np.concatenate([state, *(array.ravel() for array in of_model + of_data)])
    return {"kind": "simulation", "structure": str(model.signature), "values": array_to_json(values)}


def read_simulation(thing: Any, saved: dict[str, Any]) -> list[Any]:
    """Return the state, the values of the model's arrays, and those of the data's."""
    import mujoco

    model, _, of_model, of_data = _arrays(thing)
    expect(saved["structure"], str(model.signature), thing, "the structure of the model")
    sizes = [mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)]
    sizes += [array.size for array in of_model + of_data]
    values = array_from_json(saved["values"])
    expect((values.shape, str(values.dtype)), ((sum(sizes),), "float64"), thing, "the array of its values")
    state, *arrays = np.split(values, np.cumsum(sizes)[:-1])
    return [state, arrays[: len(of_model)], arrays[len(of_model) :]]


def set_simulation(
    thing: Any, state: NDArray[Any], model_values: list[NDArray[Any]], data_values: list[NDArray[Any]]
) -> None:
    """Bring it into the state that `read_simulation` returned."""
    import mujoco

    model, data, of_model, of_data = _arrays(thing)
    for array, values in zip(of_model, model_values, strict=True):
        array[...] = values.reshape(array.shape)
    mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_step1(model, data)
    for array, values in zip(of_data, data_values, strict=True):
        array[...] = values.reshape(array.shape)


def emulator_to_json(emulator: Any, game: str) -> dict[str, Any]:
    """Return the state of an Atari emulator, its generator included. Raises NoSnapshotError."""
    if game in _LOSSY_GAMES:
        raise NoSnapshotError(f"{game} cannot be captured: the emulator does not save all of its state.")
    if emulator.getFloat("repeat_action_probability") > 0.0:
        raise NoSnapshotError(
            "an emulator that repeats actions by itself cannot be captured; make the game with "
            "repeat_action_probability=0.0 and Gymnasium's StickyAction, as streamwise.envs.make does."
        )
    state = emulator.cloneState(include_rng=True).serialize()
    return {"kind": "emulator", "bytes": to_text(state), "checksum": zlib.crc32(state)}


def read_emulator(saved: dict[str, Any]) -> Any:
    """Return the state that an emulator's `restoreState` takes. Raises ValueError if it is damaged."""
    import ale_py

    state = from_text(saved["bytes"])
    if zlib.crc32(state) != saved["checksum"]:  # the emulator itself takes whatever it is given
        raise ValueError("the emulator's state has another checksum")
    return ale_py.ALEState(state)
