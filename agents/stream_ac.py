"""Stream-AC(λ): an actor and a critic that learn from one transition at a time.

Source: Elsayed, Vasan and Mahmood (2024), "Streaming Deep Reinforcement Learning Finally Works",
arXiv:2410.14606; with `step_size_rule="intentional"`, Intentional AC of arXiv:2604.19033.

Departures from the published code: the first action of an episode is chosen before the observation it sees
has entered the running statistics; and where a truncated episode is bootstrapped, its traces are cleared all
the same (the Intentional code lets credit leak into the next episode).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from streamwise.agents.generator import CounterGenerator
from streamwise.agents.learner import Metrics, State
from streamwise.agents.native import Backend, native_step
from streamwise.agents.networks import FlatNetwork, NetworkBuilder, published_network
from streamwise.agents.policies import policy_for
from streamwise.agents.settings import StreamSettings, observation_shape
from streamwise.agents.statistics import TransitionNormalizer
from streamwise.agents.value_finetuning import ValueFinetuning
from streamwise.streams import Action, Transition, UsageError

__all__ = ["StreamAC", "StreamACConfig"]


@dataclass(frozen=True)
class StreamACConfig(StreamSettings):
    """Settings of stream-AC."""

    policy_overshoot_margin: float = 3.0
    """kappa of the policy, at least 1 (obgd, adaptive-obgd)."""
    policy_intended_change: float = 0.05
    """eta of the policy: change of the log-probability in one update (intentional)."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus, whose sign follows the TD error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.entropy_coefficient):
            raise UsageError(f"entropy_coefficient is {self.entropy_coefficient}; it must be finite.")


class StreamAC:
    """Actor-critic for Box and Discrete actions.

    observation_space: Box. action_space: Box [size] (a Gaussian policy, not squashed: the environment clips)
    or Discrete (a softmax policy). network: a function from the number of outputs to a torch module, used for
    critic and actor in place of the published networks. Raises UsageError for other spaces.

    >>> import numpy as np
    >>> agent = StreamAC(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)))
    >>> agent.act(np.zeros(3, np.float32)).shape
    (2,)
    """

    Config = StreamACConfig

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: StreamACConfig | None = None,
        *,
        seed: int = 0,
        network: NetworkBuilder | None = None,
        backend: Backend = "auto",
    ) -> None:
        self.config = c = config or StreamACConfig()
        self.observation_space, self.action_space = observation_space, action_space
        shape = observation_shape(observation_space, c.time_feature, "stream-ac")
        self.memory = c.memory_for(shape, network, seed)
        build = network or published_network(shape, c.hidden_size, seed, self.memory)
        self.policy = policy_for(action_space)
        self.critic = FlatNetwork(build(1), c.torch_dtype)
        self.actor = FlatNetwork(build(self.policy.outputs), c.torch_dtype)
        self.critic_rule = c.rule_for(self.critic)
        self.actor_rule = c.rule_for(self.actor, is_policy=True)
        self.samples = TransitionNormalizer(shape, c.discount, c.torch_dtype, passthrough=int(c.time_feature))
        self.generator = CounterGenerator(seed)
        self.native = native_step(
            backend,
            "stream-ac",
            c,
            self.samples,
            self._check,
            {"value": (self.critic, self.critic_rule), "policy": (self.actor, self.actor_rule)},
            self.generator,
            self.memory,
            entropy_coefficient=float(c.entropy_coefficient),
            **self.policy.native_settings(),
        )
        self.finetuning = ValueFinetuning(
            c,
            observation_space,
            self.critic,
            [self.critic_rule, self.actor_rule],
            self.samples,
            self.native,
            seed,
        )

    def act(self, observation: NDArray[Any], *, explore: bool = True) -> Action:
        """Sample an action from the policy, or take its mode with `explore=False`."""
        if self.native is not None:
            action: Action = self.native.act(observation, explore)
            return action
        outputs = self.actor.predict(self.samples.observe(observation))
        return self.policy.sample(outputs, self.generator) if explore else self.policy.mode(outputs)

    def learn_one(self, transition: Transition) -> Metrics:
        """Update critic and actor once.

        Raises NonFiniteSampleError for NaN or infinities, ValueError for an action or observation of the
        wrong shape; nothing has changed then.
        """
        if self.native is not None:
            metrics = self.native.learn_one(transition)
            self.finetuning.learn_one(transition)
            return metrics
        c = self.config
        self._check(transition)
        value_ends = c.value_ends(transition)
        observation, reward, next_observation = self.samples.learn_one(transition, value_ends)

        value = self.critic(observation)[0]
        outputs = self.actor(observation)
        self.memory.append(observation.flatten())
        next_value = 0.0 if value_ends else self.critic.predict(next_observation).item()
        td_error = reward + c.discount * next_value - value.item()

        # An entropy bonus that follows the sign of the TD error pushes towards exploring when the update
        # reinforces the action and against the action's confidence when it does not.
        log_probability, entropy = self.policy.log_probability_and_entropy(outputs, transition.action)
        sign = float((td_error > 0.0) - (td_error < 0.0))
        objective = log_probability + c.entropy_coefficient * sign * entropy

        decay = c.discount * c.trace_decay
        step = self.critic_rule.update(
            self.critic.parameters, self.critic.differentiate(value), td_error, decay
        )
        policy_step = self.actor_rule.update(
            self.actor.parameters, self.actor.differentiate(objective), td_error, decay
        )
        if transition.terminated or transition.truncated:
            self.critic_rule.trace.zero_()
            self.actor_rule.trace.zero_()
            self.memory.clear()
        self.finetuning.learn_one(transition)
        return {
            "value": value.item(),
            "td_error_magnitude": abs(td_error),
            "entropy": entropy.item(),
            "step_size": step,
            "policy_step_size": policy_step,
        }

    def _check(self, transition: Transition) -> None:
        self.policy.check(transition.action, self.samples.steps + 1)
        self.samples.check(transition)

    def remember(self, observation: NDArray[Any]) -> None:
        """Take an observation that was acted on into the memory, if there is one, learning nothing."""
        if self.native is not None:
            self.native.remember(observation)
        else:
            self.memory.append(self.samples.observe(observation).flatten())

    def forget(self) -> None:
        """Forget the episode, as at its end: traces, and what was remembered of it."""
        if self.native is not None:
            self.native.forget()
            return
        self.critic_rule.trace.zero_()
        self.actor_rule.trace.zero_()
        self.samples.episode_starts = True
        self.memory.clear()

    def state_dict(self) -> State:
        """Return everything: weights, traces, statistics, counters, generator."""
        if self.native is not None:
            self.native.pull()
        return {
            "critic.parameters": self.critic.parameters.clone(),
            "actor.parameters": self.actor.parameters.clone(),
            **self.critic_rule.state_dict("critic"),
            **self.actor_rule.state_dict("actor"),
            **self.samples.state_dict(),
            **self.memory.state_dict(),
            **self.finetuning.state_dict(),
            **self.generator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.critic.parameters.copy_(state["critic.parameters"])
        self.actor.parameters.copy_(state["actor.parameters"])
        self.critic_rule.load_state_dict(state, "critic")
        self.actor_rule.load_state_dict(state, "actor")
        self.samples.load_state_dict(state)
        self.memory.load_state_dict(state)
        self.finetuning.load_state_dict(state)
        self.generator.load_state_dict(state)
        if self.native is not None:
            self.native.push()
