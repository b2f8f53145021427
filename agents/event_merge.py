"""Event models that learned from different parts of a stream, made into one, or kept alike.

Every model numbers types in the order in which it met them, so what is numbered by types is put into one
order first. `Layout` says of an array which of its axes those are, and by which rule several become one:

    counts  sums of what was seen: merged by adding shares of them; kept alike by adding what each has counted
            since they were last alike
    sums    sums whose past fades: merged by adding shares; kept alike by their mean
    open    gradients of a step that has yet to be made: merged by adding shares; each keeps its own
    means   weights and averages: their mean, by how many events each has learned
    own     what is a model's own business: of the one that has learned most; each keeps its own
    empty   caches: begun anew; each keeps its own
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamwise.streams import UsageError

if TYPE_CHECKING:
    from streamwise.agents.event_model import EventModel

__all__ = [
    "Layout",
    "Parameters",
    "Part",
    "TypesFullError",
    "adopt",
    "average",
    "merge",
    "parameters",
    "regrouped",
]

Array = NDArray[Any]
Numbering = NDArray[np.int64]
"""int64 [types]: the number that each type gets; -1 where nothing was learned of any."""

_CHUNK = 1024  # keys taken at once
_MOST_HALVINGS = 40


class TypesFullError(UsageError):
    """Models that know more types together than there is room for."""


class Layout(NamedTuple):
    """How an array is numbered, and by which rule several become one.

    axes: which of them are numbered by types, and from which index on. shape: that it is seen in, if not its
    own. A flat array of several parts has a layout for each, in their order.
    """

    rule: Literal["counts", "sums", "open", "means", "own", "empty"]
    axes: Mapping[int, int] = {}
    shape: tuple[int, ...] | None = None
    parts: tuple[tuple[tuple[int, ...], Mapping[int, int]], ...] = ()

    def places(self, shape: tuple[int, ...], numbering: Numbering) -> tuple[Numbering, NDArray[np.bool_]]:
        """Return where every element goes, int64 [elements], and whether its types were seen."""
        places, known, start = [], [], 0
        for part, axes in self.parts or (((self.shape or shape), self.axes),):
            at, seen = _places(part, axes, numbering)
            places.append(at + start)
            known.append(seen)
            start += at.size
        return np.concatenate(places), np.concatenate(known)


@dataclass(frozen=True)
class Part:
    """A model that goes into another. share: of what it has counted; weight: of its averages."""

    model: EventModel
    share: float
    weight: float


@dataclass(frozen=True)
class Parameters:
    """What models that are kept alike share. vocabulary: the types in the order of their numbers."""

    vocabulary: tuple[str, ...]
    overflowed: int
    arrays: dict[str, Array]


# ---- one model of several ----


def merge(into: EventModel, parts: Sequence[Part]) -> None:
    """Make a fresh model of several, the first of which is continued most: its types keep their numbers.

    Their keys come along; where two know a key, the state with the newest event does. Types that have no
    room count as "(other)". Averages of types are over the models that know them.
    """
    room = into.config.types - 1
    names = dict.fromkeys(name for part in parts for name in part.model.vocabulary)
    into.vocabulary = {name: i for i, name in enumerate(list(names)[:room])}
    numberings = [_numbering(part.model.vocabulary, into.vocabulary, room) for part in parts]
    into.overflowed = round(sum(part.share * part.model.overflowed for part in parts))
    is_full = len(names) > room or any(part.model.overflowed for part in parts)
    into.seen[0] = into.config.types if is_full else len(into.vocabulary)
    heaviest = max(range(len(parts)), key=lambda i: parts[i].weight)
    arrays = [part.model.common() for part in parts]
    for name, layout in into.layouts().items():
        target = into.arrays[name]
        at = [layout.places(target.shape, numbering) for numbering in numberings]
        values = [found[name].ravel() for found in arrays]
        if layout.rule == "own":
            target[...] = arrays[heaviest][name].reshape(target.shape)
        elif layout.rule == "means":
            target[...] = _mean(target, at, values, [part.weight for part in parts])
        elif layout.rule != "empty":
            total = np.zeros(target.size, np.float64)
            for where, value, part in zip(at, values, parts, strict=True):
                total += part.share * _moved(value, *where)
            target[...] = total.reshape(target.shape)
    into.settle(parts, heaviest)
    for part, numbering in reversed(list(zip(parts, numberings, strict=True))):
        _take_keys(into, part.model, numbering)


def _numbering(known: Collection[str], vocabulary: Mapping[str, int], other: int) -> Numbering:
    """Return the numbers in another vocabulary of types, given in their own order; of no room, `other`.

    The number after them is that of whatever is new, and stays so.
    """
    numbering = np.full(other + 1, -1, np.int64)
    numbering[: len(known)] = [vocabulary.get(name, other) for name in known]
    numbering[len(known)] = len(vocabulary)
    return numbering


def _places(
    shape: tuple[int, ...], axes: Mapping[int, int], numbering: Numbering
) -> tuple[Numbering, NDArray[np.bool_]]:
    indices = [np.arange(size) for size in shape]
    known = np.ones(shape, bool)
    for axis, start in axes.items():
        at = slice(start, start + len(numbering))
        indices[axis][at] = start + np.maximum(numbering, 0)
        seen = np.ones(shape[axis], bool)
        seen[at] = numbering >= 0
        known &= seen.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    grid = np.ix_(*indices)
    places = np.ravel_multi_index(np.broadcast_arrays(*grid), shape).ravel() if shape else np.zeros(1, int)
    return places.astype(np.int64), known.ravel()


def _mean(
    start: Array,
    at: Sequence[tuple[Numbering, NDArray[np.bool_]]],
    values: Sequence[Array],
    weights: Sequence[float],
) -> Array:
    """Return the weighted mean of what is known, and elsewhere what there was at the start."""
    total, weight = np.zeros((2, start.size))
    if not sum(weights):
        weights = [1.0] * len(weights)
    for (places, known), value, own in zip(at, values, weights, strict=True):
        np.add.at(total, places[known], own * value[known].astype(np.float64))
        np.add.at(weight, places[known], own)
    mean = np.where(weight > 0.0, total / np.where(weight > 0.0, weight, 1.0), start.ravel())
    return mean.reshape(start.shape)


def _take_keys(into: EventModel, model: EventModel, numbering: Numbering) -> None:
    """Take the rows of a model's keys, but for those that are known as of a later event."""
    is_same = bool(np.all((numbering < 0) | (numbering == np.arange(len(numbering)))))
    for names, rows in model.keys.chunks(_CHUNK):
        if not is_same:
            into.renumber_rows(rows, np.maximum(numbering, 0))
        into.receive_rows(rows)
        slots = into.keys.slots(names)
        there = into.keys.rows[slots]
        later = (rows["last_time"] > there["last_time"]) | (
            (rows["last_time"] == there["last_time"]) & (rows["events"] > there["events"])
        )
        later |= there["events"] == 0.0
        into.keys.rows[slots[later]] = rows[later]


