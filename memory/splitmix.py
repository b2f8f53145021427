"""Draws that need no state: 64 bits mixed from a key and counts."""

from __future__ import annotations

__all__ = ["GOLDEN", "MASK", "mix"]

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd: what counts are multiplied by


def mix(bits: int) -> int:
    """Return 64 bits mixed to other 64 (SplitMix64; Steele, Lea and Flood 2014)."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)
