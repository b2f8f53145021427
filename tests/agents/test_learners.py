"""The contract of every learner. One list of cases feeds every check: a new learner is a line there."""

from __future__ import annotations

import inspect
import itertools
import re

import numpy as np
import pytest
import torch
from agents_support import (
    AGENTS,
    CASES,
    FEATURES,
    HIDDEN,
    RULES,
    Case,
    World,
    action_of,
    bits,
    fork,
    live,
    recorded,
    traces,
)
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from torch import nn

from streamwise.agents.networks import published_network
from streamwise.streams import NonFiniteSampleError, Transition

every_learner = pytest.mark.parametrize("case", CASES, ids=str)
every_agent = pytest.mark.parametrize("case", [case for case in CASES if case.actions is not None], ids=str)
every_rule = pytest.mark.parametrize("rule", RULES)


def test_no_learner_escapes_the_contract():
    assert {case.name for case in CASES} == set(AGENTS)


@every_learner
@every_rule
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saving_and_loading_mid_stream_changes_no_later_number(case: Case, rule, dtype, tmp_path):
    """By way of a safetensors file, into an agent made with another seed that has lived another life."""
    agent, world = case.make(seed=1, step_size_rule=rule, dtype=dtype), World(1)
    live(agent, world, 50)
    while world.steps == 0:  # save in the middle of an episode
        live(agent, world, 1)
    save_file(agent.state_dict(), tmp_path / "state.safetensors")
    resumed = case.make(seed=2, step_size_rule=rule, dtype=dtype)
    live(resumed, World(7), 13)
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert bits(resumed) == bits(agent)
    assert live(resumed, fork(world), 50) == live(agent, world, 50)
    assert bits(resumed) == bits(agent)


@every_learner
@pytest.mark.parametrize(
    "kind", [float, int, np.float32, np.float64, np.int64], ids=lambda kind: kind.__name__
)
def test_a_reward_of_any_number_type_is_learned_from_and_survives_loading(case: Case, kind):
    """Environments return all of these; the running return must not take their precision."""
    stream = recorded(case, 60)
    agent, resumed = case.make(), case.make(seed=9)
    for i, transition in enumerate(stream):
        rough = transition._replace(reward=kind(10.0 * transition.reward))
        agent.learn_one(rough)
        if i == 29:
            resumed.load_state_dict(agent.state_dict())
        if i > 29:
            resumed.learn_one(rough)
    assert bits(resumed) == bits(agent)


@every_learner
@every_rule
def test_the_same_seed_gives_the_same_run(case: Case, rule):
    first, second, other = (case.make(seed=seed, step_size_rule=rule) for seed in (3, 3, 4))
    assert live(first, World(), 40) == live(second, World(), 40)
    assert bits(first) == bits(second)
    live(other, World(), 40)
    assert bits(other) != bits(first)


@every_learner
def test_draws_come_from_the_state_and_not_from_global_generators(case: Case):
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        runs.append(live(case.make(), World(), 30))
    assert runs[0] == runs[1]


@every_learner
@every_rule
def test_a_state_is_a_copy(case: Case, rule):
    agent = case.make(step_size_rule=rule)
    live(agent, World(), 10)
    before, state = bits(agent), agent.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in state.values():
        tensor.zero_() if tensor.dtype == torch.bool else tensor.fill_(77)
    assert bits(agent) == before
    state = agent.state_dict()
    live(agent, World(5), 10)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@every_learner
@every_rule
def test_a_loaded_state_is_not_shared_with_the_agent(case: Case, rule):
    agent = case.make(step_size_rule=rule)
    live(agent, World(), 10)
    state = agent.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    resumed = case.make(step_size_rule=rule)
    resumed.load_state_dict(state)
    live(resumed, World(5), 10)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@every_learner
@every_rule
def test_a_state_holds_contiguous_tensors_that_share_no_memory(case: Case, rule):
    state = case.make(step_size_rule=rule).state_dict()
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


