"""Draws as functions of a seed and a count, so that nothing of a generator has to be kept."""

from __future__ import annotations

import torch

from streamwise.memory.splitmix import mix

__all__ = ["generator_of"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def generator_of(seed: int, count: int) -> torch.Generator:
    """Return the generator of the draws number `count` under a seed.

    Both are mixed: torch looks at the lower 32 bits of a seed and at no others.

    >>> one, other = (torch.rand(3, generator=generator_of(seed, 5)) for seed in (0, 1))
    >>> bool((one != other).all()), bool((one == torch.rand(3, generator=generator_of(0, 5))).all())
    (True, True)
    """
    return torch.Generator().manual_seed(mix((mix(seed & _MASK) + count * _GOLDEN) & _MASK))
