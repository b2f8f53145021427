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


@settings(max_examples=80, deadline=None, derandomize=True)
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
    expected = read_checkpoint(whole)
    try:
        found = read_checkpoint(directory)
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
        # Only a changed byte of meta.json that JSON does not mind can get here; the state is the same.
        assert name == "meta.json"
        assert all(torch.equal(found.state[key], expected.state[key]) for key in expected.state)
    assert "\n" not in message


def test_the_newest_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, {"x": torch.tensor([float(step)])}, {})
    state = tmp_path / "checkpoints" / "step-000000000020" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="checksum does not hold"):
        found = checkpoints.latest()
    assert found.meta["step"] == 10
    assert found.state["x"].item() == 10.0


def test_with_no_whole_checkpoint_the_error_says_what_was_wrong(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        Checkpoints(tmp_path).latest()


def test_only_the_last_few_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 11):
        checkpoints.save(step, {"x": torch.zeros(1)}, {})
    assert [path.name for path in checkpoints.paths()] == ["step-000000000003", "step-000000000011"]


def test_an_interrupted_save_is_not_taken_for_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.zeros(1)}, {})
    partial = tmp_path / "checkpoints" / ".step-000000000002.partial"
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    assert checkpoints.latest().meta["step"] == 1
    checkpoints.save(2, {"x": torch.ones(1)}, {})
    assert checkpoints.latest().state["x"].item() == 1.0


def test_a_diverged_learner_does_not_replace_the_last_good_state(tmp_path):
    agent = StreamTD(OBSERVATIONS)
    streamwise.save(agent, tmp_path / "agent")
    agent.network.parameters[0] = float("nan")
    with pytest.raises(DivergedError, match=r"diverged: 'value\.parameters' is not finite"):
        streamwise.save(agent, tmp_path / "agent")
    assert torch.isfinite(streamwise.load(tmp_path / "agent").network.parameters).all()


def test_a_checkpoint_of_a_newer_format_asks_for_an_upgrade(tmp_path, whole):
    meta = json.loads((whole / "meta.json").read_text())
    (tmp_path / "state.safetensors").write_bytes((whole / "state.safetensors").read_bytes())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(tmp_path)
