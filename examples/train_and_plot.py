"""Train an agent, and draw its learning curve.

Stream-Q learns to balance CartPole's pole, with the settings that it comes with: a step is taken, learned
from and dropped. Printed is the mean return of the last ten episodes, in which it still tries an action at
random now and then. An episode ends after 500 steps, so 500 is the most there is; acting at random gets 22.

    python examples/train_and_plot.py    # expect 500 ± 25
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

import streamwise


def main(steps: int = 60_000, seed: int = 0, out: Path = Path("outputs/learning_curve.png")) -> None:
    env = streamwise.make("CartPole-v1", seed=seed)
    agent = streamwise.StreamQ(env.observation_space, env.action_space, seed=seed)
    stream = streamwise.EnvironmentStream(env, agent.act, seed=seed)

    ends, returns, episode_return = [], [], 0.0
    for step, transition in enumerate(islice(stream, steps), start=1):
        agent.learn_one(transition)
        episode_return += transition.reward
        if transition.terminated or transition.truncated:
            ends.append(step)
            returns.append(episode_return)
            episode_return = 0.0

    draw(ends, returns, out)
    print(f"learning curve: {out}")
    print(f"mean return of the last ten episodes: {np.mean(returns[-10:]):,.0f}")


def draw(ends: list[int], returns: list[float], out: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(ends, returns, ".", alpha=0.4, label="an episode")
    means = [np.mean(returns[max(0, end - 10) : end]) for end in range(1, len(returns) + 1)]
    axes.plot(ends, means, label="mean of ten")
    axes.set(xlabel="steps", ylabel="return", title="stream-Q on CartPole-v1")
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
