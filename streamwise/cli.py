"""The command line. Exit codes: 0 done, 1 the run failed, 2 the command is wrong, 130 interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import tyro

if TYPE_CHECKING:
    from streamwise.runs.config import RunConfig
    from streamwise.runs.ingest import IngestResult
    from streamwise.runs.ingest_config import IngestConfig
    from streamwise.runs.train import RunResult

__all__ = ["main"]

Arguments = TypeVar("Arguments")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        from streamwise import __version__

        print(f"streamwise {__version__}")
        sys.exit(0)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    if name not in COMMANDS:
        _fail(2, f"streamwise: no command is named {name!r}.{_nearest(name)} See `streamwise --help`.")
    from streamwise.streams import DivergedError, NonFiniteSampleError, UsageError
    from streamwise.streams.dead_letters import DeadLetterLimitError

    try:
        with _warnings_as_lines():
            code = COMMANDS[name].run(rest)
    except UsageError as error:
        _fail(2, f"streamwise {name}: {error}")
    except BrokenPipeError:  # whoever reads our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (NonFiniteSampleError, DivergedError, DeadLetterLimitError, OSError) as error:
        _fail(1, f"streamwise {name}: {error}")
    except KeyboardInterrupt:
        if any(thread.name == "checkpoints" for thread in threading.enumerate()):
            # At once, like a kill: a thread that is still writing must not outlive the interpreter.
            print(f"streamwise {name}: interrupted.", file=sys.stderr, flush=True)
            os._exit(130)
        _fail(130, f"streamwise {name}: interrupted.")
    sys.exit(code)


TRAIN_HELP = """
    Train an agent on an environment, sample by sample, with a live display.

    Leaves a run directory with its settings, metrics, TensorBoard files, checkpoints and a report.

    streamwise train HalfCheetah-v5
    streamwise train CartPole-v1 --agent stream-q --steps 50000
    streamwise train dm_control/walker-walk-v0 --preset stream-x --seed 3
    streamwise train csv:ETTh1.csv --agent stream-td --target OT --discount 0.9
    """


def _train(argv: list[str]) -> int:
    from streamwise.agents import agent_class
    from streamwise.runs.config import RunConfig, load_preset, preset_names

    preset_name, agent = _peek(argv, "--preset"), _peek(argv, "--agent")
    preset = load_preset(preset_name) if preset_name else None
    if preset and agent and agent != preset.agent:
        from streamwise.streams import UsageError

        raise UsageError(f"preset {preset_name} is for {preset.agent}, not for {agent}; drop --agent.")
    is_series = any(argument.startswith("csv:") for argument in argv)
    agent = preset.agent if preset else agent or ("stream-td" if is_series else "stream-ac")
    settings = preset.settings if preset else agent_class(agent).Config()
    default: RunConfig[Any] = _without_validation(
        RunConfig,
        environment=tyro.MISSING,
        settings=settings,
        agent=agent,
        preset=preset_name,
        **(preset.options if preset else {}),
    )
    help_text = (
        f"{TRAIN_HELP}\n    The settings listed last are those of {agent}; add --agent NAME "
        f"or --preset NAME to see others. Presets: {', '.join(preset_names())}."
    )
    kind: Any = RunConfig[type(settings)]  # type: ignore[misc]  # known only now that the agent is
    config: RunConfig[Any] = _parse(kind, "train", argv, help_text, default)
    from streamwise.runs.train import train

    return _finish(train(config))


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with a run that was interrupted, or extend one that has finished.

    Learning goes on from the newest whole checkpoint, in mid-episode, as if it had never stopped.

    streamwise resume outputs/demo
    streamwise resume outputs/demo --steps 200000
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run directory."""
    steps: int | None = None
    """The new length of the run, counted from its beginning."""
    backend: Literal["auto", "native", "torch"] | None = None
    """Go on with another back end than before."""
    workers: int | None = None
    """Of a run on events: divide its partitions among so many from now on."""


