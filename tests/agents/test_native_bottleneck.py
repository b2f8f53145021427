"""The native step of a key-value bottleneck against its definition, the torch back end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agents_support import NATIVE_RULES, SANITIZED, bits
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from native_support import (
    BOX,
    DISCRETE,
    FIRST_TOLERANCE,
    LEARNERS,
    TOLERANCE,
    VECTOR,
    assert_same_state,
    assert_single_updates_agree,
    random_samples,
    use_instruction_set,
)

from streamwise.agents import AGENTS, StreamTD
from streamwise.kernels import native_info
from streamwise.kernels.stream_step import INSTRUCTION_SETS, make_stream_step
from streamwise.memory.bottleneck import BottleneckMemory
from streamwise.streams import Transition, UsageError

pytestmark = pytest.mark.skipif(native_info() is None, reason="streamwise was built without native kernels")

WARM_UP = 70  # keys move at 64 and at 70
SIZES = {
    "bottleneck_books": 5,
    "bottleneck_pairs": 30,
    "bottleneck_key_width": 3,
    "bottleneck_warm_up": WARM_UP,
}


def pair(name, observations, actions, *, seed=0, **changes):
    """A torch learner and a native one in the same state, whose networks are bottlenecks."""
    kind = AGENTS[name]
    config = kind.Config(network="bottleneck", **changes)
    return tuple(
        kind(observations, actions, config, seed=seed, backend=backend) for backend in ("torch", "native")
    )


def learned(name="stream-q", actions=DISCRETE, count=150, **changes):
    """A torch learner and a native one that have learned the same for some time, in float64."""
    agents = pair(name, VECTOR, actions, **{"dtype": "float64", **SIZES, **changes})
    for sample in random_samples(np.random.default_rng(1), VECTOR, actions, count):
        for agent in agents:
            agent.learn_one(sample)
    return agents


# --- the same as torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", NATIVE_RULES)
@pytest.mark.parametrize(("name", "actions"), LEARNERS)
def test_one_update_agrees_with_torch(name, actions, rule, dtype):
    """Before the warm-up's end, at it, and afterwards."""
    reference, native = pair(name, VECTOR, actions, step_size_rule=rule, dtype=dtype, **SIZES)
    samples = random_samples(np.random.default_rng(1), VECTOR, actions, WARM_UP + 40)
    first = FIRST_TOLERANCE.get((rule, dtype))
    assert_single_updates_agree(reference, native, samples, TOLERANCE[dtype], first_tolerance=first)
    assert reference.memory.is_frozen
    assert any(tensor.any() for name, tensor in native.state_dict().items() if name.endswith(".parameters"))


@pytest.mark.parametrize("rule", NATIVE_RULES)
@pytest.mark.parametrize(("name", "actions"), LEARNERS)
def test_a_run_goes_on_as_in_torch(name, actions, rule):
    """From the first observation on, each with keys that it has moved itself, at the default sizes."""
    changes = {"step_size_rule": rule, "dtype": "float64", "bottleneck_warm_up": 150}
    reference, native = pair(name, VECTOR, actions, **changes)
    for count, sample in enumerate(random_samples(np.random.default_rng(7), VECTOR, actions, 260)):
        if actions is not None and count % 10 == 0:
            for explore in (True, False):
                found, expected = (
                    agent.act(sample.observation, explore=explore) for agent in (native, reference)
                )
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
        expected, found = reference.learn_one(sample), native.learn_one(sample)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert_same_state(native, reference, 1e-9)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=8 if SANITIZED else 25, deadline=None, derandomize=True)
