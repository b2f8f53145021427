"""How close a streaming learner comes to the speed of its environment, and where the time of a step goes.

Per environment, in one process and in short turns, so that a machine that slows down slows everything:
a native run as `streamwise train` makes it (stream, learner, recorder, progress), the bare environment
replaying the very actions of that run (contacts decide what a physics step costs), and a torch run.
A ratio is taken within each turn; medians over turns are printed.

    OMP_NUM_THREADS=1 python benchmarks/step_speed.py                  # ten minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/step_speed.py --only Cheetah --no-scaling --no-memory
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from script import run
from tables import show

from streamwise.agents import StreamAC, agent_class
from streamwise.agents.native import Backend
from streamwise.envs import EnvironmentStream, make
from streamwise.kernels import native_info
from streamwise.runs.checkpoint import Checkpoints, check_finite, describe
from streamwise.runs.loop import StopRequest, learn
from streamwise.runs.progress import ProgressDisplay
from streamwise.runs.recorder import Recorder
from streamwise.runs.saver import Saver
from streamwise.runs.storage import LocalStorage
from streamwise.streams import Transition


@dataclass(frozen=True)
class Case:
    """An environment, the agent that lives in it, and how many steps one turn takes."""

    environment: str
    agent: str = "stream-ac"
    steps: int = 1_000
    settings: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("CartPole-v1", "stream-q", 4_000, {"hidden_size": 32, "exploration_steps": 5_000}),
    Case("HalfCheetah-v5"),
    Case("Hopper-v5"),
    Case("Ant-v5", steps=500),
    Case("Humanoid-v5", steps=400),
    Case("dm_control/cheetah-run-v0"),
    Case("dm_control/dog-walk-v0", steps=200),
    Case("ALE/Pong-v5", "stream-q", 200, {"exploration_steps": 500}),
    Case("MinAtar/Breakout-v1", "stream-q", 2_000, {"exploration_steps": 5_000}),
]


@dataclass(frozen=True)
class Options:
    """Measure steps per second and print tables."""

    only: str = ""
    """Measure only the environments whose name contains this text, and none of the other tables."""
    turns: int = 25
    """Turns of each environment; the first two, in which caches and processor warm up, are left out."""
    torch_share: float = 0.1
    """Steps of a torch turn, as a share of a native one's."""
    rule: str = "intentional"
    """The step-size rule."""
    scaling: bool = True
    """Also measure learn_one against width and depth of the network."""
    saving: bool = True
    """Also measure what checkpoints cost."""
    memory: bool = True
    """Also measure the memory of a run after 10,000 and after 1,000,000 steps."""


class Run:
    """A run as `streamwise train` makes it, a turn at a time."""

    def __init__(
        self, case: Case, backend: Backend, rule: str, directory: Path, *, keep_actions: bool = False
    ) -> None:
        self.env = make(case.environment, seed=0)
        kind = agent_class(case.agent)
        config = kind.Config(step_size_rule=rule, **case.settings)
        self.learner = kind(self.env.observation_space, self.env.action_space, config, backend=backend)
        # A run that keeps its actions is for its actions only: it is slower.
        act = self._act_and_keep if keep_actions else self.learner.act
        self.stream = EnvironmentStream(self.env, act)
        self.recorder = Recorder(directory)
        self.progress = ProgressDisplay(
            "", 10**9, self.recorder, console=Console(file=(directory / "log").open("w"))
        )
        self.actions: list[Any] = []
        self.directory = directory
        self.saver: Saver | None = None

    def _act_and_keep(self, observation: Any) -> Any:
        action = self.learner.act(observation)
        self.actions.append(action)
        return action

    def turn(self, steps: int, save_every: int | None = None) -> float:
        """Run `steps` steps, with a checkpoint every `save_every`; return the seconds they took."""
        self.actions.clear()
        self.recorder.step = 0
        start = time.perf_counter()
        learn(
            self.stream,
            self.learner.learn_one,
            steps=steps,
            record=self.recorder.record,
            checkpoint=self.save if save_every else lambda last=False: None,
            due=lambda step: step % (save_every or 10**9) == 0,
            show=self.progress.update,
            stop=StopRequest(),
        )
        return time.perf_counter() - start

    def save(self, last: bool = False) -> None:
        """Have a checkpoint written, as `streamwise train` does; the end of a turn is not that of the run."""
        if self.saver is None:
            self.saver = Saver(Checkpoints(LocalStorage(self.directory / "checkpoints")), self.recorder)
        state = self.learner.state_dict()
        check_finite(state)
        meta = {**describe(self.learner), "position": self.stream.position, "recorder": self.recorder.state()}
        self.saver.save(state, meta)