def _resume(argv: list[str]) -> int:
    arguments = _parse(ResumeArguments, "resume", argv)
    from streamwise.runs.ingest_config import is_ingest, load_ingest

    if is_ingest(arguments.run):
        from streamwise.streams import UsageError

        if arguments.steps is not None or arguments.backend is not None:
            raise UsageError("--steps and --backend are for agents; this is a run on events.")
        saved = load_ingest(arguments.run)
        return _run_ingest(saved if arguments.workers is None else saved.with_workers(arguments.workers))
    if arguments.workers is not None:
        from streamwise.streams import UsageError

        raise UsageError("--workers divide the partitions of a run on events; this one is for agents.")
    from streamwise.runs.train import resume

    return _finish(resume(arguments.run, arguments.steps, arguments.backend))


INGEST_HELP = """
    Learn from events as they come in: score each one, learn from it, never lose or repeat one.

    Leaves a run directory with settings, metrics, TensorBoard files, checkpoints, refused records, a report.
    The same command again goes on exactly where the run was, whatever ended it.

    streamwise ingest file:events.csv.gz
    streamwise ingest 'file:log.jsonl?time=ts&unit=ms&type=action&key=user.id' --follow --model hawkes
    streamwise ingest kafka://localhost:9092/clicks --serve 8000
    streamwise ingest kafka://localhost:9092/clicks --workers 4
    streamwise ingest synthetic:hawkes --model poisson
    """


def _ingest(argv: list[str]) -> int:
    from streamwise.agents import EVENT_MODELS, event_model_class
    from streamwise.runs.ingest_config import IngestConfig

    model = _peek(argv, "--model") or "counts"
    settings = event_model_class(model).Config()
    default: IngestConfig[Any] = _without_validation(
        IngestConfig, sources=tyro.MISSING, settings=settings, model=model
    )
    others = ", ".join(name for name in EVENT_MODELS if name != model)
    help_text = (
        f"{INGEST_HELP}\n    The settings listed last are those of {model}; add --model NAME to see those of "
        f"{others}."
    )
    kind: Any = IngestConfig[type(settings)]  # type: ignore[misc]  # known only now that the model is
    config: IngestConfig[Any] = _parse(kind, "ingest", argv, help_text, default)
    return _run_ingest(config)


def _run_ingest(config: IngestConfig[Any]) -> int:
    from streamwise.runs.ingest import ingest
    from streamwise.runs.partitions import is_partitioned

    if config.workers == 1 and not is_partitioned(config.directory):
        return _finish_ingest(ingest(config), config.time_unit)
    from streamwise.runs.partitioned import ingest_partitioned

    return _finish_ingest(ingest_partitioned(config), config.time_unit)


def _finish_ingest(result: IngestResult, time_unit: float) -> int:
    """Say how it went and where things are."""
    scores = result.scores
    print(f"{'stopped' if result.signal else 'done'} after {result.events:,} events")
    if scores["log_likelihood"] == scores["log_likelihood"]:
        unit = "s" if time_unit == 1.0 else f"{time_unit:g} s"
        print(
            f"scores: log-likelihood {scores['log_likelihood']:.4f} an event "
            f"(times {scores['time_log_likelihood']:.4f}, gaps in units of {unit}; "
            f"types {-scores['type_log_loss']:.4f}), type error {100 * scores['type_error']:.2f}%"
        )
    if result.dead_letters:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(result.dead_letters.items()))
        print(f"refused: {sum(result.dead_letters.values()):,} records ({reasons})")
        print(f"         {result.directory / 'dead_letters.jsonl'}")
    print(f"run:    {result.directory}")
    from streamwise.runs.event_report import write_event_report
    from streamwise.streams import UsageError

    try:
        files = write_event_report([result.directory])
        print(f"report: {files.html}\nplot:   {files.png}")
    except UsageError as error:
        print(f"report: none ({error})")
    if result.signal is not None:
        print(f"go on:  streamwise resume {result.directory}")
        return 128 + result.signal
    return 0


