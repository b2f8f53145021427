"""Starting a run, and going on with one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from streamwise.agents import Learner, Metrics, agent_class
from streamwise.agents.native import Backend
from streamwise.kernels import native_info
from streamwise.runs.checkpoint import Checkpoint, Checkpoints, check_finite, describe, restore
from streamwise.runs.config import RunConfig, load_config, made_otherwise, save_config
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest, learn
from streamwise.runs.plasticity_watch import PlasticityWatch
from streamwise.runs.progress import ProgressDisplay
from streamwise.runs.recorder import Recorder
from streamwise.runs.saver import Saver
from streamwise.runs.storage import open_storage, replace_durably
from streamwise.streams import NonFiniteSampleError, Transition, UsageError
from streamwise.streams.series import is_series, open_series

__all__ = [
    "Attach",
    "Display",
    "RunResult",
    "fetch",
    "is_unused",
    "make_environment",
    "resume",
    "train",
    "train_or_resume",
]


@dataclass(frozen=True)
class RunResult:
    """How a run ended: where it is, how far it came, and the signal that stopped it, if one did."""

    directory: Path
    step: int
    mean_return: float | None
    signal: int | None


class Display(Protocol):
    """Shows how far a run is, between `with` and its end; `update` is called every few steps."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def update(self) -> None:
        """Look whether there is something new to show."""


NewDisplay = Callable[[str, int, Recorder, str], Display]  # title, steps, recorder, note
Attach = Callable[[Any, StopRequest], AbstractContextManager[Callable[[], None]]]


def train(
    config: RunConfig[Any],
    *,
    display: NewDisplay = ProgressDisplay,
    stop: StopRequest | None = None,
    attach: Attach | None = None,
) -> RunResult:
    """Start a run in a new directory. Raises UsageError for what the user can mend.

    stop: ends the run when it is set, in place of SIGINT and SIGTERM. attach: given the learner, a context
    for the time of the run, until after its last checkpoint, whose value is called after every sample.
    """
    config = config.resolved()
    directory = config.directory
    if directory.exists() and not is_unused(directory):
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
        return _run(config, source, learner, None, display, stop, attach)


def is_unused(directory: Path) -> bool:
    """Whether nothing is in it, or only what a run leaves that was killed before it began."""
    return directory.is_dir() and all(path.name.startswith(".") for path in directory.iterdir())


def resume(
    directory: Path,
    steps: int | None = None,
    backend: Backend | None = None,
    *,
    display: NewDisplay = ProgressDisplay,
    stop: StopRequest | None = None,
    attach: Attach | None = None,
) -> RunResult:
    """Go on with the run in `directory` from its newest whole checkpoint, or from its start if it has none.

    steps: the new length of the run, to extend a finished one. backend: another one than before.
    """
    config = load_config(directory)
    with locked(directory):
        checkpoints = Checkpoints.of(config)
        checkpoints.mend()
        checkpoint = checkpoints.latest() if checkpoints.names() else None
        step = checkpoint.meta["step"] if checkpoint else 0
        config = dataclasses.replace(
            config,
            steps=config.steps if steps is None else steps,
            backend=config.backend if backend is None else backend,
        )
        if step >= config.steps:
            raise UsageError(
                f"{directory} is at step {step:,}, the end of its run; extend it with --steps above {step:,}."
            )
        source = _open(config)
        learner = restore(checkpoint, backend=config.backend) if checkpoint else _make_learner(config, source)
        save_config(config, directory)
        return _run(config, source, learner, checkpoint, display, stop, attach)