@every_learner
def test_everything_that_learning_changes_is_in_the_state(case: Case):
    """A counter left out would surface here as a metric that differs after loading."""
    agent, resumed = case.make(), case.make(seed=5)
    live(agent, World(), 50)
    resumed.load_state_dict(agent.state_dict())
    for transition in recorded(case, 20, seed=11):
        assert agent.learn_one(transition) == resumed.learn_one(transition)


@every_learner
def test_acting_greedily_and_predicting_change_nothing(case: Case):
    """An evaluation in the middle of a run must not be seen in the run.

    For stream-SARSA this takes in the pending action: the update's target was the value of that very action,
    so the next exploring `act` has to take it, evaluation or not.
    """
    agent, world = case.make(), World()
    for _ in range(40):
        before = bits(agent)
        for observation in (world.observation, World(3).observation):
            if hasattr(agent, "act"):
                agent.act(observation, explore=False)
            if hasattr(agent, "predict_one"):
                agent.predict_one(observation)
        assert bits(agent) == before
        live(agent, world, 1)


@every_learner
def test_learning_leaves_the_sample_alone(case: Case):
    agent = case.make()
    for transition in recorded(case, 20):
        copy = [np.array(part) for part in transition]
        agent.learn_one(transition)
        assert all(
            np.array_equal(part, was) for part, was in zip(transition, copy, strict=True) if part is not None
        )


@every_agent
def test_an_action_fits_the_space(case: Case):
    agent, world = case.make(), World()
    for explore in (True, False):
        action = agent.act(world.observation, explore=explore)
        if isinstance(case.actions, spaces.Discrete):
            assert type(action) is int
            assert case.actions.contains(action)
        else:
            assert (action.shape, action.dtype) == (case.actions.shape, case.actions.dtype)


@every_learner
@every_rule
def test_metrics_are_finite_floats(case: Case, rule):
    agent = case.make(step_size_rule=rule)
    for shown in live(agent, World(), 60):
        numbers = {name: value for name, value in shown.items() if name != "action"}
        assert all(type(value) is float and np.isfinite(value) for value in numbers.values()), numbers


@every_learner
@every_rule
@pytest.mark.parametrize("bootstrap", [True, False])
def test_traces_are_zero_after_every_episode_boundary_and_only_grow_within(case: Case, rule, bootstrap):
    agent = case.make(step_size_rule=rule, bootstrap_on_truncation=bootstrap)
    terminations = truncations = 0
    for transition in recorded(case, 160):
        agent.learn_one(transition)
        ended = transition.terminated or transition.truncated
        if ended:
            assert not any(trace.any() for trace in traces(agent).values())
        elif case.name != "stream-q":
            assert all(trace.any() for trace in traces(agent).values())
        terminations += transition.terminated
        truncations += transition.truncated
    assert terminations > 3
    assert truncations > 3
    assert len(traces(agent)) == (2 if case.name == "stream-ac" else 1)


@every_learner
def test_what_follows_a_time_limit_counts_only_with_bootstrapping(case: Case):
    """Two worlds that differ in nothing but what is seen after the last step."""
    for ending, bootstrap, matters in (
        ("truncated", True, True),
        ("truncated", False, False),
        ("terminated", True, False),
        ("terminated", False, False),
    ):
        weights = []
        for after in (np.ones(FEATURES), -np.ones(FEATURES)):
            agent = case.make(bootstrap_on_truncation=bootstrap)
            stream = recorded(case, 5)
            for transition in stream[:4]:
                agent.learn_one(transition)
            last = stream[4]._replace(next_observation=after, terminated=False, truncated=False)
            agent.learn_one(last._replace(**{ending: True}))
            weights.append([v for k, v in bits(agent).items() if k.endswith(".parameters")])
        assert (weights[0] != weights[1]) == matters, (ending, bootstrap)