@given(
    features=st.integers(1, 40),
    books=st.integers(1, 20),
    pairs=st.sampled_from([1, 2, 7, 16, 33, 70]),
    key_width=st.integers(1, 17),
    actions=st.sampled_from([1, 2, 5, 90]),
    warm_up=st.sampled_from([0, 1, 5, 64, 75]),
    rule=st.sampled_from(NATIVE_RULES),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 1000),
)
def test_a_bottleneck_of_any_shape_goes_on_as_in_torch(
    instruction_set, features, books, pairs, key_width, actions, warm_up, rule, dtype, seed
):
    """Thirty updates on end after the warm-up: rows that are no multiple of any vector, or of any piece."""
    space, choices = spaces.Box(-np.inf, np.inf, (features,), np.float64), spaces.Discrete(actions)
    changes = {
        "bottleneck_books": books,
        "bottleneck_pairs": pairs,
        "bottleneck_key_width": key_width,
        "bottleneck_warm_up": warm_up,
        "step_size_rule": rule,
        "dtype": dtype,
    }
    with pytest.MonkeyPatch.context() as patch:
        use_instruction_set(instruction_set, patch)
        reference, native = pair("stream-ac", space, choices, seed=seed, **changes)
    for sample in random_samples(np.random.default_rng(seed), space, choices, warm_up + 30):
        expected, found = reference.learn_one(sample), native.learn_one(sample)
        assert found["value"] == pytest.approx(expected["value"], rel=1e-3, abs=1e-3)
    assert_same_state(native, reference, 1e-9 if dtype == "float64" else 1e-3)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set_agrees_with_torch(instruction_set, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    for rule in NATIVE_RULES:
        for dtype, tolerance in TOLERANCE.items():
            reference, native = pair("stream-ac", VECTOR, BOX, step_size_rule=rule, dtype=dtype, **SIZES)
            samples = list(random_samples(np.random.default_rng(5), VECTOR, BOX, WARM_UP + 20))
            for sample in samples[:WARM_UP]:
                reference.learn_one(sample)
            first = FIRST_TOLERANCE.get((rule, dtype))
            assert_single_updates_agree(
                reference, native, samples[WARM_UP:], tolerance, first_tolerance=first
            )


@pytest.mark.parametrize(
    "space",
    [spaces.Box(0.0, 1.0, (10, 10, 4), np.float32), spaces.Box(0, 255, (2, 9, 9), np.uint8)],
    ids=["grid", "bytes"],
)
def test_pictures_are_looked_up_as_in_torch(space):
    reference, native = pair("stream-q", space, DISCRETE, dtype="float64", **SIZES)
    samples = random_samples(np.random.default_rng(2), space, DISCRETE, WARM_UP + 20)
    assert_single_updates_agree(reference, native, samples, TOLERANCE["float64"])


def test_refreshes_of_the_value_agree_with_torch():
    """What a refresh writes, the native step has to see."""
    reference, native = learned("stream-ac", BOX, 160, finetune_every=9, finetune_steps=3, finetune_batch=4)
    assert_same_state(native, reference, 1e-9)


# --- what is looked up -------------------------------------------------------------------------------------


def test_of_keys_that_are_equally_near_the_first_is_found():
    """As a warm-up leaves them, where an observation was taken for two keys."""
    for agent in learned(bottleneck_pairs=70):
        state = agent.state_dict()
        state["memory.keys"][:, 1:] = state["memory.keys"][:, :1]
        values = state["value.parameters"].view(5, 70, 4)
        values[:] = 0.0
        values[:, 0, 2] = 1.0
        agent.load_state_dict(state)
        for observation in np.random.default_rng(0).standard_normal((20, 17)):
            assert agent.act(observation, explore=False) == 2


def test_observations_too_large_to_be_squared_find_the_first_key_too():
    space = spaces.Box(-np.inf, np.inf, (17,), np.float32)
    agents = pair("stream-q", space, DISCRETE, time_feature=True, **{**SIZES, "bottleneck_warm_up": 0})
    for agent in agents:
        state = agent.state_dict()
        state["value.parameters"].view(5, 30, 4)[:, 0, 3] = 1.0
        agent.load_state_dict(state)
        assert agent.act(np.full(17, 3e38, np.float32), explore=False) == 3


def test_what_was_found_before_is_not_taken_for_what_other_keys_find():
    reference, native = learned()
    seen = np.random.default_rng(3).standard_normal(17)
    native.act(seen, explore=False)
    state = native.state_dict()
    state["memory.keys"] = state["memory.keys"].flip(1)
    state["memory.projection"] = state["memory.projection"].flip(1)
    state["value.parameters"] = torch.randn(state["value.parameters"].shape, dtype=torch.float64)
    for agent in (reference, native):
        agent.load_state_dict(state)
    sample = Transition(seen, 1, 0.5, seen, False, False)
    for agent in (reference, native):
        agent.learn_one(sample)
    assert_same_state(native, reference, 1e-12)


def test_remembering_ends_the_warm_up_as_in_torch():
    agents = pair("stream-ac", VECTOR, BOX, dtype="float64", **SIZES)
    random = np.random.default_rng(0)
    for sample in random_samples(random, VECTOR, BOX, WARM_UP - 10):
        for agent in agents:
            agent.learn_one(sample)
    for step in range(10):
        seen = random.standard_normal(17)
        for agent in agents:
            assert not agent.memory.is_frozen
            agent.act(random.standard_normal(17), explore=False)  # must not be taken for what is remembered
            agent.remember(seen)
            if step == 4:
                agent.forget()
        assert_same_state(agents[1], agents[0], 1e-9)
    assert all(agent.memory.is_frozen for agent in agents)
    for sample in random_samples(random, VECTOR, BOX, 10):
        for agent in agents:
            agent.learn_one(sample)
    assert_same_state(agents[1], agents[0], 1e-9)


# --- going on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", NATIVE_RULES)
@pytest.mark.parametrize(("name", "actions"), LEARNERS)
def test_a_run_may_change_its_back_end_at_any_state(name, actions, rule):
    """Between two moves of the keys, right before the last one, right after it, and later."""
    changes = {"step_size_rule": rule, "dtype": "float64", **SIZES}
    reference = pair(name, VECTOR, actions, **changes)[0]
    samples = list(random_samples(np.random.default_rng(7), VECTOR, actions, 130))
    for sample in samples:
        reference.learn_one(sample)
    current, other = pair(name, VECTOR, actions, **changes)
    start = 0
    for end in (30, WARM_UP - 1, WARM_UP, WARM_UP + 1, 100, 130):
        for sample in samples[start:end]:
            current.learn_one(sample)
        other.load_state_dict(current.state_dict())
        current, other, start = other, current, end
    assert_same_state(current, reference, 1e-9)


@pytest.mark.parametrize("name", ["stream-ac", "stream-q", "stream-sarsa"])
def test_what_the_engine_keeps_changes_no_bit(name):
    keeps, forgets = (pair(name, VECTOR, DISCRETE, **SIZES)[1] for _ in range(2))
    for sample in random_samples(np.random.default_rng(14), VECTOR, DISCRETE, WARM_UP + 20):
        forgets.load_state_dict(forgets.state_dict())
        assert forgets.act(sample.observation) == keeps.act(sample.observation)
        forgets.load_state_dict(forgets.state_dict())
        forgets.learn_one(sample)
        keeps.learn_one(sample)
    assert bits(forgets) == bits(keeps)


def test_keys_that_fail_to_move_let_the_learner_go_on(monkeypatch):
    """Ctrl-C may come while Python moves them: the observations that were waiting are then gone."""

    def interrupted(memory, count):
        assert count == 64
        raise KeyboardInterrupt

    move_keys = BottleneckMemory.move_keys
    monkeypatch.setattr(BottleneckMemory, "move_keys", interrupted)
    native = pair("stream-td", VECTOR, None, **SIZES)[1]
    samples = list(random_samples(np.random.default_rng(6), VECTOR, None, 2 * WARM_UP))
    for sample in samples[:63]:
        native.learn_one(sample)
    with pytest.raises(KeyboardInterrupt):
        native.learn_one(samples[63])
    monkeypatch.setattr(BottleneckMemory, "move_keys", move_keys)
    assert native.state_dict()["memory.waiting"].shape == (0, 17)
    resumed = pair("stream-td", VECTOR, None, **SIZES)[1]
    resumed.load_state_dict(native.state_dict())
    for sample in samples[64:]:
        resumed.learn_one(sample)
    assert resumed.memory.is_frozen


def test_a_state_with_more_observations_waiting_than_ever_do_is_refused():
    native = learned(count=20)[1]
    state = native.state_dict()
    assert len(state["memory.waiting"]) == 20
    state["memory.waiting"] = torch.zeros(64, 17, dtype=torch.float64)
    with pytest.raises(ValueError, match="64 observations wait in the state"):
        native.load_state_dict(state)


# --- what runs natively ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "actions"), LEARNERS)
def test_by_default_it_runs_natively(name, actions):
    kind = AGENTS[name]
    arguments = (VECTOR,) if actions is None else (VECTOR, actions)
    assert kind(*arguments, config=kind.Config(network="bottleneck")).native is not None


def test_books_of_another_agent_leave_the_network_to_torch():
    """The learner's own memory would not move their keys."""
    books = BottleneckMemory(17, warm_up=0)
    assert StreamTD(VECTOR, network=books.reader).native is None
    with pytest.raises(UsageError, match="looks up in other books than the learner's"):
        StreamTD(VECTOR, network=books.reader, backend="native")


@pytest.fixture
def spec(monkeypatch):
    """What the native step of a small stream-TD with a bottleneck is made from."""
    seen = {}

    def keep(given):
        seen.update(given)
        return make_stream_step(given)

    monkeypatch.setattr("streamwise.agents.native.make_stream_step", keep)
    StreamTD(VECTOR, config=StreamTD.Config(network="bottleneck", **SIZES))
    return seen


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([("bottleneck", 16, 1)], "layer 0: takes another number of inputs"),
        ([("bottleneck", 17, 2)], "parameters must hold 300 numbers"),
        ([("bottleneck", 17)], "layer 0: too few numbers"),
        ([("bottleneck", 17, 1), ("linear", 1, 1)], "layer 0: a bottleneck is all of a network"),
        ([("linear", 17, 17), ("bottleneck", 17, 1)], "layer 1: a bottleneck is all of a network"),
    ],
)
def test_a_bottleneck_that_does_not_fit_is_refused(spec, layers, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_stream_step({**spec, "value": {**spec["value"], "layers": layers}})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shape": [5, 30, 3, 16, 64]}, "books.shape must be"),
        ({"shape": [5, 30, 0, 17, 64]}, "books.shape is out of range"),
        ({"shape": [1 << 28, 30, 1 << 28, 17, 64]}, "books.shape is out of range"),
        ({"keys": torch.zeros(449)}, "keys has the wrong shape"),
        ({"projection": torch.zeros(255, dtype=torch.float64)}, "projection must hold float32"),
        ({"waiting": torch.zeros(64 * 16)}, "waiting has the wrong shape"),
        ({"counters": np.zeros(3, np.int64)}, "counters has the wrong shape"),
    ],
)
def test_books_that_do_not_fit_are_refused_by_name(spec, changes, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make_stream_step({**spec, "books": {**spec["books"], **changes}})


def test_a_bottleneck_without_keys_is_refused(spec):
    with pytest.raises(ValueError, match="there are no keys to look up by"):
        make_stream_step({**spec, "books": None})
