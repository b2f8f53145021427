"""What several test files of the agents share: a small world, stand-ins, and the list of learners."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from gymnasium import spaces
from hypothesis import settings
from torch import nn

from streamwise.agents import AGENTS, StepSizeRule
from streamwise.agents.statistics import RewardScaler, TransitionNormalizer
from streamwise.kernels import native_info
from streamwise.streams import Transition

FEATURES = 12  # sparse initialization cuts every weight of a unit with fewer than 10 inputs
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (FEATURES,), np.float64)
HIDDEN = 11
BOX_ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
DISCRETE_ACTIONS = spaces.Discrete(3)
RULES = get_args(StepSizeRule)
NATIVE_RULES = ("obgd", "adaptive-obgd", "intentional")  # those of them that the engine has a kernel for

# Under AddressSanitizer every access is looked at, and each takes longer: fewer samples of every shape do.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

# The same examples every time: a red test means a changed program, never an unlucky draw.
same_examples = settings(max_examples=60, deadline=None, derandomize=True)


# Small enough to be full, and to leave chunks out, in one of the World's short episodes.
MEMORIES: dict[str, dict[str, Any]] = {
    "none": {},
    "hcam": {
        "memory": "hcam",
        "memory_features": 4,
        "memory_heads": 2,
        "memory_reads": 2,
        "memory_random_reads": 1,
        "memory_chunk_length": 1,
        "memory_capacity": 4,
    },
    "gru": {"memory": "gru", "memory_features": 4},
}


@dataclass(frozen=True)
class Case:
    """One learner on one kind of action and one back end, for the contract tests."""

    name: str
    actions: spaces.Space[Any] | None
    backend: str
    memory: str = "none"

    def make(self, *, seed: int = 0, network: Any = None, **changes: Any) -> Any:
        agent = AGENTS[self.name]
        memory = {} if network is not None else MEMORIES[self.memory]
        config = agent.Config(**{"hidden_size": HIDDEN, **memory, **changes})
        # A network or rule of one's own may have no native kernel; "auto" is what a user would say then.
        has_kernel = network is None and changes.get("step_size_rule", "intentional") in NATIVE_RULES
        backend = self.backend if has_kernel else {"native": "auto"}.get(self.backend, self.backend)
        return agent(OBSERVATIONS, self.actions, config, seed=seed, network=network, backend=backend)

    def __str__(self) -> str:
        memory = "" if self.memory == "none" else f"-{self.memory}"
        return f"{self.name}-{type(self.actions).__name__}-{self.backend}{memory}"


# A new learner is one more line here, and meets every check of the contract.
LEARNERS = [
    ("stream-ac", BOX_ACTIONS),
    ("stream-ac", DISCRETE_ACTIONS),
    ("stream-q", DISCRETE_ACTIONS),
    ("stream-sarsa", DISCRETE_ACTIONS),
    ("stream-td", None),
]
BACKENDS = ["torch"] if native_info() is None else ["torch", "native"]
CASES = [
    *(Case(*learner, backend) for backend in BACKENDS for learner in LEARNERS),
    # Each memory with one learner on each back end: how they read and remember is the same code for all.
    *(Case(*LEARNERS[1], backend, "hcam") for backend in BACKENDS),
    *(Case(*LEARNERS[0], backend, "gru") for backend in BACKENDS),
]


def cases(name: str) -> list[Case]:
    """Every case of one learner, without a memory."""
    return [case for case in CASES if case.name == name and case.memory == "none"]


class World:
    """A world where actions matter and episodes end both ways; deepcopy forks it.

    The hidden place moves by the action and by noise; the reward is highest near zero. An episode is cut
    after `time_limit_steps`, or ends when the place leaves [-3, 3].
    """

    def __init__(self, seed: int = 0, time_limit_steps: int = 7) -> None:
        self.random = np.random.default_rng(seed)
        self.time_limit_steps = time_limit_steps
        self.reset()

    def reset(self) -> None:
        self.place, self.steps = float(self.random.normal()), 0

    @property
    def observation(self) -> np.ndarray:
        waves = [math.sin(k * self.place + k) for k in range(1, FEATURES - 1)]
        return np.array([self.place, 40.0 + 5.0 * self.steps, *waves])

    def step(self, action: Any) -> Transition:
        before = self.observation
        push = 0.0 if action is None else float(np.mean(np.asarray(action))) - 0.9 * np.isscalar(action)
        self.place += 0.7 * push + float(self.random.normal())
        self.steps += 1
        terminated = abs(self.place) > 3.0
        truncated = not terminated and self.steps == self.time_limit_steps
        transition = Transition(before, action, 1.0 - self.place**2, self.observation, terminated, truncated)
        if terminated or truncated:
            self.reset()
        return transition


def action_of(agent: Any, observation: np.ndarray) -> Any:
    """The agent's action, or None from a learner that only predicts."""
    return agent.act(observation) if hasattr(agent, "act") else None


