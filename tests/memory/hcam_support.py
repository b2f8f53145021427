"""What tests of chunk attention share: sizes, implementations, and pooling by steps as it is defined."""

from __future__ import annotations

import math

import pytest
import torch

from streamwise.kernels import native_info

IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation",
    [
        "reference",
        pytest.param(
            "auto",
            marks=pytest.mark.skipif(native_info() is None, reason="the native kernels are not built"),
            id="native",
        ),
    ],
)


QUERY, WIDTH, FEATURES, HEADS, LENGTH = 10, 12, 18, 3, 5


def pooled_by_steps(module, contents, steps=None):
    """Summaries by attention pooling, a chunk at a time, of its real steps alone."""
    rows = []
    for i, chunk in enumerate(contents.reshape(-1, *contents.shape[-2:])):
        real = chunk if steps is None else chunk[: steps.flatten()[i]]
        shares = (real @ module.pool_query / math.sqrt(WIDTH)).exp()
        rows.append((shares / shares.sum()) @ real)
    return torch.stack(rows).view(*contents.shape[:-2], WIDTH)
