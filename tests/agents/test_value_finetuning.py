"""A value's refreshes: what moves, by how much, and that nothing else changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from agents_support import BACKENDS, CASES, FEATURES, HIDDEN, OBSERVATIONS, World, bits, fork, live, recorded
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from streamwise.agents import AGENTS, StreamACConfig, StreamQ, StreamTD
from streamwise.agents.generator import CounterGenerator
from streamwise.agents.statistics import ObservationNormalizer
from streamwise.agents.value_finetuning import TransitionReservoir, head
from streamwise.runs.checkpoint import load, save
from streamwise.streams import NonFiniteSampleError, Transition, UsageError

PLAIN = [case for case in CASES if case.memory == "none"]
EVERY_CASE = pytest.mark.parametrize("case", PLAIN, ids=str)
GRID = spaces.Box(0.0, 1.0, (10, 10, 4), np.float32)


def value_network(agent):
    return agent.critic if hasattr(agent, "critic") else agent.network


def without_finetuning(state):
    return {name: value for name, value in state.items() if not name.startswith("finetuning.")}


# --- off, or not yet ---------------------------------------------------------------------------------------


@EVERY_CASE
def test_an_agent_that_is_never_refreshed_is_the_plain_agent(case):
    plain, never = case.make(), case.make(finetune_every=1000)
    assert live(plain, World(), 60) == live(never, World(), 60)
    assert not [name for name in bits(plain) if name.startswith("finetuning")]
    assert without_finetuning(bits(never)) == bits(plain)


# --- one refresh -------------------------------------------------------------------------------------------


def by_hand(agent, network, transitions, config, seed):
    """The head's weight and bias after one refresh, from the formula, one transition at a time."""
    draws = CounterGenerator(~seed)
    *layers, last = copy.deepcopy(network.module)
    body, weight, bias = nn.Sequential(*layers), last.weight.detach(), last.bias.detach()
    mean = agent.samples.observations.statistics.mean
    deviation = np.sqrt(agent.samples.observations.statistics.variance + 1e-8)
    epsilon = getattr(agent.config, "epsilon", lambda steps: 0.0)(agent.samples.steps)

    @torch.no_grad()
    def features(observation):
        return body(torch.from_numpy((observation - mean) / deviation)[None])[0]

    for _ in range(config["finetune_steps"]):
        moved_weight, moved_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for _ in range(config["finetune_batch"]):
            made = transitions[draws.integer(len(transitions))]
            row = made.action if weight.shape[0] > 1 else 0
            phi, values = features(made.observation), weight @ features(made.next_observation) + bias
            worth = values.max().item()
            if type(agent).__name__ == "StreamSARSA":
                worth = (1.0 - epsilon) * worth + epsilon * values.mean().item()
            target = made.reward / agent.samples.rewards.deviation
            if not (made.terminated or (made.truncated and not agent.config.bootstrap_on_truncation)):
                target += agent.config.discount * worth
            td_error = target - (weight[row] @ phi + bias[row]).item()
            moved_weight[row] += td_error * phi / config["finetune_batch"]
            moved_bias[row] += td_error / config["finetune_batch"]
        weight += config["finetune_step_size"] * moved_weight
        bias += config["finetune_step_size"] * moved_bias
    return weight, bias


