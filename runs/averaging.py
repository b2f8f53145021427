"""Making the models of several workers alike, every so many seconds, between two polls of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from streamwise.agents import event_model_class
from streamwise.agents.event_merge import Parameters, TypesFullError, average
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.partition_worker import Shared

__all__ = ["Averaging"]

_WITHIN_SECONDS = 5.0


class Averaging:
    """Takes, averages and gives back the parameters of a run's workers.

    config: whose `sync_seconds` say how often. say: is told why there are no more averages. record: is told
    of each, as `Journal.add` is.
    """

    def __init__(
        self, config: IngestConfig[Any], ray: Any, say: Callable[[str], None], record: Callable[..., None]
    ) -> None:
        self.ray, self.say, self.record = ray, say, record
        self.seconds = config.sync_seconds or 0.0
        self.like = event_model_class(config.model)(config.settings, backend="reference")
        self.before: Parameters | None = None
        self.round = 0  # the last that was taken
        self.rounds = 0
        self._due_at = time.monotonic() + self.seconds

    def when_due(self, at_work: Sequence[Any]) -> None:
        """Average, if it is time to and two are at work; at_work: the actors of those that are."""
        if time.monotonic() < self._due_at or len(at_work) < 2:
            return
        self.rounds += 1
        number = self.rounds
        found: list[Shared | None] = self._ask([actor.parameters for actor in at_work], number)
        given = [(actor, shared) for actor, shared in zip(at_work, found, strict=True) if shared is not None]
        averaged = self._average([shared for _, shared in given])
        reference = None if averaged is None else self.ray.put(averaged)
        taken = self._ask([actor.set_parameters for actor, _ in given], number, reference)
        if averaged is not None:
            self.before, self.round = averaged, number
            self.record("averaged", workers=sum(map(bool, taken)), round=number)
        self._due_at = time.monotonic() + self.seconds

    def _average(self, given: Sequence[Shared]) -> Parameters | None:
        weights = [float(shared.events) for shared in given]
        if len(given) < 2 or not sum(weights):
            return None
        alike = all(shared.round == self.round for shared in given) and self.before is not None
        try:
            return average(
                self.like, [shared.parameters for shared in given], weights, self.before if alike else None
            )
        except TypesFullError as error:
            self.say(f"no more averages: {error}")
            self.record("averages ended", message=str(error))
            self.seconds = float("inf")
            return None

    def _ask(self, methods: Sequence[Any], *arguments: Any) -> list[Any]:
        """Call a method of some workers; return what each answers, None for one that does not in time."""
        calls = [method.options(concurrency_group="watch").remote(*arguments) for method in methods]
        if not calls:
            return []
        ready, _ = self.ray.wait(calls, num_returns=len(calls), timeout=_WITHIN_SECONDS)
        answers: list[Any] = [None] * len(calls)
        for place, call in enumerate(calls):
            if call in ready:
                try:
                    answers[place] = self.ray.get(call)
                except self.ray.exceptions.RayError:  # it has died; its other call says so
                    continue
        return answers