def regrouped(columns: Array, numbering: Numbering) -> Array:
    """Return columns [..., types or more] under other numbers, those of one number added up."""
    moved = np.zeros_like(columns)
    for i in range(columns.shape[-1]):
        moved[..., numbering[i] if i < len(numbering) else i] += columns[..., i]
    return moved


# ---- several models kept alike ----


def parameters(model: EventModel) -> Parameters:
    """Return a copy of what a model shares with those that it is kept like."""
    shared = {name for name, layout in model.layouts().items() if layout.rule in ("counts", "sums", "means")}
    arrays = {name: array.copy() for name, array in model.common().items() if name in shared}
    return Parameters(tuple(model.vocabulary), model.overflowed, arrays)


def average(
    like: EventModel,
    found: Sequence[Parameters],
    weights: Sequence[float],
    before: Parameters | None,
) -> Parameters:
    """Return what all of them are to have from now on.

    like: a fresh model of their settings. weights: events that each has learned since they were last alike.
    before: what they all had then; None if that is not known of one of them, and counts, too, are averaged.
    Raises TypesFullError if there is no room for all their types.
    """
    first = () if before is None else before.vocabulary
    names = dict.fromkeys([*first, *(name for one in found for name in one.vocabulary)])
    room = like.config.types - 1
    if len(names) > room or any(one.overflowed for one in found):
        raise TypesFullError(f"the workers know {len(names)} types and more; --types has room for {room}.")
    vocabulary = {name: i for i, name in enumerate(names)}
    numberings = [_numbering(one.vocabulary, vocabulary, room) for one in found]
    arrays = {}
    for name, layout in like.layouts().items():
        if name not in found[0].arrays:
            continue
        start = like.arrays[name]
        at = [layout.places(start.shape, numbering) for numbering in numberings]
        values = [one.arrays[name].ravel() for one in found]
        if layout.rule != "counts":
            arrays[name] = _mean(start, at, values, weights)
            continue
        # A type that one has not met is one that it has counted no times.
        rows = [
            _moved(value, *where).reshape(-1, start.shape[-1])
            for value, where in zip(values, at, strict=True)
        ]
        if before is None:
            total: Array = np.average(rows, 0, weights)
        else:
            total = _counted(before.arrays[name].reshape(-1, start.shape[-1]), rows)
        arrays[name] = total.reshape(start.shape)
    return Parameters(tuple(vocabulary), 0, arrays)


def adopt(model: EventModel, given: Parameters) -> None:
    """Put parameters in place of a model's own; types that it has not met are known from here on."""
    for name in given.vocabulary:
        model.vocabulary.setdefault(name, len(model.vocabulary))
    model.seen[0] = max(model.seen[0], len(model.vocabulary))
    numbering = _numbering(given.vocabulary, model.vocabulary, model.config.types - 1)
    layouts = model.layouts()
    for name, array in given.arrays.items():
        target = model.arrays[name]
        places, known = layouts[name].places(target.shape, numbering)
        flat = target.reshape(-1)
        flat[places[known]] = array.ravel()[known]
    model.settle([], 0)


def _moved(values: Array, places: Numbering, known: NDArray[np.bool_]) -> Array:
    """Return numbers where they belong now, those of one place added up; nothing of types never seen."""
    moved = np.zeros(len(values))
    np.add.at(moved, places[known], values[known])
    return moved


def _counted(before: Array, now: Sequence[Array]) -> Array:
    """Return counts [rows, columns] with what each has counted since `before` added to it.

    A row that one of them has halved meanwhile, so that its past fades, is halved for all.
    """
    kept = np.ones((len(now), len(before), 1))
    for i, counts in enumerate(now):
        for _ in range(_MOST_HALVINGS):
            fallen = (counts < kept[i] * before - 1e-9).any(1)
            if not fallen.any():
                break
            kept[i][fallen] *= 0.5
        else:
            kept[i][fallen] = 0.0
    added = sum(counts - share * before for counts, share in zip(now, kept, strict=True))
    total: Array = np.maximum(kept.min(0) * before + added, 0.0)
    return total
