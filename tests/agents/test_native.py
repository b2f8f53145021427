"""The native step against its definition, the torch back end: same state, same sample, same result."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from agents_support import MEMORIES, NATIVE_RULES, SANITIZED
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from native_support import (
    BOX,
    DISCRETE,
    FIRST_TOLERANCE,
    FRAMES,
    GRID,
    LEARNERS,
    TOLERANCE,
    VECTOR,
    assert_same_state,
    assert_single_updates_agree,
    pair,
    random_samples,
    use_instruction_set,
)
from torch import nn

from streamwise.agents import StreamQ
from streamwise.agents.networks import ChannelsFirst
from streamwise.envs import EnvironmentStream, make
from streamwise.kernels import native_info
from streamwise.kernels.stream_step import INSTRUCTION_SETS, make_stream_step
from streamwise.streams import NonFiniteSampleError, Transition

pytestmark = pytest.mark.skipif(native_info() is None, reason="streamwise was built without native kernels")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", NATIVE_RULES)
@pytest.mark.parametrize(("name", "actions"), LEARNERS)
@pytest.mark.parametrize("bootstrap", [True, False], ids=["bootstrap", "no-bootstrap"])
def test_one_update_agrees_with_torch(name, actions, rule, dtype, bootstrap):
    changes = {
        "step_size_rule": rule,
        "dtype": dtype,
        "bootstrap_on_truncation": bootstrap,
        "hidden_size": 24,
    }
    reference, native = pair(name, VECTOR, actions, **changes)
    samples = random_samples(np.random.default_rng(1), VECTOR, actions, 60)
    first = FIRST_TOLERANCE.get((rule, dtype))
    assert_single_updates_agree(reference, native, samples, TOLERANCE[dtype], first_tolerance=first)


@pytest.mark.parametrize("memory", ["hcam", "gru"])
@pytest.mark.parametrize("rule", NATIVE_RULES)
@pytest.mark.parametrize(("name", "actions"), LEARNERS)
def test_one_update_with_a_memory_agrees_with_torch(name, actions, rule, memory):
    changes = {"step_size_rule": rule, "dtype": "float64", "hidden_size": 16, **MEMORIES[memory]}
    reference, native = pair(name, VECTOR, actions, **changes)
    samples = random_samples(np.random.default_rng(1), VECTOR, actions, 60)
    # The intentional rule divides each gradient by its size so far, and a chunk that all but weighs nothing
    # has gradients of the size of their rounding.
    tolerance = 1e-9 if rule == "intentional" else TOLERANCE["float64"]
    assert_single_updates_agree(reference, native, samples, tolerance)


@settings(max_examples=15 if SANITIZED else 40, deadline=None, derandomize=True)
@given(
    features=st.integers(2, 40),
    read=st.sampled_from([(1, 1), (4, 1), (6, 3), (17, 1), (32, 4)]),
    reads=st.sampled_from([(1, 0), (2, 1), (3, 0), (5, 3), (40, 0)]),
    length=st.integers(1, 5),
    capacity=st.integers(1, 12),
    joint=st.booleans(),
    span=st.sampled_from(["episode", "life"]),
    guests=st.sampled_from([0, 0, 1, 4]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 1000),
)
def test_a_memory_of_any_shape_goes_on_as_in_torch(
    features, read, reads, length, capacity, joint, span, guests, dtype, seed
):
    """Thirty updates on end, each with its own memory: full rings, open chunks, random reads, guests."""
    space = spaces.Box(-np.inf, np.inf, (features,), np.float64)
    changes = {
        "step_size_rule": "obgd",
        "dtype": dtype,
        "memory": "hcam",
        "memory_features": read[0],
        "memory_heads": read[1],
        "memory_reads": reads[0],
        "memory_random_reads": reads[1],
        "memory_joint": joint,
        "memory_chunk_length": length,
        "memory_capacity": capacity,
        "memory_span": span,
        "memory_guests": guests,
        "hidden_size": 12,
    }
    reference, native = pair("stream-ac", space, DISCRETE, seed=seed, **changes)
    random = np.random.default_rng(seed)
    observation = random.standard_normal(features)
    for step in range(30):
        following = random.standard_normal(features)
        sample = Transition(observation, int(random.integers(4)), 1.0, following, step == 20, False)
        if guests and random.random() < 0.5:
            chunk = random.standard_normal((length, features))
            for agent in (reference, native):
                agent.memory.admit(step, chunk)
                agent.memory.dismiss(step - 4)
        expected, found = reference.learn_one(sample), native.learn_one(sample)
        assert found["value"] == pytest.approx(expected["value"], rel=1e-3, abs=1e-3)
        observation = following
    assert_same_state(native, reference, 1e-9 if dtype == "float64" else 1e-3)


@pytest.mark.parametrize("memory", ["hcam", "gru"])
def test_remembering_and_forgetting_without_learning_agree_with_torch(memory):
    reference, native = pair("stream-ac", VECTOR, DISCRETE, dtype="float64", **MEMORIES[memory])
    random = np.random.default_rng(0)
    for sample in random_samples(random, VECTOR, DISCRETE, 20):
        for agent in (reference, native):
            agent.learn_one(sample)
    for step in range(9):
        seen = random.standard_normal(17)
        for agent in (reference, native):
            if step == 4:
                agent.forget()
            agent.act(random.standard_normal(17), explore=False)  # must not be taken for what is remembered
            agent.remember(seen)
        assert_same_state(native, reference, 1e-9)
        seen = random.standard_normal(17)
        assert native.act(seen, explore=False) == reference.act(seen, explore=False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", NATIVE_RULES)
@pytest.mark.parametrize("space", [pytest.param(GRID, id="grid"), pytest.param(FRAMES, id="frames")])
def test_one_update_of_a_convolutional_network_agrees_with_torch(space, rule, dtype):
    reference, native = pair("stream-q", space, DISCRETE, step_size_rule=rule, dtype=dtype, hidden_size=40)
    samples = random_samples(np.random.default_rng(2), space, DISCRETE, 8)
    first = FIRST_TOLERANCE.get((rule, dtype))
    assert_single_updates_agree(reference, native, samples, TOLERANCE[dtype], first_tolerance=first)


@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_a_convolutional_actor_and_critic_agree_with_torch(rule):
    reference, native = pair(
        "stream-ac", GRID, DISCRETE, step_size_rule=rule, dtype="float64", hidden_size=32
    )
    samples = random_samples(np.random.default_rng(3), GRID, DISCRETE, 20)
    assert_single_updates_agree(reference, native, samples, TOLERANCE["float64"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    learner=st.sampled_from(
        [("stream-ac", True), ("stream-ac", False), ("stream-q", False), ("stream-td", None)]
    ),
    rule=st.sampled_from(NATIVE_RULES),
    features=st.integers(2, 70),
    hidden=st.integers(10, 70),
    actions=st.integers(1, 9),
    time_feature=st.booleans(),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    trace_decay=st.sampled_from([0.0, 0.8, 1.0]),
    reward=st.sampled_from([0.0, 1e-12, 1.0, -1e9]),
    seed=st.integers(0, 1000),
)
def test_odd_sizes_and_extreme_settings_agree_too(
    learner, rule, features, hidden, actions, time_feature, discount, trace_decay, reward, seed
):
    name, is_box = learner
    space = spaces.Box(-np.inf, np.inf, (features,), np.float64)
    choices = (
        None
        if is_box is None
        else spaces.Box(-1, 1, (actions,), np.float64)
        if is_box
        else spaces.Discrete(actions)
    )
    changes = {
        "step_size_rule": rule,
        "discount": discount,
        "trace_decay": trace_decay,
        "time_feature": time_feature,
    }
    reference, native = pair(name, space, choices, seed=seed, dtype="float64", hidden_size=hidden, **changes)
    samples = random_samples(np.random.default_rng(seed), space, choices, 12)
    # Sums of terms that all but cancel keep fewer digits than either order of summation promises.
    assert_single_updates_agree(reference, native, (s._replace(reward=reward) for s in samples), 1e-10)


@pytest.mark.parametrize(("name", "actions"), LEARNERS[:-1])
def test_the_same_state_acts_the_same(name, actions):
    reference, native = pair(name, VECTOR, actions, dtype="float64", hidden_size=24)
    random = np.random.default_rng(4)
    for sample in random_samples(random, VECTOR, actions, 200):
        for explore in (False, True):
            expected = reference.act(sample.observation, explore=explore)
            found = native.act(sample.observation, explore=explore)
            np.testing.assert_allclose(found, expected, rtol=1e-12)
            assert np.asarray(found).dtype == np.asarray(expected).dtype
        reference.learn_one(sample)
        native.load_state_dict(reference.state_dict())


@pytest.mark.parametrize(("name", "actions"), LEARNERS)
def test_a_forward_pass_is_not_taken_for_that_of_another_observation(name, actions):
    """The engine keeps the last one for its observation's update, but not the observation."""
    reference, native = pair(name, VECTOR, actions, dtype="float64", hidden_size=24)
    random = np.random.default_rng(13)
    newest = np.zeros(17)
    for number, made in enumerate(random_samples(random, VECTOR, actions, 60)):
        # Every third one does not begin where the one before it ended.
        sample = made if number % 3 else made._replace(observation=random.standard_normal(17))
        for observation in (sample.next_observation, sample.observation, newest)[number % 2 :]:
            if name == "stream-td":
                found, expected = (agent.predict_one(observation) for agent in (native, reference))
            else:
                found, expected = (agent.act(observation, explore=False) for agent in (native, reference))
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        reference.learn_one(sample)
        native.learn_one(sample)
        newest = sample.next_observation
        assert_same_state(native, reference, 1e-6)