def train_or_resume(
    config: RunConfig[Any],
    *,
    display: NewDisplay = ProgressDisplay,
    stop: StopRequest | None = None,
    attach: Attach | None = None,
) -> RunResult:
    """Start a run, or go on with it where its directory or its storage holds a part of it.

    A finished one is left as it is, but attached once more: it may have ended before it had sent all it was
    to send. Raises UsageError, too, if what is there was made with other settings.
    """
    directory = config.directory
    if config.storage is not None:
        fetch(config.storage, directory)
    if not (directory / "config.toml").is_file():
        return train(config, display=display, stop=stop, attach=attach)
    saved = load_config(directory)
    planned = dataclasses.replace(config, steps=saved.steps).resolved()  # settings may depend on the steps
    for field in dataclasses.fields(RunConfig):
        there, here = getattr(saved, field.name), getattr(planned, field.name)
        if there != here and field.name not in _MAY_CHANGE:
            raise made_otherwise(directory, field.name, there, here)
    checkpoints = Checkpoints.of(saved)
    if (last := checkpoints.last_step()) is not None and last >= config.steps:
        checkpoint, stop = checkpoints.latest(), stop or StopRequest()
        if attach is not None:
            with locked(directory), attach(restore(checkpoint, backend=config.backend), stop):
                pass
        returns = checkpoint.meta["recorder"]["recent_returns"]
        return RunResult(directory, last, sum(returns) / len(returns) if returns else None, stop.signal)
    return resume(directory, config.steps, config.backend, display=display, stop=stop, attach=attach)


_MAY_CHANGE = ("out", "storage", "steps", "backend", "checkpoint_every", "keep_checkpoints", "keep_every",
               "fail_on_save_error")  # fmt: skip


def fetch(location: str, directory: Path) -> None:
    """Bring settings and rows of a run from its storage to its directory; checkpoints stay there."""
    storage = open_storage(location)
    for name in ("config.toml", "metrics.parquet", "predictions.parquet"):
        content = storage.get(name)
        if content is None:
            (directory / name).unlink(missing_ok=True)  # whatever an earlier attempt left there
        else:
            directory.mkdir(parents=True, exist_ok=True)
            replace_durably(directory / name, content)


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
    if is_series(config.environment):
        assert config.target is not None
        return open_series(
            config.environment,
            config.target,
            features=config.features,
            trace_decays=config.trace_decays or (),
        )
    return make_environment(config)


def _make_learner(config: RunConfig[Any], source: Any) -> Learner:
    action_space = None if is_series(config.environment) else source.action_space
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


def _run(
    config: RunConfig[Any],
    source: Any,
    learner: Any,
    checkpoint: Checkpoint | None,
    new_display: NewDisplay,
    stop: StopRequest | None,
    attach: Attach | None,
) -> RunResult:
    from streamwise.envs import EnvironmentStream

    predicts = is_series(config.environment)
    stream = source if predicts else EnvironmentStream(source, learner.act, seed=config.seed)
    storage = None if config.storage is None else open_storage(config.storage)
    recorder = Recorder(config.directory, is_series=predicts, storage=storage)
    notes = [_backend_of(learner)]
    watch = PlasticityWatch(learner, config.plasticity_every) if config.plasticity_every else None
    if checkpoint is not None:
        notes.append(_go_on(stream, recorder, learner, checkpoint.meta))
        if watch is not None:
            watch.resume(checkpoint.state)
    saver = Saver(
        Checkpoints.of(config),
        recorder,
        last_good_step=None if checkpoint is None else recorder.step,
        fail_at_once=config.fail_on_save_error,
    )
    saving = _Saving(learner, stream, recorder, watch, saver)
    title = f"{config.agent} on {config.environment}"
    display = new_display(title, config.steps, recorder, ", ".join(notes))
    try:
        with ExitStack() as stack:
            for context in (
                _says_what_is_kept(config, saver),
                _torch_for_small_networks(),
                recorder,
                display,
            ):
                stack.enter_context(context)
            stop = stop or stack.enter_context(StopRequest().on_signals())
            learn_one = learner.learn_one
            if attach is not None:
                learn_one = _then(learn_one, stack.enter_context(attach(learner, stop)))
            with saver:
                step = learn(
                    stream,
                    learn_one,
                    steps=config.steps,
                    record=_recording(config, stream, recorder, watch),
                    checkpoint=saving.save,
                    due=lambda step: step % config.checkpoint_every == 0,
                    show=display.update,
                    stop=stop,
                    step=recorder.step,
                )
    finally:
        saving.commit()
        stream.close()
    return RunResult(config.directory, step, recorder.mean_return, stop.signal)


