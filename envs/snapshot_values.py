"""Plain values as JSON and back, bit for bit: numbers, texts, containers, arrays, NumPy's generators."""

from __future__ import annotations

import base64
import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.envs.snapshot_known import class_name

__all__ = [
    "NotPlainError",
    "ValueReader",
    "ValueWriter",
    "array_from_json",
    "array_to_json",
    "from_text",
    "to_text",
]

Json = dict[str, Any]  # holds only what JSON can hold

_BIT_GENERATORS = {kind.__name__: kind for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox)}


class NotPlainError(Exception):
    """A value that no snapshot holds; the text says what it is."""


class ValueWriter:
    """Turns values into JSON. One a snapshot, because it numbers the generators that it sees.

    MinAtar has one generator by two names, and it has to be one afterwards, too. Each name holds all of it,
    for who reads it may come to either first: JSON is stored with its keys sorted.
    """

    def __init__(self) -> None:
        self._generators: list[Any] = []

    def value(self, value: Any) -> Any:
        """Return a value as JSON. Raises NotPlainError if it is none of those."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:  # JSON readers other than Python's stop at 64 bits; generators do not
            return value if -(2**63) <= value < 2**63 else {"kind": "int", "text": str(value)}
        if kind is float:  # JSON has neither infinity nor NaN
            return value if math.isfinite(value) else {"kind": "float", "text": repr(value)}
        if kind is list:
            return [self.value(item) for item in value]
        if kind is tuple:
            return {"kind": "tuple", "items": [self.value(item) for item in value]}
        if kind is deque:
            return {"kind": "deque", "items": [self.value(item) for item in value], "length": value.maxlen}
        if kind is dict:  # pairs, because its keys may be numbers
            return {"kind": "dict", "items": [[self.value(key), self.value(value[key])] for key in value]}
        if kind is np.ndarray or isinstance(value, np.generic):
            return array_to_json(value)
        if kind is np.random.Generator or kind is np.random.RandomState:
            return self.generator(value, "generator" if kind is np.random.Generator else "random state")
        raise NotPlainError(f"a {class_name(kind)}")

    def generator(self, generator: Any, kind: str) -> Json:
        """Return a "generator" or a "random state" of NumPy's as JSON."""
        number = next((i for i, seen in enumerate(self._generators) if seen is generator), None)
        if number is None:
            number = len(self._generators)
            self._generators.append(generator)
        with_gauss = kind == "random state"  # the second of two normal numbers waits there
        state = generator.get_state(legacy=False) if with_gauss else generator.bit_generator.state
        if state["bit_generator"] not in _BIT_GENERATORS:
            raise NotPlainError(f"the generator {state['bit_generator']}")
        return {"kind": kind, "number": number, "state": self.value(state)}


class ValueReader:
    """Reads what a `ValueWriter` wrote."""

    def __init__(self) -> None:
        self._generators: dict[int, Any] = {}  # by their number in the snapshot

    def value(self, saved: Any) -> Any:
        """Return the value. Raises LookupError, TypeError or ValueError for what is none."""
        if isinstance(saved, list):
            return [self.value(item) for item in saved]
        if not isinstance(saved, dict):
            return saved
        match saved["kind"]:
            case "int":
                return int(saved["text"])
            case "float":
                return float(saved["text"])
            case "tuple":
                return tuple(self.value(item) for item in saved["items"])
            case "deque":
                return deque((self.value(item) for item in saved["items"]), saved["length"])
            case "dict":
                return {self.value(key): self.value(item) for key, item in saved["items"]}
            case "array" | "scalar":
                return array_from_json(saved)
        number = saved["number"]
        if number not in self._generators:
            self._generators[number] = self._new_generator(saved["kind"], self.value(saved["state"]))
        return self._generators[number]

    def _new_generator(self, kind: str, state: Any) -> Any:
        bits: Any = _BIT_GENERATORS[state["bit_generator"]](0)
        if kind == "random state":
            generator = np.random.RandomState(bits)
            generator.set_state(state)
            return generator
        bits.state = state
        return np.random.Generator(bits)


def to_text(data: bytes) -> str:
    """Return bytes as text, in Base64."""
    return base64.b64encode(data).decode("ascii")


def from_text(text: str) -> bytes:
    """Return the bytes that a text stands for. Raises ValueError or TypeError for what is no such text."""
    return base64.b64decode(text, validate=True)


def array_to_json(array: NDArray[Any] | np.generic) -> Json:
    """Return an array or a NumPy scalar, of numbers or text, as JSON that `array_from_json` reads exactly."""
    if array.dtype.kind not in "biufcSU":
        raise NotPlainError(f"an array of {array.dtype}")
    return {
        "kind": "array" if isinstance(array, np.ndarray) else "scalar",
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "bytes": to_text(array.tobytes()),
    }


def array_from_json(saved: Json) -> Any:
    """Return the array, writable, or the scalar. Raises LookupError, TypeError or ValueError otherwise."""
    flat = np.frombuffer(from_text(saved["bytes"]), np.dtype(saved["dtype"]))
    array = flat.reshape(saved["shape"]).copy()
    return array if saved["kind"] == "array" else array[()]
