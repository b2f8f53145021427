"""Data sets that come with scikit-learn, as streams of examples whose world changes on the way.

    dataset:digits?schedule=split&experiences=5        classes come in groups, one group after the other
    dataset:breast-cancer?schedule=domains             sorted into ranges of the first feature
    dataset:digits?schedule=permuted&experiences=4     all classes; the pixels in another order each time
    dataset:digits?schedule=rotated                    pictures turned by a quarter each time
    dataset:digits?schedule=gradual                    from one order of pixels to another, little by little
    dataset:digits?schedule=recurring                  worlds A, B, A, C, A
    dataset:digits?schedule=joint                      all classes, nothing changes
    dataset:digits?schedule=split&mixed=true           the experiences of a schedule, all shuffled together

An experience is a world: some classes, a range, an order of pixels. A segment is a time for which it lasts; a
world may come back. `blur` mixes examples over the boundaries of segments, so that these are no instants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from streamwise.streams.errors import UsageError, nearest
from streamwise.streams.experiences import ExperienceStream, Labelled, Segment, read_setting

__all__ = [
    "DATA_SETS",
    "SCHEDULES",
    "DatasetSettings",
    "DatasetStream",
    "dataset_stream",
]

DATA_SETS = ("digits", "wine", "breast-cancer", "iris")
SCHEDULES = ("split", "domains", "permuted", "rotated", "gradual", "recurring", "joint")
_RETURNS = "ABACA"  # of the schedule that recurs
_TEST_SHARE = 5  # one in five of each class


Array = NDArray[Any]


@dataclass(frozen=True)
class DatasetSettings:
    """What changes, when, and in which order; all of it follows from the seed."""

    name: str = "digits"
    """digits, wine, breast-cancer or iris."""
    schedule: str = "split"
    """split, domains, permuted, rotated, gradual, recurring or joint."""
    experiences: int = 5
    """How many worlds, where the schedule does not say (rotated: at most 4; gradual: 2; recurring: 3)."""
    epochs: int = 1
    """Passes over what each segment holds."""
    blur: float = 0.0
    """Share of a segment, 0 to 1, on both sides of a boundary, in which examples change sides."""
    mixed: bool = False
    """All experiences in one segment, shuffled: what could be had if nothing changed."""
    seed: int = 0
    """Of the division into training and test parts, the order of classes and examples, and permutations."""


def dataset_stream(url: str) -> DatasetStream:
    """Return the stream of `dataset:NAME?KEY=VALUE&...`. Raises UsageError for what it cannot be."""
    name, _, query = url.removeprefix("dataset:").partition("?")
    values: dict[str, Any] = {"name": name}
    known: dict[str, Callable[[str], Any]] = {
        "schedule": str, "experiences": int, "epochs": int, "blur": float, "seed": int,
        "mixed": {"true": True, "false": False}.__getitem__,
    }  # fmt: skip
    for key, value in parse_qsl(query, keep_blank_values=True):
        values[key] = read_setting(url, key, value, known)
    return DatasetStream(DatasetSettings(**values))


class DatasetStream(ExperienceStream):
    """Examples in the order of a schedule. Raises UsageError for settings that do not go together.

    features, classes: sizes. training, tests: of each experience, what is learned and what never is.
    segments: in the order of the stream.

    >>> stream = DatasetStream(DatasetSettings("iris", experiences=3))
    >>> [(segment.start, segment.stop, segment.experience) for segment in stream.segments]
    [(0, 40, 0), (40, 80, 1), (80, 120, 2)]
    >>> next(iter(stream)).features.shape, [len(test.labels) for test in stream.tests]
    ((4,), [10, 10, 10])
    """

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings
        _check(settings)
        random = np.random.default_rng(settings.seed)
        train, test = _divided(_loaded(settings.name), random)
        worlds = _WORLDS[settings.schedule](settings, train, test, random)
        train, test = _scaled(settings.name, train, test, worlds[0].train)
        training = [_part(train, world.train, world.columns) for world in worlds]
        tests = [_part(test, world.test, world.columns) for world in worlds]
        super().__init__(training, tests, *_ordered(settings, training, random))
        self.features = train.features.shape[1]
        self.classes = int(train.labels.max()) + 1


def _ordered(
    settings: DatasetSettings, training: Sequence[Labelled], random: np.random.Generator
) -> tuple[NDArray[np.int64], list[Segment]]:
    """Return the world and the row of each example, [n, 2], and the segments."""
    lasting = list(range(len(training)))
    if settings.schedule == "recurring":
        lasting = ["ABC".index(letter) for letter in _RETURNS]
    parts, segments, start = [], [], 0
    for world in lasting:
        rows = [random.permutation(len(training[world].labels)) for _ in range(settings.epochs)]
        part = np.concatenate(rows)
        parts.append(np.stack([np.full(len(part), world), part], axis=1))
        segments.append(Segment(start, start + len(part), world))
        start += len(part)
    order = np.concatenate(parts)
    if settings.mixed:
        return order[random.permutation(len(order))], [Segment(0, len(order), 0)]
    if settings.schedule == "gradual":  # the two worlds have the same rows
        order[:, 0] = random.random(len(order)) < np.arange(len(order)) / len(order)
    for before, after in pairwise(segments):
        reach = int(settings.blur * min(before.stop - before.start, after.stop - after.start))
        for away in range(reach):
            if random.random() < 0.5 * (1.0 - away / reach):
                pair = [before.stop - 1 - away, after.start + away]
                order[pair] = order[pair[::-1]]
    return order, segments


# ---- what the worlds are


class _World(NamedTuple):
    """Which rows of the training and the test part, and in which order their columns."""

    train: Array
    test: Array
    columns: Array


def _split(settings: DatasetSettings, train: Labelled, test: Labelled, random: Any) -> list[_World]:
    classes = random.permutation(int(train.labels.max()) + 1)
    if settings.experiences > len(classes):
        raise UsageError(
            f"{settings.name} has {len(classes)} classes, which do not make {settings.experiences} groups; "
            f"use experiences={len(classes)}, or less."
        )
    groups = np.array_split(classes, settings.experiences)
    return [
        _World(np.isin(train.labels, group), np.isin(test.labels, group), _columns(train)) for group in groups
    ]


def _domains(settings: DatasetSettings, train: Labelled, test: Labelled, random: Any) -> list[_World]:
    inner = np.linspace(0.0, 1.0, settings.experiences + 1)[1:-1]
    edges = np.quantile(train.features[:, 0], inner)
    of_train, of_test = (np.searchsorted(edges, part.features[:, 0]) for part in (train, test))
    return [
        _World(of_train == world, of_test == world, _columns(train)) for world in range(settings.experiences)
    ]


def _permuted(settings: DatasetSettings, train: Labelled, test: Labelled, random: Any) -> list[_World]:
    count = {"gradual": 2, "recurring": 3}.get(settings.schedule, settings.experiences)
    columns = _columns(train)
    orders = [columns, *(random.permutation(columns) for _ in range(count - 1))]
    return [_World(_all(train), _all(test), order) for order in orders]


def _rotated(settings: DatasetSettings, train: Labelled, test: Labelled, random: Any) -> list[_World]:
    columns = _columns(train)
    side = round(len(columns) ** 0.5)
    quarters = range(min(settings.experiences, 4))
    orders = [np.rot90(columns.reshape(side, side), turns).ravel() for turns in quarters]
    return [_World(_all(train), _all(test), order) for order in orders]


def _joint(settings: DatasetSettings, train: Labelled, test: Labelled, random: Any) -> list[_World]:
    return [_World(_all(train), _all(test), _columns(train))]


def _all(part: Labelled) -> Array:
    return np.ones(len(part.labels), np.bool_)


def _columns(part: Labelled) -> Array:
    return np.arange(part.features.shape[1])


def _part(part: Labelled, rows: Array, columns: Array) -> Labelled:
    return Labelled(np.ascontiguousarray(part.features[rows][:, columns]), part.labels[rows])


_WORLDS: dict[str, Callable[..., list[_World]]] = {
    "split": _split,
    "domains": _domains,
    "permuted": _permuted,
    "rotated": _rotated,
    "gradual": _permuted,
    "recurring": _permuted,
    "joint": _joint,
}


def _check(settings: DatasetSettings) -> None:
    if settings.name not in DATA_SETS:
        raise UsageError(f"{settings.name!r} is no data set here.{nearest(settings.name, DATA_SETS)}")
    if settings.schedule not in SCHEDULES:
        raise UsageError(f"{settings.schedule!r} is no schedule.{nearest(settings.schedule, SCHEDULES)}")
    if settings.experiences < 1 or settings.epochs < 1 or not 0.0 <= settings.blur <= 1.0:
        raise UsageError(
            f"experiences is {settings.experiences}, epochs {settings.epochs}, blur {settings.blur}; "
            "use 1 or more, 1 or more, and 0 to 1."
        )
    if settings.schedule == "rotated" and settings.name != "digits":
        raise UsageError(f"{settings.name} has no pictures to turn; use digits.")
    if settings.schedule == "rotated" and settings.experiences > 5:
        raise UsageError("there are four quarters of a turn; use experiences=4, or less.")


def _loaded(name: str) -> Labelled:
    try:
        from sklearn import datasets  # type: ignore[import-untyped]  # it has no types
    except ImportError:
        raise UsageError(
            "data sets come with scikit-learn, which is not installed: pip install 'streamwise[continual]'."
        ) from None
    bundle = getattr(datasets, f"load_{name.replace('-', '_')}")()
    return Labelled(bundle.data.astype(np.float32), bundle.target.astype(np.int64))


def _divided(whole: Labelled, random: np.random.Generator) -> tuple[Labelled, Labelled]:
    """Return training and test parts, with the same shares of each class."""
    tested = np.zeros(len(whole.labels), np.bool_)
    for label in np.unique(whole.labels):
        rows = random.permutation(np.flatnonzero(whole.labels == label))
        tested[rows[: len(rows) // _TEST_SHARE]] = True
    train, test = (Labelled(whole.features[rows], whole.labels[rows]) for rows in (~tested, tested))
    return train, test


def _scaled(name: str, train: Labelled, test: Labelled, first: Array) -> tuple[Labelled, Labelled]:
    """Return features in units that the rows of the first world give; pixels from 0 to 1."""
    mean, deviation = train.features[first].mean(axis=0), train.features[first].std(axis=0)
    deviation = np.where(deviation > 0.0, deviation, np.float32(1.0))
    if name == "digits":
        mean, deviation = np.float32(0.0), np.float32(16.0)
    return (
        Labelled((train.features - mean) / deviation, train.labels),
        Labelled((test.features - mean) / deviation, test.labels),
    )