class _Saving:
    """Has a run's checkpoints written, and tells its stream what is on disk."""

    def __init__(
        self, learner: Any, stream: Any, recorder: Recorder, watch: PlasticityWatch | None, saver: Saver
    ) -> None:
        self.learner, self.stream, self.recorder = learner, stream, recorder
        self.watch, self.saver = watch, saver
        self._about = describe(learner)

    def save(self, last: bool = False) -> None:
        """Have a checkpoint written of how things are."""
        state = self.learner.state_dict()
        check_finite(state)
        if self.watch is not None:
            state |= self.watch.state()
        meta = {**self._about, "position": self.stream.position, "recorder": self.recorder.state()}
        self.saver.save(state, meta, last=last)
        self.commit()

    def commit(self) -> None:
        """Tell the stream what is on disk since the last time."""
        durable = self.saver.newly_durable()
        if durable is not None:
            self.stream.commit(durable)


@contextmanager
def _says_what_is_kept(config: RunConfig[Any], saver: Saver) -> Iterator[None]:
    """Add to errors of a sample, such as a damaged row, which checkpoint holds what was learned before it."""
    try:
        yield
    except NonFiniteSampleError as error:
        kept = f"The state before it is in the checkpoint of step {saver.last_good_step:,}."
        raise NonFiniteSampleError(f"{config.environment}: {error} {kept}") from None
    except UsageError as error:
        if saver.last_good_step is None:
            raise
        raise UsageError(
            f"{error} What was learned before is in the checkpoint of step {saver.last_good_step:,}; "
            f"go on with `streamwise resume {config.directory}`."
        ) from None


def _recording(
    config: RunConfig[Any], stream: Any, recorder: Recorder, watch: PlasticityWatch | None
) -> Callable[[Any, Metrics], None]:
    """Return what records a sample, with what the watch measures, and with the regime at an episode's end."""
    if recorder.is_series and watch is None:
        return recorder.record

    def record(sample: Transition, metrics: Metrics) -> None:
        ends = sample.terminated or sample.truncated
        if watch is not None and (measures := watch.see(recorder.step + 1, sample.observation)):
            recorder.note(measures)
        if ends and not recorder.is_series and "regime" in stream.info:
            recorder.note({"regime": float(stream.info["regime"])})
        recorder.record(
            sample, metrics, game_goes_on=config.episodic_life and "game_return" not in stream.info
        )

    return record


def _then(learn_one: Callable[[Any], Metrics], turn: Callable[[], None]) -> Callable[[Any], Metrics]:
    """Return `learn_one` with something that is done after each sample."""

    def learn_and_turn(sample: Any) -> Metrics:
        metrics = learn_one(sample)
        turn()
        return metrics

    return learn_and_turn


def _go_on(stream: Any, recorder: Recorder, learner: Any, meta: dict[str, Any]) -> str:
    """Put stream and recorder where a checkpoint was; return where that is.

    An environment that could not be saved, or whose libraries have changed since, starts a new episode, which
    the learner is to know nothing of the last one in.
    """
    recorder.resume(meta["recorder"])
    position = meta["position"]
    where = f"goes on at step {recorder.step:,}"
    try:
        stream.seek(position)
        why_not = None
        if hasattr(stream, "why_no_snapshot") and "environment" not in position:
            why_not = stream.why_no_snapshot or "the environment could not be saved then"
    except UsageError as error:
        if "environment" not in position:
            raise
        stream.seek({key: position[key] for key in ("seed", "episode", "step")})
        why_not = str(error)
    if why_not is None:
        return where
    learner.forget()
    abandoned = recorder.abandon_episode()
    return f"{where} with a new episode ({abandoned} steps of the last are given up: {why_not})"
