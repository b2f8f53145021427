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
from streamwise.runs.checkpoint import Checkpoints, check_finite, describe, restore
from streamwise.runs.config import RunConfig, load_config, save_config
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest, learn
from streamwise.runs.progress import ProgressDisplay
from streamwise.runs.recorder import Recorder
from streamwise.runs.saver import Saver
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
    if directory.exists() and not (directory.is_dir() and _is_unused(directory)):
        raise UsageError(
            f"{directory} already exists; go on with `streamwise resume {directory}`, or give another --out."
        )
    checkpoints = Checkpoints.of(config)
    if checkpoints.names():
        raise UsageError(f"--storage {config.storage} holds another run's checkpoints; give one of its own.")
    source = _open(config)
    learner = _make_learner(config, source)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        save_config(config, directory)
        return _run(config, source, learner, None)


def _is_unused(directory: Path) -> bool:
    """Whether nothing is in it, or only what a run leaves that was killed before it began."""
    return all(path.name.startswith(".") for path in directory.iterdir())


def resume(directory: Path, steps: int | None = None, backend: Backend | None = None) -> RunResult:
    """Go on with the run in `directory` from its newest whole checkpoint, or from its start if it has none.

    steps: the new length of the run, to extend a finished one. backend: another one than before.
    """
    config = load_config(directory)
    with locked(directory):
        checkpoints = Checkpoints.of(config)
        checkpoint = checkpoints.latest() if checkpoints.names() else None
        step = checkpoint.meta["step"] if checkpoint else 0
        config = dataclasses.replace(
            config,
            steps=config.steps if steps is None else steps,
            backend=config.backend if backend is None else backend,
        )
        if step >= config.steps:
            raise UsageError(
                f"{directory} has finished its {config.steps:,} steps; extend it with --steps above {step:,}."
            )
        source = _open(config)
        learner = restore(checkpoint, backend=config.backend) if checkpoint else _make_learner(config, source)
        save_config(config, directory)
        return _run(config, source, learner, checkpoint.meta if checkpoint else None)


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
    recorder = Recorder(config.directory, is_series=is_series)
    notes = [_backend_of(learner)]
    if meta is not None:
        notes.append(_go_on(stream, recorder, meta))
    saver = Saver(
        Checkpoints.of(config),
        recorder,
        last_good_step=None if meta is None else recorder.step,
        fail_at_once=config.fail_on_save_error,
    )

    about = describe(learner)

    def save_checkpoint(last: bool = False) -> None:
        state = learner.state_dict()
        check_finite(state)
        saver.save(state, {**about, "position": stream.position, "recorder": recorder.state()}, last=last)
        commit()

    def commit() -> None:
        durable = saver.newly_durable()
        if durable is not None:
            stream.commit(durable)

    def record_life(sample: Transition, metrics: Metrics) -> None:
        recorder.record(sample, metrics, game_goes_on="game_return" not in stream.info)

    title = f"{config.agent} on {config.environment}"
    progress = ProgressDisplay(title, config.steps, recorder, note=", ".join(notes))
    try:
        with _torch_for_small_networks(), recorder, progress, StopRequest().on_signals() as stop:
            try:
                step = learn(
                    stream,
                    learner,
                    steps=config.steps,
                    record=record_life if config.episodic_life else recorder.record,
                    checkpoint=save_checkpoint,
                    checkpoint_every=config.checkpoint_every,
                    show=progress.update,
                    stop=stop,
                    step=recorder.step,
                )
            except KeyboardInterrupt:  # a second Ctrl-C: at once, like a kill
                raise
            except BaseException:
                saver.close()
                raise
            saver.close()
    except NonFiniteSampleError as error:
        kept = f"The state before it is in the checkpoint of step {saver.last_good_step:,}."
        raise NonFiniteSampleError(f"{config.environment}: {error} {kept}") from None
    finally:
        commit()
        stream.close()
    return RunResult(config.directory, step, recorder.mean_return, stop.signal)


def _go_on(stream: Any, recorder: Recorder, meta: dict[str, Any]) -> str:
    """Put stream and recorder where a checkpoint was; return where that is.

    An environment that could not be saved, or whose libraries have changed since, starts a new episode.
    """
    recorder.resume(meta["recorder"])
    position = meta["position"]
    where = f"goes on at step {recorder.step:,}"
    try:
        stream.seek(position)
        why_not = getattr(stream, "why_no_snapshot", None)
    except UsageError as error:
        if "environment" not in position:
            raise
        stream.seek({key: position[key] for key in ("seed", "episode", "step")})
        why_not = str(error)
    if why_not is None:
        return where
    abandoned = recorder.abandon_episode()
    return f"{where} with a new episode ({abandoned} steps of the last are given up: {why_not})"
