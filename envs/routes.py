"""Routes through a graph that is new in every episode: what was seen on earlier ways shortens later ones."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from streamwise.envs.checks import action_index, whole_number

__all__ = ["GraphRoutes", "distances_to", "draw_graph"]

Row = NDArray[np.float32]
Info = dict[str, Any]


def draw_graph(generator: np.random.Generator, nodes: int, degree: int) -> NDArray[np.int64]:
    """Return a random connected graph, int [nodes, degree]: the node that each exit leads to, or -1.

    nodes: 2 or more. degree: exits of each node, 2 or more. A random tree is drawn first, then edges until
    there are 3 nodes / 2, or no more places for them are found. The exits of an edge are random at both ends.
    """
    free = np.full(nodes, degree)
    joined = np.zeros((nodes, nodes), np.bool_)

    def join(a: int, b: int) -> None:
        joined[a, b] = joined[b, a] = True
        free[[a, b]] -= 1

    order = generator.permutation(nodes)
    for place in range(1, nodes):
        earlier = order[:place]
        join(int(order[place]), int(generator.choice(earlier[free[earlier] > 0])))
    for a, b in generator.integers(nodes, size=(8 * nodes, 2)).tolist():
        if joined.sum() < 3 * nodes and a != b and not joined[a, b] and free[a] and free[b]:
            join(a, b)
    exits = np.full((nodes, degree), -1)
    for node in range(nodes):
        neighbours = np.flatnonzero(joined[node])
        exits[node, generator.permutation(degree)[: len(neighbours)]] = neighbours
    return exits


def distances_to(goal: int, exits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the least number of steps from each node to `goal`, int [nodes]; -1 where there is no way."""
    steps = np.full(len(exits) + 1, -1)  # the last one is of where the exits that are -1 lead
    steps[goal] = distance = 0
    while (new := (steps[exits] == distance).any(axis=1) & (steps[:-1] < 0)).any():
        distance += 1
        steps[:-1][new] = distance
    return steps[:-1]


class GraphRoutes(gymnasium.Env[Row, Any]):
    """Walk along edges to one goal after another; each pays 1, and the last one terminates the episode.

    nodes: 2 or more. goals: 1 or more, drawn at random, never the node one stands on. degree: exits of each
    node, 2 or more; one that leads nowhere leaves the agent where it is. Graph and labels are drawn anew in
    every episode, so that only what was seen in it helps.
    Observation [2 nodes]: the node one stands on and the goal, one-hot each. Action: an exit, 0 to
    degree - 1. The episode is truncated after `step_limit` steps, 4 nodes for each goal.

    info, for oracles and not for agents: node, goal, exits (see `draw_graph`), shortest (steps to the goal
    from where the last one was reached), path_ratios (of each goal reached so far, in order: steps taken /
    shortest, 1 being perfect).

    >>> env = GraphRoutes(nodes=20, goals=1)
    >>> observation, info = env.reset(seed=0)
    >>> steps = 0
    >>> while not info["path_ratios"]:
    ...     ahead = distances_to(info["goal"], info["exits"])[info["exits"][info["node"]]]
    ...     exit = int(np.where(info["exits"][info["node"]] < 0, 99, ahead).argmin())
    ...     observation, reward, terminated, truncated, info = env.step(exit)
    >>> reward, terminated, info["path_ratios"]
    (1.0, True, (1.0,))
    """

    def __init__(self, *, nodes: int = 20, goals: int = 8, degree: int = 4) -> None:
        self._nodes = whole_number("nodes", nodes, 2)
        self._goals = whole_number("goals", goals, 1)
        self._degree = whole_number("degree", degree, 2)
        self.observation_space = spaces.Box(0.0, 1.0, (2 * self._nodes,), np.float32)
        self.action_space = spaces.Discrete(self._degree)
        self.step_limit = 4 * self._nodes * self._goals
        self._exits = np.full((self._nodes, self._degree), -1)
        self._node = self._goal = self._shortest = self._taken = self._step = 0
        self._ratios: tuple[float, ...] = ()
        self._over = True

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Row, Info]:
        """Start an episode; returns observation and info."""
        super().reset(seed=seed)
        self._exits = draw_graph(self.np_random, self._nodes, self._degree)
        self._node = int(self.np_random.integers(self._nodes))
        self._step, self._ratios, self._over = 0, (), False
        self._draw_goal()
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[Row, float, bool, bool, Info]:
        """Take an exit. Raises UsageError for an action that is none."""
        index = action_index(action, self._degree, over=self._over)
        self._step += 1
        self._taken += 1
        ahead = int(self._exits[self._node, index])
        self._node = self._node if ahead < 0 else ahead
        reached = self._node == self._goal
        if reached:
            self._ratios = (*self._ratios, self._taken / self._shortest)
            if len(self._ratios) < self._goals:
                self._draw_goal()
        terminated = len(self._ratios) == self._goals
        truncated = not terminated and self._step == self.step_limit
        self._over = terminated or truncated
        return self._observation(), float(reached), terminated, truncated, self._info()

    def _draw_goal(self) -> None:
        other = int(self.np_random.integers(self._nodes - 1))
        self._goal = other + (other >= self._node)
        self._shortest = int(distances_to(self._goal, self._exits)[self._node])
        self._taken = 0

    def _observation(self) -> Row:
        row = np.zeros(2 * self._nodes, np.float32)
        row[[self._node, self._nodes + self._goal]] = 1.0
        return row

    def _info(self) -> Info:
        return {
            "node": self._node,
            "goal": self._goal,
            "exits": self._exits.copy(),
            "shortest": self._shortest,
            "path_ratios": self._ratios,
        }