@EVERY_CASE
@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_refresh_is_the_formula_and_moves_only_the_head(case, bootstrap):
    settings = {"dtype": "float64", "bootstrap_on_truncation": bootstrap}
    finetune = {"finetune_every": 30, "finetune_steps": 3, "finetune_batch": 5, "finetune_step_size": 0.05}
    plain, agent = case.make(seed=4, **settings), case.make(seed=4, **settings, **finetune)
    transitions = [
        made._replace(terminated=number % 4 == 0, truncated=number % 4 == 2)  # not the last
        for number, made in enumerate(recorded(case, 30))
    ]
    for transition in transitions:
        plain.learn_one(transition)
        agent.learn_one(transition)
    plain.state_dict(), agent.state_dict()  # which bring numbers over from native code

    weight, bias = by_hand(plain, value_network(plain), transitions, finetune, seed=4)
    last = value_network(agent).module[-1]
    torch.testing.assert_close(last.weight.detach(), weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(last.bias.detach(), bias, rtol=1e-10, atol=1e-12)
    assert not torch.equal(last.weight, value_network(plain).module[-1].weight)

    size = weight.numel() + bias.numel()
    for name, tensor in without_finetuning(agent.state_dict()).items():
        before = plain.state_dict()[name]
        if name in ("value.parameters", "critic.parameters"):
            assert torch.equal(tensor[:-size], before[:-size])
        elif name.endswith(".trace"):
            assert before.any() or case.name == "stream-q"  # which may have cut it
            assert not tensor.any()
        else:
            assert torch.equal(tensor, before), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_layers_move_along_the_gradient_of_a_constant_target(backend):
    """Finite differences of mean δ q(s, a), with δ as it was: a gradient through the target would show."""
    config = StreamQ.Config(
        dtype="float64",
        hidden_size=HIDDEN,
        finetune_every=20,
        finetune_steps=1,
        finetune_batch=8,
        finetune_step_size=1.0,
        finetune_modules="all",
    )
    case = next(case for case in PLAIN if case.name == "stream-q" and case.backend == backend)
    plain, agent = case.make(dtype="float64"), AGENTS["stream-q"](
        OBSERVATIONS, case.actions, config, backend=backend
    )  # fmt: skip
    transitions = recorded(case, 20)
    for transition in transitions:
        plain.learn_one(transition)
        agent.learn_one(transition)
    state = plain.state_dict()
    moved = agent.state_dict()["value.parameters"] - state["value.parameters"]

    draws = CounterGenerator(~0)
    batch = [transitions[draws.integer(20)] for _ in range(8)]
    seen, following = (
        torch.stack([plain.samples.observe(getattr(made, name)) for made in batch])
        for name in ("observation", "next_observation")
    )
    rewards = torch.tensor([made.reward / plain.samples.rewards.deviation for made in batch])
    going = torch.tensor([0.99 * (not made.terminated) for made in batch])
    actions = torch.tensor([made.action for made in batch])

    @torch.no_grad()
    def values():
        return plain.network.module(seen)[torch.arange(8), actions]

    with torch.no_grad():
        td_errors = rewards + going * plain.network.module(following).max(1).values - values()
    for index in np.random.default_rng(0).choice(len(moved), 30, replace=False).tolist():
        sides = []
        for change in (1e-6, -2e-6):
            plain.network.parameters[index] += change
            sides.append((td_errors * values()).mean().item())
        plain.network.parameters[index] += 1e-6
        assert moved[index].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_the_head_is_the_last_module_that_learns_anything():
    frozen = nn.LayerNorm(2).requires_grad_(False)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), frozen, nn.ReLU())
    weight, bias = head(network)
    assert weight is network[1].weight
    assert bias is network[1].bias


@pytest.mark.parametrize("passthrough", [0, 1])
def test_observations_are_normalized_together_as_one_by_one(passthrough):
    normalizer, random = ObservationNormalizer((FEATURES,), passthrough), np.random.default_rng(0)
    for _ in range(5):
        normalizer.update(random.normal(size=FEATURES))
    batch = random.normal(size=(4, 2, FEATURES))
    together = normalizer.normalize(batch, torch.float32)
    for i, j in np.ndindex(4, 2):
        assert torch.equal(together[i, j], normalizer.normalize(batch[i, j], torch.float32))


# --- both back ends ----------------------------------------------------------------------------------------

needs_native = pytest.mark.skipif("native" not in BACKENDS, reason="streamwise was built without kernels")


def both(name, actions, **changes):
    kind, finetune = AGENTS[name], {"finetune_every": 5, "finetune_steps": 2}
    config = kind.Config(dtype="float64", hidden_size=HIDDEN, **finetune, **changes)
    return [kind(OBSERVATIONS, actions, config, backend=backend) for backend in ("torch", "native")]


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@needs_native
@pytest.mark.parametrize("modules", ["head", "all"])
@pytest.mark.parametrize("case", [case for case in PLAIN if case.backend == "torch"], ids=str)
def test_native_and_torch_go_on_alike_through_refreshes(case, modules):
    """On end, acting in between: what the engine has computed before a refresh is not used after it."""
    reference, native = both(case.name, case.actions, finetune_modules=modules, step_size_rule="obgd")
    for transition in recorded(case, 60):
        for agent in (reference, native):
            agent.learn_one(transition)
        if case.actions is not None:
            found, expected = (agent.act(transition.next_observation) for agent in (native, reference))
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    assert_close(native.state_dict(), reference.state_dict(), 1e-8)


