"""The command line. Exit codes: 0 done, 1 the run failed, 2 the command is wrong, 130 interrupted."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from streamwise.commands.agents import evaluate_command, train_command
from streamwise.commands.events import ingest_command, predict_command
from streamwise.commands.experiments import continual_command, sweep_command, tasks_command
from streamwise.commands.parsing import fail
from streamwise.commands.runs import checkpoints_command, report_command, resume_command
from streamwise.commands.systems import status_command, up_command
from streamwise.commands.tools import bench_command, doctor_command, environments_command

__all__ = ["COMMANDS", "Command", "main", "run_command"]


@dataclass(frozen=True)
class Command:
    """A command: one line of help, and what runs it."""

    summary: str
    run: Callable[[list[str]], int]


COMMANDS = {
    "train": Command("learn from an environment, or predict a time series", train_command),
    "ingest": Command("learn from live events: files, Kafka, Redis Streams", ingest_command),
    "predict": Command("predict a key's next event", predict_command),
    "resume": Command("go on with an interrupted run, or extend a finished one", resume_command),
    "sweep": Command("run environments, agents and seeds on all cores, or on a Ray cluster", sweep_command),
    "up": Command("run a live system: many learners, their streams and shared memories", up_command),
    "status": Command("show how a live system is", status_command),
    "tasks": Command("divide a stream into tasks: what methods learn, keep and forget", tasks_command),
    "continual": Command(
        "compare methods against forgetting on streams whose world changes", continual_command
    ),
    "evaluate": Command("play episodes with a trained policy; make a video", evaluate_command),
    "checkpoints": Command("list a run's checkpoints and check them", checkpoints_command),
    "report": Command("draw runs as an HTML page and a PNG", report_command),
    "bench": Command("measure: speed, learning results, predictions", bench_command),
    "environments": Command("list the names of environments", environments_command),
    "doctor": Command("check this installation", doctor_command),
}


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
        from streamwise.streams.errors import meant

        fail(2, f"streamwise: no command is named {name!r}.{meant(name, COMMANDS)} See `streamwise --help`.")
    run_command(name, COMMANDS[name].run, rest)


def run_command(name: str, run: Callable[[list[str]], int], arguments: list[str]) -> NoReturn:
    """Run what takes these arguments, and exit with its code; what a user can mend is said in one line."""
    from streamwise.streams import DivergedError, NonFiniteSampleError, UsageError
    from streamwise.streams.dead_letters import DeadLetterLimitError

    try:
        with _warnings_as_lines():
            code = run(arguments)
    except UsageError as error:
        fail(2, f"streamwise {name}: {error}")
    except BrokenPipeError:  # whoever reads our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (NonFiniteSampleError, DivergedError, DeadLetterLimitError, OSError) as error:
        fail(1, f"streamwise {name}: {error}")
    except KeyboardInterrupt:
        if any(thread.name == "checkpoints" for thread in threading.enumerate()):
            # At once, like a kill: a thread that is still writing must not outlive the interpreter.
            print(f"streamwise {name}: interrupted.", file=sys.stderr, flush=True)
            os._exit(130)
        fail(130, f"streamwise {name}: interrupted.")
    sys.exit(code)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: streamwise COMMAND [OPTIONS]\n\n"
        "Learn from streams, one sample at a time.\n\n"
        f"{commands}\n\n"
        "streamwise COMMAND --help explains a command; start with: streamwise train HalfCheetah-v5"
    )