@dataclass(frozen=True)
class PredictArguments:
    """Predict a key's next event from the newest checkpoint of a run on events.

    What type it is likely to be, when to expect it, and how sure that is; also beside a run that is going on.

    streamwise predict outputs/events-hawkes --key alice
    streamwise predict outputs/events-hawkes --key alice --horizon 3600 --json
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run directory."""
    key: str
    """The key, such as a user."""
    now: float | None = None
    """The present, in the events' own time. Unset: how far the stream had come at the checkpoint."""
    horizon: float | None = None
    """Also say how likely an event is within so many seconds."""
    top: int = 5
    """How many types to list."""
    json: bool = False
    """Print everything as one line of JSON."""


def _predict(argv: list[str]) -> int:
    arguments = _parse(PredictArguments, "predict", argv)
    from streamwise.runs.ingest import predict

    prediction, checkpoint = predict(
        arguments.run, arguments.key, now=arguments.now, horizon=arguments.horizon
    )
    if arguments.json:
        import json

        print(json.dumps(dataclasses.asdict(prediction), allow_nan=False))
        return 0
    p = prediction
    about = f"{p.events:,} events, the last {p.now - p.last_time:,.1f} s ago ({_printable(p.last_type)})"
    print(f"key {_printable(p.key)}: {about}")
    if p.mean_wait is None:
        print("no further event is expected")
    else:
        median, low, high = (
            "unknown" if wait is None else f"{wait:,.1f} s" for wait in (p.median_wait, *p.intervals["90%"])
        )
        print(f"next event: in {median} (median), between {low} and {high} (90%)")
    if p.probability is not None:
        print(f"within {p.horizon:,.0f} s: {100 * p.probability:.1f}%")
    ranked = sorted(p.types.items(), key=lambda item: -item[1])
    for name, share in ranked[: arguments.top]:
        print(f"  {100 * share:5.1f}%  {_printable(name)}")
    print(f"checkpoint after {checkpoint.meta['step']:,} events")
    return 0


