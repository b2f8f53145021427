"""Agents whose network is a key-value bottleneck: what they look up, what an update writes, what stays.

In torch, the definition; test_native_bottleneck.py holds the native step against it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from agents_support import (
    BACKENDS,
    BOX_ACTIONS,
    DISCRETE_ACTIONS,
    FEATURES,
    OBSERVATIONS,
    RULES,
    World,
    bits,
    fork,
    live,
)
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamwise.agents import AGENTS, StreamAC, StreamACConfig, StreamQ
from streamwise.memory.bottleneck import BottleneckMemory
from streamwise.runs.checkpoint import load, save
from streamwise.streams import Transition, UsageError

BOOKS, PAIRS, WIDTH = 5, 6, 3
LEARNERS = [
    ("stream-ac", BOX_ACTIONS),
    ("stream-ac", DISCRETE_ACTIONS),
    ("stream-q", DISCRETE_ACTIONS),
    ("stream-sarsa", DISCRETE_ACTIONS),
    ("stream-td", None),
]
EVERY_LEARNER = pytest.mark.parametrize(
    ("name", "actions"), LEARNERS, ids=[f"{name}-{type(actions).__name__}" for name, actions in LEARNERS]
)


def make(name, actions, *, seed=0, warm_up=0, backend="torch", **changes):
    kind = AGENTS[name]
    config = kind.Config(
        network="bottleneck",
        bottleneck_books=BOOKS,
        bottleneck_pairs=PAIRS,
        bottleneck_key_width=WIDTH,
        bottleneck_warm_up=warm_up,
        **changes,
    )
    return kind(OBSERVATIONS, actions, config, seed=seed, backend=backend)


def parameters(agent):
    return {name: value for name, value in agent.state_dict().items() if name.endswith(".parameters")}


def values(parameters):
    return parameters.reshape(BOOKS, PAIRS, -1)


def nearest(state, observation):
    """The row of each book that an observation is looked up in, by brute force."""
    heads = np.einsum("e,cek->ck", observation.double().numpy(), state["memory.projection"].double().numpy())
    keys = state["memory.keys"].double().numpy()
    return [int(((keys[c] - heads[c]) ** 2).sum(1).argmin()) for c in range(BOOKS)]


# --- what is looked up, what is written --------------------------------------------------------------------


@EVERY_LEARNER
def test_outputs_are_zero_at_first(name, actions):
    agent = make(name, actions)
    assert agent.memory.is_frozen
    assert not any(tensor.any() for tensor in parameters(agent).values())


def test_an_output_is_the_mean_of_the_rows_that_are_looked_up():
    agent = make("stream-q", DISCRETE_ACTIONS, warm_up=100)
    live(agent, World(), 300)
    state, random = agent.state_dict(), np.random.default_rng(0)
    rows = values(state["value.parameters"])
    for _ in range(20):
        observed = agent.samples.observe(random.normal(size=FEATURES) * 3.0)
        expected = torch.stack([rows[c, j] for c, j in enumerate(nearest(state, observed))]).mean(0)
        torch.testing.assert_close(agent.network.predict(observed), expected)


@pytest.mark.parametrize("rule", RULES)
def test_without_traces_an_update_moves_the_rows_that_were_looked_up_and_no_other(rule):
    agent = make("stream-q", DISCRETE_ACTIONS, warm_up=70, trace_decay=0.0, step_size_rule=rule)
    statistics = make("stream-q", DISCRETE_ACTIONS).samples
    world, random = World(), np.random.default_rng(0)
    live(agent, world, 100)
    for _ in range(60):
        before = agent.state_dict()
        statistics.load_state_dict(before)
        transition = world.step(int(random.integers(3)))
        agent.learn_one(transition)
        moved = values(agent.state_dict()["value.parameters"]) != values(before["value.parameters"])
        observation, *_ = statistics.learn_one(transition, False)  # as the agent saw it
        expected = torch.zeros_like(moved)
        expected[range(BOOKS), nearest(before, observation), transition.action] = True
        assert torch.equal(moved, expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_policy_is_written_to_where_the_value_is(rule):
    agent, world = make("stream-ac", DISCRETE_ACTIONS, trace_decay=0.0, step_size_rule=rule), World()
    live(agent, world, 30)
    before = parameters(agent)
    live(agent, world, 1)
    moved = {
        name: (values(tensor) != values(before[name])).any(2) for name, tensor in parameters(agent).items()
    }
    assert moved["critic.parameters"].sum(1).tolist() == [1] * BOOKS
    assert torch.equal(moved["critic.parameters"], moved["actor.parameters"])


def test_traces_reach_rows_that_were_looked_up_before():
    agent, world = make("stream-td", None, step_size_rule="obgd"), World(time_limit_steps=100)
    live(agent, world, 1)
    while not agent.rule.trace.any():
        live(agent, world, 1)
    assert ((values(agent.rule.trace) != 0.0).sum((1, 2)) >= 1).all()
    live(agent, world, 2)
    assert (values(agent.rule.trace) != 0.0).sum() > BOOKS


# --- keys --------------------------------------------------------------------------------------------------


@EVERY_LEARNER
def test_keys_move_while_nothing_is_learned_and_stay_while_something_is(name, actions):
    agent, world = make(name, actions, warm_up=130), World()
    keys = [agent.state_dict()["memory.keys"]]
    for _ in range(130):
        assert not agent.memory.is_frozen
        live(agent, world, 1)
        keys.append(agent.state_dict()["memory.keys"])
        assert not any(tensor.any() for tensor in parameters(agent).values())
    moved = [number for number, (a, b) in enumerate(pairwise(keys), 1) if not a.equal(b)]
    assert moved == [64, 128, 130]
    frozen = {name: value for name, value in bits(agent).items() if name.startswith("memory.")}
    live(agent, world, 100)
    assert any(tensor.any() for tensor in parameters(agent).values())
    assert {name: value for name, value in bits(agent).items() if name.startswith("memory.")} == frozen


def test_keys_go_where_observations_are():
    """Two clouds far from the origin, where keys begin: now they are in one of them, or a few between."""
    memory = BottleneckMemory(2, books=4, pairs=8, key_width=2, warm_up=1000)
    random, centres = np.random.default_rng(0), np.array([[40.0, 0.0], [0.0, 40.0]])
    heads = torch.einsum("ne,cek->cnk", torch.from_numpy(centres).float(), memory.books.projection)

    def share_that_is_near():
        distances = torch.cdist(memory.books.keys, heads).min(2).values
        return float((distances < 5.0).float().mean())

    assert share_that_is_near() == 0.0
    for number in range(1000):
        memory.append(torch.from_numpy(centres[number % 2] + random.normal(size=2)).float())
    assert share_that_is_near() > 0.9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_actor_and_critic_look_up_in_the_same_books(dtype):
    agent = make("stream-ac", DISCRETE_ACTIONS, warm_up=10, dtype=dtype)
    books = agent.memory.books
    for network in (agent.critic, agent.actor):
        bottleneck = network.module.bottleneck
        assert bottleneck.keys.data_ptr() == books.keys.data_ptr()
        assert bottleneck.projection.data_ptr() == books.projection.data_ptr()
        assert bottleneck.keys.dtype == network.parameters.dtype == getattr(torch, dtype)


def test_other_seeds_look_at_other_things():
    one, same, other = (make("stream-q", DISCRETE_ACTIONS, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(one["memory.projection"], same["memory.projection"])
    assert not torch.equal(one["memory.projection"], other["memory.projection"])


# --- going on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@EVERY_LEARNER
@settings(max_examples=8, deadline=None, derandomize=True)
@given(before=st.integers(0, 160), after=st.integers(1, 80))
def test_an_agent_goes_on_from_any_step_bit_for_bit(name, actions, backend, before, after):
    agent, world = make(name, actions, seed=3, warm_up=100, backend=backend), World()
    live(agent, world, before)
    state, elsewhere = agent.state_dict(), fork(world)
    resumed = make(name, actions, seed=8, warm_up=100, backend=backend)
    live(resumed, World(5), 30)
    resumed.load_state_dict(state)
    shown = live(agent, world, after)
    assert live(resumed, elsewhere, after) == shown
    assert bits(resumed) == bits(agent)


def test_a_saved_agent_has_its_keys(tmp_path):
    """`load` is not told the seed that they were drawn by."""
    agent, world = make("stream-q", DISCRETE_ACTIONS, seed=3, warm_up=100), World()
    live(agent, world, 90)
    save(agent, tmp_path / "agent")
    resumed, elsewhere = load(tmp_path / "agent", backend="torch"), fork(world)
    assert live(resumed, elsewhere, 60) == live(agent, world, 60)
    assert bits(resumed) == bits(agent)


def test_a_state_of_other_sizes_is_refused():
    state = make("stream-q", DISCRETE_ACTIONS).state_dict()
    larger = StreamQ(OBSERVATIONS, DISCRETE_ACTIONS, StreamQ.Config(network="bottleneck"))
    with pytest.raises(ValueError, match=r"the bottleneck's projection are .* and the state's"):
        larger.memory.load_state_dict(state)


def test_nothing_is_drawn_from_torchs_generator():
    before = torch.random.get_rng_state()
    live(make("stream-ac", BOX_ACTIONS, warm_up=70), World(), 100)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- learning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_q_learning_in_a_bottleneck_solves_a_corridor(backend):
    """Ten places in a row, the last one pays: the greedy policy walks straight there; at first it did not."""
    config = StreamQ.Config(
        network="bottleneck",
        bottleneck_books=16,
        bottleneck_pairs=16,
        bottleneck_warm_up=300,
        exploration_steps=2_000,
        discount=0.9,
    )
    space = spaces.Box(0.0, 1.0, (10,), np.float32)
    agent = StreamQ(space, spaces.Discrete(2), config, backend=backend)
    place, eye = 0, np.eye(10, dtype=np.float32)
    for step in range(3_000):
        if step == 300:
            assert [agent.act(eye[place], explore=False) for place in range(9)] == [0] * 9
        action = agent.act(eye[place])
        following = min(max(place + (1 if action else -1), 0), 9)
        ended = following == 9
        late = (step + 1) % 100 == 0
        agent.learn_one(Transition(eye[place], action, float(ended), eye[following], ended, late))
        place = 0 if ended or late else following
    assert [agent.act(eye[place], explore=False) for place in range(9)] == [1] * 9


def test_a_refresh_writes_to_the_rows_of_what_was_kept():
    agent = make("stream-td", None, finetune_every=20, finetune_steps=1, finetune_batch=1)
    world = World()
    live(agent, world, 19)
    before = values(parameters(agent)["value.parameters"])
    plain = make("stream-td", None)
    plain.load_state_dict(agent.state_dict())
    transition = world.step(None)
    agent.learn_one(transition)
    plain.learn_one(transition)
    moved = values(parameters(agent)["value.parameters"]) != values(parameters(plain)["value.parameters"])
    assert before.any()
    assert moved.sum((1, 2)).tolist() == [1] * BOOKS


# --- what cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"network": "books"}, "network is 'books'; choose one of: published, bottleneck"),
        ({"network": "bottleneck", "bottleneck_books": 0}, "bottleneck_books is 0; it must be 1 or more"),
        ({"network": "bottleneck", "bottleneck_pairs": 0}, "bottleneck_pairs is 0; it must be 1 or more"),
        ({"network": "bottleneck", "bottleneck_key_width": 0}, "bottleneck_key_width is 0; it must be 1"),
        ({"network": "bottleneck", "bottleneck_warm_up": -1}, "bottleneck_warm_up is -1; it must be 0 or"),
        ({"network": "bottleneck", "hidden_size": 64}, "hidden_size has no effect with network 'bottleneck'"),
        ({"network": "bottleneck", "memory": "hcam"}, "network is bottleneck, and memory 'hcam'; choose one"),
        ({"bottleneck_pairs": 8}, "bottleneck_pairs has no effect with network 'published'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_in_one_line(changes, complaint):
    with pytest.raises(UsageError) as refused:
        StreamACConfig(**changes)
    assert str(refused.value).startswith(complaint)
    assert "\n" not in str(refused.value)


def test_a_bottleneck_beside_another_network_or_of_no_size_is_refused():
    config = StreamACConfig(network="bottleneck")
    with pytest.raises(UsageError, match="network is 'bottleneck', and another is given"):
        StreamAC(OBSERVATIONS, BOX_ACTIONS, config, network=lambda outputs: nn.Linear(FEATURES, outputs))
    with pytest.raises(UsageError, match="bottleneck_books is 100000000000, of 64 keys of 8 numbers"):
        StreamAC(
            OBSERVATIONS, BOX_ACTIONS, StreamACConfig(network="bottleneck", bottleneck_books=10**11)
        )  # fmt: skip