def live(agent: Any, world: World, steps: int) -> list[dict[str, Any]]:
    """Let the agent act and learn; return everything it showed: actions and metrics, step by step."""
    shown = []
    for _ in range(steps):
        transition = world.step(action_of(agent, world.observation))
        metrics = agent.learn_one(transition)
        shown.append({"action": np.asarray(transition.action).tolist(), **metrics})
    return shown


def recorded(case: Case, steps: int, seed: int = 0) -> list[Transition]:
    """Transitions with random actions of the case's kind."""
    world, random = World(seed), np.random.default_rng(seed + 1)
    transitions = []
    for _ in range(steps):
        if isinstance(case.actions, spaces.Box):
            action: Any = random.normal(size=2).astype(np.float32)
        else:
            action = None if case.actions is None else int(random.integers(3))
        transitions.append(world.step(action))
    return transitions


def bits(agent: Any) -> dict[str, bytes]:
    """The agent's whole state, bit for bit."""
    return {name: tensor.numpy().tobytes() for name, tensor in agent.state_dict().items()}


def traces(agent: Any) -> dict[str, torch.Tensor]:
    """Every eligibility trace of the agent."""
    return {name: tensor for name, tensor in agent.state_dict().items() if name.endswith(".trace")}


class UnitScale(RewardScaler):
    """Rewards, and so predictions, in their own units."""

    deviation = 1.0


class IdentityNormalizer(TransitionNormalizer):
    """Stands in for an agent's normalizer where a test needs the numbers of the plain algorithm."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rewards = UnitScale(0.0)

    def observe(self, observation: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(observation)).to(self.dtype)

    def learn_one(self, transition: Transition, value_ends: bool) -> tuple[torch.Tensor, float, torch.Tensor]:
        self.steps += 1
        return (
            self.observe(transition.observation),
            transition.reward,
            self.observe(transition.next_observation),
        )


def linear_agent(name: str, features: int, actions: Any = None, weights: Any = None, **changes: Any) -> Any:
    """An agent with one Linear without bias, in float64, that sees observations and rewards as they are."""
    agent_type = AGENTS[name]
    config = agent_type.Config(**{"dtype": "float64", **changes})
    space = spaces.Box(-np.inf, np.inf, (features,), np.float64)

    def build(outputs: int) -> nn.Module:
        layer = nn.Linear(features, outputs, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    agent = agent_type(space, actions, config, network=build, backend="torch")
    agent.samples = IdentityNormalizer((features,), config.discount, config.torch_dtype)
    if weights is not None:
        agent.network.parameters.copy_(torch.as_tensor(weights))
    return agent


def episode_starts(agent: Any) -> bool:
    return bool(agent.state_dict()["episode_starts"])


def one_hot(index: int, features: int) -> np.ndarray:
    return np.eye(features)[index]


def fork(world: World) -> World:
    return copy.deepcopy(world)