def _printable(text: str) -> str:
    """Return text of a log as a terminal may see it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class SweepArguments:
    """Run many environments, agents and seeds at once, on the cores of this machine or a Ray cluster.

    SPEC is a .toml file, the name of one that comes with streamwise, or the directory of a sweep to go on
    with. A sweep that was interrupted, or whose processes died, goes on where each run was: give the same
    command again. Runs that have finished are not repeated, and new ones in the file are added.

    streamwise sweep small
    streamwise sweep experiment.toml --out outputs/experiment
    streamwise sweep outputs/experiment
    streamwise sweep stream-x-mujoco --address auto --storage s3://bucket/mujoco
    """

    spec: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC")]
    """What to run."""
    out: Path | None = None
    """The directory of the sweep. Unset: outputs/<name of the sweep>."""
    storage: str | None = None
    """A folder or URL that every node sees, where runs keep all they need to go on. Unset: --out."""
    address: str | None = None
    """A Ray cluster: HOST:PORT, or auto for the one this machine belongs to. Unset: this machine alone."""
    cpus: int | None = None
    """How many cores of this machine to use, without --address. Unset: all."""
    max_failures: int = 3
    """Give a run up after so many failures in a row without a new checkpoint between them."""
    resume: bool = False
    """Refuse to start a new sweep: go on with one, or fail if there is none."""
    list: bool = False
    """Print the runs of the specification, a line each, and run nothing."""


def _sweep(argv: list[str]) -> int:
    from streamwise.runs.sweep_spec import load_sweep, sweep_names

    names = f"\n\nSweeps that come with streamwise: {', '.join(sweep_names())}."
    arguments = _parse(SweepArguments, "sweep", argv, inspect.cleandoc(SweepArguments.__doc__ or "") + names)
    from streamwise.streams import UsageError

    for name, lowest in (("cpus", 1), ("max_failures", 0)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; use {lowest} or more.")
    if arguments.address is not None and arguments.cpus is not None:
        raise UsageError("--cpus is of this machine alone; with --address, the nodes say what they have.")
    spec = load_sweep(arguments.spec)
    if arguments.list:
        for run in spec.runs:
            print(f"{run.name}  {run.config.steps:,} steps")
        return 0
    of_directory = Path(arguments.spec) if Path(arguments.spec).is_dir() else None
    out = arguments.out or of_directory or Path("outputs") / spec.name
    if arguments.resume and not (out / "sweep.toml").is_file():
        raise UsageError(f"there is no sweep in {out} to go on with; leave --resume out to start one.")
    from streamwise.runs.sweep import SweepOptions, run_sweep

    options = SweepOptions(out, arguments.storage, arguments.address, arguments.cpus, arguments.max_failures)
    result = run_sweep(spec, options)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.finished} of {result.runs} runs finished{failed}")
    print(f"sweep:  {out}")
    if result.signal is not None:
        print(f"go on:  streamwise sweep {out}")
        return 128 + result.signal
    from streamwise.runs.sweep_report import write_sweep_report

    files = write_sweep_report([out])
    print(f"report: {files.html}\nplot:   {files.png}")
    return 1 if result.failed else 0


@dataclass(frozen=True)
class UpArguments:
    """Run a live system: learners of both kinds, each on its own stream, that may share memories.

    SPEC is a .toml file that names streams, learners, memories, and who reads and writes what, the name of
    one that comes with streamwise, or the directory of a system to go on with. Each learner is a process; one
    that dies goes on from its checkpoint, and the same command goes on with the whole. docs/systems.md has
    the keys of the file, and what is guaranteed.

    streamwise up told
    streamwise up system.toml --out outputs/live --address auto --storage s3://bucket/live
    streamwise up outputs/live
    """

    spec: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC")]
    """What to run."""
    out: Path | None = None
    """The directory of the system. Unset: outputs/<name of the system>."""
    address: str | None = None
    """A Ray cluster: HOST:PORT, or auto, on which learners go on if this process is killed, until the same
    command takes them over. Unset: this machine alone."""
    storage: str | None = None
    """A folder or URL (s3://bucket/live) that every node sees, where agents keep their checkpoints; memories
    and event models stay on this machine. Unset: in --out, which every node has to see."""
    max_failures: int = 10
    """Give a learner up after so many failures in a row without a new checkpoint between them."""
    until_end: bool = False
    """Learn events to where their sources end now, instead of waiting for more."""
    serve: int | None = None
    """Serve a page that shows the system on this port, and /status as JSON. Unset: no."""
    host: str = "127.0.0.1"
    """The address that --serve listens on. Unset: this machine alone."""
    check: bool = False
    """Print who learns from what and shares what, and run nothing."""


def _up(argv: list[str]) -> int:
    from streamwise.runs.up_spec import load_system, system_names, wiring

    names = f"\n\nSystems that come with streamwise: {', '.join(system_names())}."
    arguments = _parse(UpArguments, "up", argv, inspect.cleandoc(UpArguments.__doc__ or "") + names)
    from streamwise.streams import UsageError

    if arguments.max_failures < 0:
        raise UsageError(f"--max-failures is {arguments.max_failures}; use 0 or more.")
    if arguments.serve is not None and not 0 <= arguments.serve <= 65_535:
        raise UsageError(
            f"--serve is {arguments.serve}, which is no port; use one from 0, for any, to 65,535."
        )
    spec = load_system(arguments.spec)
    if arguments.check:
        print("\n".join(wiring(spec)))
        return 0
    of_directory = Path(arguments.spec) if Path(arguments.spec).is_dir() else None
    out = arguments.out or of_directory or Path("outputs") / spec.name
    from streamwise.runs.up import UpOptions, run_system

    options = UpOptions(
        out,
        arguments.address,
        arguments.storage,
        max_failures=arguments.max_failures,
        until_end=arguments.until_end,
        serve=arguments.serve,
        host=arguments.host,
    )
    result = run_system(spec, options)
    for name, state in result.states.items():
        print(f"{name}: {state}{': ' + result.failed[name] if name in result.failed else ''}")
    print(f"system: {out}")
    from streamwise.runs.up_report import write_system_report

    try:
        files = write_system_report([out])
        print(f"report: {files.html}\nplot:   {files.png}")
    except UsageError as error:  # the exit code stays that of the system
        print(f"report: none ({error})")
    if result.signal is not None:
        print(f"go on:  streamwise up {out}")
        return 128 + result.signal
    return 1 if result.failed else 0


@dataclass(frozen=True)
class StatusArguments:
    """Show how a live system is: each learner's step, speed, score, lag and restarts, and the memories.

    streamwise status outputs/live
    streamwise status outputs/live --watch
    streamwise status outputs/live --json
    """

    system: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SYSTEM_DIR")]
    """The directory of the system."""
    json: bool = False
    """Print one line of JSON."""
    watch: bool = False
    """Show it again every second, until Ctrl-C."""


def _status(argv: list[str]) -> int:
    arguments = _parse(StatusArguments, "status", argv)
    from streamwise.runs.up_status import print_status, read_status

    if arguments.json:
        import json

        print(json.dumps(read_status(arguments.system), allow_nan=False))
        return 0
    print_status(arguments.system, watch=arguments.watch)
    return 0


TASKS_HELP = """
    Divide a stream into tasks, and compare what methods learn, keep and forget from one to the next.

    Every task is a window of time, with parts to train on, to validate and to test. Methods: neural point
    processes fine-tuned, retrained, replaying, consolidating or with a pool of prompts, and statistics of
    events. The same command again goes on with what is missing.

    streamwise tasks file:events.csv.gz
    streamwise tasks file:events.csv.gz --methods online prompt-tpp counts --bases nhp --seeds 3
    streamwise tasks 'synthetic:drift?events=20000' --tasks 5 --by count --epochs 2 --width 16
    """


def _tasks(argv: list[str]) -> int:
    from streamwise.runs.tasks import TasksConfig, run_tasks

    config: TasksConfig = _parse(TasksConfig, "tasks", argv, inspect.cleandoc(TASKS_HELP))
    result = run_tasks(config)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.done} of {result.units} units done{failed}")
    print(f"tasks:  {result.directory}")
    if result.done:
        from streamwise.runs.task_report import write_task_report

        files = write_task_report(result.directory)
        print(f"report: {files.html}\nplot:   {files.png}")
    if result.signal is not None:
        print("go on:  give the same command again")
        return 128 + result.signal
    return 1 if result.failed else 0


@dataclass(frozen=True)
class ContinualArguments:
    """Compare methods of continual learning on streams whose world changes: what is kept, and what it costs.

    A specification names schedules, such as classes that come in groups, and methods, such as replay; each
    method lives through each schedule with several seeds, one example at a time. Draws a report of tables,
    curves and matrices. The same command again goes on with what is missing.

    streamwise continual digits
    streamwise continual my-comparison.toml --seeds 2 --out outputs/mine
    streamwise continual outputs/mine
    """

    spec: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC")]
    """A .toml file, the directory of a comparison to go on with, or a name; see above."""
    out: Path | None = None
    """The directory. Unset: outputs/continual-<name>, or the one that SPEC is."""
    seeds: int | None = None
    """Run so many seeds instead of as many as the specification says."""
    cpus: int | None = None
    """How many cores of this machine to use, without --address. Unset: all."""
    address: str | None = None
    """A Ray cluster: HOST:PORT, or auto for the one this machine belongs to. Every node must see --out."""
    max_failures: int = 3
    """Give a unit up after so many failures of its process."""


def _continual(argv: list[str]) -> int:
    from streamwise.runs.continual import (
        ContinualOptions,
        is_continual,
        load_continual,
        protocol_names,
        run_continual,
    )

    names = f"\n\nSpecifications that come with streamwise: {', '.join(protocol_names())}."
    help_text = inspect.cleandoc(ContinualArguments.__doc__ or "") + names
    arguments = _parse(ContinualArguments, "continual", argv, help_text)
    from streamwise.streams import UsageError

    for name, lowest in (("seeds", 1), ("cpus", 1), ("max_failures", 0)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; use {lowest} or more.")
    if arguments.address is not None and arguments.cpus is not None:
        raise UsageError("--cpus is of this machine alone; with --address, the nodes say what they have.")
    spec = load_continual(arguments.spec, arguments.seeds)
    given = Path(arguments.spec)
    out = arguments.out or (given if is_continual(given) else Path("outputs") / f"continual-{spec.name}")
    options = ContinualOptions(out, arguments.cpus, arguments.address, arguments.max_failures)
    result = run_continual(spec, options)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.done} of {result.units} units done{failed}")
    print(f"continual: {result.directory}")
    if result.done:
        from streamwise.runs.continual_report import write_continual_report

        files = write_continual_report(result.directory)
        print(f"report: {files.html}\nplot:   {files.png}")
    if result.signal is not None:
        print(f"go on:  streamwise continual {out}")
        return 128 + result.signal
    return 1 if result.failed else 0


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


def _evaluate(argv: list[str]) -> int:
    arguments = _parse(EvaluateArguments, "evaluate", argv)
    from streamwise.runs.evaluate import evaluate

    def on_episode(episode: int, episode_return: float) -> None:
        print(f"episode {episode}: return {_of_return(episode_return)}", file=sys.stderr)

    result = evaluate(
        arguments.run,
        episodes=arguments.episodes,
        seed=arguments.seed,
        explore=arguments.explore,
        video=arguments.video,
        environment=arguments.env,
        on_episode=on_episode,
    )
    interval = ""
    if result.interval is not None:
        low, high = result.interval
        interval = f" (95% interval {_of_return(low)} to {_of_return(high)})"
    print(
        f"mean return {_of_return(result.mean)}{interval}, episodes: {len(result.episode_returns)}, "
        f"{'exploring' if arguments.explore else 'greedy'}, checkpoint at step {result.step:,}"
        f"{'' if arguments.env is None else f', in {arguments.env}'}"
    )
    if arguments.video is not None:
        print(f"video: {arguments.video}")
    return 0


def _of_return(number: float) -> str:
    """Write a return; where they are small, a tenth would hide what differs."""
    return f"{number:,.1f}" if abs(number) >= 10.0 else f"{number:.3g}"


@dataclass(frozen=True)
class CheckpointsArguments:
    """List a run's checkpoints: step, size, and whether the checksum holds.

    Exits with 1 if one is damaged. The newest whole one is what `resume` and `evaluate` use.

    streamwise checkpoints outputs/demo
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run directory."""


def _checkpoints(argv: list[str]) -> int:
    arguments = _parse(CheckpointsArguments, "checkpoints", argv)
    from streamwise.runs.checkpoint import Checkpoints
    from streamwise.runs.ingest import worker_directories
    from streamwise.runs.ingest_config import is_ingest

    is_damaged = False
    for directory in worker_directories(arguments.run):
        if directory != arguments.run and not is_ingest(directory):  # a worker that has not begun
            continue
        checkpoints = Checkpoints.of(directory)
        found = list(checkpoints.check())
        print(f"{len(found)} in {checkpoints.storage.describe('')}")
        for step, size, wrong in found:
            print(f"step {step:>12,}  {size / 1e6:>8,.2f} MB  {wrong or 'whole'}")
        is_damaged |= any(wrong for _, _, wrong in found)
    return 1 if is_damaged else 0


@dataclass(frozen=True)
class ReportArguments:
    """Draw runs or sweeps: learning curves, results, speed, settings; HTML and PNG.

    Several runs of one environment are drawn together, as seeds of one curve or as agents to compare. Of a
    sweep come interquartile means over seeds with bootstrap intervals, probabilities of improvement,
    performance profiles, and every number as CSV and Parquet; several sweeps are compared with each other.
    Runs of `ingest` on the same events are compared as models. Of `tasks` and `continual` come matrices and
    tables; of a live system who learns from what, how well, and what happened when.

    streamwise report outputs/demo
    streamwise report outputs/events-hawkes outputs/events-counts
    streamwise report outputs/CartPole-* --out cartpole.html
    streamwise report outputs/small
    streamwise report outputs/before outputs/after --out compared.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="DIR...")]
    """One or more run directories, one or more sweeps, or a live system."""
    out: Path | None = None
    """The HTML file; the PNG goes beside it. Unset: in the directory, or here for several."""


