"""A loss curve in letters, for terminals."""

from __future__ import annotations

from collections.abc import Sequence

BARS = " ▁▂▃▄▅▆▇█"


def curve_lines(points: Sequence[tuple[int, float]], *, width: int = 60, height: int = 8) -> list[str]:
    """The curve through `points` (step, value) as lines of text; values in one column are averaged. Nothing for fewer than two."""
    if len(points) < 2:
        return []
    first, last = points[0][0], points[-1][0]
    columns: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        columns[min(width - 1, (step - first) * width // max(last - first, 1))].append(value)
    means = [sum(column) / len(column) if column else None for column in columns]
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    scale = (height * 8 - 1) / (high - low) if high > low else 0.0
    eighths = [None if mean is None else 1 + round((mean - low) * scale) for mean in means]
    lines = []
    for row in range(height - 1, -1, -1):
        bars = "".join(" " if e is None else BARS[max(0, min(8, e - 8 * row))] for e in eighths)
        label = f"{high:7.3f}" if row == height - 1 else f"{low:7.3f}" if row == 0 else " " * 7
        lines.append(f"{label} │{bars}")
    lines.append(f"{'':7} └{'─' * width}")
    label = f"step {first}"
    lines.append(f"{'':9}{label} {str(last).rjust(width - len(label) - 1)}")
    return lines
