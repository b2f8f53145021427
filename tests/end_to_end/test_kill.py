"""A run that is killed at any instant and resumed ends exactly as one that never was."""

from __future__ import annotations

import pytest
from killing import Case, differences, finish, kill_and_resume

ENVIRONMENTS = {  # the steps of a short run and of a long one
    "HalfCheetah-v5": (2_500, 60_000),
    "dm_control/walker-walk-v0": (600, 60_000),
    "CartPole-v1": (1_200, 60_000),
    "MinAtar/Breakout-v1": (1_500, 60_000),
    "ALE/Pong-v5": (300, 4_000),
}
PAIRS = [
    (environment, agent)
    for environment in ENVIRONMENTS
    for agent in ("stream-ac", "stream-q")
    if agent == "stream-ac" or not environment.startswith(("HalfCheetah", "dm_control"))
]
SHORT = [  # each environment, agent and back end at least once
    ("HalfCheetah-v5", "stream-ac", "native"),
    ("dm_control/walker-walk-v0", "stream-ac", "torch"),
    ("CartPole-v1", "stream-q", "native"),
    ("CartPole-v1", "stream-ac", "torch"),
    ("MinAtar/Breakout-v1", "stream-q", "native"),
    ("ALE/Pong-v5", "stream-q", "native"),
]


def check(case, tmp_path, kills):
    seconds = finish(case.command(tmp_path / "never"), tmp_path / "never.log")
    made, resumed = kill_and_resume(case, tmp_path / "killed", kills, seconds, seed=1)
    assert made >= kills // 2
    assert resumed >= kills // 2
    assert differences(tmp_path / "killed", tmp_path / "never") == []


@pytest.mark.parametrize(("environment", "agent", "backend"), SHORT)
def test_a_run_killed_three_times_ends_as_one_that_never_was(tmp_path, environment, agent, backend):
    steps = ENVIRONMENTS[environment][0]
    check(Case(environment, agent, backend, steps, max(steps // 30, 10)), tmp_path, kills=3)


@pytest.mark.parametrize(
    ("memory", "agent", "backend"),
    [("hcam", "stream-ac", "native"), ("hcam", "stream-q", "torch"), ("gru", "stream-ac", "native")],
)
def test_a_killed_run_remembers_what_one_that_never_was_does(tmp_path, memory, agent, backend):
    """Checkpoints every 40 steps, of episodes of 32: most in the middle of one, and of a chunk."""
    environment, steps = "streamwise/DelayedRecall-v0?delay=30", 700
    check(Case(environment, agent, backend, steps, 40, memory), tmp_path, kills=3)


@pytest.mark.parametrize(
    ("environment", "agent", "steps", "flags"),
    [
        (
            "HalfCheetah-v5?change=gravity&values=1,0.5,1.5&every=300&blend=0.5",
            "stream-ac",
            2_500,
            ("--finetune-every=70", "--finetune-capacity=200"),
        ),
        (
            "MinAtar/Sequence-v0?games=Breakout,Asterix&every=2000",
            "stream-q",
            9_000,
            ("--network=bottleneck", "--bottleneck-books=8", "--bottleneck-warm-up=3000"),
        ),
    ],
)
def test_a_killed_run_lives_in_the_worlds_of_one_that_never_was(tmp_path, environment, agent, steps, flags):
    """And keeps what it keeps against forgetting."""
    check(Case(environment, agent, "auto", steps, steps // 30, flags=flags), tmp_path, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    ("memory", "agent"), [("hcam", "stream-ac"), ("hcam", "stream-q"), ("gru", "stream-ac")]
)
def test_what_a_run_killed_twenty_times_remembers_is_the_same(tmp_path, memory, agent, backend):
    check(
        Case("streamwise/DelayedRecall-v0?delay=30", agent, backend, 20_000, 170, memory), tmp_path, kills=20
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("environment", "agent"), PAIRS)
def test_a_run_killed_twenty_times_ends_as_one_that_never_was(tmp_path, environment, agent, backend):
    steps = ENVIRONMENTS[environment][1]
    check(Case(environment, agent, backend, steps, max(steps // 120, 10)), tmp_path, kills=20)