def _report(argv: list[str]) -> int:
    arguments = _parse(ReportArguments, "report", argv)
    from streamwise.runs.continual import is_continual
    from streamwise.runs.ingest_config import is_ingest
    from streamwise.runs.report import write_report
    from streamwise.runs.sweep_data import is_sweep
    from streamwise.runs.sweep_report import write_sweep_report
    from streamwise.runs.tasks import is_tasks
    from streamwise.runs.up_data import is_system
    from streamwise.streams import UsageError

    if not arguments.runs:
        raise UsageError("name at least one run directory, for example outputs/demo.")
    if is_tasks(arguments.runs[0]):
        from streamwise.runs.task_report import write_task_report

        if len(arguments.runs) > 1:
            raise UsageError(f"{arguments.runs[0]} is a comparison on tasks; draw one at a time.")
        files = write_task_report(arguments.runs[0], arguments.out)
        print(f"report: {files.html}\nplot:   {files.png}")
        return 0
    if any(map(is_continual, arguments.runs)):
        from streamwise.runs.continual_report import write_continual_report

        if len(arguments.runs) > 1:
            raise UsageError("a comparison of methods of continual learning is drawn alone; name one.")
        files = write_continual_report(arguments.runs[0], arguments.out)
        print(f"report: {files.html}\nplot:   {files.png}")
        return 0
    if any(map(is_system, arguments.runs)):
        from streamwise.runs.up_report import write_system_report

        files = write_system_report(arguments.runs, arguments.out)
        print(f"report: {files.html}\nplot:   {files.png}")
        return 0
    if any(map(is_ingest, arguments.runs)):
        from streamwise.runs.event_report import write_event_report

        files = write_event_report(arguments.runs, arguments.out)
        print(f"report: {files.html}\nplot:   {files.png}")
        return 0
    sweeps = [is_sweep(path) for path in arguments.runs]
    if any(sweeps) and not all(sweeps):
        which = arguments.runs[sweeps.index(False)]
        raise UsageError(f"{which} is no sweep, and others are; draw runs and sweeps apart.")
    files = (write_sweep_report if all(sweeps) else write_report)(arguments.runs, arguments.out)
    print(f"report: {files.html}\nplot:   {files.png}")
    return 0


