"""`streamwise train` and `streamwise evaluate`: agents on environments, predictors on time series."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from streamwise.commands.parsing import parse, peek, without_validation
from streamwise.runs.texts import counted, return_text

if TYPE_CHECKING:
    from streamwise.runs.config import RunConfig
    from streamwise.runs.run_data import Run
    from streamwise.runs.train import RunResult

__all__ = ["evaluate_command", "finish_run", "train_command"]

_SAY_EVERY_SECONDS = 10.0


_TRAIN_HELP = """
    Train an agent on an environment, sample by sample, with a live display.

    Leaves a run directory with its settings, metrics, TensorBoard files, checkpoints and a report.

    streamwise train HalfCheetah-v5
    streamwise train CartPole-v1 --agent stream-q --steps 50000
    streamwise train dm_control/walker-walk-v0 --preset stream-x --seed 3
    streamwise train csv:ETTh1.csv --agent stream-td --target OT --discount 0.9
    """


def train_command(argv: list[str]) -> int:
    """Train an agent. Returns the exit code."""
    from streamwise.agents import agent_class
    from streamwise.runs.config import RunConfig, load_preset, preset_names
    from streamwise.streams.series import is_series

    preset_name, agent = peek(argv, "--preset"), peek(argv, "--agent")
    preset = load_preset(preset_name) if preset_name else None
    if preset and agent and agent != preset.agent:
        from streamwise.streams import UsageError

        raise UsageError(f"preset {preset_name} is for {preset.agent}, not for {agent}; drop --agent.")
    predicts = any(is_series(argument) for argument in argv)
    agent = preset.agent if preset else agent or ("stream-td" if predicts else "stream-ac")
    settings = preset.settings if preset else agent_class(agent).Config()
    default: RunConfig[Any] = without_validation(
        RunConfig,
        environment=tyro.MISSING,
        settings=settings,
        agent=agent,
        preset=preset_name,
        **(preset.options if preset else {}),
    )
    help_text = (
        f"{_TRAIN_HELP}\n    The settings listed last are those of {agent}; add --agent NAME "
        f"or --preset NAME to see others. Presets: {', '.join(preset_names())}."
    )
    kind: Any = RunConfig[type(settings)]  # type: ignore[misc]  # known only now that the agent is
    config: RunConfig[Any] = parse(kind, "train", argv, help_text, default)
    from streamwise.runs.train import train

    return finish_run(train(config))


@dataclass(frozen=True)
class EvaluateArguments:
    """Play episodes with a run's newest checkpoint, learning nothing, and print the mean return.

    streamwise evaluate outputs/demo --episodes 20
    streamwise evaluate outputs/demo --episodes 1 --video cheetah.mp4
    streamwise evaluate outputs/recall --env "streamwise/DelayedRecall-v0?symbols=4&delay=200"
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run directory."""
    episodes: int = 10
    """How many episodes to play."""
    seed: int = 0
    """Seeds the environment; never one that a run is trained with."""
    explore: bool = False
    """Act as in training, sampled or epsilon-greedy, instead of greedily."""
    video: Path | None = None
    """Film the first episode to this .mp4 file."""
    env: str | None = None
    """Play another environment than the run's, with the same observations and actions."""


def evaluate_command(argv: list[str]) -> int:
    """Play episodes, and print the mean return. Returns the exit code."""
    arguments = parse(EvaluateArguments, "evaluate", argv)
    from streamwise.runs.evaluate import evaluate

    def on_episode(episode: int, episode_return: float) -> None:
        print(f"episode {episode}: return {return_text(episode_return)}", file=sys.stderr)

    said_at = time.monotonic()

    def on_frame(frame: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SAY_EVERY_SECONDS:  # without a GPU a film takes minutes
            said_at = time.monotonic()
            print(f"filming: {frame:,} frames", file=sys.stderr)

    result = evaluate(
        arguments.run,
        episodes=arguments.episodes,
        seed=arguments.seed,
        explore=arguments.explore,
        video=arguments.video,
        environment=arguments.env,
        on_episode=on_episode,
        on_frame=on_frame,
    )
    interval = ""
    if result.interval is not None:
        low, high = result.interval
        interval = f" (95% interval {return_text(low)} to {return_text(high)})"
    print(
        f"mean return {return_text(result.mean)}{interval}, episodes: {len(result.episode_returns)}, "
        f"{'exploring' if arguments.explore else 'greedy'}, checkpoint at step {result.step:,}"
        f"{'' if arguments.env is None else f', in {arguments.env}'}"
    )
    if arguments.video is not None:
        print(f"video: {arguments.video}")
    return 0


def _worth(run: Run, result: RunResult) -> str:
    """Say what a run came to."""
    if result.mean_return is not None:
        from streamwise.runs.run_data import EPISODES

        latest = counted(min(EPISODES, len(run.returns)), "episode")
        return f"mean return {return_text(result.mean_return)} (last {latest})"
    if run.is_series:
        is_over = result.signal is None and result.step < run.planned_steps
        end = "the end of the file" if is_over else ""
        return ", ".join(filter(None, [end, run.score_text])) or "no score yet"
    return "no episode has ended yet"


def finish_run(result: RunResult) -> int:
    """Write the report and say where things are."""
    from streamwise.runs.report import write_report
    from streamwise.runs.run_data import read_groups

    files = write_report([result.directory])
    run = read_groups([result.directory])[0].runs[0]
    print(f"{'stopped' if result.signal else 'done'} at step {result.step:,}, {_worth(run, result)}")
    print(f"run:    {result.directory}\nreport: {files.html}\nplot:   {files.png}")
    if result.signal is not None:
        print(f"go on:  streamwise resume {result.directory}")
        return 128 + result.signal
    return 0