@needs_native
@pytest.mark.parametrize("modules", ["head", "all"])
@pytest.mark.parametrize("case", [case for case in PLAIN if case.backend == "torch"], ids=str)
def test_one_update_and_refresh_agree_from_the_same_state(case, modules):
    reference, native = both(case.name, case.actions, finetune_modules=modules)
    for transition in recorded(case, 40):
        native.load_state_dict(reference.state_dict())
        reference.learn_one(transition)
        native.learn_one(transition)
        assert_close(native.state_dict(), reference.state_dict(), 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_convolutional_network_is_refreshed_on_its_head(backend):
    config = StreamQ.Config(hidden_size=16, finetune_every=6, finetune_steps=2, finetune_batch=4)
    plain = StreamQ(GRID, spaces.Discrete(3), StreamQ.Config(hidden_size=16), backend=backend)
    agent = StreamQ(GRID, spaces.Discrete(3), config, backend=backend)
    random = np.random.default_rng(0)
    for _ in range(6):
        seen, following = random.integers(0, 2, (2, 10, 10, 4)).astype(np.float32)
        for learner in (plain, agent):
            learner.learn_one(Transition(seen, 1, 1.0, following, False, False))
    moved = agent.state_dict()["value.parameters"] != plain.state_dict()["value.parameters"]
    assert not moved[: -3 * 17].any()
    assert moved[-3 * 17 :].any()


# --- what is kept ------------------------------------------------------------------------------------------


def numbered(number):
    return Transition(np.full(1, number), None, float(number), np.full(1, -number), number % 2 == 0, False)


def filled(capacity, count, seed=0):
    reservoir = TransitionReservoir(capacity, (1,), np.dtype(np.float64), seed)
    for number in range(count):
        reservoir.add(numbered(number), number % 3, number % 2 == 0)
    return reservoir


def test_every_transition_has_the_same_chance_to_be_kept():
    counts = np.zeros(20)
    for seed in range(2000):
        kept = filled(5, 20, seed).outcomes[:, 0].astype(int)
        assert len(set(kept)) == 5
        counts[kept] += 1
    # Of one seed exactly 5 are kept: counts vary less than independent ones would.
    assert stats.chi2.sf(((counts - 500.0) ** 2 / (500.0 * 0.75)).sum() * 19 / 20, 19) > 0.01


def test_every_transition_that_is_kept_has_the_same_chance_to_be_drawn():
    _, outcomes = filled(10, 10).draw(5000)
    assert stats.chisquare(np.bincount(outcomes[:, 0].astype(int), minlength=10)).pvalue > 0.01


def test_what_is_kept_is_bounded_and_belongs_together():
    reservoir = filled(8, 500)
    observations, outcomes = reservoir.draw(50)
    numbers = outcomes[:, 0]
    assert len(reservoir) == 8
    assert max(numbers) > 8
    np.testing.assert_array_equal(observations[:, :, 0], np.stack([numbers, -numbers], 1))
    np.testing.assert_array_equal(outcomes[:, 1:], np.stack([numbers % 3, numbers % 2 == 0], 1))
    sizes = [
        sum(tensor.numel() for tensor in filled(8, count).state_dict("kept").values()) for count in (8, 9, 90)
    ]
    assert sizes[0] == sizes[1] == sizes[2]


def test_transitions_are_kept_in_the_dtype_of_their_space():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    agent = StreamTD(space, None, StreamTD.Config(finetune_every=10))
    frames = np.full(space.shape, 200, np.uint8)
    agent.learn_one(Transition(frames, None, 1.0, frames, False, False))
    kept = agent.state_dict()["finetuning.observations"]
    assert kept.shape == (1, 2, 4, 84, 84)
    assert kept.dtype == torch.uint8
    assert (kept == 200).all()


# --- going on ----------------------------------------------------------------------------------------------

REFRESHED = {"finetune_every": 7, "finetune_steps": 2, "finetune_batch": 3, "finetune_capacity": 10}


@EVERY_CASE
@settings(max_examples=8, deadline=None, derandomize=True)
@given(before=st.integers(0, 45), after=st.integers(1, 20))
def test_an_agent_goes_on_from_any_step_bit_for_bit(case, before, after):
    agent, world = case.make(seed=3, **REFRESHED), World()
    live(agent, world, before)
    state, elsewhere = agent.state_dict(), fork(world)
    resumed = case.make(seed=8, **REFRESHED)
    live(resumed, World(5), 12)
    resumed.load_state_dict(state)
    shown = live(agent, world, after)  # first: a state that shared its arrays would change here
    assert live(resumed, elsewhere, after) == shown
    assert bits(resumed) == bits(agent)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saved_agent_goes_on_with_what_it_kept(tmp_path, backend):
    case = next(case for case in PLAIN if case.name == "stream-q" and case.backend == backend)
    agent, world = case.make(seed=3, **REFRESHED), World()
    live(agent, world, 24)
    save(agent, tmp_path / "agent")
    resumed, elsewhere = load(tmp_path / "agent", backend=backend), fork(world)
    assert live(resumed, elsewhere, 30) == live(agent, world, 30)
    assert bits(resumed) == bits(agent)


def test_a_state_with_room_for_others_is_refused():
    case = PLAIN[0]
    agent, smaller = case.make(**REFRESHED), case.make(**{**REFRESHED, "finetune_capacity": 6})
    live(agent, World(), 20)
    with pytest.raises(ValueError, match=r"the state keeps transitions of shape \(10, 2, 12\) after 20"):
        smaller.load_state_dict(agent.state_dict())


@EVERY_CASE
def test_a_refused_sample_is_not_kept(case):
    agent = case.make(**REFRESHED)
    transitions = recorded(case, 7)
    for transition in transitions[:6]:
        agent.learn_one(transition)
    before = bits(agent)
    with pytest.raises(NonFiniteSampleError):
        agent.learn_one(transitions[6]._replace(reward=np.nan))
    assert bits(agent) == before


def test_nothing_is_drawn_from_torchs_generator():
    agent = PLAIN[0].make(**REFRESHED)
    before = torch.random.get_rng_state()
    live(agent, World(), 20)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- what it is for, and what it cannot be -----------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_learned_elsewhere_is_remembered_better(backend):
    """Two places with values of 1 and −1, one after the other, and observations that have much in common."""

    def error(**changes):
        config = StreamTD.Config(discount=0.0, hidden_size=32, **changes)
        agent, random = StreamTD(OBSERVATIONS, None, config, backend=backend), np.random.default_rng(0)
        places = random.normal(size=(2, FEATURES))
        for number in range(1200):
            place = number >= 600
            seen = places[int(place)] + random.normal(size=(2, FEATURES))
            reward = -1.0 if place else 1.0
            agent.learn_one(Transition(seen[0], None, reward, seen[1], False, False))
        tests = places[0] + random.normal(size=(200, FEATURES))
        return float(np.mean([abs(agent.predict_one(seen) - 1.0) for seen in tests]))

    plain, refreshed = error(), error(finetune_every=50)
    assert refreshed < 0.7 * plain


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"finetune_every": -1}, "finetune_every is -1; it must be 0 or more"),
        ({"finetune_every": 5, "finetune_steps": 0}, "finetune_steps is 0; it must be 1 or more"),
        ({"finetune_every": 5, "finetune_batch": 0}, "finetune_batch is 0; it must be 1 or more"),
        ({"finetune_every": 5, "finetune_capacity": 0}, "finetune_capacity is 0; it must be 1 or more"),
        ({"finetune_every": 5, "finetune_step_size": 0.0}, "finetune_step_size is 0.0; it must be above 0"),
        ({"finetune_every": 5, "finetune_step_size": np.nan}, "finetune_step_size is nan"),
        ({"finetune_every": 5, "finetune_modules": "body"}, "finetune_modules is 'body'; choose one of"),
        ({"finetune_steps": 5}, "finetune_steps has no effect without refreshes; set finetune_every"),
        ({"finetune_modules": "all"}, "finetune_modules has no effect without refreshes"),
        ({"finetune_every": 5, "memory": "gru"}, "finetune_every is 5, and memory 'gru'; choose one"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_in_one_line(changes, complaint):
    with pytest.raises(UsageError) as refused:
        StreamACConfig(**changes)
    assert str(refused.value).startswith(complaint)
    assert "\n" not in str(refused.value)