class BareEnvironment:
    """The environment alone, as Gymnasium makes it, without our wrappers; Atari and MinAtar keep theirs."""

    def __init__(self, name: str) -> None:
        # The stream's own first reset: the same seeds give the same world.
        seed = int(np.random.SeedSequence((0, 0, 0)).generate_state(1)[0])
        self.env = make(name, seed=0)
        if not name.startswith(("ALE/", "MinAtar/")):
            self.env.close()
            self.env = gymnasium.make(name, disable_env_checker=True)
        self.env.reset(seed=seed)
        space = self.env.action_space
        self.bounds = (space.low, space.high) if isinstance(space, spaces.Box) else None
        self.returns: list[float] = []
        self._return = 0.0

    def replay(self, actions: list[Any]) -> float:
        """Take the actions; return the seconds it took."""
        if self.bounds:
            actions = [np.clip(action, *self.bounds) for action in actions]
        env, total = self.env, self._return
        start = time.perf_counter()
        for action in actions:
            _, reward, terminated, truncated, _ = env.step(action)
            total += reward
            if terminated or truncated:
                self.returns.append(total)
                total = 0.0
                env.reset()
        seconds = time.perf_counter() - start
        self._return = total
        return seconds


def measure(case: Case, options: Options) -> dict[str, float]:
    """Return medians over turns: seconds per step of each lane, of act and learn_one, and ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        directories = [Path(scratch, name) for name in ("native", "torch", "twin")]
        for directory in directories:
            directory.mkdir()
        native = Run(case, "native", options.rule, directories[0])
        slow = Run(case, "torch", options.rule, directories[1])
        twin = Run(case, "native", options.rule, directories[2], keep_actions=True)  # acts as `native` does
        bare = BareEnvironment(case.environment)
        torch_steps = max(int(case.steps * options.torch_share), 20)
        turns: list[dict[str, float]] = []
        for _ in range(options.turns):
            twin.turn(case.steps)
            seconds = native.turn(case.steps)
            replayed = bare.replay(list(twin.actions))
            native_step, environment_step = seconds / case.steps, replayed / case.steps
            torch_step = slow.turn(torch_steps) / torch_steps
            turns.append(
                {
                    "native": native_step,
                    "environment": environment_step,
                    "torch": torch_step,
                    "native / environment": environment_step / native_step,
                    "native / torch": torch_step / native_step,
                    **time_calls(native, case, case.steps // 4),
                }
            )
        lived = list(native.recorder.recent_returns)
        if not np.allclose(lived, bare.returns[-len(lived) :] if lived else []):
            raise RuntimeError(
                f"{case.environment}: the replay left the run's path, so its time says nothing"
            )
        for run in (native, slow, twin):
            run.stream.close()
    measured = turns[2:] or turns
    return {name: statistics.median(turn[name] for turn in measured) for name in measured[0]}


def time_calls(run: Run, case: Case, steps: int) -> dict[str, float]:
    """Time act and learn_one one by one, in an environment of their own."""
    kind = type(run.learner)
    learner = kind(run.env.observation_space, run.env.action_space, run.learner.config, backend="native")
    learner.load_state_dict(run.learner.state_dict())
    env = make(case.environment, seed=1)
    act_time = learn_time = 0.0
    clock = time.perf_counter

    def act(observation: Any) -> Any:
        nonlocal act_time
        start = clock()
        action = learner.act(observation)
        act_time += clock() - start
        return action

    for _, transition in zip(range(steps), EnvironmentStream(env, act), strict=False):
        start = clock()
        learner.learn_one(transition)
        learn_time += clock() - start
    env.close()
    return {"act": act_time / steps, "learn_one": learn_time / steps}


def speed_table(options: Options) -> Table:
    """Steps per second of every case."""
    table = Table(title=f"Steps per second, one core, {options.rule} rule, {_machine()}")
    columns = ("environment alone", "native", "torch", "native / environment", "native / torch")
    table.add_column("environment")
    for name in (*columns, "environment µs", "act µs", "learn_one µs", "rest µs"):
        table.add_column(name, justify="right")
    for case in CASES:
        if options.only not in case.environment:
            continue
        m = measure(case, options)
        rest = m["native"] - m["environment"] - m["act"] - m["learn_one"]
        table.add_row(
            case.environment,
            *(f"{1 / m[lane]:,.0f}" for lane in ("environment", "native", "torch")),
            f"{m['native / environment']:.0%}",
            f"{m['native / torch']:.1f}",
            *(f"{seconds * 1e6:.1f}" for seconds in (m["environment"], m["act"], m["learn_one"], rest)),
        )
    return table


def saving_table(turns: int) -> Table:
    """What a checkpoint every 1,000 steps costs, of the whole run's speed."""
    table = Table(title="A checkpoint every 1,000 steps, stream-AC on HalfCheetah-v5")
    for name in (
        "µs a step without",
        "µs a step with",
        "with / without",
        "lowest quarter",
        "highest quarter",
    ):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(Case("HalfCheetah-v5"), "native", "intentional", Path(scratch))
        pairs = [(run.turn(1_000), run.turn(1_000, save_every=1_000)) for _ in range(turns)][2:]
        assert run.saver is not None
        run.saver.close()
        run.stream.close()
    without, with_saves = np.array(pairs).T / 1_000 * 1e6
    ratios = np.quantile(with_saves / without, [0.5, 0.25, 0.75])
    table.add_row(
        *(f"{x:.1f}" for x in (np.median(without), np.median(with_saves))), *(f"{x:.3f}" for x in ratios)
    )
    return table