@pytest.mark.parametrize("name", ["stream-ac", "stream-q", "stream-sarsa"])
@pytest.mark.parametrize("space", [VECTOR, GRID, FRAMES], ids=["vector", "grid", "frames"])
def test_what_the_engine_keeps_changes_no_bit(space, name):
    """A resumed learner computes anew what the other still has: the newest observation, normalized."""
    keeps, forgets = (pair(name, space, DISCRETE, hidden_size=24)[1] for _ in range(2))
    for sample in random_samples(np.random.default_rng(14), space, DISCRETE, 20):
        forgets.load_state_dict(forgets.state_dict())
        assert forgets.act(sample.observation) == keeps.act(sample.observation)
        forgets.load_state_dict(forgets.state_dict())
        forgets.learn_one(sample)
        keeps.learn_one(sample)
    expected = keeps.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in forgets.state_dict().items())


REAL = [
    pytest.param("HalfCheetah-v5", "stream-ac", {}, id="HalfCheetah"),
    pytest.param("CartPole-v1", "stream-q", {"hidden_size": 32, "exploration_steps": 500}, id="CartPole"),
    pytest.param("MinAtar/Breakout-v1", "stream-q", {"exploration_steps": 500}, id="Breakout"),
]


def real_run(environment, name, steps, rule, dtype, settings):
    """A torch learner that lives in a real environment, and a native one beside it."""
    env = make(environment, seed=0)
    reference, native = pair(
        name, env.observation_space, env.action_space, step_size_rule=rule, dtype=dtype, **settings
    )
    stream = EnvironmentStream(env, reference.act)
    return reference, native, (sample for _, sample in zip(range(steps), stream, strict=False))


