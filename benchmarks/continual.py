"""What methods of continual learning keep: accuracy, forgetting and cost, on data sets whose world changes.

Every learner sees each example once, in batches of ten, and predicts it first. It is told of boundaries by
`consolidate()` and by nothing else. Final: the mean accuracy on all experiences at the end. Forgetting: how
much was lost on each since it had been learned. Online: the share that was right before it was learned. Mean
and standard error over seeds, which draw the order of classes, permutations, examples and first weights.

    OMP_NUM_THREADS=1 python benchmarks/continual.py                     # six minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/continual.py --schedules split
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from streamwise.agents.classifier import Classifier, ClassifierConfig
from streamwise.agents.nearest_mean import NearestMean
from streamwise.memory.continual.ewc import OnlineEWC
from streamwise.memory.continual.key_value_bottleneck import KeyValueBottleneck
from streamwise.memory.continual.prioritized_finetuning import PrioritizedFinetuning
from streamwise.memory.continual.reg_lora import RegLoRA
from streamwise.memory.continual.relation_distillation import RelationDistillation
from streamwise.memory.continual.replay import Replay
from streamwise.memory.continual.view_batch import ViewBatch
from streamwise.runs.continual_metrics import average_accuracy, forgetting
from streamwise.streams.datasets import DatasetStream, dataset_stream

SCHEDULES = {
    "split": "digits?schedule=split&experiences=5",
    "permuted": "digits?schedule=permuted&experiences=5",
    "rotated": "digits?schedule=rotated&experiences=4",
    "gradual": "digits?schedule=gradual",
    "recurring": "digits?schedule=recurring",
    "domains": "breast-cancer?schedule=domains&experiences=4",
}


@dataclass(frozen=True)
class Options:
    """Measure methods of continual learning and print a table for each schedule."""

    schedules: tuple[str, ...] = tuple(SCHEDULES)
    """split, permuted, rotated, gradual, recurring, domains."""
    methods: tuple[str, ...] = ()
    """Of the tables' first column; all if none is named."""
    seeds: int = 5
    """Of everything that is drawn."""


def plain(stream: DatasetStream, seed: int, **settings: Any) -> Classifier:
    """Make what methods are put around."""
    config = ClassifierConfig(batch_size=10, **settings)
    return Classifier(stream.features, stream.classes, config, seed=seed)


def bottleneck(stream: DatasetStream, seed: int, *, keys: str) -> Any:
    """Make a bottleneck whose keys have seen inputs without labels: of all experiences, or of the first."""
    learner = KeyValueBottleneck(
        plain(stream, seed), stream.features, stream.classes, step_scale=30.0, seed=seed
    )
    seen = stream.training[:1] if keys == "first" else stream.training
    learner.move_keys(torch.from_numpy(np.concatenate([part.features for part in seen])), epochs=10)
    return learner


def finetuned(stream: DatasetStream, seed: int, **settings: Any) -> Any:
    """Make a learner that is refreshed."""
    return PrioritizedFinetuning(plain(stream, seed), seed=seed, **settings)


METHODS: dict[str, Callable[[DatasetStream, int], Any]] = {
    "nothing": plain,
    "nearest class mean": lambda stream, seed: NearestMean(stream.features, stream.classes),
    "replay of 50": lambda stream, seed: Replay(plain(stream, seed), capacity=50, seed=seed),
    "replay of 200": lambda stream, seed: Replay(plain(stream, seed), capacity=200, seed=seed),
    "EWC": lambda stream, seed: OnlineEWC(plain(stream, seed)),
    "FPF at boundaries, last layer": lambda stream, seed: finetuned(stream, seed, every=None),
    "FPF at boundaries, all": lambda stream, seed: finetuned(stream, seed, every=None, modules=("",)),
    "k-FPF, last layer": lambda stream, seed: finetuned(stream, seed, final_steps=0),
    "k-FPF, all": lambda stream, seed: finetuned(stream, seed, final_steps=0, modules=("",)),
    "k-FPF-KD, all": lambda stream, seed: finetuned(
        stream, seed, final_steps=0, modules=("",), distillation=0.5
    ),
    "view-batch": lambda stream, seed: ViewBatch(plain(stream, seed), seed=seed),
    "PRD": lambda stream, seed: RelationDistillation(
        plain(stream, seed, step_size=0.02), stream.classes, seed=seed
    ),
    "RegLoRA": lambda stream, seed: RegLoRA(plain(stream, seed), seed=seed),
    "DKVB, keys of all inputs": lambda stream, seed: bottleneck(stream, seed, keys="all"),
    "DKVB, keys of the first": lambda stream, seed: bottleneck(stream, seed, keys="first"),
}


def accuracies(learner: Any, stream: DatasetStream) -> list[float]:
    """Return the accuracy on each experience's test examples."""
    return [
        float((learner.scores(torch.from_numpy(test.features)).argmax(1).numpy() == test.labels).mean())
        for test in stream.tests
    ]


def live(
    make: Callable[[DatasetStream, int], Any], url: str, seed: int
) -> tuple[float, float, float, float, int]:
    """Return final accuracy, forgetting, online accuracy, microseconds an example, and bytes of the state."""
    stream = dataset_stream(f"dataset:{url}&seed={seed}")
    learner = make(stream, seed)
    ends = {segment.stop: segment.experience for segment in stream.segments}
    rows, correct, seconds = {}, [], 0.0
    for number, example in enumerate(stream, start=1):
        began = time.perf_counter()
        correct.append(learner.learn_one(example)["correct"])
        if number in ends:
            learner.consolidate()
        seconds += time.perf_counter() - began
        if number in ends:
            rows[ends[number]] = accuracies(learner, stream)  # of a world that came back, the last
    found = [rows[experience] for experience in sorted(rows)]
    found[-1] = accuracies(learner, stream)
    size = sum(value.numel() * value.element_size() for value in learner.state_dict().values())
    return (
        average_accuracy(found),
        forgetting(found),
        float(np.mean(correct)),
        1e6 * seconds / len(stream),
        size,
    )


def spelled(values: np.ndarray) -> str:
    """Return a mean and its standard error, in percent."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{100 * values.mean():.1f} ± {100 * error:.1f}"


def main() -> None:
    """Measure."""
    options = tyro.cli(Options, description=Options.__doc__)
    console = Console(width=110)
    for method in options.methods:
        if method not in METHODS:
            raise SystemExit(f"there is no method {method!r}; choose from {', '.join(METHODS)}.")
    for schedule in options.schedules:
        if schedule not in SCHEDULES:
            raise SystemExit(f"there is no schedule {schedule!r}; choose from {', '.join(SCHEDULES)}.")
        joint = SCHEDULES[schedule].partition("?")[0] + "?schedule=joint"
        table = Table(title=f"{schedule}: {SCHEDULES[schedule]}, {options.seeds} seeds")
        for column in ("method", "final, %", "forgetting, points", "online, %", "µs an example", "KB"):
            table.add_column(column, justify="left" if column == "method" else "right")
        everything = {"nothing, all mixed": (plain, joint)} if schedule == "split" else {}
        everything |= {name: (make, SCHEDULES[schedule]) for name, make in METHODS.items()}
        for name, (make, url) in everything.items():
            if options.methods and name not in options.methods:
                continue
            found = np.array([live(make, url, seed) for seed in range(options.seeds)])
            final, lost, online, spent, size = found.T
            table.add_row(
                name, spelled(final), spelled(lost), spelled(online), f"{np.median(spent):,.0f}",
                f"{size.max() / 1024:,.0f}",
            )  # fmt: skip
        console.print(table)


if __name__ == "__main__":
    main()
