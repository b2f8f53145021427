"""What `synthetic:KIND?NAME=VALUE&...` says of a process: its parameters, read and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import numpy as np

from streamwise.streams.errors import UsageError, meant
from streamwise.streams.point_processes import (
    DEFAULT_TIME_SCALES,
    SHAPES,
    DriftProcess,
    GammaGaps,
    HawkesProcess,
    LogNormalGaps,
    Process,
    RenewalProcess,
)

__all__ = ["KINDS", "Query"]

_HIGHEST_RATE = (
    3_600_000.0  # events of a key per hour; more than a thousand a second come close to the clock's grain
)


class Query:
    """The parameters of a URL; which of them are asked for depends on the process."""

    def __init__(self, kind: str, query: dict[str, str]) -> None:
        self._where = f"synthetic:{kind}"
        self._query = query
        self._asked: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._query

    def text(self, name: str, default: str = "") -> str:
        """Return what is given, or the default, as text."""
        self._asked.append(name)
        return self._query.get(name, default)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """Return a whole number between two, ends included. Raises UsageError for others."""
        text = self.text(name, str(default))
        if not text.isdecimal() or not low <= int(text) <= high:
            raise self.fault(name, f"an integer from {low} to {high}")
        return int(text)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Return a number between two, ends included. Raises UsageError for others."""
        return self._checked(name, self.text(name, repr(default)), low, high)

    def optional(self, name: str, low: float, high: float) -> float | None:
        """Return a number as `number` does; None if none is given."""
        text = self.text(name)
        return self._checked(name, text, low, high) if name in self else None

    def numbers(self, name: str, default: Sequence[float], low: float, high: float) -> list[float]:
        """Return numbers that are given with commas between them, each as `number` does."""
        text = self.text(name, ",".join(map(repr, default)))
        return [self._checked(name, part, low, high) for part in text.split(",")]

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Return one of some words, the first if none is given. Raises UsageError for others."""
        text = self.text(name, choices[0])
        if text not in choices:
            raise self.fault(name, f"one of: {', '.join(choices)}", meant(text, choices))
        return text

    def period(self) -> tuple[float, Literal["seconds", "events"]]:
        """Return how long a regime lasts, and in what. Raises UsageError for what is neither."""
        text = self.text("period", "86400")
        amount = text.removesuffix("events")
        period = self._checked("period", amount, 1e-3, 1e12, ", of seconds, or followed by events")
        return period, "seconds" if amount == text else "events"

    def finish(self) -> None:
        """Raise UsageError for the first parameter that nobody asked for."""
        for name in self._query:
            if name not in self._asked:
                raise UsageError(
                    f"{self._where} does not take {name!r} here.{meant(name, self._asked)} "
                    f"Choose from: {', '.join(self._asked)}."
                )

    def _checked(self, name: str, text: str, low: float, high: float, more: str = "") -> float:
        try:
            number = (
                math.nan if "_" in text else float(text)
            )  # Python reads 1_000 as a number; nobody else does
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise self.fault(name, f"a number from {low:g} to {high:g}{more}")
        return number

    def fault(self, name: str, wanted: str, hint: str = "") -> UsageError:
        """Return the error about a parameter that is given and wrong."""
        return UsageError(f"{name} of {self._where} is {self._query[name]!r}; use {wanted}.{hint}")


def _hawkes(given: Query, seed: int, start: float) -> HawkesProcess:
    return _random_hawkes(given)(np.random.default_rng(seed), 1.0)


def _poisson(given: Query, seed: int, start: float) -> HawkesProcess:
    if "rates" in given:
        rates = np.array(given.numbers("rates", (), 0.0, _HIGHEST_RATE)) / 3_600.0
        if not rates.any():
            raise given.fault("rates", "a rate above 0 for one type or more")
        return HawkesProcess.poisson(rates)
    types, rate = _types(given), _rate(given)
    given.text("rates")
    return HawkesProcess.poisson(rate * np.random.default_rng(seed).dirichlet(np.full(types, 2.0)))


def _renewal(given: Query, seed: int, start: float) -> RenewalProcess:
    types = _types(given)
    gaps: LogNormalGaps | GammaGaps
    if given.choice("gaps", ("lognormal", "gamma")) == "lognormal":
        gaps = LogNormalGaps(given.number("median", 600.0, 1e-3, 1e9), given.number("sigma", 1.0, 0.0, 5.0))
    else:
        gaps = GammaGaps(given.number("mean", 600.0, 1e-3, 1e9), given.number("cv", 1.0, 0.05, 5.0))
    return RenewalProcess(gaps, np.random.default_rng(seed).dirichlet(np.full(types, 0.5), size=types))


def _drift(given: Query, seed: int, start: float) -> DriftProcess:
    shape = cast(Literal["abrupt", "gradual", "recurring"], given.choice("shape", SHAPES))
    count = given.integer("regimes", 3 if shape == "recurring" else 2, 2, 100)
    period, unit = given.period()
    draw = _random_hawkes(given)
    generators = [np.random.default_rng([seed, index]) for index in range(count)]
    # The first has the rate asked for; the others differ from it, up to twice as high or low.
    factors = [1.0, *(2.0 ** generator.uniform(-1.0, 1.0) for generator in generators[1:])]
    regimes = tuple(map(draw, generators, factors))
    return DriftProcess(regimes, shape, period, unit, start)


def _random_hawkes(given: Query) -> Callable[[np.random.Generator, float], HawkesProcess]:
    """Return what draws a process with the parameters given, its rate times a factor."""
    types, rate = _types(given), _rate(given)
    branching = given.number("branching", 0.6, 0.0, 0.999)
    scales = given.numbers("scales", DEFAULT_TIME_SCALES, 1e-3, 1e9)
    return lambda generator, factor: HawkesProcess.random(generator, types, scales, branching, rate * factor)


def _types(given: Query) -> int:
    return given.integer("types", 5, 1, 1_000)


def _rate(given: Query) -> float:
    return given.number("rate", 10.0, 1e-6, _HIGHEST_RATE) / 3_600.0


KINDS: dict[str, Callable[[Query, int, float], Process]] = {
    "hawkes": _hawkes,
    "poisson": _poisson,
    "renewal": _renewal,
    "drift": _drift,
}