@dataclass(frozen=True)
class BenchArguments:
    """Run the comparisons of benchmarks/ and print their tables; for a source checkout.

    What follows the name goes to the benchmark: streamwise bench NAME --help shows its own options.

    streamwise bench step --only HalfCheetah
    streamwise bench returns --table
    streamwise bench prediction --data ETTh1.csv
    streamwise bench ingest --no-memory
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """step (speed), returns (learning results), prediction (time series), ingest (events), soak (kills),
    tpp (speed of PromptTPP), live-tpp (of it live), event-ablations (its parts), regimes, prompt-figures,
    partitioned-ingest (events, several workers)."""


def _bench(argv: list[str]) -> int:
    import difflib
    import subprocess

    import streamwise.runs
    from streamwise.streams import UsageError

    arguments = _parse(BenchArguments, "bench", argv[:1])
    folder = Path(streamwise.runs.__file__).parents[1] / "benchmarks"
    scripts = {
        path.stem.removesuffix("_speed").replace("_", "-"): path for path in sorted(folder.glob("*.py"))
    }
    if not scripts:
        raise UsageError(f"there is no {folder}; benchmarks come with a source checkout, not with a wheel.")
    if arguments.name not in scripts:
        close = difflib.get_close_matches(arguments.name, scripts, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(
            f"no benchmark is named {arguments.name!r}.{hint} Choose one of: {', '.join(scripts)}."
        )
    return subprocess.run([sys.executable, str(scripts[arguments.name]), *argv[1:]], check=False).returncode


@dataclass(frozen=True)
class DoctorArguments:
    """Say what is installed, which native kernels are in use, and which environments load.

    Exits with 1 if something that should work does not.
    """


def _doctor(argv: list[str]) -> int:
    _parse(DoctorArguments, "doctor", argv)
    from streamwise.doctor import print_report, report

    checks = report()
    print_report(checks)
    return 0 if all(check.ok for check in checks) else 1


@dataclass(frozen=True)
class Command:
    """A command: one line of help, and what runs it."""

    summary: str
    run: Callable[[list[str]], int]


COMMANDS = {
    "train": Command("learn from an environment, or predict a time series", _train),
    "ingest": Command("learn from live events: files, Kafka, Redis Streams", _ingest),
    "predict": Command("predict a key's next event", _predict),
    "resume": Command("go on with an interrupted run, or extend a finished one", _resume),
    "sweep": Command("run environments, agents and seeds on all cores, or on a Ray cluster", _sweep),
    "up": Command("run a live system: many learners, their streams and shared memories", _up),
    "status": Command("show how a live system is", _status),
    "tasks": Command("divide a stream into tasks: what methods learn, keep and forget", _tasks),
    "continual": Command("compare methods against forgetting on streams whose world changes", _continual),
    "evaluate": Command("play episodes with a trained policy; make a video", _evaluate),
    "checkpoints": Command("list a run's checkpoints and check them", _checkpoints),
    "report": Command("draw runs as an HTML page and a PNG", _report),
    "bench": Command("measure: speed, learning results, predictions", _bench),
    "doctor": Command("check this installation", _doctor),
}


def _finish(result: RunResult) -> int:
    """Write the report and say where things are."""
    from streamwise.runs.report import write_report

    files = write_report([result.directory])
    mean = "" if result.mean_return is None else f", mean return {result.mean_return:,.1f} (last 20 episodes)"
    print(f"{'stopped' if result.signal else 'done'} at step {result.step:,}{mean}")
    print(f"run:    {result.directory}\nreport: {files.html}\nplot:   {files.png}")
    if result.signal is not None:
        print(f"go on:  streamwise resume {result.directory}")
        return 128 + result.signal
    return 0


def _parse(
    kind: type[Arguments], name: str, argv: list[str], description: str | None = None, default: Any = None
) -> Arguments:
    """Parse flags into a dataclass; a wrong command ends in one line and exit code 2."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: Arguments = tyro.cli(
                kind,
                prog=f"streamwise {name}",
                args=argv,
                description=_with_examples_apart(description or kind.__doc__ or ""),
                default=default,
            )
            return parsed
    except SystemExit as stop:
        if stop.code:
            _fail(2, f"streamwise {name}: {_one_line(errors.getvalue())} See `streamwise {name} --help`.")
        raise