@pytest.mark.parametrize(("environment", "name", "settings"), REAL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_updates_agree_along_real_runs(environment, name, settings, rule, dtype):
    steps = 40 if SANITIZED else 150
    reference, native, samples = real_run(environment, name, steps, rule, dtype, settings)
    assert_single_updates_agree(reference, native, samples, TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "name", "settings"), REAL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_updates_agree_at_ten_thousand_states_of_real_runs(environment, name, settings, rule, dtype):
    reference, native, samples = real_run(environment, name, 10_000, rule, dtype, settings)
    observations, actions = reference.observation_space, reference.action_space
    exact = pair(name, observations, actions, step_size_rule=rule, dtype="float64", **settings)[0]
    assert_single_updates_agree(reference, native, samples, TOLERANCE[dtype], exact=exact)


@pytest.mark.parametrize(("environment", "name", "settings"), REAL)
@pytest.mark.parametrize("steps", [60 if SANITIZED else 400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_recorded_stream_replayed_through_both_stays_together(environment, name, settings, steps):
    for rule in NATIVE_RULES:
        reference, native, samples = real_run(environment, name, steps, rule, "float64", settings)
        for sample in samples:
            native.learn_one(sample)
            reference.learn_one(sample)
        found, expected = native.state_dict(), reference.state_dict()
        for key in ("value.parameters", "critic.parameters", "actor.parameters"):
            if key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set_agrees_with_torch(instruction_set, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    for space, actions, name in ((VECTOR, BOX, "stream-ac"), (GRID, DISCRETE, "stream-q")):
        for rule in NATIVE_RULES:
            for dtype in ("float32", "float64"):
                reference, native = pair(
                    name, space, actions, step_size_rule=rule, dtype=dtype, hidden_size=24
                )
                samples = random_samples(np.random.default_rng(5), space, actions, 12)
                usual, first = TOLERANCE[dtype], FIRST_TOLERANCE.get((rule, dtype))
                assert_single_updates_agree(reference, native, samples, usual, first_tolerance=first)


PICTURES = [  # layout, [channels, height, width], then (channels out, kernel, stride) of each convolution
    pytest.param("channels-first", (1, 9, 9), [(1, 1, 1)], id="one-channel"),
    pytest.param("channels-first", (3, 11, 7), [(17, 3, 2), (33, 2, 1)], id="odd-channels"),
    pytest.param("channels-last", (33, 6, 7), [(17, 1, 1), (3, 1, 2)], id="one-by-one"),
    pytest.param("channels-last", (3, 9, 12), [(4, 4, 1), (10, 3, 2)], id="channels-last"),
    pytest.param("channels-first", (2, 5, 5), [(3, 5, 1)], id="kernel-as-large-as-the-grid"),
    pytest.param("channels-first", (7, 13, 16), [(6, 2, 5), (5, 2, 3)], id="stride-beyond-the-kernel"),
    # 195 and 1,122 patches of 64 numbers, which the engine gathers in pieces, and one of 9,600.
    pytest.param("channels-first", (1, 20, 22), [(2, 8, 1), (3, 3, 2)], id="pieces-and-three"),
    pytest.param("channels-first", (1, 40, 41), [(2, 8, 1), (3, 5, 3)], id="many-pieces"),
    pytest.param("channels-first", (24, 20, 20), [(9, 20, 1)], id="large-patch"),
]


@pytest.mark.parametrize(("layout", "shape", "sizes"), PICTURES)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_convolutions_of_any_size_agree_with_torch(layout, shape, sizes, instruction_set, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    channels, height, width = shape
    if layout == "channels-last":
        shape = (height, width, channels)

    def network(outputs):
        layers = [ChannelsFirst()] if layout == "channels-last" else []
        present = channels
        for made, kernel, stride in sizes:
            layers += [nn.Conv2d(present, made, kernel, stride), nn.LeakyReLU()]
            present = made
        features = nn.Sequential(*layers, nn.Flatten())
        count = features(torch.zeros(1, *shape)).numel()
        return nn.Sequential(*features, nn.Linear(count, outputs))

    space = spaces.Box(-np.inf, np.inf, shape, np.float32)
    for dtype, tolerance in TOLERANCE.items():
        torch.manual_seed(0)
        changes = {"step_size_rule": "obgd", "dtype": dtype}
        reference, native = pair("stream-q", space, DISCRETE, network=network, **changes)
        native.load_state_dict(reference.state_dict())
        samples = random_samples(np.random.default_rng(12), space, DISCRETE, 8)
        assert_single_updates_agree(reference, native, samples, tolerance)


def test_an_instruction_set_that_cannot_run_here_is_refused():
    with pytest.raises(ValueError, match="cannot be used here"):
        make_stream_step({}, "avx1024")


def test_the_arrays_are_the_learners_own():
    native = pair("stream-ac", VECTOR, BOX)[1]
    addresses = native.critic.parameters.data_ptr(), native.critic_rule.trace.data_ptr()
    before = native.critic.parameters.clone(), native.samples.observations.statistics.mean.copy()
    for sample in random_samples(np.random.default_rng(6), VECTOR, BOX, 3):
        native.learn_one(sample)
    assert addresses == (native.critic.parameters.data_ptr(), native.critic_rule.trace.data_ptr())
    assert not torch.equal(native.critic.parameters, before[0])
    assert torch.equal(native.critic.module[0].weight.flatten(), native.critic.parameters[: 17 * 128])
    assert not np.array_equal(native.samples.observations.statistics.mean, before[1])


@pytest.mark.parametrize(("name", "actions"), LEARNERS)
@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_a_run_may_change_its_back_end_at_any_state(name, actions, rule):
    reference = pair(name, VECTOR, actions, step_size_rule=rule, dtype="float64", hidden_size=16)[0]
    samples = list(random_samples(np.random.default_rng(7), VECTOR, actions, 90))
    for sample in samples:
        reference.learn_one(sample)
    current, other = pair(name, VECTOR, actions, step_size_rule=rule, dtype="float64", hidden_size=16)
    for start in range(0, 90, 30):
        for sample in samples[start : start + 30]:
            current.learn_one(sample)
        other.load_state_dict(current.state_dict())
        current, other = other, current
    assert_same_state(current, reference, 1e-9)


@pytest.mark.parametrize("observation_type", [np.float32, np.float64, np.int64, np.float16])
def test_any_dtype_and_layout_of_observation_is_read(observation_type):
    reference, native = pair("stream-q", VECTOR, DISCRETE, dtype="float64", hidden_size=16)
    random = np.random.default_rng(8)
    wide = (random.standard_normal((40, 34)) * 9).astype(observation_type)
    for row, following in zip(wide[:-1, ::2], wide[1:, ::2], strict=True):  # not contiguous
        sample = Transition(row, np.int32(1), np.float32(0.5), following, np.bool_(False), np.bool_(False))
        reference.learn_one(sample)
        native.learn_one(sample)
        assert native.act(row, explore=False) == reference.act(row, explore=False)
    assert_same_state(native, reference, 1e-12)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"reward": float("nan")}, NonFiniteSampleError, "step 6: the reward is nan"),
        ({"observation": np.full(17, np.inf)}, NonFiniteSampleError, "step 6: feature 0 of the observation"),
        (
            {"next_observation": np.array([*[0.0] * 16, np.nan])},
            NonFiniteSampleError,
            "step 6: feature 16 of the next",
        ),
        ({"observation": np.zeros(16)}, ValueError, "step 6: the observation has shape"),
        ({"action": np.zeros(2, np.float32)}, ValueError, "step 6: the action has shape"),
        ({"action": np.array([0.0, np.nan, 0.0])}, NonFiniteSampleError, "step 6: feature 1 of the action"),
    ],
)
def test_what_torch_refuses_is_refused_with_the_same_words_and_no_change(changes, error, named):
    reference, native = pair("stream-ac", VECTOR, BOX, hidden_size=16)
    samples = list(random_samples(np.random.default_rng(9), VECTOR, BOX, 6))
    for sample in samples[:5]:
        reference.learn_one(sample)
        native.learn_one(sample)
    before = native.state_dict()
    messages = []
    for learner in (reference, native):
        with pytest.raises(error) as caught:
            learner.learn_one(samples[5]._replace(**changes))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert named in messages[0]
    after = native.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_learners_in_threads_do_what_they_do_alone():
    def run(agent):
        for sample in random_samples(np.random.default_rng(10), VECTOR, BOX, 300):
            agent.act(sample.observation)
            agent.learn_one(sample)

    together = [pair("stream-ac", VECTOR, BOX, seed=seed)[1] for seed in range(4)]
    threads = [threading.Thread(target=run, args=(agent,)) for agent in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, agent in enumerate(together):
        alone = pair("stream-ac", VECTOR, BOX, seed=seed)[1]
        run(alone)
        assert_same_state(agent, alone, 0.0)


def test_q_learning_natively_solves_a_corridor():
    """Ten places in a row, the last one pays: the greedy policy walks straight there."""
    config = StreamQ.Config(exploration_steps=3_000, discount=0.9)
    agent = StreamQ(spaces.Box(0.0, 1.0, (10,), np.float32), spaces.Discrete(2), config)
    assert agent.native is not None
    place, eye = 0, np.eye(10, dtype=np.float32)
    for step in range(6_000):
        action = agent.act(eye[place])
        following = min(max(place + (1 if action else -1), 0), 9)
        ended = following == 9
        late = (step + 1) % 100 == 0
        agent.learn_one(Transition(eye[place], action, float(ended), eye[following], ended, late))
        place = 0 if ended or late else following
    assert [agent.act(eye[place], explore=False) for place in range(9)] == [1] * 9
