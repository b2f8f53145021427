"""`streamwise ingest` and `streamwise predict`: event models on live events."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from streamwise.commands.parsing import parse, peek, print_files, without_validation

if TYPE_CHECKING:
    from streamwise.runs.ingest import IngestResult
    from streamwise.runs.ingest_config import IngestConfig

__all__ = ["ingest_command", "predict_command", "run_ingest"]


_INGEST_HELP = """
    Learn from events as they come in: score each one, learn from it, never lose or repeat one.

    Leaves a run directory with settings, metrics, TensorBoard files, checkpoints, refused records, a report.
    The same command again goes on exactly where the run was, whatever ended it.

    streamwise ingest file:events.csv.gz
    streamwise ingest 'file:log.jsonl?time=ts&unit=ms&type=action&key=user.id' --follow --model hawkes
    streamwise ingest kafka://localhost:9092/clicks --serve 8000
    streamwise ingest kafka://localhost:9092/clicks --workers 4
    streamwise ingest synthetic:hawkes --model poisson
    """


def ingest_command(argv: list[str]) -> int:
    """Learn from events. Returns the exit code."""
    from streamwise.agents import EVENT_MODELS, event_model_class
    from streamwise.runs.ingest_config import IngestConfig

    model = peek(argv, "--model") or "counts"
    settings = event_model_class(model).Config()
    default: IngestConfig[Any] = without_validation(
        IngestConfig, sources=tyro.MISSING, settings=settings, model=model
    )
    others = ", ".join(name for name in EVENT_MODELS if name != model)
    help_text = (
        f"{_INGEST_HELP}\n    The settings listed last are those of {model}; add --model NAME to see those "
        f"of {others}."
    )
    kind: Any = IngestConfig[type(settings)]  # type: ignore[misc]  # known only now that the model is
    config: IngestConfig[Any] = parse(kind, "ingest", argv, help_text, default)
    return run_ingest(config)


def run_ingest(config: IngestConfig[Any]) -> int:
    """Start a run on events or go on with it, with one worker or several. Returns the exit code."""
    from streamwise.runs.ingest import ingest
    from streamwise.runs.partitions import is_partitioned

    if config.workers == 1 and not is_partitioned(config.directory):
        return _finish_ingest(ingest(config), config.time_unit)
    from streamwise.runs.partitioned import ingest_partitioned

    return _finish_ingest(ingest_partitioned(config), config.time_unit)


def _finish_ingest(result: IngestResult, time_unit: float) -> int:
    """Say how it went and where things are."""
    scores = result.scores
    nothing_new = ", none of them new" if 0 < result.known == result.events else ""
    print(f"{'stopped' if result.signal else 'done'} after {result.events:,} events{nothing_new}")
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
    if result.dead_letters.get("late", 0) > result.events:
        print("most came late: sort the file by time, or say by --lateness how many seconds late they may be")
    if not result.events and not result.dead_letters and result.signal is None:
        print("nothing came: the sources hold no events")
    print(f"run:    {result.directory}")
    from streamwise.runs.event_report import write_event_report
    from streamwise.streams import UsageError

    try:
        files = write_event_report([result.directory])
        print_files(files)
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

    streamwise predict outputs/events.csv.gz-hawkes --key alice
    streamwise predict outputs/events.csv.gz-hawkes --key alice --horizon 3600 --json
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


def predict_command(argv: list[str]) -> int:
    """Print what is predicted of a key. Returns the exit code."""
    arguments = parse(PredictArguments, "predict", argv)
    from streamwise.runs.ingest import predict
    from streamwise.runs.texts import seconds_text, time_text

    prediction, checkpoint = predict(
        arguments.run, arguments.key, now=arguments.now, horizon=arguments.horizon
    )
    if arguments.json:
        import json

        print(json.dumps(dataclasses.asdict(prediction), allow_nan=False))
        return 0
    p = prediction
    about = (
        f"{p.events:,} events; the last, of type {_printable(p.last_type)}, "
        f"{seconds_text(p.now - p.last_time)} before"
    )
    print(f"key {_printable(p.key)}: {about}")
    if p.mean_wait is None:
        print("no further event is expected")
    else:
        median, low, high = (
            "unknown" if wait is None else seconds_text(wait) for wait in (p.median_wait, *p.intervals["90%"])
        )
        print(f"next event: in {median} (median), between {low} and {high} (90%)")
    if p.probability is not None and p.horizon is not None:
        print(f"within {seconds_text(p.horizon)}: {100 * p.probability:.1f}%")
    ranked = sorted(p.types.items(), key=lambda item: -item[1])
    print("of which type:")
    for name, share in ranked[: arguments.top]:
        print(f"  {100 * share:5.1f}%  {_printable(name)}")
    print(f"as of {time_text(p.now)}, by the checkpoint after {checkpoint.meta['step']:,} events")
    return 0


def _printable(text: str) -> str:
    """Return text of a log as a terminal may see it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