@every_learner
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("field", "named"), [("observation", "observation"), ("next_observation", "next observation")]
)
def test_an_observation_that_is_not_finite_is_refused_before_anything_changes(case: Case, bad, field, named):
    agent = case.make()
    *before, last = recorded(case, 12)
    for transition in before:
        agent.learn_one(transition)
    state = bits(agent)
    spoiled = getattr(last, field).copy()
    spoiled[1] = bad
    with pytest.raises(NonFiniteSampleError, match=rf"step 12: feature 1 of the {named} is {bad}"):
        agent.learn_one(last._replace(**{field: spoiled}))
    assert bits(agent) == state
    agent.learn_one(last)


@every_learner
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_a_reward_that_is_not_finite_is_refused_before_anything_changes(case: Case, bad):
    agent = case.make()
    transition = recorded(case, 1)[0]
    state = bits(agent)
    with pytest.raises(NonFiniteSampleError, match=rf"step 1: the reward is {bad}"):
        agent.learn_one(transition._replace(reward=bad))
    assert bits(agent) == state


@pytest.mark.parametrize("case", [case for case in CASES if isinstance(case.actions, spaces.Box)], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_refused_before_anything_changes(case: Case, bad):
    agent = case.make()
    *before, last = recorded(case, 5)
    for transition in before:
        agent.learn_one(transition)
    state = bits(agent)
    with pytest.raises(NonFiniteSampleError, match=rf"step 5: feature 1 of the action is {bad}"):
        agent.learn_one(last._replace(action=np.array([0.0, bad], np.float32)))
    assert bits(agent) == state


@every_learner
@pytest.mark.parametrize("field", ["observation", "next_observation"])
@pytest.mark.parametrize("shape", [(), (11,), (13,), (1, 12), (12, 1)])
def test_an_observation_of_the_wrong_shape_is_refused_before_anything_changes(case: Case, field, shape):
    agent = case.make()
    *before, last = recorded(case, 3)
    for transition in before:
        agent.learn_one(transition)
    state = bits(agent)
    with pytest.raises(
        ValueError, match=re.escape(f"step 3: the {field.replace('_', ' ')} has shape {shape}")
    ):
        agent.learn_one(last._replace(**{field: np.zeros(shape)}))
    assert bits(agent) == state


@every_agent
@pytest.mark.parametrize("action", [-1, 3, 1.0, float("nan"), None, np.zeros(3), np.zeros((2, 1))], ids=repr)
def test_a_wrong_action_is_refused_before_anything_changes(case: Case, action):
    agent = case.make()
    *before, last = recorded(case, 5)
    for transition in before:
        agent.learn_one(transition)
    state = bits(agent)
    with pytest.raises(ValueError, match="action"):
        agent.learn_one(last._replace(action=action))
    assert bits(agent) == state


@every_learner
def test_acting_on_an_observation_that_is_not_finite_is_refused_before_anything_is_drawn(case: Case):
    agent = case.make()
    verb = agent.act if hasattr(agent, "act") else agent.predict_one
    state = bits(agent)
    for _ in range(5):  # epsilon is 1 at first: no action may come out, not even a random one
        with pytest.raises(NonFiniteSampleError, match="feature 2 of the observation is nan"):
            verb(np.array([0.0, 0.0, np.nan] + [0.0] * (FEATURES - 3)))
        with pytest.raises(ValueError, match=re.escape("shape (2,)")):
            verb(np.zeros(2))
    assert bits(agent) == state


@every_learner
def test_precision_is_what_the_settings_say(case: Case):
    for dtype in ("float32", "float64"):
        state = case.make(dtype=dtype).state_dict()
        weights = [v for k, v in state.items() if k.endswith((".parameters", ".trace", ".second_moment"))]
        assert {tensor.dtype for tensor in weights} == {getattr(torch, dtype)}
        assert state["observations.mean"].dtype == torch.float64


@every_learner
def test_float32_and_float64_start_alike_and_learn_alike(case: Case):
    """Same stream, same seed: after a few steps the two differ by rounding only."""
    ends = []
    for dtype in ("float32", "float64"):
        agent = case.make(dtype=dtype, step_size_rule="obgd")
        for transition in recorded(case, 5):
            agent.learn_one(transition)
        ends.append({k: v.double() for k, v in agent.state_dict().items() if k.endswith(".parameters")})
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-3, atol=1e-4)


