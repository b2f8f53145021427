"""Learn in an environment of your own.

A battery of 4 kWh buys power when it is cheap and sells it when it is dear. It sees the hour, its charge
and the price; when to sell it has to find out. Printed is what it earns in a day, in cents: by the rule
"buy below the mean price, sell above", and by stream-Q in its last 50 weeks. The most without foresight is
163.

    python examples/own_environment.py    # expect 129 ± 4, 159 ± 5
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import gymnasium
import numpy as np
import tyro

import streamwise

PRICES = np.array(  # cents for a kWh from midnight on: low at night and when the sun shines
    [22, 20, 19, 18, 19, 23, 30, 36, 34, 28, 22, 18, 16, 15, 17, 21, 29, 38, 46, 48, 42, 35, 29, 25]
)
WEEK = 7 * 24  # steps


class Battery(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (30,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)  # sell, wait or buy, 1 kWh in an hour

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.hour, self.charge = 0, 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before, self.charge = self.charge, min(max(self.charge + action - 1, 0), 4)
        earned, self.hour = (before - self.charge) * self.price, self.hour + 1
        return self.observe(), earned, False, self.hour == WEEK, {}  # cut after a week; the world goes on

    def observe(self) -> Any:
        self.price = PRICES[self.hour % 24] + self.np_random.normal(0.0, 3.0)
        return np.array([*np.eye(24)[self.hour % 24], *np.eye(5)[self.charge], self.price], np.float32)


def main(steps: int = 100_000, seed: int = 0) -> None:
    agent = streamwise.StreamQ(Battery.observation_space, Battery.action_space, seed=seed)
    learned = []
    for transition in islice(streamwise.EnvironmentStream(Battery(), agent.act, seed=seed), steps):
        agent.learn_one(transition)
        learned.append(transition.reward)
    rule = streamwise.EnvironmentStream(Battery(), lambda seen: 2 if seen[-1] < PRICES.mean() else 0)
    by_rule = [transition.reward for transition in islice(rule, 50 * WEEK)]
    earned = [24 * float(np.mean(rewards[-50 * WEEK :])) for rewards in (by_rule, learned)]
    print("earned in a day by the rule: {:.0f}, by what was learned: {:.0f}".format(*earned))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
