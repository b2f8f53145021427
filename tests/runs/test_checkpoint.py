"""Checkpoints: whole or refused, never wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import streamwise
from streamwise.agents import AGENTS, StreamAC, StreamTD
from streamwise.runs.checkpoint import CheckpointError, Checkpoints, read_checkpoint
from streamwise.runs.storage import LocalStorage
from streamwise.streams import DivergedError, Transition

OBSERVATIONS = spaces.Box(-1.0, 1.0, (12,), np.float32)
ACTIONS = {
    "stream-ac": spaces.Box(-2.0, 2.0, (2,), np.float32),
    "stream-q": spaces.Discrete(3),
    "stream-sarsa": spaces.Discrete(3),
    "stream-td": None,
}


def learn(agent, steps, seed=0):
    """Learn from random observations, ending an episode now and then; return what the last steps reported."""
    random = np.random.default_rng(seed)
    reported = []
    observation = random.standard_normal(12).astype(np.float32)
    for step in range(1, steps + 1):
        following = random.standard_normal(12).astype(np.float32)
        action = agent.act(observation) if hasattr(agent, "act") else None
        ended = step % 7 == 0
        metrics = agent.learn_one(
            Transition(observation, action, float(observation[0]), following, ended, False)
        )
        reported.append(dict(metrics))
        observation = following
    return reported


@pytest.mark.parametrize("name", AGENTS)
def test_a_saved_learner_goes_on_as_if_nothing_had_happened(tmp_path, name):
    agent = AGENTS[name](OBSERVATIONS, ACTIONS[name], seed=4)
    learn(agent, 30)
    streamwise.save(agent, tmp_path / "agent")
    loaded = streamwise.load(tmp_path / "agent")
    assert type(loaded) is type(agent)
    assert loaded.config == agent.config
    assert learn(loaded, 20, seed=1) == learn(agent, 20, seed=1)
    after, expected = loaded.state_dict(), agent.state_dict()
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[key], expected[key]) for key in expected)


def test_saving_again_replaces_the_earlier_state(tmp_path):
    agent = StreamTD(OBSERVATIONS)
    for steps in (3, 5):
        learn(agent, steps)
        streamwise.save(agent, tmp_path / "agent")
    assert int(streamwise.load(tmp_path / "agent").state_dict()["steps"]) == 8


def test_a_network_of_ones_own_is_given_again_when_loading(tmp_path):
    def network(outputs):
        return torch.nn.Linear(12, outputs)

    agent = StreamAC(OBSERVATIONS, ACTIONS["stream-ac"], network=network)
    learn(agent, 5)
    streamwise.save(agent, tmp_path / "agent")
    with pytest.raises(CheckpointError, match="network="):
        streamwise.load(tmp_path / "agent")
    loaded = streamwise.load(tmp_path / "agent", network=network)
    assert torch.equal(loaded.actor.parameters, agent.actor.parameters)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "agent"
    agent = StreamTD(OBSERVATIONS)
    learn(agent, 10)
    streamwise.save(agent, directory)
    return directory


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_changed_byte_or_a_cut_file_is_never_loaded_as_another_state(tmp_path_factory, whole, data):
    directory = tmp_path_factory.mktemp("damaged")
    files = {name: (whole / name).read_bytes() for name in ("state.safetensors", "meta.json")}
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    for other, original in files.items():
        (directory / other).write_bytes(bytes(content) if other == name else original)
    expected = read(whole)
    try:
        found, message = read(directory), str(directory)
    except CheckpointError as error:
        found, message = None, str(error)
    assert str(directory) in message
    assert "\n" not in message
    if found is not None:
        # Only a byte that JSON does not mind, as a space or the case of a digit's e, can get here.
        assert name == "meta.json"
        assert found.meta == expected.meta
        assert all(torch.equal(found.state[key], expected.state[key]) for key in expected.state)


def read(directory):
    return read_checkpoint(LocalStorage(directory.parent), directory.name)


def checkpoints_in(directory, **options):
    return Checkpoints(LocalStorage(directory), **options)


def test_the_newest_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, {"x": torch.tensor([float(step)])}, {})
    state = tmp_path / "step-000000000020" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="checksum does not hold"):
        found = checkpoints.latest()
    assert found.meta["step"] == 10
    assert found.state["x"].item() == 10.0
    wrong = [reason for _, _, reason in checkpoints.check()]
    assert wrong[0] is None
    assert "checksum does not hold" in wrong[1]


def test_a_damaged_checkpoint_of_a_later_step_takes_no_place_of_those_before_it(tmp_path):
    checkpoints = checkpoints_in(tmp_path, keep=1)
    for step in (20, 25):
        checkpoints.save(step, {"x": torch.tensor([float(step)])}, {})
    (tmp_path / "step-000000000025" / "state.safetensors").write_bytes(b"")
    checkpoints.save(22, {"x": torch.tensor([22.0])}, {})
    assert checkpoints.steps() == [22, 25]
    with pytest.warns(UserWarning, match="step-000000000025"):
        assert checkpoints.latest().meta["step"] == 22


def test_with_no_whole_checkpoint_the_error_says_what_was_wrong(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        checkpoints_in(tmp_path).latest()


def test_the_last_few_checkpoints_are_kept_and_every_mth(tmp_path):
    checkpoints = checkpoints_in(tmp_path, keep=2, keep_every=10)
    for step in (1, 2, 3, 10, 11, 12, 20, 21):
        checkpoints.save(step, {"x": torch.zeros(1)}, {})
    assert [int(name.removeprefix("step-")) for name in checkpoints.names()] == [10, 20, 21]


def test_an_interrupted_save_is_not_taken_for_a_checkpoint(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(1, {"x": torch.zeros(1)}, {})
    partial = tmp_path / ".step-000000000002.partial"
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    assert checkpoints.latest().meta["step"] == 1
    checkpoints.save(2, {"x": torch.ones(1)}, {})
    assert checkpoints.latest().state["x"].item() == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == checkpoints.names()


def test_a_diverged_learner_does_not_replace_the_last_good_state(tmp_path):
    agent = StreamTD(OBSERVATIONS)
    streamwise.save(agent, tmp_path / "agent")
    agent.network.parameters[0] = float("nan")
    with pytest.raises(DivergedError, match=r"diverged: 'value\.parameters' is not finite"):
        streamwise.save(agent, tmp_path / "agent")
    assert torch.isfinite(streamwise.load(tmp_path / "agent").network.parameters).all()


@pytest.mark.parametrize(("version", "remedy"), [(99, "upgrade it"), (1, "train afresh")])
def test_a_checkpoint_of_another_format_says_what_to_do(tmp_path, whole, version, remedy):
    meta = json.loads((whole / "meta.json").read_text())
    (tmp_path / "state.safetensors").write_bytes((whole / "state.safetensors").read_bytes())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "format": version}))
    with pytest.raises(CheckpointError, match=f"format {version}.*{remedy}"):
        read(tmp_path)
