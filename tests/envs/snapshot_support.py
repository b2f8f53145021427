"""What tests of snapshots share: cases by name, an environment that no snapshot knows, a damaged leaf."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import settings

same_examples = settings(max_examples=40, deadline=None, derandomize=True)


Case = tuple[str, dict[str, Any]]  # a name and its options


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize(
        ("name", "options"), cases, ids=[" ".join(map(str, (name, *options))) for name, options in cases]
    )


class Walk(gymnasium.Env[Any, Any]):
    """A random walk that ends at 5."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)
    place = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = 0.0
        return np.float32([self.place]), {}

    def step(self, action: Any) -> Any:
        self.place += self.np_random.normal() + action
        return np.float32([self.place]), self.place, self.place > 5.0, False, {}


def with_leaf(snapshot: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(snapshot)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed
