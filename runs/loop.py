"""The loop: one sample in, one update made, the sample dropped. The same for every stream and learner."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from streamwise.agents import Learner
from streamwise.streams import NonFiniteSampleError, Stream, Transition

__all__ = ["StopRequest", "learn"]

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
    stream: Stream[Transition],
    learner: Learner,
    *,
    steps: int,
    record: Callable[[Transition, Any], None],
    checkpoint: Callable[..., None],
    checkpoint_every: int,
    show: Callable[[], None],
    stop: StopRequest,
    step: int = 0,
) -> int:
    """Learn from `stream` until `steps` samples have been learned, it ends, or a stop is requested.

    step: samples learned before. show: called every 32 steps. checkpoint: called with last=True at the end.
    Returns the number learned in all; the last one is in a checkpoint.
    Raises NonFiniteSampleError for NaN or an infinity, after a checkpoint of the last good state.
    """
    try:
        for sample in stream:
            record(sample, learner.learn_one(sample))
            step += 1
            if step % _STEPS_BETWEEN_SHOWS == 0:
                show()
            if step >= steps or stop.signal is not None:
                break
            if step % checkpoint_every == 0:
                checkpoint()
    except NonFiniteSampleError:
        checkpoint(last=True)
        raise
    checkpoint(last=True)
    return step