def _with_examples_apart(text: str) -> str:
    """Indent the lines that show commands, which keeps each on a line of its own."""
    lines = inspect.cleandoc(text).splitlines()
    return "\n".join(f"    {line}" if line.startswith("streamwise ") else line for line in lines)


def _one_line(box: str) -> str:
    """Turn tyro's framed message into one line, without its frame, help texts and pointers.

    The frame is drawn with lines or, where the terminal's encoding asks for it, with spaces; inside it every
    line of text begins with two of them.
    """
    kept = []
    for line in box.replace("│", " ").splitlines():
        text = line[2:].rstrip()
        if text.startswith(("For full helptext", "Argument helptext")):
            break
        is_text = line.startswith("  ") and text.strip("─-")
        is_help_text = text.startswith(" " * 8)
        if is_text and not is_help_text:
            kept.append(text.strip())
    return re.sub(r"^Error parsing \w+: ", "", " ".join(kept)).rstrip(".") + "."


def _peek(argv: list[str], flag: str) -> str | None:
    """Return the value of a flag that decides which other flags there are."""
    for position, argument in enumerate(argv):
        if argument == flag and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


def _without_validation(kind: type[Arguments], **values: Any) -> Arguments:
    """Make a frozen dataclass whose environment is not known yet."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        object.__setattr__(made, field.name, values.get(field.name, field.default))
    return made


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: streamwise COMMAND [OPTIONS]\n\n"
        "Learn from streams, one sample at a time.\n\n"
        f"{commands}\n\n"
        "streamwise COMMAND --help explains a command; start with: streamwise train HalfCheetah-v5"
    )


def _fail(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)
