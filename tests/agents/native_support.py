"""What tests of the native step share: learners in the same state, samples, and what it is to agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from streamwise.agents import AGENTS
from streamwise.kernels import native_info
from streamwise.kernels.stream_step import INSTRUCTION_SETS, make_stream_step
from streamwise.streams import Transition

VECTOR = spaces.Box(-np.inf, np.inf, (17,), np.float64)
GRID = spaces.Box(0.0, 1.0, (10, 10, 4), np.float32)
FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
BOX, DISCRETE = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(4)
LEARNERS = [("stream-ac", BOX), ("stream-ac", DISCRETE), ("stream-q", DISCRETE), ("stream-sarsa", DISCRETE)]
LEARNERS = [pytest.param(*learner, id=f"{learner[0]}-{type(learner[1]).__name__}") for learner in LEARNERS]
LEARNERS.append(pytest.param("stream-td", None, id="stream-td"))

# One update in float32 sums thousands of products in another order, which costs a few last digits.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
# The first intentional updates divide each gradient by its own size: where a sum over a random observation
# all but cancels, its rounding is divided too. Torch's own float32 is then as far from float64.
FIRST_TOLERANCE = {("intentional", "float32"): 1e-4}


def pair(name, observations, actions, *, seed=0, network=None, **changes):
    """A torch learner and a native one in the same state."""
    kind = AGENTS[name]
    config = kind.Config(**changes)
    return tuple(
        kind(observations, actions, config, seed=seed, network=network, backend=backend)
        for backend in ("torch", "native")
    )


def assert_same_state(native, reference, tolerance):
    """Every tensor agrees to `tolerance`, relative to its own largest entry."""
    found, expected = native.state_dict(), reference.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not tensor.is_floating_point():
            assert torch.equal(found[name], tensor), name
            continue
        if not tensor.numel():
            assert found[name].shape == tensor.shape, name
            continue
        scale = tensor.abs().max().item() or 1.0
        difference = (found[name] - tensor).abs().max().item()
        assert difference <= tolerance * scale, (
            f"{name} differs by {difference / scale:.1e} of its largest entry"
        )


def random_samples(random, space, actions, count):
    """Observations of any size and shape of tail, with episodes that end both ways."""

    def observe():
        if space.dtype == np.uint8:
            return random.integers(0, 256, space.shape).astype(np.uint8)
        return (random.standard_normal(space.shape) * np.exp(random.uniform(-2, 3))).astype(space.dtype)

    observation = observe()
    for _ in range(count):
        following = observe()
        if actions is None:
            action = None
        elif isinstance(actions, spaces.Discrete):
            action = int(random.integers(actions.n))
        else:
            action = random.standard_normal(actions.shape).astype(actions.dtype)
        end = random.uniform()
        reward = float(random.standard_normal() * np.exp(random.uniform(-3, 3)))
        yield Transition(observation, action, reward, following, end < 0.1, 0.1 <= end < 0.2)
        observation = observe() if end < 0.2 else following


def assert_single_updates_agree(reference, native, samples, tolerance, *, first_tolerance=None, exact=None):
    """first_tolerance: of the first ten updates. exact: the reference in float64, which decides where float32
    leaves two answers: where LeakyReLU bends, a number within rounding of zero may fall on either side.
    """
    usual = tolerance
    for count, sample in enumerate(samples):
        tolerance = first_tolerance if first_tolerance and count < 10 else usual
        before = reference.state_dict()
        native.load_state_dict(before)
        expected, found = reference.learn_one(sample), native.learn_one(sample)
        assert list(found) == list(expected)
        try:
            assert_same_state(native, reference, tolerance)
        except AssertionError:
            if exact is None:
                raise
            exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in before.items()})
            exact.learn_one(sample)
            assert_same_state(native, exact, tolerance)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=20 * tolerance, abs=20 * tolerance), name


def use_instruction_set(instruction_set, monkeypatch):
    """Make every native step of this test with it; skip the test where the processor lacks it."""
    widest = native_info().instruction_set
    if widest not in INSTRUCTION_SETS or INSTRUCTION_SETS.index(instruction_set) > INSTRUCTION_SETS.index(
        widest
    ):
        pytest.skip(f"this processor has no {instruction_set}")
    monkeypatch.setattr(
        "streamwise.agents.native.make_stream_step", lambda spec: make_stream_step(spec, instruction_set)
    )
