"""Confidence intervals."""

from __future__ import annotations

import math


def wilson(right: float, items: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share. Source: Wilson 1927; unlike the normal one it is valid near 0 and 1 and for few items."""
    if items == 0:
        return 0.0, 1.0
    z, share = 1.959964, right / items
    middle = share + z * z / (2 * items)
    spread = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    return max(0.0, (middle - spread) / (1 + z * z / items)), min(1.0, (middle + spread) / (1 + z * z / items))
