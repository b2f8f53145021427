"""An agent in a world that changes, and what it forgets.

An agent learns the symbols of 100 names, 16 bits each, by trying. Then the bits of all names change places,
and it learns what names look like now. Printed are the shares of names that it knows: of the first world at
its end, of the second at its end, and then still of the first; for stream-Q with its usual network, and
with a bottleneck (docs/continual.md), where an update changes only what was looked up. Guessing is right in
0.25.

    python examples/changing_world.py    # expect 0.70 ± 0.15, 0.99 ± 0.02
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import tyro

import streamwise
from streamwise.agents import StreamQConfig

METHODS = {"plain": StreamQConfig(), "bottleneck": StreamQConfig(network="bottleneck")}
NAMES = "streamwise/Told-v0?facts=100"


def main(every: int = 8_000, seed: int = 0) -> None:
    known = [life(config, every, seed) for config in METHODS.values()]
    for name, (first, second, _) in zip(METHODS, known, strict=True):
        print(f"{name}: knows {first:.2f} of the first world at its end, {second:.2f} of the second")
    print(
        "then still of the first: "
        + ", ".join(f"{name} {kept:.2f}" for name, (*_, kept) in zip(METHODS, known, strict=True))
    )


def life(config: StreamQConfig, every: int, seed: int) -> list[float]:
    env = streamwise.make(f"{NAMES}&world={seed}&change=observations&values=0,1&every={every}", seed=seed)
    agent = streamwise.StreamQ(env.observation_space, env.action_space, config, seed=seed)
    stream = streamwise.EnvironmentStream(env, agent.act, seed=seed)
    for transition in islice(stream, every):
        agent.learn_one(transition)
    first = known_of(agent, f"{NAMES}&world={seed}")
    for transition in islice(stream, every):
        agent.learn_one(transition)
    second = known_of(agent, f"{NAMES}&world={seed}&change=observations&values=1")
    return [first, second, known_of(agent, f"{NAMES}&world={seed}")]


def known_of(agent: Any, world: str) -> float:
    """Return the share of right answers in a world, without learning from them."""
    stream = streamwise.EnvironmentStream(streamwise.make(world), lambda seen: agent.act(seen, explore=False))
    return sum(transition.reward for transition in islice(stream, 1_000)) / 1_000


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
