"""Samples that are in memory, in an order of worlds that change: what such streams have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamwise.streams.errors import UsageError, nearest
from streamwise.streams.sample import Example, Position

__all__ = ["ExperienceStream", "Labelled", "Segment", "read_setting"]


def read_setting(url: str, key: str, value: str, known: Mapping[str, Callable[[str], Any]]) -> Any:
    """Return the value of a URL's setting. known: what reads each. Raises UsageError, which names the URL."""
    if key not in known:
        raise UsageError(f"{url}: unknown setting {key!r}.{nearest(key, known)}")
    try:
        return known[key](value)
    except ValueError:
        raise UsageError(f"{url}: {key}={value} is no number.") from None
    except KeyError:
        raise UsageError(f"{url}: {key}={value}; use true or false.") from None


class Labelled(NamedTuple):
    """Examples as arrays. features: float32 [n, ...]. labels: int64 [n]."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


class Segment(NamedTuple):
    """A time for which a world lasts: examples start to stop - 1 of the stream are of this experience."""

    start: int
    stop: int
    experience: int


class ExperienceStream:
    """Examples of several experiences, one after the other.

    training, tests: of each experience, what is learned and what never is. order: experience and row of each
    example, [n, 2]. segments: in the order of the stream.
    """

    def __init__(
        self,
        training: Sequence[Labelled],
        tests: Sequence[Labelled],
        order: NDArray[Any],
        segments: Sequence[Segment],
    ) -> None:
        self.training, self.tests, self.segments = training, tests, segments
        self._order, self._next = order, 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def position(self) -> Position:
        """How many examples there were."""
        return {"example": self._next}

    def seek(self, position: Position) -> None:
        """Go on from `position`."""
        self._next = int(position["example"])

    def commit(self, position: Position) -> None:
        """Nothing: nobody else reads this."""

    def close(self) -> None:
        """Nothing: it is in memory."""

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples from the present position on."""
        while self._next < len(self._order):
            experience, row = self._order[self._next]
            self._next += 1
            features, labels = self.training[experience]
            yield Example(features[row], int(labels[row]))