def scaling_table(rule: str) -> Table:
    """learn_one of stream-AC (17 features, 6 actions) against width and depth."""
    table = Table(title=f"learn_one of stream-AC, 17 features, 6 actions, {rule} rule, {_machine()}")
    columns = "hidden layers, width, parameters, float32 µs, MFLOP, GFLOP/s, KB touched, GB/s, torch µs"
    for name in columns.split(", "):
        table.add_column(name, justify="right")
    for depth in (1, 2, 3, 4):
        for width in (32, 64, 128, 256, 512, 1024):
            if depth != 2 and width not in (128, 512):
                continue
            size, seconds, slow = _time_network(depth, width, rule)
            # Per weight: two critic passes and one actor pass forward (2 each), one backward (2), trace,
            # moment and step (about 14 with the intentional rule, 5 with obgd).
            operations = size * (5.0 + 2.0 + (14.0 if rule == "intentional" else 5.0))
            # Weights are read four times and written once, trace and moment read and written, the step's
            # direction written and read.
            touched = size * 4 * (11 if rule == "intentional" else 8)
            table.add_row(
                *(str(depth), str(width), f"{size:,}", f"{seconds * 1e6:.1f}"),
                *(f"{operations / 1e6:.2f}", f"{operations / seconds / 1e9:.1f}"),
                *(f"{touched / 1e3:,.0f}", f"{touched / seconds / 1e9:.1f}", f"{slow * 1e6:,.0f}"),
            )
    return table


def _time_network(depth: int, width: int, rule: str) -> tuple[int, float, float]:
    from torch import nn

    from streamwise.agents.networks import LayerNorm

    def network(outputs: int) -> nn.Module:
        sizes = [17, *[width] * depth]
        hidden = [(nn.Linear(a, b), LayerNorm(), nn.LeakyReLU()) for a, b in itertools.pairwise(sizes)]
        return nn.Sequential(*(layer for block in hidden for layer in block), nn.Linear(width, outputs))

    random = np.random.default_rng(0)
    observations = random.standard_normal((257, 17))
    space, actions = spaces.Box(-np.inf, np.inf, (17,), np.float64), spaces.Box(-1, 1, (6,), np.float32)
    config = StreamAC.Config(step_size_rule=rule)

    def time_one(backend: Backend, repeats: int) -> float:
        agent = StreamAC(space, actions, config, network=network, backend=backend)
        samples = [
            Transition(observations[i], np.zeros(6, np.float32), 1.0, observations[i + 1], False, False)
            for i in range(256)
        ]
        rounds = []
        for _ in range(repeats):
            start = time.perf_counter()
            for sample in samples:
                agent.learn_one(sample)
            rounds.append((time.perf_counter() - start) / len(samples))
        time_one.size = agent.critic.parameters.numel() + agent.actor.parameters.numel()  # type: ignore[attr-defined]  # a note for the caller
        return min(rounds)

    slow = time_one("torch", 1)
    seconds = time_one("native", 8)
    return time_one.size, seconds, slow  # type: ignore[attr-defined]  # a note for the caller


_MEMORY = """
import resource, sys
import numpy as np
from streamwise.agents import StreamAC
from streamwise.envs import EnvironmentStream, make
env = make("HalfCheetah-v5", seed=0)
agent = StreamAC(env.observation_space, env.action_space)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
for step, sample in enumerate(EnvironmentStream(env, agent.act), 1):
    agent.learn_one(sample)
    if step in (10_000, 1_000_000):
        print(f"{resident():.1f}", flush=True)
    if step == 1_000_000:
        break
"""


def memory_table() -> Table:
    """Resident memory of a process that learns HalfCheetah-v5."""
    table = Table(title="Resident memory of a learning process, HalfCheetah-v5")
    table.add_column("after 10,000 steps", justify="right")
    table.add_column("after 1,000,000 steps", justify="right")
    result = subprocess.run([sys.executable, "-c", _MEMORY], check=True, capture_output=True, text=True)
    table.add_row(*(f"{megabytes} MiB" for megabytes in result.stdout.split()))
    return table


def _machine() -> str:
    info = native_info()
    return f"native {info.instruction_set}" if info else "no native kernels"


def main(options: Options) -> None:
    torch.set_num_threads(1)
    tables: list[Callable[[], Table]] = [lambda: speed_table(options)]
    others = not options.only
    if others and options.scaling:
        tables += [lambda: scaling_table("obgd"), lambda: scaling_table("intentional")]
    if others and options.saving:
        tables.append(lambda: saving_table(options.turns))
    if others and options.memory:
        tables.append(memory_table)
    for table in tables:
        show(table())


if __name__ == "__main__":
    run(main, Options, __doc__)
