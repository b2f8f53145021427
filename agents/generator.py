"""Random draws whose whole state is two integers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.memory.splitmix import mix

__all__ = ["CounterGenerator", "draws", "mix"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd: the counter visits every value


class CounterGenerator:
    """Uniform and normal draws as a function of (key, counter), so that a checkpoint holds two integers.

    Draw number n is SplitMix64's mixing function of key + n * golden; the same few lines give the same
    bits in C++. Source: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".

    >>> generator = CounterGenerator(seed=0)
    >>> round(generator.uniform(), 6)
    0.883311
    """

    def __init__(self, seed: int) -> None:
        self.key = mix(seed & _MASK)
        self.counter = 0

    def uniform(self) -> float:
        """Draw from [0, 1), with 53 random bits."""
        self.counter += 1
        return (mix((self.key + self.counter * _GOLDEN) & _MASK) >> 11) * 2.0**-53

    def integer(self, below: int) -> int:
        """Draw from 0, 1, ..., below - 1."""
        return min(int(self.uniform() * below), below - 1)

    def normal(self, size: int) -> NDArray[np.float64]:
        """Draw `size` independent standard normals (Box-Muller; a spare one is not kept)."""
        draws = np.empty(size)
        for i in range(0, size, 2):
            radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
            angle = 2.0 * math.pi * self.uniform()
            draws[i] = radius * math.cos(angle)
            if i + 1 < size:
                draws[i + 1] = radius * math.sin(angle)
        return draws

    def state_dict(self) -> dict[str, Tensor]:
        """Return key and counter as one int64 tensor (the key's bits, read as a signed number)."""
        return {"random": torch.tensor([_signed(self.key), self.counter], dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        key, self.counter = (int(number) for number in state["random"])
        self.key = key & _MASK


def draws(key: int, start: int, count: int) -> NDArray[np.float64]:
    """Return draws number start, start + 1, ... of [0, 1) under a key, [count]."""
    numbers = (mix((key + (start + i) * _GOLDEN) & _MASK) >> 11 for i in range(count))
    return np.array([number * 2.0**-53 for number in numbers])


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
