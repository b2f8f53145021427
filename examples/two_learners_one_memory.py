"""Two learners that share a memory: what one was told, the other knows.

One is told facts, each a name of 16 bits and one of four symbols. The other is asked for the symbol of a
name and sees it nowhere; it only hears whether it was right. What the first observes goes to a memory, a
process on Ray, and from there to the second, in a process of its own, while both learn. Printed is the
share of questions that are answered right in the end, by a learner without the memory and by one with it.
Chance is 0.25.

    python examples/two_learners_one_memory.py    # expect 0.33 ± 0.06, 0.84 ± 0.18
"""

from __future__ import annotations

import logging
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import tyro

import streamwise
from streamwise.agents import StreamACConfig
from streamwise.memory.shared import MemoryLink
from streamwise.runs.shared_memory import Linked, MemoryActor, MemorySettings, RayConnection

CONFIG = StreamACConfig(
    memory="hcam", memory_span="life", memory_chunk_length=1, memory_guests=400, memory_alike=True,
    memory_heads=4, memory_features=128, step_size_rule="obgd", step_size=0.03, trace_decay=0.0,
    entropy_coefficient=0.3,
)  # fmt: skip


@ray.remote
def learn(role: str, facts: int, steps: int, seed: int, memory: Any = None) -> float:
    env = streamwise.make("streamwise/Told-v0", role=role, facts=facts, world=seed, seed=seed)
    agent: Any = streamwise.StreamAC(env.observation_space, env.action_space, CONFIG, seed=seed)
    link = MemoryLink(agent.memory, role, writes=role == "tell", reads=role == "ask")
    with Linked(link, [] if memory is None else [RayConnection(memory)], give_up=print):
        for transition in islice(streamwise.EnvironmentStream(env, agent.act), steps):
            agent.learn_one(transition)
            if memory is not None:
                link.turn()  # what others wrote since comes to lie where the agent looks
    greedy = streamwise.EnvironmentStream(env, lambda seen: agent.act(seen, explore=False))
    return sum(transition.reward for transition in islice(greedy, 2_000)) / 2_000


def main(facts: int = 300, questions: int = 8_000, seed: int = 0) -> None:
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        settings = MemorySettings(chunk_length=1, width=22, capacity=facts)  # 22 numbers an observation
        memory = ray.remote(num_cpus=0)(MemoryActor).remote(settings, Path(folder))
        asked = [learn.remote("ask", facts, questions, seed, shared) for shared in (None, memory)]
        ray.get(learn.remote("tell", facts, facts, seed, memory))
        print("right without the memory: {:.2f}, with it: {:.2f}".format(*ray.get(asked)))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
