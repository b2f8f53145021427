"""Starting a run, and going on with one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamwise.agents import Learner, Metrics, agent_class
from streamwise.agents.native import Backend
from streamwise.kernels import native_info
from streamwise.runs.checkpoint import Checkpoints, describe, restore
from streamwise.runs.config import RunConfig, load_config, save_config
from streamwise.runs.loop import StopRequest, learn
from streamwise.runs.progress import ProgressDisplay
from streamwise.runs.recorder import Recorder
from streamwise.streams import NonFiniteSampleError, Transition, UsageError
from streamwise.streams.csv_series import CsvSeriesStream

__all__ = ["RunResult", "make_environment", "resume", "train"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended: where it is, how far it came, and the signal that stopped it, if one did."""

    directory: Path
    step: int
    mean_return: float | None
    signal: int | None


def train(config: RunConfig[Any]) -> RunResult:
    """Start a run in a new directory. Raises UsageError for what the user can mend."""
    config = config.resolved()
    directory = config.directory
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory} already exists; go on with `streamwise resume {directory}`, or give another --out."
        )
    source = _open(config)
    learner = _make_learner(config, source)
    directory.mkdir(parents=True, exist_ok=True)
    save_config(config, directory)
    return _run(config, source, learner, None)


def resume(directory: Path, steps: int | None = None, backend: Backend | None = None) -> RunResult:
    """Go on with the run in `directory` from its newest whole checkpoint, at the start of an episode.

    steps: the new length of the run, to extend a finished one. backend: another one than before.
    """
    config = load_config(directory)
    checkpoint = Checkpoints(directory).latest()
    step = checkpoint.meta["recorder"]["step"]
    config = dataclasses.replace(
        config,
        steps=config.steps if steps is None else steps,
        backend=config.backend if backend is None else backend,
    )
    if step >= config.steps:
        raise UsageError(
            f"{directory} has finished its {config.steps:,} steps; extend it with --steps, above {step:,}."
        )
    source = _open(config)
    learner = restore(checkpoint, backend=config.backend)
    save_config(config, directory)
    return _run(config, source, learner, checkpoint.meta)


def make_environment(config: RunConfig[Any], **options: Any) -> Any:
    """Make the environment of a run, as its agent expects it."""
    from streamwise.envs import make

    defaults = {
        "seed": config.seed,
        "time_feature": config.settings.time_feature,
        "episodic_life": config.episodic_life,
    }
    return make(config.environment, **{**defaults, **options})


def _open(config: RunConfig[Any]) -> Any:
    """Return the series to predict, or the environment to act in."""
    if config.environment.startswith("csv:"):
        assert config.target is not None
        return CsvSeriesStream(
            config.environment.removeprefix("csv:"),
            config.target,
            features=config.features,
            trace_decays=config.trace_decays or (),
        )
    return make_environment(config)


def _make_learner(config: RunConfig[Any], source: Any) -> Learner:
    action_space = None if isinstance(source, CsvSeriesStream) else source.action_space
    learner: Learner = agent_class(config.agent)(
        source.observation_space, action_space, config.settings, seed=config.seed, backend=config.backend
    )
    return learner


@contextmanager
def _torch_for_small_networks() -> Iterator[None]:
    """One thread, which a small network is fastest on, and no denormal numbers, which old traces decay to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def _backend_of(learner: Any) -> str:
    info = native_info()
    if learner.native is None or info is None:
        return "torch back end"
    return f"native back end ({info.instruction_set})"


def _run(config: RunConfig[Any], source: Any, learner: Any, meta: dict[str, Any] | None) -> RunResult:
    from streamwise.envs import EnvironmentStream

    is_series = isinstance(source, CsvSeriesStream)
    stream = source if is_series else EnvironmentStream(source, learner.act, seed=config.seed)
    directory = config.directory
    checkpoints = Checkpoints(directory)
    recorder = Recorder(directory, is_series=is_series)
    if meta is not None:
        recorder.resume(meta["recorder"])
        stream.seek(meta["position"])

    def save_checkpoint() -> None:
        recorder.flush()
        position = stream.position
        state = {**describe(learner), "position": position, "recorder": recorder.state()}
        checkpoints.save(recorder.step, learner.state_dict(), state)
        stream.commit(position)

    def record(sample: Transition, metrics: Metrics) -> None:
        lost_a_life = config.episodic_life and "game_return" not in stream.info
        recorder.record(sample, metrics, game_goes_on=lost_a_life)

    title = f"{config.agent} on {config.environment}"
    progress = ProgressDisplay(title, config.steps, recorder, note=_backend_of(learner))
    try:
        with _torch_for_small_networks(), recorder, progress, StopRequest().on_signals() as stop:
            step = learn(
                stream,
                learner,
                steps=config.steps,
                record=record,
                checkpoint=save_checkpoint,
                checkpoint_every=config.checkpoint_every,
                after_step=progress.update,
                stop=stop,
                step=recorder.step,
            )
    except NonFiniteSampleError as error:
        raise NonFiniteSampleError(
            f"{config.environment}: {error} The state before it is in {checkpoints.paths()[-1]}."
        ) from None
    finally:
        stream.close()
    return RunResult(directory, step, recorder.mean_return, stop.signal)
