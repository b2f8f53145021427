"""The loop: one sample in, one update made, the sample dropped. The same for every stream and learner."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from streamwise.streams import NonFiniteSampleError, UsageError

__all__ = ["StopRequest", "learn"]

Sample = TypeVar("Sample")

_STEPS_BETWEEN_SHOWS = 32


class StopRequest:
    """Set by SIGINT or SIGTERM: the step under way is finished, then the loop ends."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def on_signals(self) -> Iterator[StopRequest]:
        """Catch SIGINT and SIGTERM inside the block; a second SIGINT stops at once."""

        def request(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def learn(
    samples: Iterable[Sample],
    learn_one: Callable[[Sample], Any],
    *,
    record: Callable[[Sample, Any], None],
    checkpoint: Callable[..., None],
    due: Callable[[int], bool],
    show: Callable[[], None],
    stop: StopRequest,
    steps: float = math.inf,
    step: int = 0,
    size: Callable[[Sample], int] | None = None,
) -> int:
    """Learn from `samples` until `steps` of them have been learned, they end, or a stop is requested.

    learn_one: a learner's. step: samples learned before. due: whether a checkpoint is, at this step. show:
    called every 32 steps. checkpoint: called with last=True at the end. size: where a sample holds several,
    such as the events of one poll, how many; there is a checkpoint only between two polls, and a show after
    each. Returns the number learned in all; the last one is in a checkpoint. Raises NonFiniteSampleError for
    NaN or an infinity, and UsageError for what else the user can mend in the samples, after a checkpoint of
    the last good state (for a UsageError, if anything was learned).
    """
    start = step
    try:
        for sample in samples:
            record(sample, learn_one(sample))
            step += 1 if size is None else size(sample)
            if size is not None or step % _STEPS_BETWEEN_SHOWS == 0:
                show()
            if step >= steps or stop.signal is not None:
                break
            if due(step):
                checkpoint()
    except NonFiniteSampleError:
        checkpoint(last=True)
        raise
    except UsageError:
        if step > start:  # else the user mends it and starts anew, with whatever settings
            checkpoint(last=True)
        raise
    checkpoint(last=True)
    return step