@every_learner
def test_a_network_of_ones_own_takes_the_place_of_the_published_one(case: Case):
    made = []

    def build(outputs: int) -> nn.Module:
        made.append(nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs)))
        return made[-1]

    state = case.make(network=build).state_dict()
    shared, outputs = 6 * (FEATURES + 1), [module[-1].out_features for module in made]
    wanted = {
        "stream-ac": [1, 4 if isinstance(case.actions, spaces.Box) else 3],
        "stream-td": [1],
    }.get(case.name, [3])
    assert outputs == wanted
    sizes = sorted(len(tensor) for name, tensor in state.items() if name.endswith(".parameters"))
    assert sizes == [shared + 7 * n for n in wanted]


@every_learner
def test_learning_reaches_the_very_module_the_user_made(case: Case):
    made = []

    def build(outputs: int) -> nn.Module:
        made.append(nn.Linear(FEATURES, outputs))
        return made[-1]

    agent = case.make(network=build)
    before = [module.weight.detach().clone() for module in made]
    for transition in recorded(case, 3):
        agent.learn_one(transition)
    assert not any(torch.equal(module.weight, was) for module, was in zip(made, before, strict=True))


@every_learner
def test_the_seed_of_an_agent_is_the_seed_of_its_published_network(case: Case):
    agent = case.make(seed=6, dtype="float32")
    outputs = {"stream-td": 1, "stream-ac": 1}.get(case.name, 3)
    memory = agent.config.memory_for((FEATURES,), None, 6)
    first = published_network((FEATURES,), HIDDEN, 6, memory)(outputs)
    name = "critic.parameters" if case.name == "stream-ac" else "value.parameters"
    assert torch.equal(
        agent.state_dict()[name], torch.cat([p.detach().flatten() for p in first.parameters()])
    )


@every_learner
def test_to_forget_is_what_the_end_of_an_episode_does(case: Case):
    """Nothing of the episode is left but what was learned; and nothing else is touched."""
    agent, world = case.make(), World(time_limit_steps=50)
    live(agent, world, 25)
    while world.steps == 0:
        live(agent, world, 1)
    before = agent.state_dict()
    agent.forget()
    after = agent.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    of_the_episode = {"episode_starts", "next_action", *traces(agent)}
    assert "episode_starts" in changed
    assert all(name in of_the_episode or name.startswith("memory.") for name in changed)
    assert not any(trace.any() for trace in traces(agent).values())
    assert after["episode_starts"]
    assert after.get("next_action", torch.tensor(-1)) == -1
    if case.memory == "hcam":
        assert after["memory.counters"][:2].tolist() == [0, 0]
    if case.memory == "gru":
        assert not after["memory.hidden"].any()


@every_learner
def test_images_are_learned_from_too(case: Case):
    """uint8 frames, as Atari gives them."""
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    agent = AGENTS[case.name](space, case.actions, backend=case.backend)
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (4, 84, 84)).astype(np.uint8) for _ in range(3)]
    for before, after in itertools.pairwise(frames):
        metrics = agent.learn_one(Transition(before, action_of(agent, before), 1.0, after, False, False))
        assert all(np.isfinite(value) for value in metrics.values())


@every_learner
def test_a_learner_has_the_verbs_and_nothing_else_public(case: Case):
    verbs = {"learn_one", "state_dict", "load_state_dict", "act", "predict_one", "remember", "forget"}
    methods = {
        name for name, _ in inspect.getmembers(AGENTS[case.name], inspect.isfunction) if name[0] != "_"
    }
    assert methods <= verbs
    assert {"learn_one", "state_dict", "load_state_dict"} <= methods
    assert methods & {"act", "predict_one"}
